"""Tiles and blocks on every device at once: queued, collected as they are finished, narrower where they do not fit."""

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
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np

from relu_study.components.entry_errors import entry_errors, out_of_memory_reason
from relu_study.engine import compilation, draw_block, train_tile
from relu_study.engine.compile_time import thread_compile_seconds
from relu_study.engine.draw_plan import Block, DrawPlan
from relu_study.engine.plan import Plan, Tile
from relu_study.engine.state import MeasureConfig
from relu_study.stats.streaming_moments import Sums

T = TypeVar("T", Tile, Block)
N = TypeVar("N")
Arrays = dict[str, np.ndarray]
GIVE_BACK = 10.0  # seconds of a cohort after which freed memory is given back to the system, which takes some milliseconds


@runtime_checkable
class Fallback(Protocol):
    """Who decides what becomes of a cohort that does not fit in memory; asked in the thread that collects."""

    def narrower(self, tiles: Sequence[Any], why: str) -> Sequence[Any] | None:
        """The same runs in narrower tiles; None where these are the narrowest, or their width is settled."""

    def unfit(self, tiles: Sequence[Any], why: str) -> None:
        """Told of tiles that did not fit either when nothing ran beside them."""


class Finished(NamedTuple, Generic[T, N]):
    """A tile or block with its numbers, and the number of the device that made them."""

    tile: T
    numbers: N
    device: int
    compiling: float  # seconds that went into its programs


def trained(
    planned: Plan, probing: MeasureConfig, keep_params: bool = False, fallback: Fallback | None = None
) -> Generator[Finished[Tile, Arrays], None, None]:
    """Every tile of a plan with its numbers, in the order they are finished."""

    def start(tile: Tile, device: Any, wanted: Callable[[], bool]) -> Any:
        return train_tile.start_tile(list(tile.runs), tile.width, device, probing, num_datasets=tile.num_datasets, wanted=wanted)

    def collect(pending: train_tile.QueuedTile) -> Arrays:
        return train_tile.fetch(pending, keep_params)

    with entry_errors():
        yield from finished(
            planned.tiles,
            planned.cost,
            start,
            collect,
            lambda tile: compilation.required_programs(tile.runs, probing),
            compilation.evict,
            fallback,
        )


def drawn(planned: DrawPlan, fallback: Fallback | None = None) -> Generator[Finished[Block, Sums], None, None]:
    """Every block of a plan with its sums, in the order they are finished."""
    with entry_errors():
        yield from finished(
            planned.tiles, planned.cost, draw_block.draw_block, lambda sums: sums, draw_block.needs, draw_block.forget, fallback
        )


def finished(
    planned: Sequence[T],
    price: Callable[[T], float],
    start: Callable[[T, Any, Callable[[], bool]], Any],
    collect: Callable[[Any], N],
    needs: Callable[[T], set[tuple[Any, ...]]],
    forget: Callable[[tuple[Any, ...]], None],
    fallback: Fallback | None = None,
) -> Iterator[Finished[T, N]]:
    """Every tile with its numbers, in the order they are finished: `start(tile, device, wanted)`, then `collect` of what it gave.

    One thread per device queues tiles asynchronously, each before the one before it has been waited for. By their `price` each
    cohort has a home, the device that begins it unless that one is late: the same plan compiles again little of what JAX's cache,
    which keeps programs by device, has from the last time. A program is let go (`forget`) after the last tile that `needs` it, so
    that memory grows neither with the number of cohorts nor of data sets. A tile that does not fit in memory is cut anew with its
    whole cohort, as the `fallback` says; where that cannot be, it is tried once more when all others are finished and nothing
    runs beside it.
    """
    line = _Scheduler(planned, price, start, collect, needs, forget, fallback)
    threads = [threading.Thread(target=line.work, args=(i, device), daemon=True) for i, device in enumerate(jax.devices())]
    for thread in threads:
        thread.start()
    try:
        yield from line.finished()
        yield from line.alone(jax.devices()[0])
    except KeyboardInterrupt:
        line.stop()
        for thread in threads:
            thread.join()
        yield from line.already_finished()
        raise
    finally:
        line.stop()
        for thread in threads:
            thread.join()


class _Pending(NamedTuple):
    """A tile that was queued, or `why` it did not fit."""

    tile: Any
    pending: Any
    device: int
    compiling: float = 0.0
    why: str = ""


class _Scheduler:
    """The tiles that are still to be done: devices take them from one end, the caller has them finished at the other."""

    def __init__(
        self, planned: Sequence[Any], price: Any, start: Any, collect: Any, needs: Any, forget: Any, fallback: Fallback | None
    ) -> None:
        self.todo, self.start, self.collect, self.fallback = list(planned), start, collect, fallback
        self.needs, self.forget, self.given = needs, forget, time.monotonic()
        self.remaining = Counter(key for tile in planned for key in needs(tile))
        self.left: dict[str, list[Any]] = {}  # cohort -> its tiles that are not finished
        for tile in planned:
            self.left.setdefault(tile.cohort, []).append(tile)
        self.home = assign_devices(planned, price, len(jax.devices()))
        self.begun: set[str] = set()
        self.held: set[str] = set()  # cohorts that did not fit: nobody takes their tiles
        self.flying = 0  # tiles that a device took and the caller has not seen
        self.changed, self.stopped = threading.Condition(), False
        self.done: queue.Queue[_Pending | BaseException] = queue.Queue()

    def work(self, number: int, device: Any) -> None:
        """Queue tiles on a device until none is left."""
        mine: set[str] = set()
        while (tile := self._take(number, mine)) is not None:
            try:
                before = thread_compile_seconds()
                pending = self.start(tile, device, lambda: not self.stopped)
                if pending is not None:
                    self.done.put(_Pending(tile, pending, number, thread_compile_seconds() - before))
            except BaseException as error:
                why = out_of_memory_reason(error) if self.fallback else ""
                if not why:
                    self.done.put(error)
                    return
                with self.changed:
                    if self._current(tile):
                        self.held.add(tile.cohort)
                self.done.put(_Pending(tile, None, number, why=why))

    def _take(self, number: int, mine: set[str]) -> Any:
        # A cohort compiles once per device that trains it: stay with one's own, then begin one at home here, then any, then help.
        with self.changed:
            while not self.stopped and self.left:
                for fits in (
                    lambda t: t.cohort in mine,
                    lambda t: t.cohort not in self.begun and self.home[t.cohort] == number,
                    lambda t: t.cohort not in self.begun,
                    lambda t: True,
                ):
                    for i, tile in enumerate(self.todo):
                        if fits(tile) and tile.cohort not in self.held:
                            self.begun.add(tile.cohort)
                            mine.add(tile.cohort)
                            self.flying += 1
                            return self.todo.pop(i)
                self.changed.wait()  # a tile in flight may yet have to be cut anew
        return None

    def finished(self) -> Iterator[Finished[Any, Any]]:
        """Tiles as they are finished, until none is left but those that are `held`."""
        while self.flying or self.left.keys() - self.held:
            item = self.done.get()
            if isinstance(item, BaseException):
                raise item
            with self.changed:
                self.flying -= 1
            if not self._current(item.tile):
                continue  # its cohort has been cut anew since
            numbers, why = self._tried(functools.partial(self.collect, item.pending)) if not item.why else (None, item.why)
            if why:
                self._cut_anew(item.tile, why)
            else:
                yield Finished(item.tile, numbers, item.device, item.compiling)
                self._finish(item.tile)

    def already_finished(self) -> Iterator[Finished[Any, Any]]:
        """Tiles that were finished when the caller was interrupted: they are not thrown away."""
        while not self.done.empty():
            item = self.done.get()
            if isinstance(item, _Pending) and not item.why and self._current(item.tile):
                numbers, why = self._tried(functools.partial(self.collect, item.pending))
                if not why:
                    yield Finished(item.tile, numbers, item.device, item.compiling)

    def alone(self, device: Any) -> Iterator[Finished[Any, Any]]:
        """The tiles that did not fit beside others, one by one; the first that does not fit alone speaks for its cohort."""
        for cohort in sorted(self.held & self.left.keys()):
            for tile in list(self.left[cohort]):
                before = thread_compile_seconds()
                numbers, why = self._tried(functools.partial(self._at_once, tile, device))
                if why:
                    assert self.fallback is not None
                    self.fallback.unfit(self.left[cohort], why)
                    break
                yield Finished(tile, numbers, 0, thread_compile_seconds() - before)
                self._finish(tile)

    def stop(self) -> None:
        """No further tile is begun."""
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def _tried(self, collect: Callable[[], Any]) -> tuple[Any, str]:
        """The numbers of a tile, or why it did not fit: XLA computes while others wait, and says so only when asked for them."""
        try:
            return collect(), ""
        except Exception as error:
            if not self.fallback or not (why := out_of_memory_reason(error)):
                raise
            return None, why

    def _at_once(self, tile: Any, device: Any) -> Any:
        return self.collect(self.start(tile, device, lambda: True))

    def _current(self, tile: Any) -> bool:
        return any(tile is one for one in self.left.get(tile.cohort, ()))

    def _cut_anew(self, tile: Any, why: str) -> None:
        assert self.fallback is not None
        with self.changed:
            self.held.add(tile.cohort)
        self._let_go(self.left[tile.cohort], at_once=True)
        gc.collect()
        _give_back()
        cut = self.fallback.narrower(self.left[tile.cohort], why)
        self.remaining.update(key for other in cut or self.left[tile.cohort] for key in self.needs(other))
        with self.changed:
            self.todo = [other for other in self.todo if other.cohort != tile.cohort]
            if cut is not None:
                self.left[tile.cohort] = list(cut)
                self.todo = [*cut, *self.todo]
                self.held.discard(tile.cohort)
            self.changed.notify_all()

    def _finish(self, tile: Any) -> None:
        with self.changed:
            self.left[tile.cohort] = [other for other in self.left[tile.cohort] if other is not tile]
            if not self.left[tile.cohort]:
                del self.left[tile.cohort]
                self.changed.notify_all()
        if self._let_go([tile]) or time.monotonic() - self.given > GIVE_BACK:
            _give_back()
            self.given = time.monotonic()

    def _let_go(self, tiles: Sequence[Any], at_once: bool = False) -> bool:
        """Forget the programs that no tile needs after these, or all of theirs `at_once`; whether there were any."""
        keys = Counter(key for tile in tiles for key in self.needs(tile))
        self.remaining.subtract(keys)
        over = [key for key in keys if at_once or not self.remaining[key]]
        for key in over:
            self.forget(key)
        return bool(over)


def costs(planned: Sequence[Any], price: Callable[[Any], float]) -> dict[str, float]:
    """The price of each cohort's tiles together."""
    found: dict[str, float] = {}
    for tile in planned:
        found[tile.cohort] = found.get(tile.cohort, 0.0) + price(tile)
    return found


def assign_devices(planned: Sequence[Any], price: Callable[[Any], float], devices: int) -> dict[str, int]:
    """The home of each cohort, a device's number: by `price` all have as much to do, to within a cohort."""
    found: dict[str, int] = {}
    asked = [0.0] * devices
    for cohort, cost in sorted(costs(planned, price).items(), key=lambda one: -one[1]):
        found[cohort] = asked.index(min(asked))
        asked[found[cohort]] += cost
    return found


def _give_back() -> None:
    # glibc keeps what the compiler has freed: some 40 MiB a program and device.
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
