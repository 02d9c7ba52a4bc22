"""The sign-flip test by enumeration of all sign patterns."""

from __future__ import annotations

import itertools

import numpy as np


def brute(difference: np.ndarray) -> tuple[float, float]:
    """Return the p values of a mean above 0 and of a mean below 0, from a matrix of all sign patterns."""
    signs = np.array(list(itertools.product((1, -1), repeat=len(difference))))
    sums, seen = signs @ difference, difference.sum()
    tie = 1e-9 * np.abs(difference).sum()
    return (sums >= seen - tie).mean(), (sums <= seen + tie).mean()
