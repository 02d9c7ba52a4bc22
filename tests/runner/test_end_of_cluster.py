"""The end of a cluster, and signals, while its workers start or train."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
from fake_backend import FakeBackend, places_of, report
from fake_places import tile

from relu_study.engine.places import PlaceLost
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.runner import remote_places
from relu_study.runner.worker import Answer


def test_silent_cluster_keeps_its_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call about nodes would wait for the head, with the lock of the places."""
    monkeypatch.setattr(remote_places, "NODES_EVERY", 0.0)
    backend = FakeBackend([report()])
    places, _ = places_of(backend)
    places.start()
    backend.silent, backend.reports = True, [report(), report()]
    assert len(places.current()) == 2 and backend.started == [0]
    backend.silent = False
    assert len(places.current()) == 4 and backend.started == [0, 1]


def test_all_workers_are_ended_together(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, ended = FakeBackend([report(), report(), report()]), list[tuple[int, ...]]()
    places, _ = places_of(backend)
    places.start()
    monkeypatch.setattr(backend, "kill", lambda *handles: ended.append(handles))
    places.close()
    places.close()
    assert ended == [(0, 1, 2)]


# ----------------------------------------------------------------------------------- left-out nodes


# ------------------------------------------------------------------------------------------ rates


def test_cluster_that_ends_has_no_line_for_each_worker() -> None:
    def ended(*_: Any) -> Answer:
        raise PlaceLost("the head of its cluster has ended", counted=False)

    backend = FakeBackend([report(), report()], ended)
    places, told = places_of(backend)
    places.start()
    running, places.request = places.current(), lambda tile, index: ("train", tile, index)
    backend.silent = UserError("no head")
    with pytest.raises(UserError, match="no head"):
        places.current()
    for place in running:
        with pytest.raises(PlaceLost):
            place.start(None, lambda: True)
    assert not told and places.current() == []


def test_signal_during_the_start_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread calls no cluster software, which would swallow the exception of the handler, and ends the start."""

    class Stopped(KeyboardInterrupt):
        pass

    def stop(*_: Any) -> None:
        raise Stopped

    def waits(handle: int) -> None:
        threads.append(threading.current_thread())
        if len(threads) == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    threads: list[threading.Thread] = []
    backend = FakeBackend([report()])
    monkeypatch.setattr(backend, "report", waits)
    places, _ = places_of(backend)
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(Stopped):
            places.start()
    finally:
        signal.signal(signal.SIGUSR1, before)
    places.close()
    assert threads and threading.main_thread() not in threads and backend.killed == [0]


def test_cluster_that_ends_during_a_wait_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else watches it before the first tile: at the start, and while a width is measured."""
    monkeypatch.setattr(remote_places, "NO_WORKER_POLL", 0.01)
    ended = threading.Event()

    def waits(*_: Any) -> Answer:
        backend.silent = UserError("no head")
        assert ended.wait(60)
        raise PlaceLost("the head of its cluster has ended", counted=False)

    backend = FakeBackend([report()], waits)
    places, _ = places_of(backend)
    places.start()
    with pytest.raises(UserError, match="no head"):
        places.rate(tile("a", 1), MeasureConfig())
    ended.set()
    places.close()

    starting = FakeBackend([report()], later=None)
    starting.silent = UserError("no head")
    monkeypatch.setattr(starting, "report", lambda handle: None)
    with pytest.raises(UserError, match="no head"):
        places_of(starting)[0].start()
