"""MLflow's local store: the runs of an export, their states and artifacts, and their replacement."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from known_results import nonfinite, planted_arms, planted_folder, planted_study
from minimal_folders import trained

from relu_study.report.exports.export import export
from relu_study.report.exports.stored_study import configuration_runs, read_study, seed_runs
from relu_study.report.report import report

mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
pytest.importorskip("sqlalchemy", reason="mlflow-skinny has no local store")

pytestmark = pytest.mark.filterwarnings("default")  # warnings of MLflow are not ours
SEEDS = 2


@pytest.fixture(autouse=True)
def local_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield
    mlflow.set_tracking_uri(before)


def stored(name: str) -> dict[str, Any]:
    """Return export_id -> the run."""
    client = mlflow.MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name(name).experiment_id], max_results=1000)
    found = {run.data.tags["export_id"]: run for run in runs}
    assert len(found) == len(runs)
    return found


def history(run: Any, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in mlflow.MlflowClient().get_metric_history(run.info.run_id, metric)]


def test_runs_have_their_curves_factors_and_artifacts(tmp_path: Path) -> None:
    folder = planted_folder(tmp_path / "planted", SEEDS)
    report(folder)
    export(folder, "mlflow")
    found, runs = stored("planted"), list(configuration_runs(read_study(folder)))
    assert set(found) == {run.run_id for run in runs} | {"planted-study-all"}
    for run in runs:
        about = found[run.run_id]
        assert about.info.run_name == run.name and about.info.status == "FINISHED"
        assert about.data.params == {name: str(value) for name, value in run.config.items()}
        assert (about.data.tags["group"], about.data.tags["status"]) == (run.group, run.summary["status"])
        numbers = {name: value for name, value in run.summary.items() if not isinstance(value, str)}
        names = {name for _, values in run.points for name in values}
        assert set(about.data.metrics) == names | set(numbers)
        assert {name: about.data.metrics[name] for name in numbers} == numbers
    run = runs[0]
    for name in ("val_loss/all/mean", "dead_fraction/site_1/hi"):
        assert history(found[run.run_id], name) == [(step, values[name]) for step, values in run.points if name in values]
    client, study = mlflow.MlflowClient(), planted_study(SEEDS)
    whole = found["planted-study-all"].info.run_id
    assert {f"figures/{f.name}.png" for f in study.figures} == {a.path for a in client.list_artifacts(whole, "figures")}
    tables = {a.path for a in client.list_artifacts(whole, "tables")}
    assert tables == {f"tables/{name}.json" for name in [*(t.name for t in study.tables), "verdicts", "units", "health"]}
    path = client.download_artifacts(whole, "tables/verdicts.json", str(tmp_path))
    assert json.loads(Path(path).read_text())["columns"][:2] == ["claim", "statement"]


def test_a_second_export_replaces_the_first(tmp_path: Path) -> None:
    folder = trained(tmp_path / "tiny")
    export(folder, "mlflow", project="p")
    first = stored("p")
    export(folder, "mlflow", project="p")
    again = stored("p")
    assert set(again) == set(first) and len(again) == 3
    for name, run in again.items():
        assert run.info.run_id != first[name].info.run_id and run.data.metrics == first[name].data.metrics


def test_states_of_seeds(tmp_path: Path) -> None:
    arms = planted_arms(planted_study(SEEDS))
    lost = arms["stuck", "wave"]
    sick = next(spec.replace(seed=1) for (arm, target), spec in arms.items() if nonfinite(arm, target, 1))
    folder = planted_folder(tmp_path / "part", SEEDS, left_out=(lost.run_id,), figures=False)
    report(folder)
    export(folder, "mlflow", per_seed=True)
    found = stored("planted")
    assert set(found) == {run.run_id for run in seed_runs(read_study(folder))} | {"planted-study-all"}
    missing, broken = found[f"planted-seed-{lost.run_id}"], found[f"planted-seed-{sick.run_id}"]
    assert (missing.info.status, missing.data.tags["status"], missing.data.metrics) == ("FAILED", "interrupted", {})
    assert (broken.info.status, broken.data.tags["status"]) == ("FINISHED", "nonfinite")
    assert [step for step, _ in history(broken, "val_loss/all")] == [0, 1] and "final/val_loss/all" not in broken.data.metrics
    states = {name for name, run in found.items() if run.info.status == "FAILED"}
    assert states == {f"planted-seed-{lost.run_id}", "planted-study-all"}
