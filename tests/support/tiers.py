"""Tiers of test cases, and the compiler settings of the fast tier."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import pytest

# Without its fusion emitters XLA compiles 1.6 times as fast; a later one does not know the flag, and ends the process over it.
QUICK = "--xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""


def tiered(cases: Iterable[Any], *fast: Any) -> list[Any]:
    """Return all cases, with those not named as fast in the slow tier."""
    every = list(cases)
    assert all(case in every for case in fast), f"{fast} are not all among {every}"
    return [
        case if case in fast else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in every
    ]
