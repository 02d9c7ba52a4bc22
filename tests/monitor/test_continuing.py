"""A monitor continues its folder, never shares one, and keeps what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from monitored import DEAD, PARAMS, X, history, monitor, results
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from relu_study import Monitor, MonitorWarning, table
from relu_study.errors import UserError
from relu_study.storage.atomic_write import WriteError


def test_a_second_monitor_continues_the_folder(tmp_path: Path) -> None:
    history(tmp_path, (0, PARAMS), (10, DEAD))
    found = history(tmp_path, (20, DEAD), (30, PARAMS))
    assert sorted(set(found.curves.step)) == [0, 10, 20, 30]
    assert found.events[["step", "event"]].drop_duplicates().to_records(index=False).tolist() == [(10, "died"), (30, "revived")]
    ratio = found.curves[(found.curves.metric == "update_ratio") & (found.curves.site == "all")].set_index("step")["value"]
    assert np.isfinite(ratio).tolist() == [False, True, False, True]  # the parameters of step 10 are not stored


def test_a_resumed_step_is_not_stored_twice(tmp_path: Path) -> None:
    history(tmp_path, (0, PARAMS), (10, DEAD))
    before = (tmp_path / "measurements.csv").read_bytes()
    history(tmp_path, (10, DEAD))
    assert (tmp_path / "measurements.csv").read_bytes() == before
    with pytest.warns(MonitorWarning, match="the model of step 10 differs from the stored one"):
        history(tmp_path, (10, PARAMS))
    assert (tmp_path / "measurements.csv").read_bytes() == before


def test_a_step_back_keeps_the_later_measurements(tmp_path: Path) -> None:
    whole = history(tmp_path, (0, PARAMS), (10, DEAD), (20, PARAMS)).curves
    rows = (tmp_path / "measurements.csv").read_text().splitlines()
    with pytest.warns(MonitorWarning, match=r"the step went back from 20 to 5\. .* are in .*earlier-1"):
        found = history(tmp_path, (5, PARAMS), (10, PARAMS))
    assert sorted(set(found.curves.step)) == [0, 5, 10] and not found.units.dead.any() and len(found.events) == 0
    archived = (tmp_path / "earlier-1" / "measurements.csv").read_text().splitlines()
    assert archived == [rows[0], *rows[1 + len(whole) // 3 :]]
    assert "10,0,one,0,died" in (tmp_path / "earlier-1" / "events.csv").read_text()
    loaded = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    loaded.Reload()
    assert [(p.step, p.value) for p in loaded.Scalars("dead_fraction/one")] == [(0, 0), (5, 0), (10, 0)]


def test_a_step_back_within_a_training(tmp_path: Path) -> None:
    with monitor(tmp_path, every=10) as watching:
        for step in range(0, 25):
            watching(step, PARAMS)
        with pytest.warns(MonitorWarning, match="went back from 20 to 13"):
            assert watching(13, PARAMS) is not None
        assert [step for step in range(14, 41) if watching(step, PARAMS)] == [20, 30, 40]
    assert sorted(set(results(tmp_path).curves.step)) == [0, 10, 13, 20, 30, 40]
    assert len(list(tmp_path.glob("earlier-*"))) == 1


def test_a_second_monitor_at_the_same_time_writes_next_to_the_first(tmp_path: Path) -> None:
    out = tmp_path / "mine"
    with monitor(out) as first:
        first(0, PARAMS)
        with pytest.warns(MonitorWarning, match=r"mine is being written by process .*this monitor writes .*mine-2"):
            second = monitor(out)
        second(0, DEAD)
        second.close()
        first(10, PARAMS)
    assert sorted(set(results(out).curves.step)) == [0, 10]
    assert results(tmp_path / "mine-2").units.dead.sum() == 2


@pytest.mark.parametrize("content", ["study", "model", "file"])
def test_other_contents_stay_as_they_are(content: str, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    if content == "file":
        out.write_text("notes")
    elif content == "study":
        out.mkdir()
        (out / "manifest.json").write_text('{"format": 2, "study": "article"}')
    else:
        with Monitor((lambda p, x: jax.nn.relu(x @ p), np.ones((4, 3), np.float32)), out=out, probe=X) as other:
            other(0, np.ones((4, 3), np.float32))
    before = out.read_bytes() if out.is_file() else (out / "manifest.json").read_bytes()
    with pytest.warns(MonitorWarning, match=r"this monitor writes .*mine-2"):
        watching = monitor(out)
    watching(0, PARAMS)
    watching.close()
    assert (out.read_bytes() if out.is_file() else (out / "manifest.json").read_bytes()) == before
    assert sorted(set(results(tmp_path / "mine-2").curves.step)) == [0]


def test_a_folder_with_files_of_something_else_stays_as_it_is(tmp_path: Path) -> None:
    for name in ("units.csv", "events.csv", "measurements.csv"):
        folder = tmp_path / name.removesuffix(".csv")
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.warns(MonitorWarning, match=rf"contains {name}, but no manifest\.json"):
            monitor(folder).close()
        assert [path.name for path in folder.iterdir()] == [name] and (folder / name).read_text() == "mine"


def test_a_corrupt_manifest_is_named(tmp_path: Path) -> None:
    history(tmp_path / "mine", (0, PARAMS))
    path = tmp_path / "mine" / "manifest.json"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.warns(MonitorWarning, match=r"manifest.json is corrupt .* this monitor writes .*mine-2"):
        monitor(tmp_path / "mine").close()


@pytest.mark.parametrize("content", [b"", b"step,mem", b"step,member,site,unit,event\n", b"\xff\n"])
def test_events_that_do_not_give_the_dead_units_are_refused(content: bytes, tmp_path: Path) -> None:
    history(tmp_path / "mine", (0, DEAD), (10, DEAD))
    (tmp_path / "mine" / "events.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"events\.csv is corrupt"):
        results(tmp_path / "mine")
    with pytest.warns(MonitorWarning, match=r"events.csv is corrupt .* this monitor writes .*mine-2"):
        monitor(tmp_path / "mine").close()


@pytest.mark.parametrize("content", [b"", b"step,mem"])
def test_an_incomplete_header_is_written_again(content: bytes, tmp_path: Path) -> None:
    history(tmp_path / "mine", (0, PARAMS))
    (tmp_path / "mine" / "events.csv").write_bytes(content)
    assert history(tmp_path / "mine", (10, DEAD)).units.dead.sum() == 2


def test_earlier_measurements_can_be_read(tmp_path: Path) -> None:
    history(tmp_path, (0, PARAMS), (10, PARAMS), (20, PARAMS))
    with pytest.warns(MonitorWarning, match="went back"):
        history(tmp_path, (5, PARAMS))
    assert sorted(set(results(tmp_path / "earlier-1").curves.step)) == [10, 20]
    assert "grad norm" in table(tmp_path / "earlier-1")


def test_a_step_back_with_on_error_raise_moves_nothing(tmp_path: Path) -> None:
    history(tmp_path, (0, PARAMS), (10, PARAMS))
    with monitor(tmp_path, on_error="raise") as watching, pytest.raises(UserError, match="went back from 10 to 5"):
        watching(5, PARAMS)
    assert sorted(set(results(tmp_path).curves.step)) == [0, 10]


def test_a_folder_that_opens_late_is_not_continued_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "mine"
    before = history(out, (0, PARAMS), (10, DEAD)).curves
    with monkeypatch.context() as full:
        full.setattr("relu_study.storage.monitor_log.MonitorLog._open", _unwritable)
        with pytest.warns(MonitorWarning, match="measurements wait in memory"):
            watching = monitor(out)
    with pytest.warns(MonitorWarning, match=r"mine has measurements of another monitor.*this monitor writes .*mine-2"):
        watching(5, DEAD)
    watching.close()
    assert results(out).curves.equals(before) and set(results(out).curves.step) == {0, 10}
    assert set(results(tmp_path / "mine-2").curves.step) == {5} and results(tmp_path / "mine-2").units.born_dead.sum() == 2


def _unwritable(*_: Any) -> None:
    raise WriteError(Path("mine"), "No space left on device", "Free space on the disk")
