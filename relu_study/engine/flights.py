"""Tiles in flight at places that may be slow or lost: forecasts, overdue tiles, and repeated answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from relu_study.engine.deaths import Deaths
from relu_study.engine.places import Place, Started

REPEAT_FACTOR, REPEAT_SECONDS = 2.0, 5.0  # an idle place repeats a tile after this multiple of its forecast, and these seconds
SLOW_FACTOR, SLOW_SECONDS = 10.0, 300.0  # a worker is killed after this multiple of the forecast, and these seconds
TINY = 1e-9


@dataclass(eq=False)
class Flight:
    """A tile at a place, until the caller has taken its end."""

    tile: Any
    place: Place
    began: float  # when the place became free for it
    answered: bool = False  # another place has returned its numbers, or its tile is given up
    first: tuple[Any, Flight] | None = None  # the numbers of another place, to compare


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

    def begin(self, tile: Any, place: Place) -> Flight:
        """Add a tile."""
        flight = Flight(tile, place, self.clock())
        self.of_tile.setdefault(id(tile), []).append(flight)
        self.at_worker.setdefault(place.worker, []).append(flight)
        return flight

    def arrive(self, flight: Flight) -> None:
        """End the time of a tile at its place. The next tile of the place then begins."""
        others = self.at_worker[flight.place.worker]
        others.remove(flight)
        for other in others:
            if other.place is flight.place:
                other.began = self.clock()
        if not others:
            del self.at_worker[flight.place.worker]

    def end(self, flight: Flight, started: Started | None = None) -> None:
        """Remove a tile that has arrived. With its training time it counts for the forecasts."""
        flights = self.of_tile[id(flight.tile)]
        flights.remove(flight)
        if not flights:
            del self.of_tile[id(flight.tile)]
        if started is not None and started.seconds is not None:
            self.seconds += started.seconds
            self.finished_cost += self.cost(flight.tile)
            self.longest_compile = max(self.longest_compile, started.compiling)

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

    def to_repeat(self, place: Place, compiled: Callable[[Any], bool]) -> Any | None:
        """The tile that an idle place repeats: the most overdue one, or else one that waits behind another at its place.

        A waiting tile is repeated only if its programs are `compiled`. A tile that ended a worker may end this one too.
        """
        now, heads, worst, chosen = self.clock(), self._heads(), 0.0, None
        for flight in self:
            forecast, tile = self.forecast(flight.tile), flight.tile
            if forecast is None or flight.answered or len(self.of(tile)) > 1 or flight.place.worker == place.worker:
                continue
            if self.deaths.of(tile) or self.crowded(tile, place):
                continue
            waits, elapsed = flight not in heads, now - flight.began
            overdue = elapsed > max(REPEAT_FACTOR * forecast, REPEAT_SECONDS) and not waits
            urgency = elapsed / max(forecast, TINY) if overdue else TINY if waits and compiled(tile) else 0.0
            if urgency > worst:
                worst, chosen = urgency, tile
        return chosen

    def slow(self) -> list[tuple[Flight, float]]:
        """The flights that are far over their forecast, with their seconds."""
        now, found = self.clock(), []
        for flight in self._heads():
            elapsed, forecast = now - flight.began, self.forecast(flight.tile)
            if forecast is not None and elapsed > max(SLOW_FACTOR * forecast, SLOW_SECONDS) + 2 * self.longest_compile:
                found.append((flight, elapsed))
        return found

    def crowded(self, tile: Any, place: Place) -> bool:
        """Whether a worker must not take a tile now: a suspect runs with no other tile on its worker."""
        others = self.at_worker.get(place.worker, ())
        return bool(others) and any(self.deaths.is_suspect(one) for one in (tile, *(other.tile for other in others)))

    def _heads(self) -> set[Flight]:
        """The first flight of each place: it computes, and the others wait."""
        heads: dict[int, Flight] = {}
        for flight in self:
            heads.setdefault(id(flight.place), flight)
        return set(heads.values())


def differing(one: Any, other: Any) -> Sequence[str]:
    """The names of the arrays that differ in a bit between two answers of one tile."""
    names = sorted({*one, *other})
    return [name for name in names if name not in one or name not in other or not _equal(one[name], other[name])]


def _equal(one: Any, other: Any) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
