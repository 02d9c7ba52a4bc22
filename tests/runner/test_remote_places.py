"""Workers of a cluster as places: agreement on bits, losses and their replacements. No Ray."""

from __future__ import annotations

import threading
from importlib.metadata import version
from typing import Any

import pytest
from fake_backend import FakeBackend, places_of, report
from fake_places import tile

from relu_study.engine.places import PlaceLost
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.runner import remote_places
from relu_study.runner.cluster_backend import MemoryLost
from relu_study.runner.worker import Answer, Report


def test_places_of_all_workers_make_one_machine() -> None:
    places, told = places_of(FakeBackend([report(), report(devices=4)]))
    machine = places.start()
    assert (machine.platform, machine.devices, machine.digest()) == ("cpu", 6, "d1") and not told
    assert [place.number for place in places.current()] == list(range(6))
    assert {place.worker for place in places.current()} == {"node0-1", "node1-1"}


def test_a_worker_with_other_bits_is_left_out_by_name() -> None:
    backend = FakeBackend([report(), report(digest="d2"), report()])
    places, told = places_of(backend)
    assert places.start().devices == 4
    assert len(told) == 1 and "worker node1-1 does not give the bits of the others" in told[0] and "left out" in told[0]
    assert {place.worker for place in places.current()} == {"node0-1", "node2-1"} and backend.killed == [1]


def test_no_majority_is_refused() -> None:
    places, _ = places_of(FakeBackend([report(), report(digest="d2")]))
    with pytest.raises(UserError, match=r"do not agree on the bits.*node0-1; node1-1"):
        places.start()


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (
            report(host={**report().host, "versions": {**report().host["versions"], "jax": "0.1", "flax": "0.2"}}),
            rf"has jax 0\.1 \(driver {version('jax')}\), flax 0\.2 \(driver {version('flax')}\)\. Install the packages",
        ),
        (report(host={**report().host, "versions": {}}), r"has jax missing \(driver \S+\), jaxlib missing"),
        (report(host={**report().host, "engine": 0}), rf"has engine 0 \(driver {report().host['engine']}\)\. Install"),
        (report(package="other"), "has another version of relu_study"),
        (report(own={"activation a": {"whole": "2"}}), "loads activation a with other content"),
    ],
)
def test_workers_that_differ_from_the_driver_are_refused(other: Report, text: str) -> None:
    places, _ = places_of(FakeBackend([other]), own={"activation a": {"whole": "1"}} if "activation" in text else None)
    with pytest.raises(UserError, match=f"no worker of the cluster can be used: worker node0-1 {text}"):
        places.start()


def test_many_reasons_are_few_in_the_message() -> None:
    places, told = places_of(FakeBackend([report(package="other")] * 5))
    with pytest.raises(UserError, match=r"worker node2-1 has another version[^;]*; and 2 more nodes\. Install") as error:
        places.start()
    assert "node3" not in str(error.value) and len(told) == 5


def test_a_worker_that_cannot_load_the_study_is_refused_with_its_error() -> None:
    places, _ = places_of(FakeBackend([UserError("mine.py, line 3 raises ValueError")]))
    with pytest.raises(UserError, match="line 3 raises ValueError"):
        places.start()


def test_workers_limits_the_number_of_workers() -> None:
    backend = FakeBackend([report(), report(), report()])
    places, _ = places_of(backend, workers=2)
    assert places.start().devices == 4 and backend.started == [0, 1]


def test_a_lost_worker_is_replaced_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_places, "NODES_EVERY", 0.0)

    def dies(handle: int, *_: Any) -> Answer:
        raise PlaceLost("exit code 1")

    places, told = places_of(FakeBackend([report(), report()], dies))
    places.start()
    lost, kept = places.current()[0], places.current()[2]
    together = threading.Barrier(2)

    def start(place: Any, counted: list[bool]) -> None:
        together.wait(60)
        with pytest.raises(PlaceLost) as error:
            place.start(None, lambda: True)
        counted.append(error.value.counted)

    places.request = lambda tile, index: ("train", tile, index)
    counted: list[bool] = []
    threads = [threading.Thread(target=start, args=(place, counted)) for place in places.current()[:2]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(PlaceLost) as late:
        lost.start(None, lambda: True)
    assert not late.value.counted, "the worker had ended before"
    assert sum("worker node0-1 has ended (exit code 1)" in line for line in told) == 1
    current = places.current()
    assert kept in current and lost not in current and sorted(place.number for place in current) == [0, 1, 2, 3]
    assert {place.worker for place in current} == {"node0-2", "node1-1"}
    assert any("node0-1" in line and "ended early" in line for line in places.accounts.summary("runs"))


def test_one_tile_of_a_worker_that_ran_out_of_memory_lacks_it() -> None:
    """Ray raises the same error for every call of the ended worker. The others go to another place, and are not counted."""

    def full(handle: int, *_: Any) -> Answer:
        raise MemoryLost("out of memory: low") if handle == 0 else AssertionError(handle)

    backend = FakeBackend([report(devices=4)], full)
    places, told = places_of(backend)
    places.start()
    places.request = lambda tile, index: ("train", tile, index)
    ended: list[Exception] = []
    for place in places.current():
        with pytest.raises((RuntimeError, PlaceLost)) as error:
            place.start(None, lambda: True)
        ended.append(error.value)
    assert [type(error) for error in ended] == [RuntimeError, *[PlaceLost] * 3] and "out of memory" in str(ended[0])
    assert not any(error.counted for error in ended if isinstance(error, PlaceLost))
    assert backend.killed == [0] and told == ["worker node0-1 has ended (out of memory: low): its tiles go to other places"]
    assert "ended early" in places.accounts.summary("runs")[0]
    assert {place.worker for place in places.current()} == {"node0-2"}


def test_report_that_takes_long_blocks_no_other_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that cannot be reached is called for half a minute before its start is given up."""
    monkeypatch.setattr(remote_places, "NODES_EVERY", 0.0)
    backend, reached, begun = FakeBackend([report()]), threading.Event(), threading.Event()
    places, told = places_of(backend)
    places.start()

    def waits(handle: int) -> Any:
        begun.set()
        assert reached.wait(60)
        raise PlaceLost("it cannot be reached", counted=False)

    (first, _), backend.reports = places.current(), [report(), report()]
    monkeypatch.setattr(backend, "report", waits)
    (watch := threading.Thread(target=places.current)).start()
    assert begun.wait(60)
    (other := threading.Thread(target=places.kill, args=(first, "it hangs"), daemon=True)).start()
    other.join(5)
    assert backend.killed == [0] and told == ["worker node0-1 is ended: it hangs"]
    reached.set()
    watch.join()


@pytest.mark.parametrize("answer", [("id1", report()), UserError("exit code 1")])
def test_worker_that_reports_after_the_end_has_no_place(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_places, "NODES_EVERY", 0.0)
    backend = FakeBackend([report()])
    places, told = places_of(backend)
    places.start()

    def late(handle: int) -> Any:
        places.close()
        if isinstance(answer, Exception):
            raise answer
        return answer

    backend.reports = [report(), report()]
    monkeypatch.setattr(backend, "report", late)
    assert places.current() == [] and not told and sorted(backend.killed) == [0, 1]


# ----------------------------------------------------------------------------------- left-out nodes


@pytest.mark.parametrize("wanted", [4, 5])
def test_left_out_node_gets_no_other_worker(wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as a worker of --workers. Workers for later nodes avoid it, and its line comes once."""
    monkeypatch.setattr(remote_places, "NODES_EVERY", 0.0)
    monkeypatch.setattr(remote_places, "GRACE", 0.0)
    backend = FakeBackend([report(), report(digest="d2"), report(), report()], later=1)
    places, told = places_of(backend, workers=wanted)
    places.start()
    for _ in range(5):
        assert {place.worker for place in places.current()} == {"node0-1", "node2-1", "node3-1"}
    assert backend.started == [0, 1, 2, 3, *[-1, -1] * (wanted - 4)] and len(told) == 1
    assert backend.without[4:] == [[], ["id1"]][: 2 * (wanted - 4)]


def test_failed_start_next_to_a_left_out_node_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend([report(package="other"), PlaceLost("exit code 1")])

    def start(*arguments: Any) -> int:
        backend.reports[1] = report() if 1 in backend.started else backend.reports[1]
        return started(*arguments)

    started = backend.start
    monkeypatch.setattr(backend, "start", start)
    places, told = places_of(backend)
    assert places.start().devices == 2 and backend.started == [0, 1, 1]
    assert len(told) == 1 and "worker node0-1 has another version" in told[0]


def test_workers_for_later_nodes_that_do_not_start_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_places, "NODES_EVERY", 0.0)
    monkeypatch.setattr(remote_places, "GRACE", 0.0)
    backend = FakeBackend([report()], later=PlaceLost("exit code 1"))
    places, told = places_of(backend, workers=2)
    places.start()
    for _ in range(10):
        places.current()
    assert len(told) == remote_places.START_FAILURES and backend.started == [0, -1, -1, -1]


# ------------------------------------------------------------------------------------------ rates


def test_width_is_measured_by_another_worker_if_one_is_lost() -> None:
    def dies(handle: int, method: str, *_: Any) -> Answer:
        threads.append(threading.current_thread())
        if handle == 0:
            raise PlaceLost("exit code 1")
        return Answer("numbers", {"steps_per_second": 7.0})

    threads: list[threading.Thread] = []
    places, _ = places_of(FakeBackend([report(), report()], dies))
    places.start()
    assert places.rate(tile("a", 1), MeasureConfig()) == 7.0
    assert len(threads) == 2 and threading.main_thread() not in threads, "a call of Ray in it would change an exit status"
    places.close()


def test_width_that_no_worker_measures_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_places, "NODES_EVERY", 0.0)
    monkeypatch.setattr(remote_places, "NO_WORKER_SECONDS", 0.05)
    monkeypatch.setattr(remote_places, "NO_WORKER_POLL", 0.01)

    def dies(*_: Any) -> Answer:
        raise PlaceLost("exit code 1")

    places, _ = places_of(FakeBackend([report()], dies))
    places.start()
    with pytest.raises(UserError, match=r"cohort a ended 3 workers \(exit code 1\)"):
        places.rate(tile("a", 1), MeasureConfig())
    empty, _ = places_of(FakeBackend([]))
    with pytest.raises(UserError, match="no worker is left to measure a tile width"):
        empty.rate(tile("a", 1), MeasureConfig())


def test_lack_of_memory_of_a_measured_width_stays_one() -> None:
    places, _ = places_of(FakeBackend([report()], lambda *_: Answer("lacking", "RESOURCE_EXHAUSTED: a table")))
    places.start()
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        places.rate(tile("a", 1), MeasureConfig())


def test_folder_that_is_continued_chooses_its_machines() -> None:
    """Two machines of another kind are more, but the folder would refuse them."""
    reports = [report(), report(digest="d2"), report(digest="d2")]
    for digest, expected in ((None, "d2"), ("d1", "d1"), ("d2", "d2"), ("d3", "d2")):
        places, _ = places_of(FakeBackend(reports))
        assert places.start(digest=digest).digest() == expected
