"""Tile width of a cohort on an accelerator, from a short measurement of its training program."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from relu_study.components.entry_errors import out_of_memory_reason
from relu_study.components.registry import tasks
from relu_study.engine import compilation, train_tile
from relu_study.engine.plan import WIDTH_LIMITS, Cohort, Tile
from relu_study.engine.state import MeasureConfig
from relu_study.engine.train_step import steps_per_epoch

CANDIDATES = 4  # widths that are measured, each half of the one before
TOLERANCE = 0.03  # a width is as fast as the fastest one if its rate is at most this share below
STEPS, REPEATS = 64, 3  # of the measured piece

Rate = Callable[[Tile], float]  # training steps per second, summed over the runs of a tile


def fastest_width(cohort: Cohort, platform: str, memory: int | None, rate: Rate) -> tuple[int, dict[int, float]]:
    """Return the fastest tile width of a cohort, and the measured rate of each tried width.

    The candidates are powers of two, from the cohort's provisional width down. Two tiles must fit into the device's `memory`, in
    bytes (None: no bound). A width that runs out of memory has no rate.
    The search ends after a rate below the fastest by more than `TOLERANCE`, or after `CANDIDATES` rates.
    The result is the narrowest width whose rate is within `TOLERANCE` of the fastest. If no width has a rate, it is the narrowest
    of the platform.
    """
    least = WIDTH_LIMITS.get(platform, WIDTH_LIMITS["cpu"]).least
    rates: dict[int, float] = {}
    wide = cohort.width
    while len(rates) < CANDIDATES and wide >= least:
        candidate = cohort.with_width(wide)
        if memory is None or wide == least or 2 * candidate.bytes() <= memory:
            measured = _rate_or_none(rate, max(candidate.tiles, key=lambda tile: (tile.size, tile.num_datasets)))
            if measured is not None:
                rates[wide] = measured
                if measured < (1 - TOLERANCE) * max(rates.values()):
                    break
        wide //= 2
    if not rates:
        return least, {}
    return min(width for width, one in rates.items() if one >= (1 - TOLERANCE) * max(rates.values())), rates


def _rate_or_none(rate: Rate, tile: Tile) -> float | None:
    try:
        return rate(tile)
    except Exception as error:
        if not out_of_memory_reason(error):
            raise
        return None


def steps_per_second(
    tile: Tile,
    device: Any = None,
    measure_config: MeasureConfig = MeasureConfig(),
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the training steps per second, summed over the runs of a tile, of a short piece of its training program.

    The piece is at most `STEPS` steps of the first epoch. The best of `REPEATS` counts; the compilation does not.
    """
    device = device or jax.devices()[0]
    specs = [*tile.runs, *[tile.runs[0]] * (tile.width - tile.size)]
    state, data, seeds, hparams, _, source = train_tile.init_tile(specs, device, measure_config, tile.num_datasets)
    steps = min(STEPS, steps_per_epoch(tasks[specs[0].task](specs[0]).signature.train_rows, specs[0].batch_size))
    at = [jax.device_put(np.int32(number), device) for number in (1, 0, steps)]
    table: Sequence[Any] = () if data.table is None else (data.table,)
    advance = compilation.tile_programs(specs[0], measure_config).advance

    def seconds() -> float:
        began = clock()
        jax.block_until_ready(advance(state, data.train, seeds, hparams, *at, source, *table))
        return clock() - began

    jax.block_until_ready(state)
    seconds()  # compiles
    return tile.width * steps / min(seconds() for _ in range(REPEATS))
