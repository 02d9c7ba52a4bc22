"""Tiles that end their workers: they are given up, and their neighbours are not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fake_places import Crashes, FakePlace, FakePlaces, carried_out, finished_once, numbers, tile

from relu_study.engine import flights
from relu_study.engine.deaths import DEATHS
from relu_study.engine.places import PlaceLost
from relu_study.engine.plan import Tile

pytestmark = pytest.mark.usefixtures("short_waits")


@pytest.fixture
def endless() -> Iterator[Any]:
    """A function that gives a new worker for each lost one."""
    counter = iter(range(100, 200))

    def follow(compute: Any, slots: int = 2) -> Any:
        return lambda worker: [FakePlace(next(counter), compute, slots=slots)]

    yield follow


def test_tile_that_ends_three_workers_is_given_up(endless: Any) -> None:
    def compute(one: Tile, place: FakePlace) -> Any:
        if one.cohort == "poison":
            place.lost.set()
            raise PlaceLost("exit code 1")
        return numbers(one)

    tiles = [tile("poison", 5), *[tile("a", 2) for _ in range(8)]]
    policy = Crashes()
    places = FakePlaces([FakePlace(0, compute)], replace=endless(compute))
    done = carried_out(tiles, places, policy)
    assert finished_once(done, tiles[1:]) and policy.crashed == [(tiles[0], "exit code 1")]
    assert sum(one.cohort == "poison" for place in places.places for one in place.began) == DEATHS


def test_neighbours_of_a_poison_tile_are_not_given_up(endless: Any) -> None:
    """All tiles of a worker are lost with it. Only one suspect at a time then runs on a worker."""
    counter = iter(range(1000))

    def compute(one: Tile, place: FakePlace) -> Any:
        if one.cohort == "poison":
            places.lose(place.worker)
            raise PlaceLost("exit code 1")
        place.lost.wait(0.05)
        return numbers(one)

    def follow(worker: str) -> list[FakePlace]:
        name = f"worker {next(counter)}"
        return [FakePlace(i, compute, name) for i in range(4)]

    tiles = [tile("poison", 5), *[tile("a", 2) for _ in range(20)]]
    policy = Crashes()
    places = FakePlaces(follow(""), replace=follow)
    done = carried_out(tiles, places, policy)
    assert finished_once(done, tiles[1:]) and [one for one, _ in policy.crashed] == tiles[:1]


def test_lost_nodes_are_not_counted(endless: Any) -> None:
    losses = iter(range(10))

    def compute(one: Tile, place: FakePlace) -> Any:
        if next(losses, None) is not None:
            place.lost.set()
            raise PlaceLost("its node has ended", counted=False)
        return numbers(one)

    tiles = [tile("a", 1)]
    done = carried_out(tiles, FakePlaces([FakePlace(0, compute)], replace=endless(compute)), Crashes())
    assert finished_once(done, tiles) and next(losses, None) is None


def test_healthy_tiles_among_many_poison_ones_are_not_given_up() -> None:
    """All tiles of a worker are lost with a poison one. A tile that lost two workers then runs with no other on its worker."""
    counter = iter(range(1000))

    def compute(one: Tile, place: FakePlace) -> Any:
        if one.cohort.startswith("poison"):
            place.lost.wait(0.01)
            places.lose(place.worker)
            raise PlaceLost("exit code 1")
        place.lost.wait(0.03)
        return numbers(one)

    def follow(worker: str) -> list[FakePlace]:
        name = f"worker {next(counter)}"
        return [FakePlace(i, compute, name) for i in range(4)]

    poison = [tile(f"poison {i}", 5) for i in range(6)]
    healthy = [tile(f"a{i % 3}", 2 + i % 5) for i in range(24)]
    tiles = [one for i in range(6) for one in (*healthy[4 * i : 4 * i + 4], poison[i])]
    policy = Crashes()
    places = FakePlaces(follow(""), replace=follow)
    done = carried_out(tiles, places, policy)
    assert {one.cohort for one, _ in policy.crashed} == {one.cohort for one in poison} and len(policy.crashed) == 6
    assert finished_once(done, healthy)


def test_cohort_that_hangs_everywhere_is_given_up(monkeypatch: pytest.MonkeyPatch, endless: Any) -> None:
    monkeypatch.setattr(flights, "SLOW_SECONDS", 0.05)

    def hangs(one: Tile, place: FakePlace) -> Any:
        if one.cohort == "hung":
            assert place.lost.wait(60)
        return numbers(one)

    tiles = [tile("hung", 3), tile("hung", 3), tile("hung", 3), *[tile("b", 1) for _ in range(5)]]
    policy, places = Crashes(), FakePlaces([FakePlace(0, hangs), FakePlace(1, hangs)], replace=endless(hangs))
    done = carried_out(tiles, places, policy)
    assert finished_once(done, tiles[3:]) and len(places.killed) == flights.HANGS
    assert {id(one) for one, _ in policy.crashed} == set(map(id, tiles[:3])) and policy.sizes == [3]
    assert all("no worker has finished one of its cohort" in why for _, why in policy.crashed)
