"""Tiles and blocks on every device at once: queued, collected as they are finished, their programs let go."""

from __future__ import annotations

import contextlib
import ctypes
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from relu_study import blocks, engine, tiles
from relu_study.draws import Block, DrawPlan
from relu_study.plan import Plan, Tile
from relu_study.programs import Probing
from relu_study.sums import Sums

T = TypeVar("T", Tile, Block)
N = TypeVar("N")
Arrays = dict[str, np.ndarray]
GIVE_BACK = 10.0  # seconds of a cohort after which freed memory is given back to the system, which takes some milliseconds


def trained(planned: Plan, probing: Probing, keep_params: bool = False) -> Generator[tuple[Tile, Arrays], None, None]:
    """Every tile of a plan with its numbers, in the order they are finished."""

    def start(tile: Tile, device: Any, wanted: Callable[[], bool]) -> Any:
        return tiles.start_tile(list(tile.runs), tile.width, device, probing, sets=tile.sets, wanted=wanted)

    def collect(pending: tiles.Pending) -> Arrays:
        return tiles.collect(pending, keep_params)

    yield from finished(planned.tiles, start, collect, lambda tile: engine.needs(tile.runs, probing), engine.forget)


def drawn(planned: DrawPlan) -> Generator[tuple[Block, Sums], None, None]:
    """Every block of a plan with its sums, in the order they are finished."""
    yield from finished(planned.tiles, blocks.draw_block, lambda sums: sums, blocks.needs, blocks.forget)


def finished(
    planned: Sequence[T],
    start: Callable[[T, Any, Callable[[], bool]], Any],
    collect: Callable[[Any], N],
    needs: Callable[[T], set[tuple[Any, ...]]],
    forget: Callable[[tuple[Any, ...]], None],
) -> Iterator[tuple[T, N]]:
    """Every tile with its numbers, in the order they are finished: `start(tile, device, wanted)`, then `collect` of what it gave.

    One thread per device queues tiles asynchronously, each before the one before it has been waited for. A program is let go
    (`forget`) after the last tile that `needs` it, so that memory grows neither with the number of cohorts nor of data sets.
    """
    todo, lock, stopped = list(planned), threading.Lock(), threading.Event()
    remaining = Counter(key for tile in todo for key in needs(tile))
    done: queue.Queue[Any] = queue.Queue()
    begun: set[str] = set()

    def take(mine: set[str]) -> T | None:
        # A cohort compiles once per device that trains it: stay with one's own, then open a new one, then help out.
        with lock:
            for fits in (lambda t: t.cohort in mine, lambda t: t.cohort not in begun, lambda t: True):
                for i, tile in enumerate(todo):
                    if fits(tile):
                        begun.add(tile.cohort)
                        mine.add(tile.cohort)
                        return todo.pop(i)
            return None

    def work(device: Any) -> None:
        mine: set[str] = set()
        try:
            while not stopped.is_set() and (tile := take(mine)) is not None:
                pending = start(tile, device, lambda: not stopped.is_set())
                if pending is not None:
                    done.put((tile, pending))
        except BaseException as error:
            done.put(error)
        done.put(None)

    threads = [threading.Thread(target=work, args=(device,), daemon=True) for device in jax.devices()]
    for thread in threads:
        thread.start()
    try:
        left, given = len(threads), time.monotonic()
        while left:
            item = done.get()
            if item is None:
                left -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                tile, pending = item
                yield tile, collect(pending)
                remaining.subtract(needs(tile))
                over = [key for key in needs(tile) if not remaining[key]]
                for key in over:
                    forget(key)
                if over or time.monotonic() - given > GIVE_BACK:
                    _give_back()
                    given = time.monotonic()
    except KeyboardInterrupt:
        stopped.set()
        for thread in threads:
            thread.join()
        # What was finished by then is not thrown away.
        while not done.empty():
            if isinstance(item := done.get(), tuple):
                yield item[0], collect(item[1])
        raise
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def _give_back() -> None:
    # glibc keeps what the compiler has freed: some 40 MiB a program and device.
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
