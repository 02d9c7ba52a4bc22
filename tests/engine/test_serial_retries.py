"""Tiles that fit only with no other tile in memory, at places that may be lost or hang."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from typing import Any

import pytest
from fake_places import Crashes, FakePlace, FakePlaces, carried_out, carried_out_one_by_one, numbers, tile

from relu_study.engine import flights, scheduler
from relu_study.engine.deaths import DEATHS
from relu_study.engine.places import PlaceLost
from relu_study.engine.plan import Tile


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "PLACES_POLL", 0.02)
    monkeypatch.setattr(scheduler, "IDLE_POLL", 0.02)
    monkeypatch.setattr(flights, "COMPILE_SECONDS", 0.0)


class Lacking:
    """Workers without end that lack memory for the first try of the cohort "wide", and then follow `retry`."""

    def __init__(self, retry: Any) -> None:
        self.retry, self.tries, self.workers = retry, 0, 0
        self.places = FakePlaces([self.worker()], replace=lambda _: [self.worker()])

    def worker(self) -> FakePlace:
        self.workers += 1
        return FakePlace(self.workers, self.compute, slots=1)

    def compute(self, one: Tile, place: FakePlace) -> Any:
        if one.cohort != "wide":
            return numbers(one)
        self.tries += 1
        if self.tries == 1:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return self.retry(self, one, place)


def lost(counted: bool, times: int) -> Any:
    """A retry whose place is lost so many times."""

    def retry(lacking: Lacking, one: Tile, place: FakePlace) -> Any:
        if lacking.tries <= times + 1:
            place.lost.set()
            raise PlaceLost("exit code 1" if counted else "its node was preempted", counted)
        return numbers(one)

    return retry


def test_preemption_of_a_serial_retry_is_no_lack_of_memory() -> None:
    lacking, policy, tiles = Lacking(lost(False, 5)), Crashes(), [tile("wide", 3), tile("b", 1)]
    done = carried_out(tiles, lacking.places, policy)
    assert {id(one.tile) for one in done} == set(map(id, tiles)) and not policy.crashed and lacking.tries == 7


def test_serial_retry_that_ends_three_workers_is_given_up() -> None:
    """The other tile of its cohort goes on."""
    poison, other = tile("wide", 3), tile("wide", 2)

    def retry(lacking: Lacking, one: Tile, place: FakePlace) -> Any:
        return lost(True, 1000)(lacking, one, place) if one is poison else numbers(one)

    lacking, policy = Lacking(retry), Crashes()
    done = carried_out([poison, other], lacking.places, policy)
    assert policy.crashed == [(poison, "exit code 1")] and [one.tile for one in done] == [other]
    assert lacking.workers == DEATHS + 1


def test_hung_serial_retry_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "SLOW_SECONDS", 0.2)

    def retry(lacking: Lacking, one: Tile, place: FakePlace) -> Any:
        if lacking.tries == 2:
            assert place.lost.wait(60)
        return numbers(one)

    lacking, tiles = Lacking(retry), [tile("wide", 1), tile("b", 1)]
    done = carried_out(tiles, lacking.places, Crashes())
    assert len(done) == 2 and lacking.places.killed == ["w1"]


def test_signal_reaches_the_caller_during_a_serial_retry() -> None:
    """The main thread waits for a thread: a call of the cluster would swallow the exception of the handler."""

    class Stopped(KeyboardInterrupt):
        pass

    def stop(*_: Any) -> None:
        raise Stopped

    def retry(lacking: Lacking, one: Tile, place: FakePlace) -> Any:
        threads.append(threading.current_thread())
        os.kill(os.getpid(), signal.SIGUSR1)  # the kernel prefers the main thread
        assert place.lost.wait(60)
        return numbers(one)

    threads: list[threading.Thread] = []
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(Stopped):
            carried_out([tile("wide", 1)], Lacking(retry).places, Crashes())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert threads and threading.main_thread() not in threads


def test_repeat_that_lacks_memory_after_the_first_answer_makes_no_cohort_serial(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller takes the first answer after the repeat has failed. A tile that comes back later still goes to any place."""
    monkeypatch.setattr(flights, "REPEAT_SECONDS", 0.05)
    monkeypatch.setattr(scheduler._Scheduler, "retry_serially", lambda self: iter(()))
    repeated, lacked, tries = threading.Event(), threading.Event(), Counter[int]()
    late, held, other = tile("a", 10), tile("a", 1000), tile("b", 1)

    def compute(one: Tile, place: FakePlace) -> Any:
        tries[one.steps] += 1
        if one is late and tries[one.steps] == 1:
            assert repeated.wait(60)
            time.sleep(0.1)  # until the other answer is in the queue
            lacked.set()
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        if one is late:
            repeated.set()
        if one is held and tries[one.steps] == 1:
            assert lacked.wait(60)
            time.sleep(0.3)
            place.lost.set()
            raise PlaceLost("its node has ended", counted=False)
        return numbers(one)

    places = FakePlaces([FakePlace(i, compute, slots=1) for i in range(3)])
    done = []
    for one in carried_out_one_by_one([held, late, other], places, Crashes()):
        done.append(one.tile)
        if one.tile is other:
            assert lacked.wait(60)
            time.sleep(0.1)
    assert done == [other, late, held] and tries == {10: 2, 1000: 2, 1: 1}
