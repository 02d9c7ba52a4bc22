"""Places that are slow, lost, late or wrong: no tile is lost, none is finished twice."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from fake_places import Crashes, FakePlace, FakePlaces, carried_out, carried_out_one_by_one, finished_once, numbers, tile

from relu_study.engine import flights, scheduler
from relu_study.engine.places import PlaceLost
from relu_study.engine.plan import Tile
from relu_study.engine.work import assign_devices
from relu_study.errors import UserError

pytestmark = pytest.mark.usefixtures("short_waits")


def test_all_places_share_the_tiles() -> None:
    together = threading.Barrier(2, timeout=60)

    def compute(one: Tile, place: FakePlace) -> Any:
        if len(place.began) == 1:
            together.wait()
        return numbers(one)

    tiles = [tile("a", 3), tile("a", 3), tile("b", 2), tile("b", 2), tile("c", 1)]
    places = FakePlaces([FakePlace(0, compute), FakePlace(1, compute)])
    done = carried_out(tiles, places)
    assert finished_once(done, tiles) and {one.place for one in done} == {0, 1}
    assert all(one.numbers["steps"] == one.tile.steps for one in done)


def test_a_cohort_stays_with_its_worker() -> None:
    """An idle place takes a cohort that its worker has compiled before an unstarted one of another worker."""
    begun, helped = threading.Barrier(3, timeout=60), threading.Event()

    def compute(one: Tile, place: FakePlace) -> Any:
        if one.steps > 1:
            begun.wait()
        if [other.cohort for other in places[1].began] == ["c", "a", "a"]:
            helped.set()
        if place is not places[1]:
            assert helped.wait(60)
        return numbers(one)

    tiles = [tile("a", 9), tile("c", 10), tile("b", 8), tile("a", 1), tile("a", 1), tile("d", 1)]
    places = [FakePlace(i, compute, worker, slots=1) for i, worker in enumerate(("one", "one", "two"))]
    assert assign_devices(tiles, lambda one: one.steps, 3) == {"a": 0, "c": 1, "b": 2, "d": 2}
    done = carried_out(tiles, FakePlaces(places))
    assert finished_once(done, tiles) and helped.is_set()


def test_tiles_of_a_lost_place_go_to_another() -> None:
    both = threading.Barrier(2, timeout=60)

    def dies(one: Tile, place: FakePlace) -> Any:
        both.wait()
        place.lost.set()
        raise PlaceLost("killed")

    def waits(one: Tile, place: FakePlace) -> Any:
        if len(place.began) == 1:
            both.wait()
        return numbers(one)

    tiles = [tile("a", 2), tile("b", 2), tile("a", 1), tile("b", 1)]
    places = FakePlaces([FakePlace(0, dies), FakePlace(1, waits)])
    done = carried_out(tiles, places, Crashes())
    assert finished_once(done, tiles) and {one.place for one in done} == {1}


def test_late_place_takes_tiles() -> None:
    late = FakePlace(1, lambda one, place: numbers(one))
    places = FakePlaces([])

    def compute(one: Tile, place: FakePlace) -> Any:
        if late not in places.places:
            places.places.append(late)
        place.lost.wait(0.05)
        return numbers(one)

    places.places.append(FakePlace(0, compute))
    tiles = [tile("a", 1) for _ in range(30)]
    done = carried_out(tiles, places)
    assert finished_once(done, tiles) and {one.place for one in done} == {0, 1}


def test_run_starts_without_a_place() -> None:
    places = FakePlaces([])
    threading.Timer(0.1, lambda: places.places.append(FakePlace(0, lambda one, place: numbers(one)))).start()
    tiles = [tile("a", 1)]
    assert finished_once(carried_out(tiles, places), tiles)


def test_run_ends_without_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "NO_PLACE_SECONDS", 0.1)
    with pytest.raises(UserError, match=r"no place to train was left.*Stored results are kept"):
        carried_out([tile("a", 1)], FakePlaces([]))


def test_idle_place_repeats_an_overdue_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first place never answers: the second one does."""
    monkeypatch.setattr(flights, "REPEAT_SECONDS", 0.1)
    slow = tile("a", 10)

    def never(one: Tile, place: FakePlace) -> Any:
        if one is slow:
            assert place.lost.wait(60)
        return numbers(one)

    tiles = [slow, *[tile("b", 1) for _ in range(5)]]
    places = FakePlaces([FakePlace(0, never, slots=1), FakePlace(1, lambda one, place: numbers(one), slots=1)])
    done = carried_out(tiles, places)
    assert finished_once(done, tiles) and [one.place for one in done if one.tile is slow] == [1]
    assert not places.messages and not places.killed


class TestRepeatedAnswers:
    """Two answers of one tile, while another tile is unfinished."""

    def carried_out(self, monkeypatch: pytest.MonkeyPatch, other: Any, exact: bool) -> tuple[list[Any], FakePlaces, list[Tile]]:
        monkeypatch.setattr(flights, "REPEAT_SECONDS", 0.05)
        repeated, settled = threading.Event(), threading.Event()
        slow, open_ = tile("a", 10), tile("c", 10)

        def computes(one: Tile, place: FakePlace) -> Any:
            if one is slow and place.number == 0:
                assert repeated.wait(60)
                threading.Timer(0.5, settled.set).start()
            elif one is slow:
                repeated.set()
                return other
            elif one is open_:
                assert settled.wait(60)
            return numbers(one)

        tiles = [slow, tile("b", 10), open_, tile("d", 10)]
        places = FakePlaces([FakePlace(i, computes, slots=1) for i in range(4)], exact)
        return carried_out(tiles, places), places, tiles

    def test_equal_answers_count_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        done, places, tiles = self.carried_out(monkeypatch, {"steps": np.array([10])}, exact=True)
        assert finished_once(done, tiles) and places.messages == []

    def test_different_answers_are_an_error_on_cpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(UserError, match=r"place of w\d and place of w\d return different numbers.*\(steps\)"):
            self.carried_out(monkeypatch, {"steps": np.array([11])}, exact=True)

    def test_different_answers_are_reported_on_accelerators(self, monkeypatch: pytest.MonkeyPatch) -> None:
        done, places, tiles = self.carried_out(monkeypatch, {"steps": np.array([11])}, exact=False)
        assert finished_once(done, tiles)
        assert len(places.messages) == 1 and "the first answer is stored" in places.messages[0]


def test_worker_far_over_its_forecast_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "SLOW_SECONDS", 0.2)
    monkeypatch.setattr(flights, "REPEAT_SECONDS", 1000.0)
    hung = tile("a", 1)

    def hangs(one: Tile, place: FakePlace) -> Any:
        if one is hung and not places.killed:
            assert place.lost.wait(60)
        return numbers(one)

    tiles = [hung, *[tile("b", 1) for _ in range(5)]]
    places = FakePlaces([FakePlace(0, hangs), FakePlace(1, hangs)])
    done = carried_out(tiles, places, Crashes())
    assert finished_once(done, tiles) and len(places.killed) == 1
    assert [f"w{one.place}" for one in done if one.tile is hung] != places.killed


class Halving(Crashes):
    def retile(self, tiles: Any, why: str) -> Any:
        assert "out of memory" in why and tiles[0].width == 2
        return [Tile(one.cohort, 1, (), one.steps, 1) for one in tiles]


def test_memory_error_of_a_place_narrows_the_cohort() -> None:
    def compute(one: Tile, place: FakePlace) -> Any:
        if one.cohort == "a" and one.width == 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return numbers(one)

    done = carried_out([tile("a", 2), tile("a", 2), tile("b", 1)], FakePlaces([FakePlace(0, compute)]), Halving())
    assert sorted((one.tile.cohort, one.tile.width) for one in done) == [("a", 1), ("a", 1), ("b", 2)]


def test_run_does_not_wait_for_a_tile_of_the_old_width() -> None:
    """One place is in the middle of a wide tile when another one lacks memory."""
    began = threading.Event()

    def compute(one: Tile, place: FakePlace) -> Any:
        if one.width == 2 and place.number == 0:
            began.set()
            wide.append(one)
            assert place.lost.wait(60)
        elif one.width == 2:
            assert began.wait(60)
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return numbers(one)

    wide: list[Tile] = []
    places = FakePlaces([FakePlace(i, compute, slots=1) for i in range(3)])
    done = carried_out([tile("a", 2), tile("a", 2)], places, Halving())
    assert [one.tile.width for one in done] == [1, 1] and len(wide) == 1


def test_other_error_of_a_place_ends_the_run() -> None:
    def compute(one: Tile, place: FakePlace) -> Any:
        raise RuntimeError("INTERNAL: something else")

    with pytest.raises(UserError, match="something else"):  # a test file counts as a user's
        carried_out([tile("a", 1)], FakePlaces([FakePlace(0, compute)]), Crashes())


def test_slow_caller_makes_no_tile_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished tiles wait for the caller for longer than the limits."""
    monkeypatch.setattr(flights, "SLOW_SECONDS", 0.1)
    monkeypatch.setattr(flights, "REPEAT_SECONDS", 0.05)
    tiles = [tile("a", 1) for _ in range(12)]
    places = FakePlaces([FakePlace(0, numbers), FakePlace(1, numbers)])
    done = carried_out(tiles, places, Crashes(), pause=0.12)
    assert finished_once(done, tiles) and not places.killed
    assert sum(len(place.began) for place in places.places) == len(tiles), "no tile is repeated"


def test_interrupted_run_takes_one_of_two_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile and its repeat are both in the queue when the caller is interrupted."""
    monkeypatch.setattr(flights, "REPEAT_SECONDS", 0.05)
    repeated = threading.Barrier(2, timeout=60)

    def compute(one: Tile, place: FakePlace) -> Any:
        if one is slow:
            repeated.wait()
        return numbers(one)

    def interrupted(self: Any, item: Any) -> Any:
        if item.flight.tile is not slow:
            yield from received(self, item)
            return
        self.done.put(item)
        while self.done.qsize() < 2:
            time.sleep(0.01)
        raise KeyboardInterrupt

    received, slow, done = scheduler._Scheduler._received, tile("a", 10), []
    monkeypatch.setattr(scheduler._Scheduler, "_received", interrupted)
    tiles = [slow, tile("b", 1), tile("b", 1)]
    places = FakePlaces([FakePlace(i, compute, slots=1) for i in range(2)])
    with pytest.raises(KeyboardInterrupt):
        for one in carried_out_one_by_one(tiles, places):
            done.append(one)
    assert finished_once(done, tiles)
