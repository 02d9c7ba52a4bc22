"""A study from declaration to folder: the contract's files, going on, extending, one run alone, an interruption."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_study import base, study

from relu_study.engine import cohorts, train_tile
from relu_study.engine.jax_settings import digest
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.runner import prepare, single_run
from relu_study.runner import run as runner
from relu_study.runner.callback import Callback
from relu_study.storage import tile_files
from relu_study.storage.frames import load
from relu_study.storage.manifest import write_manifest
from relu_study.study.study import Experiment


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "small"
    runner.run(study, folder)
    return folder


complete = replace(
    study, metrics=(), experiments=(Experiment("main", {"relu": base}),), seeds=2, claims=(), tables=(), figures=()
)  # everything is measured


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "complete"
    runner.run(complete, folder)
    return folder


class Counted(Callback):
    """Counts the runs that were trained."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.said: list[str] = []
        self.told: list[tuple[Any, ...]] = []

    def on_tile_end(self, tile, *told) -> None:
        self.trained += [run.run_id for run in tile.runs]
        self.told.append((tile, *told))

    def on_message(self, line: str) -> None:
        self.said.append(line)


def csvs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.csv")}


def rows(folder: Path) -> dict[str, str]:
    _header, *lines = (folder / "runs.csv").read_text().splitlines()
    return {line.partition(",")[0]: line for line in lines}


def test_folder_follows_the_contract(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    derived = {"runs.csv", "experiments.csv", "summary.csv", "units.csv", "survival.csv", "verdicts.csv", "health.csv"}
    assert names == derived | {
        "SHA256SUMS",
        "report.md",
        "report.html",
        "manifest.json",
        "raw",
        "tensorboard",
        "tables",
        "figures",
    }
    results = load(finished)
    assert len(results.runs) == 9 and set(results.runs.status) == {"ok"} and results.runs.run_id.is_unique
    assert len(pd.read_csv(finished / "experiments.csv")) == 4
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["counts"] == {"ok": 9, "nonfinite": 0, "interrupted": 0}
    assert manifest["study"] == "small" and manifest["provenance"]["engine"] == cohorts.ENGINE
    assert not list(finished.rglob("*.tmp"))


SPEC = (
    "network depth width activation output norm dropout optimizer batch_size rows initializer task target inputs epochs "
    "learning_rate weight_decay leak dropout_rate gain bias_shift"
)
HEADERS = {
    "experiments": "experiment config_id",
    "summary": f"config_id {SPEC} metric site epoch probe_examples n n_finite mean ci_lo ci_hi std median iqm min max",
    "units": "config_id site probe_examples runs units born_dead died revived dead_at_end dead_at_end_fraction ci_lo ci_hi "
    "certified_revived",
    "survival": "config_id site epoch probe_examples runs at_risk died censored survival lo hi",
    "health": "config_id problem detector n n_scored n_sick share ci_lo ci_hi onset site units site_units score threshold",
    "verdicts": "claim statement contrast target metric site epoch direction margin effect ci_lo ci_hi n p p_corrected verdict "
    "reason",
}
METRICS = (
    "train_loss val_loss grad_norm weight_norm update_norm post_mean post_std collapsed constant dead_fraction "
    "certified_dead_fraction certified_always_on_fraction nearly_dead_fraction always_on_fraction saturated_fraction "
    "dormant_fraction zero_gradient_fraction"
)


def test_columns_follow_the_contract(measured: Path) -> None:
    """Other programs read these files: a column that goes or changes its name breaks them."""
    for name, header in HEADERS.items():
        assert (measured / f"{name}.csv").read_text().partition("\n")[0].split(",") == header.split(), name
    runs = (measured / "runs.csv").read_text().partition("\n")[0].split(",")
    fixed = ["run_id", "config_id", *SPEC.split(), "seed", "status", "first_bad_epoch", "probe_examples"]
    assert runs[: len(fixed)] == fixed
    assert {name.partition("/")[0] for name in runs[len(fixed) :]} >= set(METRICS.split())


def test_same_declaration_gives_same_bytes(finished: Path, tmp_path: Path) -> None:
    runner.run(study, tmp_path / "again")
    assert csvs(tmp_path / "again") == csvs(finished)


def test_finished_study_trains_nothing(finished: Path) -> None:
    before, callback = csvs(finished), Counted()
    runner.run(study, finished, callback=callback)
    assert callback.trained == [] and csvs(finished) == before


def test_digest_of_stored_results(finished: Path, tmp_path: Path) -> None:
    """A cluster chooses the workers that can continue a folder."""
    assert prepare.stored_digest(finished) == digest() is not None
    assert prepare.stored_digest(tmp_path) is None and prepare.stored_digest(None) is None
    shutil.copytree(finished / "raw", tmp_path / "raw")
    assert prepare.stored_digest(tmp_path) is None, "no manifest"


def test_more_seeds_keep_existing_rows(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    shutil.copytree(finished, folder)
    old, callback = rows(folder), Counted()
    runner.run(study, folder, seeds=6, callback=callback)
    new = rows(folder)
    assert len(callback.trained) == 9 and not set(callback.trained) & set(old)
    assert {run: new[run] for run in old} == old and len(new) == 18
    dead = load(folder).runs.drop_duplicates("run_id").set_index("run_id")["dead_fraction/all"]
    for tile, device, compiling, dead_fraction in callback.told:
        assert device in range(2) and compiling >= 0
        assert np.isclose(dead_fraction, dead[[run.run_id for run in tile.runs]].mean())
    runner.run(study, folder, callback=(fewer := Counted()))
    assert fewer.trained == [] and rows(folder) == old


def test_single_run_prints_its_row(finished: Path, tmp_path: Path) -> None:
    for run, row in list(rows(finished).items())[::4]:
        assert single_run.run_single(study, run, finished, None, MeasureConfig()) == row
        assert single_run.run_single(study, run, None, None, MeasureConfig()) == row
    single_run.run_single(study, run, finished, tmp_path / "one", MeasureConfig())
    assert (tmp_path / "one" / "manifest.json").exists()
    with pytest.raises(UserError, match="unknown run"):
        single_run.run_single(study, "nothing", finished, None, MeasureConfig())


def test_csv_numbers_equal_the_engine_output(finished: Path) -> None:
    runs = load(finished).runs.set_index("run_id")
    spec = study.runs()[1]
    width = json.loads((finished / "manifest.json").read_text())["widths"][cohorts.cost_of(spec).cohort]
    config = prepare.prepare(study, None, MeasureConfig()).measure_config
    alone = train_tile.train_tile([spec], width, measure_config=config, num_datasets=1)
    assert np.float32(runs.loc[spec.run_id, "val_loss/all"]) == alone["metric:val_loss/all"][0, -1]


def test_clone_without_raw_is_archived(finished: Path, tmp_path: Path) -> None:
    folder, callback = tmp_path / "small", Counted()
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("raw", "tensorboard"))
    (folder / "replays").mkdir()
    runner.run(study, folder, callback=callback)
    assert (folder / "earlier-1" / "replays").is_dir() and not (folder / "replays").exists()  # of the earlier runs
    assert len(callback.trained) == 9 and csvs(folder) == csvs(finished) == csvs(folder / "earlier-1")
    assert any("earlier-1" in line for line in callback.said)


def test_interrupted_run_keeps_finished_tiles_and_resumes(finished: Path, tmp_path: Path) -> None:
    class Impatient(Counted):
        def on_tile_end(self, tile, *told) -> None:
            super().on_tile_end(tile, *told)
            raise KeyboardInterrupt

    folder, first, second = tmp_path / "small", Impatient(), Counted()
    with pytest.raises(KeyboardInterrupt):
        runner.run(study, folder, callback=first)
    assert len(tile_files.stored_runs(folder)) == len(first.trained) > 0
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"]["interrupted"] == 9 - len(first.trained)
    runner.run(study, folder, callback=second)
    assert sorted(first.trained + second.trained) == sorted(rows(finished)) and csvs(folder) == csvs(finished)


def test_incompatible_folders_are_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains the study 'small'"):
        runner.run(replace(study, name="other"), finished)
    with pytest.raises(UserError, match=r"different provenance.*probe_examples"):
        runner.run(study, finished, probe_examples=100)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    with pytest.raises(UserError, match="not empty"):
        runner.run(study, tmp_path / "photos")
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_study_sets_metrics_and_interval(tmp_path: Path) -> None:
    arms = {"relu": base.replace(epochs=5)}
    few = replace(study, experiments=(replace(study.experiments[1], arms=arms),), seeds=1, claims=(), tables=(), figures=())
    few = replace(few, every=2, metrics=("constant", "collapsed"))
    runner.run(few, tmp_path)
    results, manifest = load(tmp_path), json.loads((tmp_path / "manifest.json").read_text())
    assert sorted(results.curves["epoch"].unique()) == [0, 2, 4, 5]
    measured = {"collapsed", "constant", "dead_fraction", "revived_fraction"}
    assert set(results.curves["metric"]) == set(manifest["declaration"]["metrics"]) == measured
    assert {name.partition("/")[0] for name in results.runs if "/" in name} == measured
    made = manifest["provenance"]
    assert (made["measured_every"], made["metrics"]) == (2, "collapsed, constant, dead_fraction")
    (run,) = results.runs["run_id"][:1]
    assert single_run.run_single(few, run, tmp_path, None, MeasureConfig()) == rows(tmp_path)[run]
    for changes, word in (({"every": 1}, "measured_every: 2 there, 1 here"), ({"metrics": ()}, "metrics: .* there, None here")):
        with pytest.raises(UserError, match=f"different provenance.*{word}"):
            runner.run(replace(few, **changes), tmp_path)
    with pytest.raises(UserError, match=r"unknown metric of study small 'constent'. Did you mean constant"):
        runner.run(replace(few, metrics=("constent",)), tmp_path)


def test_folder_of_an_earlier_version_has_interval_one(measured: Path, tmp_path: Path) -> None:
    folder, callback = Path(shutil.copytree(measured, tmp_path / "complete")), Counted()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["provenance"]["measured_every"], manifest["provenance"]["metrics"]
    write_manifest(folder, manifest)
    for path in tile_files.tile_paths(folder):
        tile = tile_files.read_tile(path)
        made = json.loads(str(tile["provenance"]))
        del made["measured_every"], made["metrics"]
        tile_files.write_tile(folder, {**tile, "provenance": np.array(json.dumps(made))})
    runner.run(complete, folder, callback=callback)
    assert callback.trained == [] and csvs(folder) == csvs(measured)
    with pytest.raises(UserError, match="measured_every: 1 there, 2 here"):
        runner.run(replace(complete, every=2), folder)


@pytest.mark.slow
def test_parameters_are_kept_on_request(tmp_path: Path) -> None:
    results = runner.run(replace(study, metrics=("val_loss", "weight_norm")), seeds=1, keep_params=True)
    first = results.params[results.runs.run_id[0]]
    assert first["hidden.0.dense.kernel"].shape == (4, 8) and first["output.bias"].shape == (1,)
    assert set(results.params) == set(results.runs.run_id)
    norm = np.sqrt(sum((w.astype(float) ** 2).sum() for w in first.values()))
    assert np.isclose(norm, results.runs["weight_norm/all"][0], rtol=1e-5)
