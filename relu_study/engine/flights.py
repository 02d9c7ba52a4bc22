"""Tiles in flight at places that may be slow or lost: forecasts, overdue tiles, deaths and repeated answers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from relu_study.engine.places import Place

DEATHS = 3  # different workers that end with a tile before it is given up
REPEAT_FACTOR, REPEAT_SECONDS = 2.0, 5.0  # an idle place repeats a tile after this multiple of its forecast, and these seconds
SLOW_FACTOR, SLOW_SECONDS = 10.0, 300.0  # a worker is killed after this multiple of the forecast, and these seconds
TINY = 1e-9


@dataclass(eq=False)
class Flight:
    """A tile at a place. `answered`: another place has returned its numbers."""

    tile: Any
    place: Place
    began: float  # when the place became free for it
    answered: bool = False


@dataclass
class Flights:
    """The tiles in flight, and the seconds per unit of cost of the finished ones."""

    cost: Callable[[Any], float]
    clock: Callable[[], float] = time.monotonic
    current: list[Flight] = field(default_factory=list)
    deaths: dict[int, set[Hashable]] = field(default_factory=dict)  # id of a tile -> workers that ended with it
    seconds: float = 0.0
    finished_cost: float = 0.0
    longest_compile: float = 0.0

    def begin(self, tile: Any, place: Place) -> Flight:
        """Add a tile."""
        self.current.append(flight := Flight(tile, place, self.clock()))
        return flight

    def end(self, flight: Flight, seconds: float | None = None, compiling: float = 0.0) -> None:
        """Remove a tile. With its training `seconds` it counts for the forecasts."""
        self.current.remove(flight)
        for other in self.current:
            if other.place is flight.place:  # it waited
                other.began = self.clock()
        if seconds is not None:
            self.seconds += seconds
            self.finished_cost += self.cost(flight.tile)
            self.longest_compile = max(self.longest_compile, compiling)

    @property
    def awaited(self) -> bool:
        """Whether a flight has no answer yet."""
        return any(not flight.answered for flight in self.current)

    def of(self, tile: Any) -> list[Flight]:
        """The flights of a tile."""
        return [flight for flight in self.current if flight.tile is tile]

    def forecast(self, tile: Any) -> float | None:
        """The expected seconds of a tile; None before the first tile is finished."""
        return self.cost(tile) * self.seconds / self.finished_cost if self.finished_cost else None

    def to_repeat(self, place: Place, compiled: Callable[[Any], bool]) -> Any | None:
        """The tile that an idle place repeats: the most overdue one, or else one that waits behind another at its place.

        A waiting tile is repeated only if its programs are `compiled`.
        """
        now, heads, flown = self.clock(), self._heads(), Counter(id(flight.tile) for flight in self.current)
        worst, chosen = 0.0, None
        for flight in self.current:
            forecast = self.forecast(flight.tile)
            if forecast is None or flight.answered or flown[id(flight.tile)] > 1 or flight.place.worker == place.worker:
                continue
            if self.deaths.get(id(flight.tile)):  # it may end this worker too
                continue
            waits, elapsed = flight not in heads, now - flight.began
            overdue = elapsed > max(REPEAT_FACTOR * forecast, REPEAT_SECONDS) and not waits
            urgency = elapsed / max(forecast, TINY) if overdue else TINY if waits and compiled(flight.tile) else 0.0
            if urgency > worst:
                worst, chosen = urgency, flight.tile
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
        """Whether a worker must not take a tile now, since only one of its tiles may have ended all workers but one.

        Other tiles in flight are then never given up for the fault of one tile.
        """
        return self._is_suspect(tile) and any(
            self._is_suspect(flight.tile) for flight in self.current if flight.place.worker == place.worker
        )

    def died(self, flight: Flight) -> bool:
        """Count the end of a worker with this tile. True if the tile must be given up."""
        workers = self.deaths.setdefault(id(flight.tile), set())
        workers.add(flight.place.worker)
        return len(workers) >= DEATHS

    def _is_suspect(self, tile: Any) -> bool:
        return len(self.deaths.get(id(tile), ())) >= DEATHS - 1

    def _heads(self) -> set[Flight]:
        """The first flight of each place: it computes, and the others wait."""
        heads: dict[int, Flight] = {}
        for flight in self.current:
            heads.setdefault(id(flight.place), flight)
        return set(heads.values())


def differing(one: Any, other: Any) -> Sequence[str]:
    """The names of the arrays that differ in a bit between two answers of one tile."""
    names = sorted({*one, *other})
    return [name for name in names if name not in one or name not in other or not _equal(one[name], other[name])]


def _equal(one: Any, other: Any) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
