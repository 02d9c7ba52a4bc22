"""Draws of a statistic by the engine, and the distance of their means from theory."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from relu_study.components import random_streams
from relu_study.components.registry import statistics
from relu_study.engine import draw_block
from relu_study.engine.draw_plan import Block
from relu_study.stats.streaming_moments import Sums
from relu_study.study.draw_study import cell_id


def drawn(name: str, count: int, **factors: Any) -> dict[str, np.ndarray]:
    """Return the name of each number -> its values in draws 0..count - 1."""
    program = draw_block.draw_program(name, tuple(sorted(statistics[name].cell(**factors).items())), count)
    return {number: np.asarray(values, np.float64) for number, values in program(np.uint32(0)).items()}


def summed(name: str, count: int, wide: int, **factors: Any) -> Sums:
    """Return the sums of draws 0..count - 1, `wide` at a time."""
    cell = statistics[name].cell(**factors)
    sums = draw_block.draw_block(Block(cell_id(name, cell), wide, name, tuple(sorted(cell.items())), 0, count, 1.0))
    assert sums is not None
    return sums


def key_of(name: str, index: int, **factors: Any) -> Key[Array, ""]:
    """Return the key of one of these draws."""
    return random_streams.draw_key(cell_id(name, statistics[name].cell(**factors)), jnp.uint32(index))


def scores(name: str, count: int, **factors: Any) -> dict[str, np.ndarray]:
    """Return the name of each number -> (mean - theory) / standard error, with NaN where the theory is NaN."""
    found, entry = drawn(name, count, **factors), statistics[name]
    z = {}
    for number, theory in entry.theory(entry.cell(**factors)).items():
        wanted, values = np.asarray(theory.value, np.float64), found[number]
        n = np.sum(~np.isnan(values), axis=0)
        variance = wanted * (1 - wanted) if entry.numbers[number].share else np.nanvar(values, axis=0, ddof=1)
        z[number] = (np.nanmean(values, axis=0) - wanted) / np.sqrt(variance / n)
    return z
