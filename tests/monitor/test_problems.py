"""A monitor loses nothing in a crash or on a full disk, and does not stop the training."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
from monitored import DEAD, PARAMS, Y, forward, history, killed, monitor, params_of, results
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from relu_study import MonitorWarning, load
from relu_study.errors import UserError
from relu_study.storage import monitor_log


def test_an_incomplete_measurement_is_dropped_at_any_byte(tmp_path: Path) -> None:
    whole = history(tmp_path / "whole", (0, PARAMS), (10, DEAD), (20, PARAMS))
    content = (tmp_path / "whole" / "measurements.csv").read_bytes()
    second = content.index(b"\n10,") + 1
    third = content.index(b"\n20,") + 1
    for size in (third, third + 1, third + 40, len(content) - 1, second + 5, 0, 10, second):
        folder = tmp_path / str(size)
        folder.mkdir()
        for name in ("manifest.json", "events.csv"):
            (folder / name).write_bytes((tmp_path / "whole" / name).read_bytes())
        (folder / "measurements.csv").write_bytes(content[:size])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MonitorWarning)
            with monitor(folder) as watching:
                for step, params in ((0, PARAMS), (10, DEAD), (20, PARAMS)):
                    if step > max([*watching.steps, -1]):  # type: ignore[union-attr]
                        watching(step, params)
        found = results(folder)
        assert sorted(set(found.curves.step)) == [0, 10, 20], size
        pd.testing.assert_frame_equal(found.events, whole.events)
        dead = (found.curves.metric == "dead_fraction").to_numpy()
        pd.testing.assert_frame_equal(found.curves[dead], whole.curves[dead])


def test_a_crash_loses_nothing(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "import os, signal\n"
        "from pathlib import Path\n"
        "from monitored import X, Y, forward, loss, params_of, killed\n"
        "from relu_study import Monitor\n"
        "watching = Monitor((forward, params_of()), out=sys.argv[3], probe=X, targets=Y, loss=loss, every=1)\n"
        "for step in range(3):\n"
        "    watching(step, killed(params_of(), 'one', step))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, str(root), str(root / "tests" / "support"), str(tmp_path / "mine")], capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    found = results(tmp_path / "mine")
    whole = history(tmp_path / "whole", *((step, killed(PARAMS, "one", step)) for step in range(3)))
    assert sorted(set(found.curves.step)) == [0, 1, 2] and len(found.events) >= 5
    pd.testing.assert_frame_equal(found.events, whole.events)
    again = history(tmp_path / "mine", (3, PARAMS))
    assert sorted(set(again.curves.step)) == [0, 1, 2, 3]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.warns(MonitorWarning, match="cannot write"):
        watching = monitor(tmp_path / "mine")
    assert watching(0, PARAMS) is not None
    tmp_path.chmod(0o700)
    watching(1, PARAMS)
    watching.close()
    assert sorted(set(results(tmp_path / "mine").curves.step)) == [0, 1]


def test_measurements_wait_while_the_folder_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monitor(tmp_path / "mine") as watching:
        watching(0, PARAMS)
        with monkeypatch.context() as full:
            full.setattr(os, "write", _full)
            with pytest.warns(MonitorWarning, match=r"No space left.*; measurements wait in memory"):
                assert watching(1, DEAD) is not None
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # told once
                watching(2, DEAD)
        watching(3, PARAMS)
    found = results(tmp_path / "mine")
    assert sorted(set(found.curves.step)) == [0, 1, 2, 3] and found.units.deaths.sum() == 2


def test_waiting_measurements_go_to_a_temporary_folder_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    watching = monitor(tmp_path / "mine")
    watching(0, PARAMS)
    write = os.write
    monkeypatch.setattr(
        os,
        "write",
        lambda handle, block: _full() if b"mine" in os.readlink(f"/proc/self/fd/{handle}").encode() else write(handle, block),
    )
    with pytest.warns(MonitorWarning):
        watching(1, DEAD)
    with pytest.warns(MonitorWarning, match="1 measurement that waited, and the histories of units, are in"):
        watching.close()
    (saved,) = (tmp_path / "temporary").iterdir()
    assert sorted(set(results(saved).curves.step)) == [1]
    assert sorted(set(results(tmp_path / "mine").curves.step)) == [0]


def _full(*_: Any) -> int:
    raise OSError(28, os.strerror(28))


def test_on_error_raise(tmp_path: Path) -> None:
    with monitor(tmp_path / "mine"), pytest.raises(UserError, match="is being written by"):
        monitor(tmp_path / "mine", on_error="raise")
    watching = monitor(tmp_path / "mine", on_error="raise")
    with pytest.raises(UserError, match="another structure"):
        watching(0, {"one": PARAMS["one"]})
    watching.close()
    with pytest.raises(UserError, match="is closed"):
        watching(1, PARAMS)


def test_troubles_of_a_call_do_not_stop_the_training(tmp_path: Path) -> None:
    wider = PARAMS | {"one": params_of()["two"]}
    with monitor(tmp_path) as watching:
        for model, message in (
            ({"one": PARAMS["one"]}, "another structure"),
            (wider, r"\['one'\]\['bias'\] has the shape \(5,\)"),
        ):
            with pytest.warns(MonitorWarning, match=message):
                assert watching.measure(3, model) is None
        with pytest.warns(MonitorWarning, match="inside jit"):
            jax.jit(lambda params: (watching(4, params), params)[1])(PARAMS)
        with pytest.warns(MonitorWarning, match="inside jit"):
            jax.jit(lambda step: (watching(step, PARAMS), step)[1])(5)
        with pytest.warns(MonitorWarning, match="no whole number"):
            watching(6.5, PARAMS)  # type: ignore[arg-type]
        assert watching(7, PARAMS) is not None
    assert sorted(set(results(tmp_path).curves.step)) == [7]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"every": 0}, "every=0 is no number of steps"),
        ({"every": -3}, "every=-3"),
        ({"loss": None}, "loss is missing"),
        ({"targets": None}, "targets is missing"),
        ({"targets": Y[:5]}, "targets has 5 rows, but probe has 32"),
        ({"loss": lambda out, y: out - y}, "not a scalar"),
        ({"probe": np.float32(3)}, "no examples"),
        ({"ensemble": True}, "one leading axis of members"),
        ({"unit_axis": {"thre": 0}}, "unknown site in unit_axis"),
    ],
)
def test_invalid_arguments_are_refused_before_anything_is_written(options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        monitor(tmp_path / "mine", **options)
    assert not (tmp_path / "mine").exists()


def test_unknown_models_are_refused(tmp_path: Path) -> None:
    for model, message in ((forward, r"\(function, params\)"), ({"params": PARAMS}, r"\(module, variables\)"), (3, "not int")):
        with pytest.raises(UserError, match=message):
            monitor(tmp_path / "mine", model)


def test_a_corrupt_folder_is_named(tmp_path: Path) -> None:
    history(tmp_path, (0, PARAMS), (1, PARAMS))
    path = tmp_path / "measurements.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:5], *lines[6:]]))
    with pytest.raises(UserError, match=r"measurements.csv is corrupt"):
        load(tmp_path)
    path.write_text(f"x{''.join(lines)}")
    with pytest.raises(UserError, match=r"measurements.csv is corrupt"):
        load(tmp_path)


def test_names_with_commas_and_quotes(tmp_path: Path) -> None:
    info = monitor_log.MonitorInfo((monitor_log.SiteInfo('a,"b"', "relu", 2),), ('dead_fraction/a,"b"',), {}, 1, 4)
    log = monitor_log.MonitorLog(tmp_path, info, print)
    from relu_study.stats.unit_events import Event

    events = [Event(3, 0, 'a,"b"', 1, "died")]
    log.append(3, np.array([[0.5]]), events)
    log.close()
    stored = monitor_log.read_stored(tmp_path)
    assert stored.events == events and stored.steps == [3] and stored.values.tolist() == [[[0.5]]]
    assert pd.read_csv(tmp_path / "events.csv").site.tolist() == ['a,"b"']


def test_other_commands_name_the_folder(tmp_path: Path) -> None:
    history(tmp_path, (0, PARAMS))
    from relu_study.report.report import derive

    with pytest.raises(UserError, match="is the folder of a monitor"):
        derive(tmp_path, False, False, set())


def test_a_removed_folder_is_written_again_with_all_histories(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    with monitor(folder) as watching:
        watching(0, DEAD)
        shutil.rmtree(folder)
        with pytest.warns(MonitorWarning, match="measurements wait in memory"):
            watching(1, DEAD)
        folder.mkdir()
        watching(2, killed(DEAD, "one", 1))
    found = results(folder)
    assert sorted(set(found.curves.step)) == [1, 2] and found.units.born_dead.sum() == 2 and found.units.dead.sum() >= 3


def test_a_removed_file_is_not_filled_with_zeros(tmp_path: Path) -> None:
    with monitor(tmp_path) as watching:
        watching(0, PARAMS)
        (tmp_path / "measurements.csv").unlink()
        with pytest.warns(MonitorWarning, match="another program removed or shortened it"):
            watching(1, PARAMS)
        assert not (tmp_path / "measurements.csv").read_bytes()
        with pytest.warns(MonitorWarning, match="1 measurement that waited"):
            watching.close()


def test_waiting_measurements_reach_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monitor(tmp_path / "mine") as watching:
        with monkeypatch.context() as full:
            full.setattr(os, "write", _full)
            with pytest.warns(MonitorWarning):
                watching(0, PARAMS)
            watching(1, DEAD)
        watching(2, DEAD)
    loaded = EventAccumulator(str(tmp_path / "mine" / "tensorboard"), size_guidance={"scalars": 0})
    loaded.Reload()
    assert [point.step for point in loaded.Scalars("dead_fraction/one")] == [0, 1, 2]


def test_close_does_not_stop_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watching = monitor(tmp_path / "mine")
    watching(0, PARAMS)
    monkeypatch.setattr(os, "write", _full)
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: _full())
    with pytest.warns(MonitorWarning, match="measurements wait in memory"):
        watching(1, PARAMS)
    with pytest.warns(MonitorWarning, match="1 measurement that waited: lost"):
        watching.close()
    watching.close()


def test_the_same_problem_is_told_once(tmp_path: Path) -> None:
    watching = monitor(tmp_path)
    watching.close()
    with pytest.warns(MonitorWarning, match="The monitor is closed") as told:
        for step in range(5):
            assert watching(step, PARAMS) is None
    assert len(told) == 1


def test_steps_that_are_no_numbers(tmp_path: Path) -> None:
    with monitor(tmp_path, every=np.int64(10)) as watching:
        assert watching(np.zeros(3, int), PARAMS) is not None  # of a stacked training state
        assert watching(np.full(3, 5), PARAMS) is None and watching(jax.numpy.int32(10), PARAMS) is not None
        for step, message in ((None, "no whole number"), ("12", "no whole number"), (-3, "is negative"), ([11, 12], "no whole")):
            with pytest.warns(MonitorWarning, match=message):
                assert watching(step, PARAMS) is None
