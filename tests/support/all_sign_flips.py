"""The sign-flip test by all flips."""

from __future__ import annotations

import itertools

import numpy as np


def brute(difference: np.ndarray) -> tuple[float, float]:
    """Every sign pattern, one after the other in one matrix."""
    signs = np.array(list(itertools.product((1, -1), repeat=len(difference))))
    sums, seen = signs @ difference, difference.sum()
    tie = 1e-9 * np.abs(difference).sum()
    return (sums >= seen - tie).mean(), (sums <= seen + tie).mean()
