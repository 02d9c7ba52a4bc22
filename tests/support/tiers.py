"""Tiers of test cases, and the compiler settings of the fast tier."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import pytest

# Without fusion emitters, LLVM optimisation and parallel codegen, XLA compiles twice as fast. The flags are for
# known versions only, since XLA ends the process at a flag that it does not know.
QUICK = (
    "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    if jax.__version_info__ < (0, 11)
    else ""
)
SHIPPED = {"xla_cpu_use_fusion_emitters": True, "xla_cpu_parallel_codegen_split_count": 32}  # XLA's defaults


def tiered(cases: Iterable[Any], *fast: Any) -> list[Any]:
    """Return all cases, and mark as slow the cases that are not among `fast`."""
    every = list(cases)
    assert all(case in every for case in fast), f"{fast} are not all among {every}"
    return [
        case if case in fast else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in every
    ]
