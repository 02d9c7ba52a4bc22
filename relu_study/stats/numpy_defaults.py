"""NumPy's own settings, so that a user's error states and print options change no output."""

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
    """NumPy's settings as they first are, as a context or a decorator: a user's own stop no function of ours."""
    with np.errstate(divide="warn", over="warn", invalid="warn", under="ignore"), np.printoptions(**PRINTED):
        yield
