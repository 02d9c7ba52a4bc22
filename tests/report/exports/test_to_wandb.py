"""W&B's offline files: labels, config, curves, summary, tables, images, and one folder per run after a second export."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from known_results import nonfinite, planted_arms, planted_folder, planted_study
from minimal_folders import trained

from relu_study.report.exports.export import export
from relu_study.report.exports.stored_study import configuration_runs, read_study, seed_runs
from relu_study.report.report import report

wandb = pytest.importorskip("wandb", reason="needs the extra wandb")
from wandb_files import OfflineRun, offline_runs  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # warnings of W&B are not ours
SEEDS = 2
OWN = ("_", "epoch")  # keys that W&B adds begin with _


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = planted_folder(tmp_path_factory.mktemp("wandb") / "planted", SEEDS)
    report(folder)
    return folder


@pytest.fixture(autouse=True)
def without_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let W&B find no key, no settings and no network."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    for kind in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / kind))


def exported(folder: Path, out: Path, **options: Any) -> list[OfflineRun]:
    """Return the runs that an export leaves."""
    out.mkdir(exist_ok=True)
    lines = export(folder, "wandb", offline=True, out=out, **options)
    where = f"offline in {out / 'wandb'}. Run 'wandb sync' in {out} to upload it."
    assert lines[-1] == f"W&B project {options.get('project', 'tiny' if folder.name == 'tiny' else 'planted')}: {where}"
    wandb.teardown()  # as at the end of a process: until then the last file can be unfinished
    return offline_runs(out)


def values(run: OfflineRun) -> dict[int, dict[str, float]]:
    return {point["_step"]: {k: v for k, v in point.items() if not k.startswith(OWN)} for point in run.history}


@pytest.fixture(scope="module")
def by_id(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, OfflineRun]:
    """Return run_id -> the run of a default export."""
    found = exported(planted, tmp_path_factory.mktemp("out"))
    assert len({run.run_id for run in found}) == len(found)
    return {run.run_id: run for run in found}


def test_one_run_per_configuration_with_its_curves(planted: Path, by_id: dict[str, OfflineRun]) -> None:
    runs = list(configuration_runs(read_study(planted)))
    assert set(by_id) == {run.run_id for run in runs} | {"planted-study-all"}
    for run in runs:
        found = by_id[run.run_id]
        assert (found.name, found.group, found.job_type, found.project) == (run.name, run.group, "configuration", "planted")
        assert set(found.tags) == set(run.tags) and found.exit_code == 0
        assert {k: v for k, v in found.config.items() if k != "_wandb"} == dict(run.config)
        assert values(found) == {step: {k: v for k, v in point.items() if k != "epoch"} for step, point in run.points}
        assert {k: v for k, v in found.summary.items() if not k.startswith("_")} == dict(run.summary)
        assert not any(isinstance(v, float) and not math.isfinite(v) for point in found.history for v in point.values())


def test_the_study_has_its_tables_and_images(planted: Path, by_id: dict[str, OfflineRun]) -> None:
    run, study = by_id["planted-study-all"], planted_study(SEEDS)
    assert run.job_type == "study" and run.summary["status"] == "39 ok, 1 nonfinite"
    shown: dict[str, dict[str, Any]] = {}
    for name, value in run.summary.items():
        if name.startswith(("tables/", "figures/")):
            owner, _, key = name.rpartition("/")
            shown.setdefault(owner, {})[key] = value
    names = [f"tables/{t.name}" for t in study.tables] + [f"figures/{f.name}" for f in study.figures]
    assert set(shown) == {*names, "tables/verdicts", "tables/units", "tables/health"}
    for name, about in shown.items():
        assert about["_type"] == ("image-file" if name.startswith("figures/") else "table-file")
        assert (run.folder / "files" / about["path"]).is_file()
    units = pd.read_csv(planted / "units.csv")
    assert (shown["tables/units"]["nrows"], shown["tables/units"]["ncols"]) == units.shape


def test_a_second_export_replaces_the_first_but_no_uploaded_run(tmp_path: Path) -> None:
    folder, out = trained(tmp_path / "tiny"), tmp_path / "out"
    first = exported(folder, out)
    assert len(first) == 3
    again = exported(folder, out)
    assert sorted(run.run_id for run in again) == sorted(run.run_id for run in first)
    of_first, of_again = ({r.run_id: values(r) for r in runs if r.job_type == "configuration"} for runs in (first, again))
    assert of_first == of_again and len(of_first) == 2
    (again[0].folder / f"run-{again[0].run_id}.wandb.synced").touch()
    third = exported(folder, out)
    assert len(third) == 4 and again[0].folder in [run.folder for run in third]


def test_an_export_keeps_the_runs_of_other_projects(tmp_path: Path) -> None:
    """Two folders of one study in one directory: each project has its runs until they are uploaded."""
    folder, out = trained(tmp_path / "tiny"), tmp_path / "out"
    first = exported(folder, out, project="a")
    exported(folder, out, project="b")
    again = exported(folder, out, project="b")
    by_project = {name: sorted(run.run_id for run in again if run.project == name) for name in ("a", "b")}
    assert by_project["a"] == by_project["b"] == sorted(run.run_id for run in first) and len(again) == 6
    (foreign := out / "wandb" / f"offline-run-20260101_000000-{first[0].run_id}").mkdir()
    exported(folder, out, project="b")
    assert foreign.is_dir(), "the folder of another program"


def test_seeds_are_grouped_by_configuration(planted: Path, tmp_path: Path) -> None:
    found = {run.run_id: run for run in exported(planted, tmp_path, per_seed=True, project="other")}
    runs = list(seed_runs(read_study(planted)))
    assert set(found) == {run.run_id for run in runs} | {"planted-study-all"} and {r.project for r in found.values()} == {"other"}
    for run in runs:
        assert (found[run.run_id].group, found[run.run_id].job_type) == (run.group, "seed")
        assert values(found[run.run_id]) == {s: {k: v for k, v in point.items() if k != "epoch"} for s, point in run.points}
    sick = next(
        spec.replace(seed=1).run_id
        for (arm, target), spec in planted_arms(planted_study(SEEDS)).items()
        if nonfinite(arm, target, 1)
    )
    lost = found[f"planted-seed-{sick}"]
    assert lost.summary["status"] == "nonfinite" and not any("loss" in name for name in lost.summary)


def test_an_interrupted_run_is_failed(tmp_path: Path) -> None:
    lost = planted_arms(planted_study(SEEDS))["stuck", "wave"]
    report(planted_folder(tmp_path / "part", SEEDS, left_out=(lost.run_id,), figures=False))
    runs = exported(tmp_path / "part", tmp_path / "out")
    failed = {run.run_id: run.summary["status"] for run in runs if run.exit_code}
    assert failed == {
        f"planted-configuration-{lost.config_id}": "1 ok, 1 interrupted",
        "planted-study-all": "38 ok, 1 nonfinite, 1 interrupted",
    }


def test_without_an_account_the_error_is_one_line(planted: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "relu_study", "export", str(planted), "--to", "wandb", "--out", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=170, stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("relu-study: wandb refuses the export after 0 runs: ")


def test_sync_takes_no_tensorboard_folder(tmp_path: Path) -> None:
    # docs/export.md names `relu-study export` in its place.
    line = [sys.executable, "-m", "wandb", "sync", "--sync-tensorboard", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=170, stdin=subprocess.DEVNULL)
    assert done.returncode and "have been removed: --sync-tensorboard" in " ".join((done.stdout + done.stderr).split())
