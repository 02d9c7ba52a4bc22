"""Counts, sums and spreads of draws: taken from single draws, put together, and read as estimates. NumPy alone.

For each number NAME: `n:NAME`, in how many draws it is defined; `sum:NAME`; `m2:NAME`, the sum of squares about the mean; and for
a number whose distribution is kept `bins:NAME`, counts in 2,048 bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

BINS = 2048

Sums = dict[str, np.ndarray]


def accumulate(sums: Sums, name: str, values: Float[np.ndarray, "k *s"], spread: Sequence[float] | None = None) -> None:
    """Count k draws of a number in; NaN is not defined, and what lies outside of `spread` counts as its nearer end."""
    known = ~np.isnan(values)
    n, total = known.sum(axis=0), np.where(known, values, 0).sum(axis=0)
    mean = total / np.maximum(n, 1)
    m2 = np.where(known, (values - mean) ** 2, 0).sum(axis=0)
    part = {f"{kind}:{name}": np.asarray(value) for kind, value in (("n", n), ("sum", total), ("m2", m2))}
    if spread is not None:
        part[f"bins:{name}"] = _binned(values, known, *spread)
    merge(sums, part)


def _binned(
    values: Float[np.ndarray, "k *s"], known: Bool[np.ndarray, "k *s"], low: float, high: float
) -> Int[np.ndarray, "*s bins"]:
    shape, values, known = values.shape[1:], values.reshape(len(values), -1), known.reshape(len(values), -1)
    place = np.clip((np.where(known, values, low) - low) * (BINS / (high - low)), 0, BINS - 1).astype(np.int64)
    counts = np.bincount((place + BINS * np.arange(values.shape[1]))[known], minlength=BINS * values.shape[1])
    return counts.reshape(*shape, BINS)


def merge(sums: Sums, part: Sums) -> None:
    """Count other draws in, exactly for shares; squares about the mean do not cancel.

    Source: Chan, Golub & LeVeque 1983, The American Statistician 37, 242-247, equation 2.1.
    """
    for key, value in part.items():
        kind, _, name = key.partition(":")
        if key not in sums:
            continue
        if kind == "m2":
            (n, total), (m, other) = ((s[f"n:{name}"], s[f"sum:{name}"]) for s in (sums, part))
            apart = np.where((n > 0) & (m > 0), total / np.maximum(n, 1) - other / np.maximum(m, 1), 0)
            sums[key] = np.asarray(sums[key] + value + apart**2 * n * m / np.maximum(n + m, 1))
    for key, value in part.items():
        if key not in sums:
            sums[key] = value
        elif not key.startswith("m2:"):
            sums[key] = np.asarray(sums[key] + value)


def quantiles(
    counts: Int[np.ndarray, "*s bins"], spread: Sequence[float], levels: Sequence[float]
) -> Float[np.ndarray, "*s levels"]:
    """Quantiles of a distribution from its counts, spread evenly within a bin; NaN where there are none.

    What counts in the first or the last bin lies at the end itself, as all does that was beyond it.
    """
    shape, low, step = counts.shape[:-1], spread[0], (spread[1] - spread[0]) / BINS
    found = np.full((int(np.prod(shape)), len(levels)), np.nan)
    for row, of_bins in enumerate(counts.reshape(-1, BINS)):
        below = np.concatenate([[0], np.cumsum(of_bins)])
        if below[-1]:
            some = np.flatnonzero(of_bins)  # an empty bin holds no quantile
            for column, level in enumerate(levels):
                bin_ = some[min(np.searchsorted(below[some + 1], level * below[-1]), len(some) - 1)]
                inside = (level * below[-1] - below[bin_]) / of_bins[bin_]
                inside = float(bin_ > 0) if bin_ in (0, BINS - 1) else min(max(inside, 0.0), 1.0)
                found[row, column] = low + step * (bin_ + inside)
    return found.reshape(*shape, len(levels))
