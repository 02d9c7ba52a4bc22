"""Execution of a block of draws on one device: `draw(cell, key)` mapped over the keys of the block."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relu_study.components import random_streams
from relu_study.components.registry import statistics
from relu_study.engine.compilation import ProgramCache, TracedOnce
from relu_study.engine.draw_plan import Block
from relu_study.errors import UserError
from relu_study.stats.streaming_moments import Sums, accumulate
from relu_study.study.draw_study import BLOCK, cell_id

OPERATIONS_PER_DISPATCH = {"cpu": 2.0**24, "gpu": 2.0**36, "tpu": 2.0**36}  # on a CPU about 10 ms, within its cache
IN_FLIGHT = 3  # dispatches queued on a device ahead of the current one


def width(cost: float, platform: str) -> int:
    """Draws per dispatch: the largest power of two whose operations fit one dispatch."""
    wide = 1
    while wide < BLOCK and 2 * wide * cost <= OPERATIONS_PER_DISPATCH.get(platform, OPERATIONS_PER_DISPATCH["cpu"]):
        wide *= 2
    return wide


def seconds(block: Block) -> float:
    """Approximate seconds of a block on one CPU device, without compilation."""
    return block.cost / OPERATIONS_PER_DISPATCH["cpu"] / 100


@ProgramCache
def draw_program(statistic: str, cell: tuple[tuple[str, Any], ...], wide: int) -> Callable[..., Any]:
    """The compiled function from `first` to the draws first..first + wide - 1 of a cell."""
    draw, factors = statistics[statistic].draw, dict(cell)
    name = cell_id(statistic, factors)

    def chunk(first: Any) -> Mapping[str, Any]:
        return jax.vmap(lambda index: draw(factors, random_streams.draw_key(name, index)))(
            first + jnp.arange(wide, dtype=jnp.uint32)
        )

    return TracedOnce(chunk)


def required_programs(block: Block) -> set[tuple[Any, ...]]:
    """The key of the program of a block, for `evict`."""
    return {(block.statistic, block.cell, block.width)}


def evict(key: tuple[Any, ...]) -> None:
    """Evict the program of a finished cell."""
    draw_program.evict(*key)


def check(statistic: str, cell: Mapping[str, Any]) -> None:
    """Raise UserError if a statistic does not draw what it declares. Uses shapes only."""
    entry = statistics[statistic]
    shapes = jax.eval_shape(lambda: entry.draw(cell, random_streams.draw_key("0", 0)))
    if set(shapes) != set(entry.numbers):
        raise UserError(f"statistic {statistic!r} draws {sorted(shapes)} and declares {sorted(entry.numbers)}. Make them equal.")
    along = entry.along(cell)
    for name, number in entry.numbers.items():
        expected = (len(along[number.along]),) if number.along else ()
        if shapes[name].shape != expected:
            raise UserError(f"number {name!r} of statistic {statistic!r} has the shape {shapes[name].shape}, not {expected}")


def draw_block(block: Block, device: Any = None, should_continue: Callable[[], bool] = lambda: True) -> Sums | None:
    """Draw a block on a device and return its sums; None if `should_continue` returns False.

    Sums are accumulated in float64, in the order of the draws.
    """
    program = draw_program(block.statistic, block.cell, block.width)
    numbers, device = statistics[block.statistic].numbers, device or jax.devices()[0]
    queued: deque[tuple[int, Any]] = deque()
    sums: Sums = {}

    def take() -> None:
        count, drawn = queued.popleft()
        for name, values in jax.device_get(drawn).items():
            accumulate(sums, name, np.asarray(values[:count], np.float64), numbers[name].spread)

    for done in range(0, block.count, block.width):
        if not should_continue():
            return None
        queued.append((min(block.width, block.count - done), program(jax.device_put(np.uint32(block.first + done), device))))
        if len(queued) > IN_FLIGHT:
            take()
    while queued:
        take()
    return sums
