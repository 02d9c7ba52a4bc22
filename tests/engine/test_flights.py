"""Tiles in flight with a clock of the test: forecasts, hung tiles, repeats and deaths."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from fake_places import FakePlace, numbers, tile

from relu_study.engine import flights as limits
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
    flights.arrive(flight, started)
    flights.end(flight)


def test_time_in_the_queue_of_the_caller_is_no_time_of_a_tile(flights: Flights, clock: Clock) -> None:
    """A tile that has arrived is neither slow nor repeated, and the next tile of its place begins at the arrival."""
    here, other = place(0), place(1)
    first, second = flights.begin(tile("a", 1), here), flights.begin(tile("a", 1), here)
    clock.now = 10.0
    flights.arrive(first)
    assert second.began == 10.0 and flights.busy(here)
    flights.arrive(second)
    clock.now = 1e7
    assert not flights.slow() and flights.to_repeat(other) is None
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


def test_long_compile_is_not_hung(flights: Flights, clock: Clock) -> None:
    """The first tile of a cohort at a worker may compile for half an hour, a later one not."""
    here = place(0)
    first = flights.begin(tile("a", 1), here)
    clock.now = limits.COMPILE_SECONDS
    assert flights.to_repeat(place(1)) is None
    clock.now += limits.SLOW_SECONDS - 1
    assert not flights.slow()
    finish(flights, first, 1.0)
    second = flights.begin(tile("a", 1), here)
    clock.now += limits.SLOW_SECONDS + 1
    assert flights.to_repeat(place(1)) is second.tile
    assert flights.slow() == [second] and "far over its forecast" in second.hung
    assert not flights.slow(), "its worker is killed once"
    assert not flights.count_death(second) and flights.deaths.of(second.tile) == 1


def test_hung_tiles_of_an_unfinished_cohort_double_its_limit(flights: Flights, clock: Clock) -> None:
    """One worker is killed, and the others get twice the time, before the cohort is given up."""
    tiles, limit = [tile("a", 1) for _ in range(limits.HANGS)], limits.SLOW_SECONDS + limits.COMPILE_SECONDS
    flown = [flights.begin(one, place(i)) for i, one in enumerate(tiles)]
    for i, flight in enumerate(flown):
        clock.now = limit * 2**i + 1
        assert flights.slow() == [flight] and "no worker has finished one of its cohort" in flight.hung
        assert not flights.slow()
        flights.arrive(flight)
        assert flights.count_death(flight) == (i == limits.HANGS - 1)
        flights.end(flight)
    assert flights.is_hopeless("a") and not any(flights.deaths.of(one) for one in tiles)


def test_first_tile_of_a_run_has_a_limit(clock: Clock) -> None:
    flights = Flights(lambda one: float(one.steps), clock)
    first = flights.begin(tile("a", 1), place(0))
    clock.now = limits.UNKNOWN_SECONDS
    assert not flights.slow()
    clock.now = limits.UNKNOWN_SECONDS + limits.COMPILE_SECONDS + 1
    assert flights.slow() == [first]


def test_neighbours_of_a_hung_tile_are_not_to_blame(flights: Flights, clock: Clock) -> None:
    hung, neighbour = flights.begin(tile("a", 1), place(0, "w")), flights.begin(tile("b", 1), place(1, "w"))
    clock.now = 1.0
    neighbour.began = 1e6
    clock.now = limits.SLOW_SECONDS + limits.COMPILE_SECONDS + 1
    assert flights.slow() == [hung]
    assert not flights.count_death(neighbour) and not flights.deaths.of(neighbour.tile)


def test_waiting_tile_is_repeated_by_a_worker_with_its_programs(flights: Flights, clock: Clock) -> None:
    here, ready, other = place(0), place(1), place(2)
    finish(flights, flights.begin(tile("a", 1), ready), 1.0)
    flights.begin(tile("a", 1), here)
    waiting = flights.begin(tile("a", 2), here)
    assert flights.to_repeat(other) is None and flights.to_repeat(ready) is waiting.tile
    flights.retile("a", [])
    assert flights.to_repeat(ready) is None, "tiles of another width have other programs"


def test_wide_tile_counts_for_no_program_of_the_narrow_ones(flights: Flights, clock: Clock) -> None:
    """It is neither repeated nor awaited, its end compiles nothing of the new width, and its own programs stay uncompiled."""
    here, ready = place(0), place(1)
    finish(flights, flights.begin(tile("a", 1), ready), 1.0)
    wide, late = flights.begin(tile("a", 1), here), flights.begin(tile("a", 1), place(2, "w0"))
    flights.retile("a", [wide.tile, late.tile])
    assert not flights.awaited
    finish(flights, wide, 1.0, compiling=500.0)
    assert "a" not in flights.compiles and "a" not in flights.ready.get("w0", ()) and flights.longest_compile == 0.0
    finish(flights, flights.begin(tile("a", 1), here), 1.0)
    clock.now = limits.SLOW_SECONDS + limits.COMPILE_SECONDS
    assert flights.to_repeat(ready) is None and not flights.slow(), "the narrow tile of its worker does not make it slow"
    clock.now += 1
    assert flights.slow() == [late] and not flights.hangs["a"]
