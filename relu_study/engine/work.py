"""Work of a plan: its tiles or blocks, the functions that compute them, and the division of cohorts among places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np

from relu_study.engine import compilation, draw_block, train_tile
from relu_study.engine.draw_plan import Block, DrawPlan
from relu_study.engine.plan import Plan, Tile
from relu_study.engine.state import MeasureConfig
from relu_study.stats.streaming_moments import Sums

T = TypeVar("T", bound=Tile | Block)
N = TypeVar("N")
Arrays = dict[str, np.ndarray]


@runtime_checkable
class Fallback(Protocol):
    """Policy for tiles that cannot be computed as planned. Called in the thread that collects."""

    def retile(self, tiles: Sequence[Any], why: str) -> Sequence[Any] | None:
        """The same runs in narrower tiles, if a cohort does not fit in memory; None if the width is minimal or fixed."""

    def give_up(self, tiles: Sequence[Any], why: str) -> None:
        """Called with tiles that do not fit even when no other tile is in memory."""

    def crash(self, tiles: Sequence[Any], why: str) -> None:
        """Called with a tile that ended several workers, or all of a cohort that no worker finishes. None is tried again."""


class Finished(NamedTuple, Generic[T, N]):
    """A finished tile or block, its numbers and the number of its place."""

    tile: T
    numbers: N
    place: int
    compiling: float  # compile time in seconds


@dataclass(frozen=True)
class Work(Generic[T, N]):
    """The tiles or blocks of a plan, and the functions that compute their numbers."""

    tiles: Sequence[T]
    cost: Callable[[T], float]  # relative
    start: Callable[[T, jax.Device, Callable[[], bool]], Any]  # queues a tile on a device; None if the last argument is False
    collect: Callable[[Any], N]  # waits for the numbers of a queued tile
    required_programs: Callable[[T], set[tuple[Any, ...]]]  # the keys of the programs of a tile
    evict: Callable[[tuple[Any, ...]], None]  # frees a program by its key


def training(plan: Plan, measure_config: MeasureConfig, keep_params: bool = False) -> Work[Tile, Arrays]:
    """The training of every tile of a plan."""

    def start(tile: Tile, device: jax.Device, should_continue: Callable[[], bool]) -> train_tile.QueuedTile | None:
        return train_tile.start_tile(
            list(tile.runs), tile.width, device, measure_config, num_datasets=tile.num_datasets, should_continue=should_continue
        )

    return Work(
        plan.tiles,
        plan.cost,
        start,
        lambda pending: train_tile.fetch(pending, keep_params),
        lambda tile: compilation.required_programs(tile.runs, measure_config),
        compilation.evict,
    )


def drawing(plan: DrawPlan) -> Work[Block, Sums]:
    """The drawing of every block of a plan."""
    start, programs = draw_block.draw_block, draw_block.required_programs
    return Work(plan.tiles, plan.cost, start, lambda sums: sums, programs, draw_block.evict)


def costs(planned: Sequence[T], cost: Callable[[T], float]) -> dict[str, float]:
    """The total cost of the tiles of each cohort."""
    totals: dict[str, float] = {}
    for tile in planned:
        totals[tile.cohort] = totals.get(tile.cohort, 0.0) + cost(tile)
    return totals


def assign_devices(planned: Sequence[T], cost: Callable[[T], float], devices: int) -> dict[str, int]:
    """The device number of each cohort: the total `cost` per device is equal to within one cohort."""
    assigned: dict[str, int] = {}
    loads = [0.0] * devices
    for cohort, total in sorted(costs(planned, cost).items(), key=lambda item: -item[1]):
        assigned[cohort] = loads.index(min(loads))
        loads[assigned[cohort]] += total
    return assigned
