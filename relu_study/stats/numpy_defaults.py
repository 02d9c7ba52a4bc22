"""NumPy's default error states and print options, independent of the user's settings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

PRINTED: Any = {
    **{"precision": 8, "threshold": 1000, "edgeitems": 3, "linewidth": 75, "suppress": False, "nanstr": "nan", "infstr": "inf"},
    **{"formatter": None, "sign": "-", "floatmode": "maxprec", "legacy": False},
}


@contextlib.contextmanager
def numpy_defaults() -> Iterator[None]:
    """Apply NumPy's default error states and print options, as a context manager or a decorator."""
    with np.errstate(divide="warn", over="warn", invalid="warn", under="ignore"), np.printoptions(**PRINTED):
        yield
