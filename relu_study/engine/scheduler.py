"""Scheduler of tiles and blocks: queue them on every device, collect them, and retile cohorts that do not fit in memory."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np

from relu_study.components.entry_errors import entry_errors, out_of_memory_reason
from relu_study.engine import compilation, draw_block, train_tile
from relu_study.engine.compile_time import thread_compile_seconds
from relu_study.engine.draw_plan import Block, DrawPlan
from relu_study.engine.places import places
from relu_study.engine.plan import Plan, Tile
from relu_study.engine.state import MeasureConfig
from relu_study.stats.streaming_moments import Sums

T = TypeVar("T", bound=Tile | Block)
N = TypeVar("N")
Arrays = dict[str, np.ndarray]
TRIM_INTERVAL = 10.0  # seconds between calls of malloc_trim, which takes some milliseconds


@runtime_checkable
class Fallback(Protocol):
    """Policy for a cohort that does not fit in memory. Called in the thread that collects."""

    def retile(self, tiles: Sequence[Any], why: str) -> Sequence[Any] | None:
        """The same runs in narrower tiles; None if the width is minimal or fixed."""

    def give_up(self, tiles: Sequence[Any], why: str) -> None:
        """Called with tiles that do not fit even when no other tile is in memory."""


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


def finished(work: Work[T, N], fallback: Fallback | None = None) -> Generator[Finished[T, N], None, None]:
    """Run every tile. Yields tiles with their numbers in the order of completion.

    The numbers of a tile are `work.collect(work.start(tile, device, should_continue))`. One thread per place queues tiles
    asynchronously, each before the previous one has finished.
    By `work.cost`, each cohort is assigned to a place. On accelerators the same plan then finds most programs in JAX's cache,
    whose keys include the device.
    A program is evicted after the last tile that requires it, so memory does not grow with the number of cohorts or
    datasets.
    If a tile does not fit in memory, `fallback` retiles its whole cohort. If it cannot, the tile is retried after all
    others, with no other tile in memory.
    """
    scheduler = _Scheduler(work, fallback)
    threads = [threading.Thread(target=scheduler.run_on, args=(i, device), daemon=True) for i, device in enumerate(places())]
    for thread in threads:
        thread.start()
    with entry_errors():
        try:
            yield from scheduler.finished()
            yield from scheduler.retry_serially(places()[0])
        except KeyboardInterrupt:
            scheduler.stop()
            for thread in threads:
                thread.join()
            yield from scheduler.already_finished()
            raise
        finally:
            scheduler.stop()
            for thread in threads:
                thread.join()


@dataclass(frozen=True)
class _Pending(Generic[T]):
    """A queued tile, or the reason (`why`) why it does not fit."""

    tile: T
    pending: Any
    place: int
    compiling: float = 0.0
    why: str = ""


class _Scheduler(Generic[T, N]):
    """The unfinished tiles, shared by the threads of the places that start them and the caller that collects them."""

    def __init__(self, work: Work[T, N], fallback: Fallback | None) -> None:
        self.work, self.fallback, self.last_trim = work, fallback, time.monotonic()
        self.todo: list[T] = list(work.tiles)
        self.remaining = Counter(key for tile in work.tiles for key in work.required_programs(tile))
        self.unfinished: dict[str, list[T]] = {}  # cohort -> its unfinished tiles
        for tile in work.tiles:
            self.unfinished.setdefault(tile.cohort, []).append(tile)
        self.assigned = assign_devices(work.tiles, work.cost, len(places()))
        self.started: set[str] = set()
        self.oom_cohorts: set[str] = set()  # cohorts that do not fit: no device takes their tiles
        self.in_flight = 0  # tiles started and not yet collected
        self.changed, self.stopped = threading.Condition(), False
        self.done: queue.Queue[_Pending[T] | BaseException] = queue.Queue()

    def run_on(self, number: int, device: jax.Device) -> None:
        """Queue tiles on the device of a place until none is unfinished."""
        compiled: set[str] = set()
        while (tile := self._next_tile(number, compiled)) is not None:
            try:
                before = thread_compile_seconds()
                pending = self.work.start(tile, device, lambda: not self.stopped)
                if pending is not None:
                    self.done.put(_Pending(tile, pending, number, thread_compile_seconds() - before))
            except BaseException as error:
                why = out_of_memory_reason(error) if self.fallback else ""
                if not why:
                    self.done.put(error)
                    return
                with self.changed:
                    if self._current(tile):
                        self.oom_cohorts.add(tile.cohort)
                self.done.put(_Pending(tile, None, number, why=why))

    def _next_tile(self, number: int, compiled: set[str]) -> T | None:
        # Each cohort compiles once per device. Preference: a cohort this place has started, an unstarted one assigned to it, any
        # unstarted one, any.
        with self.changed:
            while not self.stopped and self.unfinished:
                for fits in (
                    lambda t: t.cohort in compiled,
                    lambda t: t.cohort not in self.started and self.assigned[t.cohort] == number,
                    lambda t: t.cohort not in self.started,
                    lambda t: True,
                ):
                    for i, tile in enumerate(self.todo):
                        if fits(tile) and tile.cohort not in self.oom_cohorts:
                            self.started.add(tile.cohort)
                            compiled.add(tile.cohort)
                            self.in_flight += 1
                            return self.todo.pop(i)
                self.changed.wait()  # a tile in flight may still be retiled
        return None

    def finished(self) -> Iterator[Finished[T, N]]:
        """Yield tiles in the order of completion, until only those of `oom_cohorts` are unfinished."""
        while self.in_flight or self.unfinished.keys() - self.oom_cohorts:
            item = self.done.get()
            if isinstance(item, BaseException):
                raise item
            with self.changed:
                self.in_flight -= 1
            if not self._current(item.tile):
                continue  # its cohort has been retiled since
            numbers, why = self._numbers(item)
            if why:
                self._retile(item.tile, why)
            else:
                yield Finished(item.tile, numbers, item.place, item.compiling)
                self._finish(item.tile)

    def already_finished(self) -> Iterator[Finished[T, N]]:
        """Yield the tiles that were finished when the caller was interrupted."""
        while not self.done.empty():
            item = self.done.get()
            if isinstance(item, _Pending) and self._current(item.tile):
                numbers, why = self._numbers(item)
                if not why:
                    yield Finished(item.tile, numbers, item.place, item.compiling)

    def retry_serially(self, device: jax.Device) -> Iterator[Finished[T, N]]:
        """Retry the tiles of `oom_cohorts` one at a time. The first that does not fit ends its cohort."""
        for cohort in sorted(self.oom_cohorts & self.unfinished.keys()):
            for tile in list(self.unfinished[cohort]):
                before = thread_compile_seconds()
                numbers, why = self._catch_oom(functools.partial(self._run_serially, tile, device))
                if why:
                    assert self.fallback is not None
                    self.fallback.give_up(self.unfinished[cohort], why)
                    break
                yield Finished(tile, numbers, 0, thread_compile_seconds() - before)
                self._finish(tile)

    def stop(self) -> None:
        """Start no further tile."""
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def _numbers(self, item: _Pending[T]) -> tuple[Any, str]:
        return (None, item.why) if item.why else self._catch_oom(lambda: self.work.collect(item.pending))

    def _catch_oom(self, collect: Callable[[], N]) -> tuple[Any, str]:
        """The numbers of a tile, or the reason why it does not fit. XLA runs asynchronously and reports it only on collection."""
        try:
            return collect(), ""
        except Exception as error:
            if not self.fallback or not (why := out_of_memory_reason(error)):
                raise
            return None, why

    def _run_serially(self, tile: T, device: jax.Device) -> N:
        return self.work.collect(self.work.start(tile, device, lambda: True))

    def _current(self, tile: T) -> bool:
        return any(tile is one for one in self.unfinished.get(tile.cohort, ()))

    def _retile(self, tile: T, why: str) -> None:
        assert self.fallback is not None
        with self.changed:
            self.oom_cohorts.add(tile.cohort)
        self._release_programs(self.unfinished[tile.cohort], immediately=True)
        gc.collect()
        _malloc_trim()
        narrow: Sequence[T] | None = self.fallback.retile(self.unfinished[tile.cohort], why)
        remaining = narrow or self.unfinished[tile.cohort]
        self.remaining.update(key for other in remaining for key in self.work.required_programs(other))
        with self.changed:
            self.todo = [other for other in self.todo if other.cohort != tile.cohort]
            if narrow is not None:
                self.unfinished[tile.cohort] = list(narrow)
                self.todo = [*narrow, *self.todo]
                self.oom_cohorts.discard(tile.cohort)
            self.changed.notify_all()

    def _finish(self, tile: T) -> None:
        with self.changed:
            self.unfinished[tile.cohort] = [other for other in self.unfinished[tile.cohort] if other is not tile]
            if not self.unfinished[tile.cohort]:
                del self.unfinished[tile.cohort]
                self.changed.notify_all()
        if self._release_programs([tile]) or time.monotonic() - self.last_trim > TRIM_INTERVAL:
            _malloc_trim()
            self.last_trim = time.monotonic()

    def _release_programs(self, tiles: Sequence[T], immediately: bool = False) -> bool:
        """Evict the programs that no later tile requires, or all of these tiles if `immediately`; whether any was evicted."""
        keys = Counter(key for tile in tiles for key in self.work.required_programs(tile))
        self.remaining.subtract(keys)
        unused = [key for key in keys if immediately or not self.remaining[key]]
        for key in unused:
            self.work.evict(key)
        return bool(unused)


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


def _malloc_trim() -> None:
    # glibc keeps the memory that the compiler has freed: about 40 MiB per program and device.
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
