"""A monitor's folder: complete after crashes, continued, never shared, and read by `load`, `table` and TensorBoard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from monitored import X, Y, forward, killed, loss, params_of, shared_programs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from relu_study import Measurement, Monitor, MonitorWarning, load, table
from relu_study.errors import UserError
from relu_study.storage import monitor_log
from relu_study.storage.results import MonitorResults

PARAMS = params_of()
DEAD = killed(PARAMS, "one", 0, 4)
NAN = PARAMS | {"two": PARAMS["two"] | {"kernel": np.full_like(PARAMS["two"]["kernel"], np.nan)}}


@pytest.fixture(autouse=True, scope="module")
def shared_program() -> Iterator[None]:
    with shared_programs():
        yield


def monitor(out: Path, model: Any = (forward, PARAMS), **options: Any) -> Monitor:
    return Monitor(model, out=out, **{"probe": X, "targets": Y, "loss": loss, "every": 1, **options})


def results(folder: Path) -> MonitorResults:
    found = load(folder)
    assert isinstance(found, MonitorResults)
    return found


def history(folder: Path, *steps: tuple[int, Any]) -> MonitorResults:
    with monitor(folder) as watching:
        for step, params in steps:
            watching(step, params)
    return results(folder)


# ------------------------------------------------------------------------------------------ histories


def test_units_are_born_dead_die_and_revive(tmp_path: Path) -> None:
    both = killed(DEAD, "two", 2)
    found = history(tmp_path, (0, DEAD), (10, PARAMS), (20, both), (30, both), (40, PARAMS))
    events = found.events[["step", "site", "unit", "event"]].to_records(index=False).tolist()
    assert events == [
        *((0, "one", unit, "born dead") for unit in (0, 4)),
        *((10, "one", unit, "revived") for unit in (0, 4)),
        *((20, "one", unit, "died") for unit in (0, 4)),
        (20, "two", 2, "died"),
        *((40, "one", unit, "revived") for unit in (0, 4)),
        (40, "two", 2, "revived"),
    ]
    units = found.units.set_index(["site", "unit"])
    assert units.loc[("one", 0), ["born_dead", "revived", "deaths", "dead"]].tolist() == [True, 10, 1, False]
    assert pd.isna(units.loc[("one", 0), "died"])  # born dead and died are disjoint
    assert units.loc[("two", 2), ["born_dead", "died", "revived", "deaths"]].tolist() == [False, 20, 40, 1]
    assert len(units) == 11 and units.loc[("one", 1)][["born_dead", "deaths", "dead"]].tolist() == [False, 0, False]
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "units.csv", dtype={"died": "Int64", "revived": "Int64"}), found.units, check_dtype=False
    )


def test_members_went_nonfinite_with_their_step_and_site(tmp_path: Path) -> None:
    def stacked(*members: Any) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)

    inf = PARAMS | {"out": PARAMS["out"] | {"bias": np.full_like(PARAMS["out"]["bias"], np.inf)}}
    with monitor(tmp_path, (forward, stacked(PARAMS, PARAMS, DEAD)), ensemble=True) as watching:
        watching(0, stacked(PARAMS, PARAMS, DEAD))
        with pytest.warns(MonitorWarning, match=r"step 7: .*: member 1 in site 'two', member 2 in outputs\."):
            measured = watching(7, stacked(DEAD, NAN, inf))
        assert measured is not None and measured.nonfinite == {1: "two", 2: "outputs"}
        assert np.isfinite(np.asarray(measured.values["dead_fraction/all"])).tolist() == [True, False, False]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # told once
            watching(8, stacked(DEAD, NAN, inf))
        watching(9, stacked(DEAD, PARAMS, inf))
    found = results(tmp_path)
    assert found.runs["status"].tolist() == ["ok", "ok", "nonfinite"]
    assert found.runs["first_bad_step"].tolist()[1:] == [7, 7] and found.runs["first_bad_place"].tolist() == [
        "",
        "two",
        "outputs",
    ]
    members = found.events[found.events.unit.isna()]
    assert members[["step", "member", "site", "event"]].to_records(index=False).tolist() == [
        (7, 1, "two", "nonfinite"),
        (7, 2, "outputs", "nonfinite"),
        (9, 1, "", "finite"),
    ]
    assert not found.units[(found.units.member == 1)].dead.any()  # a nonfinite member keeps the state of its units
    assert found.units[(found.units.member == 2) & (found.units.site == "one")].dead.sum() == 2
    last = found.summary[(found.summary.metric == "dead_fraction") & (found.summary.site == "all") & (found.summary.step == 9)]
    assert last["n"].tolist() == [3] and last["n_finite"].tolist() == [2]


@pytest.mark.parametrize(
    "bad, place",
    [
        (NAN, "site 'two'"),
        (PARAMS | {"out": NAN["two"] | {"kernel": np.inf * PARAMS["out"]["kernel"], "bias": PARAMS["out"]["bias"]}}, "outputs"),
    ],
)
def test_a_single_model_went_nonfinite(bad: Any, place: str, tmp_path: Path) -> None:
    with monitor(tmp_path) as watching:
        watching(0, PARAMS)
        with pytest.warns(MonitorWarning, match=f"step 5: {place} went nonfinite since the last measurement"):
            watching(5, bad)


# -------------------------------------------------------------------------------------------- reading


def test_load_has_every_number_that_was_returned(tmp_path: Path) -> None:
    with monitor(tmp_path) as watching:
        measured = [watching(step, params) for step, params in ((0, PARAMS), (4, DEAD))]
    curves = results(tmp_path).curves
    for one in measured:
        assert isinstance(one, Measurement)
        stored = curves[curves.step == one.step]
        names = (stored.metric.astype(str) + "/" + stored.site.astype(str)).tolist()
        np.testing.assert_array_equal(np.array(list(one.values.values()), np.float32), stored.value.to_numpy(np.float32))
        assert names == list(one.values)
    assert results(tmp_path).runs["dead_fraction/one"].tolist() == [pytest.approx(2 / 6)]


def test_table(tmp_path: Path) -> None:
    history(tmp_path, (0, PARAMS), (10, DEAD))
    text = table(tmp_path)
    assert "| one | 0.333 | 0 |" in text and "Step 10. Fractions on N = 32 probe examples." in text
    assert [line.split("|")[1].strip() for line in text.splitlines()[4:7]] == ["one", "two", "all"]
    by_step = table(tmp_path, rows="step", cols="site", metric="dead_fraction", where="site!=two", format="csv")
    assert by_step.splitlines()[1:] == [
        "0,one,dead_fraction,1,1,0.0,,",
        "0,all,dead_fraction,1,1,0.0,,",
        *by_step.splitlines()[3:],
    ]
    assert "| 0.333 |" in table(tmp_path, rows="member", metric="dead_fraction/one")
    assert "0.182" in table(tmp_path, metric="dead_fraction", epoch=10) and "0.182" not in table(tmp_path, epoch="0")
    for wrong, message in (
        ({"rows": "sites"}, "Did you mean site"),
        ({"metric": "dead"}, "Did you mean dead_fraction"),
        ({"epoch": 3}, "no measurement at step 3. The measured steps are 0, 10"),
        ({"where": "site=tow"}, "Did you mean two"),
        ({"baseline": "one"}, "has no baseline"),
        ({"where": "step>99"}, "no measurement"),
    ):
        with pytest.raises(UserError, match=message):
            table(tmp_path, **wrong)  # type: ignore[arg-type]


def test_tensorboard(tmp_path: Path) -> None:
    history(tmp_path, (0, PARAMS), (10, DEAD))
    loaded = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    loaded.Reload()
    assert [(p.step, p.value) for p in loaded.Scalars("dead_fraction/one")] == [(0, 0.0), (10, pytest.approx(1 / 3))]
    assert {f"{kind}/{site}" for kind in ("pre", "post", "gradient") for site in ("one", "two")} <= set(loaded.Tags()["tensors"])
    (event, _) = loaded.Tensors("post/one")
    buckets = np.frombuffer(event.tensor_proto.tensor_content, np.float32).reshape(-1, 3)
    zero = buckets[(buckets[:, 0] < 0) & (buckets[:, 1] > 0)]
    assert zero[0, 2] == (X @ PARAMS["one"]["kernel"] + PARAMS["one"]["bias"] <= 0).sum()


def test_tensorboard_of_an_ensemble_has_intervals(tmp_path: Path) -> None:
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), PARAMS, PARAMS, DEAD)
    with monitor(tmp_path, (forward, stacked), ensemble=True) as watching:
        watching(0, stacked)
    loaded = EventAccumulator(str(tmp_path / "tensorboard"))
    loaded.Reload()
    mean, lo, hi = (loaded.Scalars(f"dead_fraction/one/{tag}")[0].value for tag in ("mean", "lo", "hi"))
    assert mean == pytest.approx(1 / 9) and mean - lo == pytest.approx(hi - mean) and hi > mean


# ------------------------------------------------------------------------------------------- continuing


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


# --------------------------------------------------------------------------------------------- troubles


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
                    if step > max([*watching._recorder._log.steps, -1]):  # type: ignore[union-attr]
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
            with pytest.warns(MonitorWarning, match=r"No space left.*Measurements wait in memory"):
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
    with pytest.warns(MonitorWarning, match="1 measurement and units.csv are in"):
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
            (None, "is not measured"),
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
