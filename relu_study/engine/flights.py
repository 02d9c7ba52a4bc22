"""Tiles in flight at places that may be slow or lost: forecasts, overdue tiles, and repeated answers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from relu_study.engine.deaths import Deaths
from relu_study.engine.places import Place, PlaceLost, Places, Started
from relu_study.errors import UserError

REPEAT_FACTOR, REPEAT_SECONDS = 2.0, 5.0  # an idle place repeats a tile after this multiple of its forecast, and these seconds
SLOW_FACTOR, SLOW_SECONDS = 10.0, 300.0  # a worker is killed after this multiple of the forecast, and these seconds
COMPILE_SECONDS = 1800.0  # more for the first tile of a cohort at a worker, which compiles
UNKNOWN_SECONDS = 86400.0  # instead of the forecast before the first tile of the run is finished
HANGS = 4  # workers killed for tiles of a cohort that no worker finishes, each after twice the time, before it is given up
TINY = 1e-9


@dataclass(eq=False)
class Flight:
    """A tile at a place, until the caller has taken its end."""

    tile: Any
    place: Place
    began: float  # when the place became free for it
    answered: bool = False  # another place has returned its numbers, or its tile is given up or retiled
    first: tuple[Any, Flight] | None = None  # the numbers of another place, to compare
    hung: str = ""  # the reason, if its worker is killed because of this tile

    @property
    def stale(self) -> bool:
        """Whether its tile is given up, or has been replaced by tiles of another width."""
        return self.answered and self.first is None


class Arrival(NamedTuple):
    """The end of a flight: a started tile, the reason (`why`) why it does not fit, or the loss of its place."""

    flight: Flight
    started: Started | None = None
    why: str = ""
    lost: PlaceLost | None = None


@dataclass
class Flights:
    """The tiles in flight, and the seconds per unit of cost of the finished ones."""

    cost: Callable[[Any], float]
    clock: Callable[[], float] = time.monotonic
    of_tile: dict[int, list[Flight]] = field(default_factory=dict)  # id of a tile -> its flights, until their ends are taken
    at_worker: dict[Hashable, list[Flight]] = field(default_factory=dict)  # its flights that have not arrived, in their order
    deaths: Deaths = field(default_factory=Deaths)
    seconds: float = 0.0
    finished_cost: float = 0.0
    longest_compile: float = 0.0
    compiles: dict[str, float] = field(default_factory=dict)  # cohort -> its longest compile time, of finished tiles
    ready: dict[Hashable, set[str]] = field(default_factory=dict)  # worker -> cohorts with a finished tile there
    hangs: Counter[str] = field(default_factory=Counter)  # cohort -> killed workers, before the first finished tile
    killed: set[Hashable] = field(default_factory=set)  # workers, because of hung tiles

    def begin(self, tile: Any, place: Place) -> Flight:
        """Add a tile."""
        flight = Flight(tile, place, self.clock())
        self.of_tile.setdefault(id(tile), []).append(flight)
        self.at_worker.setdefault(place.worker, []).append(flight)
        return flight

    def arrive(self, flight: Flight, started: Started | None = None) -> None:
        """End the time of a tile at its place. The next tile of the place then begins.

        With its training time it counts for the forecasts. The programs of a stale tile are those of another width.
        """
        worker, cohort = flight.place.worker, flight.tile.cohort
        others = self.at_worker[worker]
        others.remove(flight)
        for other in others:
            if other.place is flight.place:
                other.began = self.clock()
        if not others:
            del self.at_worker[worker]
        if started is not None and started.seconds is not None:
            self.seconds += started.seconds
            self.finished_cost += self.cost(flight.tile)
        if started is not None and started.seconds is not None and not flight.stale:
            self.longest_compile = max(self.longest_compile, started.compiling)
            self.compiles[cohort] = max(self.compiles.get(cohort, 0.0), started.compiling)
            self.ready.setdefault(worker, set()).add(cohort)

    def end(self, flight: Flight) -> None:
        """Remove a tile that has arrived."""
        flights = self.of_tile[id(flight.tile)]
        flights.remove(flight)
        if not flights:
            del self.of_tile[id(flight.tile)]

    def __iter__(self) -> Iterator[Flight]:
        """The flights that have not arrived."""
        return (flight for flights in self.at_worker.values() for flight in flights)

    @property
    def awaited(self) -> bool:
        """Whether a flight has no answer yet."""
        return any(not flight.answered for flights in self.of_tile.values() for flight in flights)

    def of(self, tile: Any) -> list[Flight]:
        """The flights of a tile."""
        return self.of_tile.get(id(tile), [])

    def busy(self, place: Place) -> bool:
        """Whether a place has a tile."""
        return any(flight.place is place for flight in self.at_worker.get(place.worker, ()))

    def forecast(self, tile: Any) -> float | None:
        """The expected seconds of a tile; None before the first tile is finished."""
        return self.cost(tile) * self.seconds / self.finished_cost if self.finished_cost else None

    def to_repeat(self, place: Place, serial: Container[str] = ()) -> Any | None:
        """The tile that an idle place repeats: the most overdue one, or else one that waits behind another at its place.

        A waiting tile is repeated only by a worker that has its programs. A tile that compiles is not overdue. A tile that ended
        a worker may end this one too. The cohorts `serial` fit only with no other tile in memory.
        """
        now, heads, worst, chosen = self.clock(), self._heads(), 0.0, None
        for flight in self:
            forecast, tile = self.forecast(flight.tile), flight.tile
            if forecast is None or flight.answered or len(self.of(tile)) > 1 or flight.place.worker == place.worker:
                continue
            if self.deaths.of(tile) or self.crowded(tile, place) or tile.cohort in serial:
                continue
            if heads[flight.place] is not flight:
                urgency = TINY if tile.cohort in self.ready.get(place.worker, ()) else 0.0
            else:
                limit, elapsed = max(REPEAT_FACTOR * forecast, REPEAT_SECONDS) + self._compiling(flight), now - flight.began
                urgency = elapsed / max(forecast, TINY) if elapsed > limit else 0.0
            if urgency > worst:
                worst, chosen = urgency, tile
        return chosen

    def slow(self) -> list[Flight]:
        """The flights that begin to count as hung, at most one a worker. Their workers must be killed."""
        now, found = self.clock(), []
        for flight in self._heads().values():
            elapsed, cohort = now - flight.began, flight.tile.cohort
            if flight.place.worker in self.killed or elapsed <= self._limit(flight):
                continue
            flight.hung = f"a tile takes {elapsed:,.0f} s, far over its forecast"
            if cohort not in self.compiles and not flight.stale:
                flight.hung = f"a tile takes {elapsed:,.0f} s, and no worker has finished one of its cohort"
                self.hangs[cohort] += 1  # doubles the limit of the others
            self.killed.add(flight.place.worker)
            found.append(flight)
        return found

    def count_death(self, flight: Flight) -> bool:
        """Count the end of a worker with this tile. True if the tile must be given up.

        A worker that was killed for a hung tile counts only against that tile. It does not count before a worker has finished a
        tile of the cohort, whose programs may take so long to compile.
        """
        if flight.place.worker in self.killed and not flight.hung:
            return False
        if flight.hung and flight.tile.cohort not in self.compiles:
            return self.is_hopeless(flight.tile.cohort)
        return self.deaths.add(flight.tile, flight.place.worker)

    def is_hopeless(self, cohort: str) -> bool:
        """Whether no worker finishes a tile of a cohort within any limit."""
        return cohort not in self.compiles and self.hangs[cohort] >= HANGS

    def answer(self, tile: Any, first: tuple[Any, Flight] | None = None) -> None:
        """Wait no longer for a tile: `first` are its numbers, or none are needed."""
        for flight in self.of(tile):
            flight.answered, flight.first = True, first

    def retile(self, cohort: str, tiles: Sequence[Any]) -> None:
        """Forget the tiles and the compiled programs of a cohort, whose tiles have another width now."""
        for tile in tiles:
            self.deaths.forget(tile)
            self.answer(tile)
        self.compiles.pop(cohort, None)
        for cohorts in self.ready.values():
            cohorts.discard(cohort)

    def crowded(self, tile: Any, place: Place) -> bool:
        """Whether a worker must not take a tile now: a suspect runs with no other tile on its worker."""
        others = self.at_worker.get(place.worker, ())
        return bool(others) and any(self.deaths.is_suspect(one) for one in (tile, *(other.tile for other in others)))

    def _limit(self, flight: Flight) -> float:
        """The seconds after which a tile counts as hung."""
        forecast = self.forecast(flight.tile)
        seconds = UNKNOWN_SECONDS if forecast is None else max(SLOW_FACTOR * forecast, SLOW_SECONDS)
        cohort = flight.tile.cohort
        doubled = self.hangs[cohort] if cohort not in self.compiles else 0
        return (seconds + self._compiling(flight) + 2 * self.longest_compile) * 2**doubled

    def _compiling(self, flight: Flight) -> float:
        """The seconds that a tile may compile: none if its worker has finished another one of the cohort."""
        compiled = flight.tile.cohort in self.ready.get(flight.place.worker, ()) and not flight.stale
        return 0.0 if compiled else COMPILE_SECONDS

    def _heads(self) -> dict[Place, Flight]:
        """The first flight of each place: it computes, and the others wait."""
        heads: dict[Place, Flight] = {}
        for flight in self:
            heads.setdefault(flight.place, flight)
        return heads


def compare(item: Arrival, at: Places) -> None:
    """Compare a repeated answer with the first one. Raises UserError if bits that must be equal differ."""
    if item.started is None or item.flight.first is None:
        return
    first, flight = item.flight.first
    if names := differing(first, item.flight.place.collect(item.started.pending)):
        both = f"{flight.place.name} and {item.flight.place.name}"
        text = f"{both} return different numbers for the same runs ({', '.join(names)})"
        if at.exact:
            raise UserError(
                f"{text}. Stored results are kept; leave out one of these machines and run the study again in a new folder."
            )
        at.on_message(f"{text}; the first answer is stored")


def differing(one: Any, other: Any) -> Sequence[str]:
    """The names of the arrays that differ in a bit between two answers of one tile."""
    names = sorted({*one, *other})
    return [name for name in names if name not in one or name not in other or not _equal(one[name], other[name])]


def _equal(one: Any, other: Any) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
