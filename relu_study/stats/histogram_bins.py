"""The two scales of histograms, each with 64 bins and one bin for exact zero.

The default scale has bins at powers of two on either side of zero. The post of a bounded activation has equal bins over its
range. On both scales, bin 32 of the 65 counts exact zeros.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

MIN_EXPONENT, MAX_EXPONENT = -24, 7  # exponents k of the innermost and outermost bins [2^k, 2^(k+1)) on either side of zero
BINS_PER_SIDE = MAX_EXPONENT - MIN_EXPONENT + 1
BINS = 2 * BINS_PER_SIDE + 1
KINDS = ("pre", "post", "gradient")  # the histograms of each site
LINEAR, POWERS = "linear where bounded", "powers of two"  # the scales of a study's histograms, as in its provenance

Range = tuple[float, float]


def edges() -> Float[np.ndarray, "66"]:
    """Return the ascending edges of the 65 bins: -2^8 .. -2^-24, 2^-24 .. 2^8. The middle bin holds exact zero.

    Magnitudes below 2^-24 are in the innermost bin of their sign, magnitudes from 2^8 on in the outermost.
    """
    above = 2.0 ** np.arange(MIN_EXPONENT, MAX_EXPONENT + 2)
    return np.concatenate([-above[::-1], above])


def bounded(values: Range) -> Range | None:
    """Return the range `values` of an activation if it is finite and has a positive length, else None."""
    low, high = map(float, values)
    return (low, high) if low < high and math.isfinite(high - low) else None


def linear_edges(low: float, high: float) -> Float[np.ndarray, "65"]:
    """Return the edges of the 64 equal bins over [low, high]. Bin i is [edge i, edge i + 1); the last one includes `high`.

    Counts 0..31 and 33..64 of a histogram belong to the 64 bins. Exact zeros are counted separately.
    """
    return np.linspace(low, high, 2 * BINS_PER_SIDE + 1)
