"""Streaming moments of draws: counts, sums, sums of squares and histograms that merge across blocks. Only NumPy.

For each quantity NAME:

- `n:NAME`: number of draws in which it is defined;
- `sum:NAME`: sum of its values;
- `m2:NAME`: sum of squared deviations from the mean;
- `bins:NAME`: counts in 2,048 bins, for quantities with a stored distribution.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

BINS = 2048

Sums = dict[str, np.ndarray]


def accumulate(sums: Sums, name: str, values: Float[np.ndarray, "k *s"], spread: Sequence[float] | None = None) -> None:
    """Add k draws of a quantity to `sums`. NaN is undefined; values outside `spread` count in the nearest end bin."""
    defined = ~np.isnan(values)
    n, total = defined.sum(axis=0), np.where(defined, values, 0).sum(axis=0)
    mean = total / np.maximum(n, 1)
    m2 = np.where(defined, (values - mean) ** 2, 0).sum(axis=0)
    part = {f"{kind}:{name}": np.asarray(value) for kind, value in (("n", n), ("sum", total), ("m2", m2))}
    if spread is not None:
        part[f"bins:{name}"] = _binned(values, defined, *spread)
    merge(sums, part)


def _binned(
    values: Float[np.ndarray, "k *s"], defined: Bool[np.ndarray, "k *s"], low: float, high: float
) -> Int[np.ndarray, "*s bins"]:
    shape, values, defined = values.shape[1:], values.reshape(len(values), -1), defined.reshape(len(values), -1)
    bin_ = np.clip((np.where(defined, values, low) - low) * (BINS / (high - low)), 0, BINS - 1).astype(np.int64)
    counts = np.bincount((bin_ + BINS * np.arange(values.shape[1]))[defined], minlength=BINS * values.shape[1])
    return counts.reshape(*shape, BINS)


def merge(sums: Sums, part: Sums) -> None:
    """Add the sums of other draws to `sums`, exactly for 0/1 quantities and without cancellation in m2.

    Source: Chan, Golub & LeVeque 1983, The American Statistician 37, 242-247, equation 2.1.
    """
    for key, value in part.items():
        kind, _, name = key.partition(":")
        if key not in sums:
            continue
        if kind == "m2":
            (n, total), (m, other) = ((s[f"n:{name}"], s[f"sum:{name}"]) for s in (sums, part))
            gap = np.where((n > 0) & (m > 0), total / np.maximum(n, 1) - other / np.maximum(m, 1), 0)
            sums[key] = np.asarray(sums[key] + value + gap**2 * n * m / np.maximum(n + m, 1))
    for key, value in part.items():
        if key not in sums:
            sums[key] = value
        elif not key.startswith("m2:"):
            sums[key] = np.asarray(sums[key] + value)


def quantiles(
    counts: Int[np.ndarray, "*s bins"], spread: Sequence[float], levels: Sequence[float]
) -> Float[np.ndarray, "*s levels"]:
    """Return the quantiles of a distribution from its bin counts, assumed uniform within a bin; NaN without counts.

    Values in the first and the last bin count at the end of the range: values beyond the range are in these bins.
    """
    shape, low, step = counts.shape[:-1], spread[0], (spread[1] - spread[0]) / BINS
    result = np.full((int(np.prod(shape)), len(levels)), np.nan)
    for row, bin_counts in enumerate(counts.reshape(-1, BINS)):
        below = np.concatenate([[0], np.cumsum(bin_counts)])
        if below[-1]:
            occupied = np.flatnonzero(bin_counts)  # an empty bin has no quantile
            for column, level in enumerate(levels):
                bin_ = occupied[min(np.searchsorted(below[occupied + 1], level * below[-1]), len(occupied) - 1)]
                inside = (level * below[-1] - below[bin_]) / bin_counts[bin_]
                inside = float(bin_ > 0) if bin_ in (0, BINS - 1) else min(max(inside, 0.0), 1.0)
                result[row, column] = low + step * (bin_ + inside)
    return result.reshape(*shape, len(levels))
