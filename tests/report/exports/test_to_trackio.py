"""Trackio's local store: the runs of an export, their replacement, and the import of the TensorBoard folder as it is."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from known_results import planted_arms, planted_folder, planted_study
from minimal_folders import trained
from paths import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from relu_study.errors import UserError
from relu_study.report.exports import to_trackio
from relu_study.report.exports.export import export
from relu_study.report.exports.stored_study import configuration_runs, read_study, seed_runs
from relu_study.report.exports.tracker import ExportedRun
from relu_study.report.report import report

STORE = Path(tempfile.gettempdir()) / f"trackio-{os.getpid()}"  # Trackio reads its folder once, at its import
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRACKIO_DIR", str(STORE))
    trackio = pytest.importorskip("trackio", reason="needs the extra trackio, in an environment without pillow 13")
    from trackio.sqlite_storage import SQLiteStorage

pytestmark = pytest.mark.filterwarnings("default")  # warnings of Trackio are not ours
SEEDS = 2


@pytest.fixture(autouse=True)
def local_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    yield
    shutil.rmtree(STORE, ignore_errors=True)


def stored(project: str) -> dict[str, tuple[Any, list[dict[str, Any]]]]:
    """Return export_id -> the run and its log."""
    runs = list(trackio.Api().runs(project))
    found = {str(run.config["export_id"]): (run, SQLiteStorage.get_logs(project, run.name, run_id=run.id)) for run in runs}
    assert len(found) == len(runs)
    return found


def curves(log: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    points: dict[int, dict[str, float]] = {}
    own = ("timestamp", "step", "complete", "epoch")
    for entry in log:
        values = {k: v for k, v in entry.items() if k not in own and not k.startswith(("final/", "runs/"))}
        points.setdefault(entry["step"], {}).update(values)
    return {step: values for step, values in points.items() if values}


def test_runs_have_their_curves_factors_and_texts(tmp_path: Path) -> None:
    folder = planted_folder(tmp_path / "planted", SEEDS)
    report(folder)
    assert export(folder, "trackio")[-1] == "Trackio project planted. See it with: trackio show --project planted"
    found, runs = stored("planted"), list(configuration_runs(read_study(folder)))
    assert set(found) == {run.run_id for run in runs} | {"planted-study-all"}
    for run in runs:
        about, log = found[run.run_id]
        assert about.name == run.name and dict(run.config).items() <= about.config.items() and about.config["_Group"] == run.group
        assert about.config["status"] == run.summary["status"]
        assert curves(log) == {step: {k: v for k, v in values.items() if k != "epoch"} for step, values in run.points}
        final = {k: v for entry in log for k, v in entry.items() if k.startswith("final/")}
        assert final == {k: v for k, v in run.summary.items() if k.startswith("final/")}
        assert log[-1]["complete"] == 1
    shown = {name: value for entry in found["planted-study-all"][1] for name, value in entry.items() if "/" in name}
    study = planted_study(SEEDS)
    assert {f"tables/{t.name}" for t in study.tables} | {"tables/verdicts", "tables/units"} <= set(shown)
    assert {f"figures/{f.name}" for f in study.figures} <= set(shown)


def test_a_second_export_replaces_the_first(tmp_path: Path) -> None:
    folder = trained(tmp_path / "tiny")
    export(folder, "trackio", project="p")
    first = stored("p")
    export(folder, "trackio", project="p")
    again = stored("p")
    assert set(again) == set(first) and len(again) == 3
    assert {name: curves(log) for name, (_, log) in again.items() if "configuration" in name} == {
        name: curves(log) for name, (_, log) in first.items() if "configuration" in name
    }
    assert not {run.id for run, _ in again.values()} & {run.id for run, _ in first.values()}


def test_seeds_without_numbers_have_their_status(tmp_path: Path) -> None:
    lost = planted_arms(planted_study(SEEDS))["stuck", "wave"]
    folder = planted_folder(tmp_path / "part", SEEDS, left_out=(lost.run_id,), figures=False)
    report(folder)
    export(folder, "trackio", per_seed=True)
    found = stored("planted")
    assert set(found) == {run.run_id for run in seed_runs(read_study(folder))} | {"planted-study-all"}
    about, log = found[f"planted-seed-{lost.run_id}"]
    assert about.config["status"] == "interrupted" and not curves(log) and log[-1]["complete"] == 0


def test_a_part_that_trackio_skips_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_media(*_: Any) -> None:
        raise ValueError("no media")

    monkeypatch.setattr(trackio.run.Run, "_process_media", no_media)
    project = to_trackio.TrackioProject("p")
    project.start(ExportedRun("id", "run", "study", "study", (), {}, True))
    with pytest.raises(RuntimeError, match="no media"):
        project.figure("headline", ROOT / "results" / "article" / "figures" / "headline.png")
    assert RuntimeError in project.errors
    project.finish(True)
    assert project.close()


def test_a_remote_store_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/space")
    with pytest.raises(UserError, match=r"^TRACKIO_SPACE_ID names a remote store"):
        export(trained(tmp_path / "tiny"), "trackio")


def test_the_tensorboard_folder_imports_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip("tbparse", reason="needs trackio's extra tensorboard")
    folder = planted_folder(tmp_path / "planted", SEEDS, figures=False)
    report(folder)
    trackio.import_tf_events(folder / "tensorboard", project="events")
    runs = {run.name: SQLiteStorage.get_logs("events", run.name, run_id=run.id) for run in trackio.Api().runs("events")}
    assert set(runs) == {path.name for path in (folder / "tensorboard").iterdir()}
    for name, log in runs.items():
        events = EventAccumulator(str(folder / "tensorboard" / name), {"scalars": 0})
        events.Reload()
        expected = {(tag, point.step): point.value for tag in events.Tags()["scalars"] for point in events.Scalars(tag)}
        found = {(k, entry["step"]): v for entry in log for k, v in entry.items() if k not in ("step", "timestamp")}
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            shown = np.nan if found[key] in (None, "NaN") else found[key]
            np.testing.assert_equal(shown, value, err_msg=str(key))
