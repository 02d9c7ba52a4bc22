"""Lowering of programs for accelerators on a machine without one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import pytest

from relu_study.engine import compilation, draw_block, train_tile
from relu_study.engine.state import MeasureConfig
from relu_study.study.run_spec import RunSpec

PLATFORMS = ("cuda", "tpu")
CUSTOM_CALLS = {"cu_threefry2x32_ffi"}  # JAX's random bits, which are the same on every platform
SMALL = MeasureConfig(200, 100)


def refusals(traced: Any, platform: str) -> list[str]:
    """Return the reasons why a traced function is not fit for a platform. Lowering itself raises for an unknown operation."""
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    reasons = [f"custom call {name}" for name in sorted(set(re.findall(r"custom_call @([\w.]+)", text)) - CUSTOM_CALLS)]
    if re.search(r"tensor<(\d+x)*(f64|complex<f64>)>", text):
        reasons.append("double precision")
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line or "stablehlo.convolution" in line]
    # At its default precision an accelerator rounds the factors of a product to 8 or 11 bits.
    if any("HIGHEST" not in line and re.search(r"tensor<(\d+x)*f32>", line) for line in products):
        reasons.append("a product of floats below the highest precision")
    return reasons


class LoweredPrograms:
    """The programs that the engine dispatches: each is lowered for all platforms, and returns zeros in place of its results."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._fit: set[tuple[int, str]] = set()

    def dispatch(self, program: compilation.TracedOnce, *args: Any) -> Any:
        name, traced = program.jitted.__name__, program.jitted.trace(*args)
        for platform in PLATFORMS if (key := (id(program), str(traced.out_info))) not in self._fit else ():
            assert refusals(traced, platform) == [], f"{name} on {platform}"
        self._fit.add(key)
        self.names.append(name)
        return jax.tree.map(_zeros, traced.out_info)


def _zeros(shape: Any) -> Any:
    if jax.dtypes.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(np.zeros((*shape.shape, 2), np.uint32))
    return jax.device_put(np.zeros(shape.shape, shape.dtype))


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Let the engine build its programs as on a backend of JAX: "cpu", "gpu" or "tpu"."""
    compilation.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: name)
        yield
    compilation.clear()
    draw_block.draw_program.clear()


@contextmanager
def lowered_programs() -> Iterator[LoweredPrograms]:
    """Let the engine build its programs as on an accelerator, and lower every dispatched program in place of running it."""
    programs = LoweredPrograms()
    with backend("gpu"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation.TracedOnce, "__call__", lambda program, *args: programs.dispatch(program, *args))
        yield programs


def lower_tile(specs: Iterable[RunSpec], measure_config: MeasureConfig = SMALL, **options: Any) -> list[str]:
    """Lower every program of a tile of these runs, as the engine dispatches it. Returns the names of the programs."""
    runs = list(specs)
    with lowered_programs() as programs:
        assert train_tile.start_tile(runs, len(runs), jax.devices()[0], measure_config, **options) is not None
    return programs.names


def lower_block(statistic: str, cell: dict[str, Any], wide: int = 4) -> None:
    """Lower the program of a block of draws."""
    with lowered_programs() as programs:
        programs.dispatch(draw_block.draw_program(statistic, tuple(sorted(cell.items())), wide), np.uint32(0))
