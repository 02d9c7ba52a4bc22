"""Scheduler of tiles and blocks: start them at every place, collect them, and retile cohorts that do not fit in memory."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Generic

from relu_study.components.entry_errors import entry_errors, out_of_memory_reason
from relu_study.engine.affinity import Affinity
from relu_study.engine.flights import Arrival, Flight, Flights, compare
from relu_study.engine.places import DevicePlace, DevicePlaces, Place, PlaceLost, Places, places
from relu_study.engine.program_use import ProgramUse
from relu_study.engine.waiting_tiles import WaitingTiles
from relu_study.engine.work import Fallback, Finished, N, T, Work
from relu_study.errors import UserError

IDLE_POLL = 0.5  # seconds between looks of an idle place for a tile to repeat
PLACES_POLL = 1.0  # seconds between looks for new, lost and slow places
NO_PLACE_SECONDS = 600.0  # without a place, until the run ends


def finished(
    work: Work[T, N], fallback: Fallback | None = None, at: Places | None = None
) -> Generator[Finished[T, N], None, None]:
    """Run every tile. Yields tiles with their numbers in the order of completion.

    `at` gives the places (default: the devices of this machine, which queue tiles asynchronously, each before the previous one
    has finished). Each slot of a place has a thread.
    A program is evicted after the last tile that requires it, so memory does not grow with the number of cohorts or
    datasets.
    If a tile does not fit in memory, `fallback` retiles its whole cohort. If it cannot, the tile is retried after all
    others, with no other tile in memory.
    The tiles of a lost place go to other places. At the end, idle places repeat overdue tiles; the first answer counts.

    Raises:
        UserError: two places return different numbers for one tile although their bits must be equal, or no place is left.
    """
    if at is None:
        at = DevicePlaces([DevicePlace(i, device, work.start, work.collect) for i, device in enumerate(places())])
    scheduler = _Scheduler(work, fallback, at)
    scheduler.open()
    with entry_errors():
        try:
            yield from scheduler.finished()
            yield from scheduler.retry_serially()
        except KeyboardInterrupt:
            scheduler.close()
            yield from scheduler.already_finished()
            raise
        finally:
            scheduler.close()


class _Scheduler(Generic[T, N]):
    """The unfinished tiles, shared by the threads of the places that start them and the caller that collects them."""

    def __init__(self, work: Work[T, N], fallback: Fallback | None, at: Places) -> None:
        self.work, self.fallback, self.at, self.programs = work, fallback, at, ProgramUse(work)
        self.waiting = WaitingTiles(work.tiles)
        self.unfinished: dict[str, dict[int, T]] = {}  # cohort -> its unfinished tiles by id
        for tile in work.tiles:
            self.unfinished.setdefault(tile.cohort, {})[id(tile)] = tile
        self.affinity = Affinity(work, ())
        self.oom_cohorts: set[str] = set()  # cohorts that do not fit: no place takes their tiles
        self.lacking: Counter[str] = Counter()  # cohort -> its lacks of memory that the caller has not taken
        self.flights = Flights(work.cost)
        self.known: set[Place] = set()  # places with threads
        self.changed, self.lost, self.stopped = threading.Condition(), threading.Event(), False
        self.threads: list[threading.Thread] = []
        self.done: queue.Queue[Arrival | BaseException] = queue.Queue()

    # ------------------------------------------------------------------------------------- places

    def open(self) -> None:
        """Start the threads of all places."""
        first = self.at.current()
        self.affinity = Affinity(self.work, first)
        self._update(first)
        if self.at.changing:
            self._run(self._watch)

    def close(self) -> None:
        """Start no further tile, and wait for the threads."""
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
        self.lost.set()
        self.at.close()
        for thread in self.threads:
            thread.join()

    def _run(self, function: Callable[..., object], *arguments: Any) -> None:
        self.threads.append(thread := threading.Thread(target=function, args=arguments, daemon=True))
        thread.start()

    def _update(self, current: Sequence[Place]) -> None:
        """Start the threads of new places. The threads of lost places end."""
        with self.changed:
            new = [place for place in current if place not in self.known]
            self.known = set(current)
            self.changed.notify_all()
        for place in new:
            for _ in range(place.slots):
                self._run(self.run_at, place)

    def _watch(self) -> None:
        """Follow the places, and end workers that are far over the forecast of a tile."""
        last_place = time.monotonic()
        try:
            while not self.stopped:
                self.lost.wait(PLACES_POLL)
                self.lost.clear()
                if self.stopped:
                    return
                self._update(current := self.at.current())
                last_place = time.monotonic() if current else last_place
                if time.monotonic() - last_place > NO_PLACE_SECONDS:
                    raise UserError(
                        f"no place to train was left for {NO_PLACE_SECONDS / 60:.0f} minutes. Stored results are kept; start "
                        "workers and run the same command again."
                    )
                with self.changed:
                    slow = self.flights.slow()
                for flight in slow:
                    self.at.kill(flight.place, flight.hung)
        except BaseException as error:
            self.done.put(error)

    def run_at(self, place: Place) -> None:
        """Start tiles at a place until none is unfinished."""
        own: set[str] = set()
        while (flight := self._next_flight(place, own)) is not None:
            if not self._run_flight(flight):
                return

    def _run_flight(self, flight: Flight) -> bool:
        """Run a tile at its place, and report its end. Whether the place can take another tile."""
        lost, why, started = None, "", None
        try:
            started = flight.place.start(flight.tile, lambda: not self.stopped)
        except PlaceLost as error:
            lost = error
        except BaseException as error:
            why = out_of_memory_reason(error) if self.fallback else ""
            if not why:
                self.done.put(error)
                return False
        with self.changed:
            self.flights.arrive(flight, started)
            self.lacking[flight.tile.cohort] += bool(why)
        if started is not None or why or lost is not None:
            self.done.put(Arrival(flight, started, why, lost))
        return lost is None

    def _next_flight(self, place: Place, own: set[str]) -> Flight | None:
        def rank(cohort: str) -> int | None:
            return None if self.lacking[cohort] else self.affinity.rank(cohort, place, own)

        with self.changed:
            while not self.stopped and self.unfinished and place in self.known:
                tile = None if self._reserved(place) else self.waiting.take(rank, lambda t: not self.flights.crowded(t, place))
                if tile is not None:
                    own.add(tile.cohort)
                    self.affinity.start(tile.cohort, place)
                    return self.flights.begin(tile, place)
                idle = self.at.changing and not self.flights.busy(place)
                if idle and (late := self.flights.to_repeat(place, self.oom_cohorts)) is not None:
                    return self.flights.begin(late, place)
                poll = IDLE_POLL + len(self.flights.of_tile) / 200 if self.at.changing else None
                self.changed.wait(poll)  # a tile in flight may still be retiled, lost or repeated
        return None

    def _reserved(self, place: Place) -> bool:
        """Whether the last tiles are for places that have none, so that none waits at a busy place."""
        if not self.at.changing or len(self.waiting) >= len(self.known) or not self.flights.busy(place):
            return False
        return len(self.waiting) <= len(self.known) - len({flight.place for flight in self.flights})

    # --------------------------------------------------------------------------------- collection

    def finished(self) -> Iterator[Finished[T, N]]:
        """Yield tiles in the order of completion, until only those of `oom_cohorts` are unfinished."""
        while self._is_awaited():
            item = self.done.get()
            if isinstance(item, BaseException):
                raise item
            yield from self._received(item)

    def _is_awaited(self) -> bool:
        with self.changed:
            return self.flights.awaited or bool(self.unfinished.keys() - self.oom_cohorts)

    def _received(self, item: Arrival) -> Iterator[Finished[T, N]]:
        tile, started = item.flight.tile, item.started
        with self.changed:
            self.flights.end(item.flight)
        if item.lost is not None:
            self._lose(item.flight, item.lost)
        elif item.flight.answered:
            compare(item, self.at)
        elif self._current(tile):  # else its cohort has been retiled since
            numbers, why = self._numbers(item)
            if why:
                self._retile(tile, why)
            else:
                with self.changed:
                    self.flights.answer(tile, (numbers, item.flight))
                yield Finished(tile, numbers, item.flight.place.number, started.compiling if started else 0.0)
                self._finish(tile)
        if item.why:
            with self.changed:
                self.lacking[tile.cohort] -= 1
                self.changed.notify_all()

    def already_finished(self) -> Iterator[Finished[T, N]]:
        """Yield the tiles that were finished when the caller was interrupted."""
        while not self.done.empty():
            item = self.done.get()
            if isinstance(item, Arrival) and item.started and not item.flight.answered and self._current(item.flight.tile):
                numbers, why = self._numbers(item)
                if not why:
                    yield Finished(item.flight.tile, numbers, item.flight.place.number, item.started.compiling)
                    self._finish(item.flight.tile)

    def retry_serially(self) -> Iterator[Finished[T, N]]:
        """Retry the tiles of `oom_cohorts` one at a time. The first that does not fit ends its cohort."""
        for cohort in sorted(self.oom_cohorts & self.unfinished.keys()):
            for tile in list(self.unfinished[cohort].values()):
                while self._current(tile):  # else it is given up
                    item = self._run_serially(tile)
                    if item.lost is not None:
                        self._lose(item.flight, item.lost)
                        continue
                    numbers, why = self._numbers(item)
                    if why:
                        assert self.fallback is not None
                        self.fallback.give_up(list(self.unfinished.pop(cohort).values()), why)
                        continue
                    yield Finished(tile, numbers, item.flight.place.number, item.started.compiling if item.started else 0.0)
                    self._finish(tile)

    def _run_serially(self, tile: T) -> Arrival:
        """Run a tile at the place with the fewest others. A thread waits for its end, so a signal reaches this one."""
        flight = None
        while True:
            with self.changed:
                if flight is None and self.known:
                    place = min(self.known, key=lambda one: (len(self.flights.at_worker.get(one.worker, ())), one.number))
                    self._run(self._run_flight, flight := self.flights.begin(tile, place))
            try:
                item = self.done.get(timeout=None if flight else PLACES_POLL)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                raise item
            with self.changed:
                self.flights.end(item.flight)
            if item.flight is flight:
                return item
            compare(item, self.at)  # the last tiles of other cohorts may have been repeated

    def _numbers(self, item: Arrival) -> tuple[Any, str]:
        """The numbers of a tile, or the reason why it does not fit. XLA runs asynchronously and reports it only on collection."""
        if item.started is None:
            return None, item.why
        try:
            return item.flight.place.collect(item.started.pending), ""
        except Exception as error:
            if not self.fallback or not (why := out_of_memory_reason(error)):
                raise
            return None, why

    def _lose(self, flight: Flight, lost: PlaceLost) -> None:
        """Return the tile of a lost place, or give it up if it has ended too many workers."""
        tile, given_up = flight.tile, list[T]()
        with self.changed:
            self.known.discard(flight.place)
            if self._current(tile):
                if (lost.counted or flight.hung) and self.flights.count_death(flight):
                    given_up = self._given_up(tile)
                elif not self.flights.of(tile) and tile.cohort not in self.oom_cohorts:
                    self.waiting.put_first([tile])
            self.changed.notify_all()
        self.lost.set()
        if not given_up:
            return
        if self.fallback is None:
            raise UserError(f"a tile of cohort {tile.cohort} ended several workers: {flight.hung or lost.reason}")
        self.fallback.crash(given_up, flight.hung or lost.reason)
        for one in given_up:
            self._finish(one)

    def _given_up(self, tile: T) -> list[T]:
        """Stop a tile that has ended too many workers, and all of its cohort if no worker finishes one."""
        tiles = [tile]
        if self.flights.is_hopeless(tile.cohort):
            tiles = list(self.unfinished[tile.cohort].values())
            self.waiting.remove_cohort(tile.cohort)
        self.waiting.remove(tile)
        for one in tiles:
            self.flights.answer(one)
        return tiles

    def _current(self, tile: T) -> bool:
        return id(tile) in self.unfinished.get(tile.cohort, ())

    def _retile(self, tile: T, why: str) -> None:
        assert self.fallback is not None
        cohort = tile.cohort
        with self.changed:
            self.oom_cohorts.add(cohort)
            self.waiting.remove_cohort(cohort)
        tiles = list(self.unfinished[cohort].values())
        self.programs.free(tiles)
        narrow: Sequence[T] | None = self.fallback.retile(tiles, why)
        self.programs.add(narrow or tiles)
        with self.changed:
            if narrow is not None:
                self.flights.retile(cohort, tiles)
                self.unfinished[cohort] = {id(one): one for one in narrow}
                self.waiting.put_first(narrow)
                self.oom_cohorts.discard(cohort)
            self.changed.notify_all()

    def _finish(self, tile: T) -> None:
        with self.changed:
            self.flights.deaths.forget(tile)
            unfinished = self.unfinished[tile.cohort]
            del unfinished[id(tile)]
            if not unfinished:
                del self.unfinished[tile.cohort]
                self.changed.notify_all()
        self.programs.finish(tile)
