"""The scale of every histogram: powers of two on either side of zero, and a bin for exact zero alone."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

LEAST, MOST = -24, 7  # exponents k of the innermost and outermost bins [2^k, 2^(k+1)) on either side of zero
SIDE = MOST - LEAST + 1
BINS = 2 * SIDE + 1
KINDS = ("pre", "post", "gradient")  # what is counted at each site


def edges() -> Float[np.ndarray, "66"]:
    """The borders of the 65 bins in rising order: -2^8 .. -2^-24, 2^-24 .. 2^8; between the two in the middle lies exact zero.

    What is smaller than 2^-24 or not smaller than 2^8 in size is counted in the innermost or outermost bin of its sign.
    """
    above = 2.0 ** np.arange(LEAST, MOST + 2)
    return np.concatenate([-above[::-1], above])
