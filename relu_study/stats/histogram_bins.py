"""The two scales of histograms, each with 64 bins and one more for exact zero.

Powers of two on either side of zero are the rule. The outputs of a bounded activation have equal bins over its range.
Count 32 of the 65 is that of exact zero on both scales.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

MIN_EXPONENT, MAX_EXPONENT = -24, 7  # exponents k of the innermost and outermost bins [2^k, 2^(k+1)) on either side of zero
BINS_PER_SIDE = MAX_EXPONENT - MIN_EXPONENT + 1
BINS = 2 * BINS_PER_SIDE + 1
KINDS = ("pre", "post", "gradient")  # what is counted at each site
LINEAR, POWERS = "linear where bounded", "powers of two"  # provenance: the scales of a study's histograms

Range = tuple[float, float]


def edges() -> Float[np.ndarray, "66"]:
    """The borders of the 65 bins in rising order: -2^8 .. -2^-24, 2^-24 .. 2^8; between the two in the middle lies exact zero.

    What is smaller than 2^-24 or not smaller than 2^8 in size is counted in the innermost or outermost bin of its sign.
    """
    above = 2.0 ** np.arange(MIN_EXPONENT, MAX_EXPONENT + 2)
    return np.concatenate([-above[::-1], above])


def bounded(values: Range) -> Range | None:
    """The range of an activation with these `values` where it is finite on both sides and not a single point, else None."""
    low, high = map(float, values)
    return (low, high) if low < high and math.isfinite(high - low) else None


def linear_edges(low: float, high: float) -> Float[np.ndarray, "65"]:
    """The borders of the 64 equal bins over [low, high]. Bin i holds [edge i, edge i + 1); the last also holds `high`.

    Counts 0..31 and 33..64 of a histogram are those of the 64 bins. Zeros are counted apart from the bin around them.
    """
    return np.linspace(low, high, 2 * BINS_PER_SIDE + 1)
