"""Tiles in flight with a clock of the test: forecasts, hung tiles, repeats and deaths."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from fake_places import FakePlace, numbers, tile

from relu_study.engine.deaths import DEATHS, Deaths
from relu_study.engine.flights import Flight, Flights
from relu_study.engine.places import Started
from relu_study.engine.plan import Tile


class Clock:
    """Seconds that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def flights(clock: Clock) -> Flights:
    """Flights with a forecast of one second per step: a tile of another cohort has been finished."""
    made = Flights(lambda one: float(one.steps), clock)
    finish(made, made.begin(tile("other", 1), place(99)), 1.0)
    return made


def place(number: int, worker: str = "") -> FakePlace:
    return FakePlace(number, numbers, worker)


def finish(flights: Flights, flight: Flight, seconds: float, compiling: float = 0.0) -> None:
    started = Started(None, compiling, seconds)
    flights.arrive(flight)
    flights.end(flight, started)


def test_time_in_the_queue_of_the_caller_is_no_time_of_a_tile(flights: Flights, clock: Clock) -> None:
    """A tile that has arrived is neither slow nor repeated, and the next tile of its place begins at the arrival."""
    here, other = place(0), place(1)
    first, second = flights.begin(tile("a", 1), here), flights.begin(tile("a", 1), here)
    clock.now = 10.0
    flights.arrive(first)
    assert second.began == 10.0 and flights.busy(here)
    flights.arrive(second)
    clock.now = 1e7
    assert not flights.slow() and flights.to_repeat(other, lambda _: True) is None
    assert flights.awaited and not flights.busy(here), "the caller has not taken them"
    flights.end(first)
    flights.end(second)
    assert not flights.awaited and not flights.of_tile and not flights.at_worker


def test_deaths_of_a_tile_are_not_those_of_a_later_one() -> None:
    """The id of a tile is used again after its end, so the deaths keep the tile until they are forgotten."""
    deaths, first = Deaths(), tile("a", 1)
    alive = weakref.ref(first)
    for i in range(DEATHS):
        assert deaths.add(first, f"w{i}") == (i == DEATHS - 1)
    assert deaths.of(first) == DEATHS and deaths.of(tile("a", 1)) == 0, "an equal tile is another one"
    id_of_first = id(first)
    del first
    gc.collect()
    held: Any = alive()
    assert id(held) == id_of_first
    deaths.forget(held)
    assert deaths.of(held) == 0 and not deaths.workers


def test_lost_repeat_keeps_no_numbers(flights: Flights) -> None:
    repeated: Tile = tile("a", 1)
    one, other = flights.begin(repeated, place(0)), flights.begin(repeated, place(1))
    flights.arrive(one)
    flights.end(one)
    other.answered, other.first = True, ({"big": 1}, one)
    flights.arrive(other)
    flights.end(other)
    assert not flights.of(repeated) and not flights.of_tile
