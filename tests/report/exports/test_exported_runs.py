"""Exported runs: their numbers are those of the CSV files, missing ones are left out, and each run has a stable id."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from known_results import nonfinite, planted_arms, planted_folder, planted_study
from minimal_folders import drawn
from paths import ROOT

from relu_study.errors import UserError
from relu_study.report.exports.export import export, send
from relu_study.report.exports.stored_study import (
    StoredStudy,
    configuration_runs,
    read_study,
    seed_runs,
    stable_id,
    study_run,
)
from relu_study.report.exports.tracker import ExportedRun
from relu_study.report.report import report
from relu_study.storage.frames import load

SEEDS = 4
STUDY = planted_study(SEEDS)
ARMS = planted_arms(STUDY)
SICK = next(spec.replace(seed=1) for (arm, target), spec in ARMS.items() if nonfinite(arm, target, 1))
LOST = ARMS["stuck", "wave"].replace(seed=0)


@dataclass
class Recorder:
    """A tracker that records every call."""

    errors: tuple[type[Exception], ...] = ()
    runs: dict[str, ExportedRun] = field(default_factory=dict)
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def start(self, run: ExportedRun) -> None:
        self.runs[run.run_id] = run
        self.calls.append(("start", run.run_id))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.calls.append(("log", step, dict(values)))

    def summary(self, values: Mapping[str, Any]) -> None:
        self.calls.append(("summary", dict(values)))

    def table(self, name: str, frame: pd.DataFrame) -> None:
        self.calls.append(("table", name, frame.shape))

    def figure(self, name: str, path: Path) -> None:
        self.calls.append(("figure", name, path.read_bytes()[:4]))

    def finish(self, complete: bool) -> None:
        self.calls.append(("finish", complete))

    def close(self) -> list[str]:
        return ["closed"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = planted_folder(tmp_path_factory.mktemp("exports") / "planted", SEEDS)
    report(folder, all_epochs=True)
    return folder


@pytest.fixture(scope="module")
def stored(planted: Path) -> StoredStudy:
    return read_study(planted)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Replace every tracker by a recorder."""
    recorder = Recorder()
    monkeypatch.setattr("relu_study.report.exports.export.open_tracker", lambda *_, **__: recorder)
    monkeypatch.setattr("relu_study.report.exports.export.check_destination", lambda to, given: None)
    return recorder


def test_curves_of_configurations_are_the_rows_of_summary_csv(stored: StoredStudy, planted: Path) -> None:
    summary = load(planted).summary
    runs = {run.config["config_id"]: run for run in configuration_runs(stored)}
    assert set(runs) == set(summary["config_id"])
    for config_id, rows in summary.groupby("config_id"):
        points = dict(runs[config_id].points)
        assert set(points) == {0, 1, 2, 5} and all(values["epoch"] == step for step, values in points.items())
        expected = {
            (int(row.epoch), f"{row.metric}/{row.site}/{tag}"): value
            for row in rows.itertuples()
            for tag, value in (("mean", row.mean), ("lo", row.ci_lo), ("hi", row.ci_hi))
            if math.isfinite(value)
        }
        found = {(step, name): v for step, values in points.items() for name, v in values.items() if name != "epoch"}
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, rel=1e-8, abs=1e-12), key
        last = {name: value for (step, name), value in found.items() if step == 5}
        assert {k.removeprefix("final/"): v for k, v in runs[config_id].summary.items() if k.startswith("final/")} == last


def test_curves_of_seeds_are_the_measurements(stored: StoredStudy, planted: Path) -> None:
    curves = load(planted).curves
    runs = {run.config["run_id"]: run for run in seed_runs(stored)}
    assert len(runs) == len(STUDY.runs()) == 80
    assert set(curves["run_id"]) == set(runs)
    finite = curves[curves["value"].notna()]
    expected = {
        (run, int(epoch), f"{metric}/{site}"): value
        for run, epoch, metric, site, value in finite[["run_id", "epoch", "metric", "site", "value"]].itertuples(index=False)
    }
    found = {
        (run_id, step, name): value
        for run_id, run in runs.items()
        for step, values in run.points
        for name, value in values.items()
        if name != "epoch"
    }
    assert found == expected


def test_factors_groups_and_tags(stored: StoredStudy) -> None:
    shared = ARMS["relu, rate=0.001", "wave"]
    by_config = {run.config["config_id"]: run for run in configuration_runs(stored)}
    run = by_config[shared.config_id]
    assert run.group == "initialisers" and run.tags == ("planted", "initialisers", "tuned")
    assert run.config["arm"] == "he_normal ~ relu, rate=0.001" and run.config["experiment"] == "initialisers, tuned"
    assert (run.config["initializer"], run.config["learning_rate"], run.config["seeds"]) == ("he_normal", 0.001, SEEDS)
    seeds = [run for run in seed_runs(stored) if run.config["config_id"] == shared.config_id]
    assert [s.config["seed"] for s in seeds] == [0, 1, 2, 3] and {s.group for s in seeds} == {run.name}
    assert [s.name for s in seeds] == [f"{run.name}/seed-{k:03}" for k in range(SEEDS)]


def test_ids_are_stable_and_unique(stored: StoredStudy) -> None:
    everything = [study_run(stored), *configuration_runs(stored), *seed_runs(stored)]
    ids = [run.run_id for run in everything]
    assert len(set(ids)) == len(ids) == 1 + 20 + 80
    # A configuration and its run of seed 0 have one hash.
    first = next(run for run in seed_runs(stored) if run.config["seed"] == 0)
    assert first.config["run_id"] == first.config["config_id"]
    assert ids == [run.run_id for run in [study_run(stored), *configuration_runs(stored), *seed_runs(stored)]]
    assert all(len(name) <= 64 and not set(name) & set("/\\#?%:;,'") for name in ids)


def test_ids_of_long_and_strange_names_differ() -> None:
    names = ["a b", "a_b", "a/b", "x" * 60, "x" * 61, "é", "è"]
    ids = {stable_id(name, "configuration", "9d9ab0ad866b") for name in names}
    assert len(ids) == len(names) and all(len(name) <= 70 and name.isascii() for name in ids)


def test_a_nonfinite_run_has_no_number_after_its_last_finite_one(stored: StoredStudy) -> None:
    run = next(run for run in seed_runs(stored) if run.config["run_id"] == SICK.run_id)
    assert run.complete and run.summary["status"] == "nonfinite" and run.summary["first_bad_epoch"] == 2
    assert [step for step, _ in run.points] == [0, 1]
    assert not any(name.startswith("final/") for name in run.summary)
    assert not any(value == 0 and "loss" in name for _, values in run.points for name, value in values.items())
    whole = next(run for run in configuration_runs(stored) if run.config["config_id"] == SICK.config_id)
    assert whole.complete and whole.summary["status"] == "3 ok, 1 nonfinite" and whole.summary["runs/nonfinite"] == 1


def test_a_single_seed_has_a_mean_and_no_band(tmp_path: Path) -> None:
    report(planted_folder(tmp_path / "one", 1, figures=False))
    for run in configuration_runs(read_study(tmp_path / "one")):
        losses = {name for _, values in run.points for name in values if name.startswith("val_loss")}
        assert losses == {"val_loss/all/mean"}


def test_verdicts_belong_to_the_arms_of_their_claims() -> None:
    article = read_study(ROOT / "results" / "article")
    rows = article.verdicts
    overall = rows[rows["contrast"] == "overall"]
    summary = study_run(article).summary
    assert {f"verdict/{c}": v for c, v in zip(overall["claim"], overall["verdict"], strict=True)} == {
        name: value for name, value in summary.items() if name.startswith("verdict/")
    }
    assert set(summary.values()) >= {"confirmed", "refuted"}
    claims = article.manifest.declaration.claims
    checked = set()
    for run in configuration_runs(article):
        labels, target = str(run.config["arm"]).split(" ~ "), run.config["target"]
        mine = [c for c in claims if {*labels} & ({c.arm} if isinstance(c.arm, str) else {*c.arm})]
        mine = [c for c in mine if not c.targets or target in c.targets]
        assert {f"verdict/{c.claim}" for c in mine} == {name for name in run.summary if name.startswith("verdict/")}
        for name in {c.claim for c in mine}:
            of_arm = [c for c in mine if c.claim == name]
            # Other contrasts have longer texts.
            if all(isinstance(c.arm, str) and isinstance(c.against, str) and c.against_epoch is None for c in of_arm):
                starts = tuple(f"{label} vs " for label in labels)
                of_name = rows[(rows["claim"] == name) & (rows["target"] == target)]
                found = of_name["verdict"][of_name["contrast"].str.startswith(starts)].value_counts()
                if found.sum() == len(of_arm):
                    expected = {f"{count} {verdict}" for verdict, count in found.items()} if len(found) > 1 else {*found.index}
                    assert {*str(run.summary[f"verdict/{name}"]).split(", ")} == expected
                    checked |= {*found.index}
    assert checked >= {"confirmed", "refuted", "inconclusive"}


def test_the_study_has_tables_and_figures(planted: Path, recorded: Recorder) -> None:
    lines = export(planted, "wandb")
    assert lines == ["exported 1 run of the study and 20 configuration runs", "closed"]
    tables = {name: shape for kind, name, *(shape,) in (c for c in recorded.calls if c[0] == "table") if kind}
    assert set(tables) == {t.name for t in STUDY.tables} | {"verdicts", "units", "health"}
    assert tables["units"][0] == len(pd.read_csv(planted / "units.csv"))
    figures = {call[1]: call[2] for call in recorded.calls if call[0] == "figure"}
    assert set(figures) == {f.name for f in STUDY.figures} and set(figures.values()) == {b"\x89PNG"}
    assert [call for call in recorded.calls if call[0] == "finish"] == [("finish", True)] * 21


def test_per_seed_has_a_run_for_each_seed_and_counts_them(planted: Path, recorded: Recorder) -> None:
    counts: list[tuple[int, int]] = []
    lines = export(planted, "wandb", per_seed=True, on_run=lambda done, runs: counts.append((done, runs)))
    assert lines[0] == "exported 1 run of the study and 80 seed runs"
    assert counts == [(number, 81) for number in range(1, 82)]


def test_runs_that_are_not_stored_have_their_status_and_no_number(tmp_path: Path, recorded: Recorder) -> None:
    folder = planted_folder(tmp_path / "part", SEEDS, left_out=(LOST.run_id,), figures=False)
    report(folder)
    lines = export(folder, "wandb")
    assert "1 run of 80 not stored: exported with the status and without numbers." in lines
    run = next(run for run in recorded.runs.values() if run.config.get("config_id") == LOST.config_id)
    assert run.summary["status"] == "3 ok, 1 interrupted" and not run.complete
    assert recorded.calls.count(("finish", False)) == 2  # the configuration, and the study
    lost = next(run for run in seed_runs(read_study(folder)) if run.config["run_id"] == LOST.run_id)
    assert not lost.points and dict(lost.summary) == {"status": "interrupted"} and not lost.complete


def test_a_clone_has_the_numbers_of_its_csv_files(planted: Path, tmp_path: Path, recorded: Recorder) -> None:
    clone = Path(shutil.copytree(planted, tmp_path / "clone"))
    report(clone)  # summary.csv with the report epochs only
    shutil.rmtree(clone / "raw")
    lines = export(clone, "wandb")
    assert f"{clone / 'raw'} is missing, as in a clone: curves have the epochs in summary.csv only." in lines
    shown = load(clone).summary["epoch"].unique()
    assert {step for run in recorded.runs.values() for step, _ in run.points} == {int(epoch) for epoch in shown}
    runs = list(seed_runs(read_study(clone)))
    assert {len(run.points) for run in runs} == {0, 1} and {step for run in runs for step, _ in run.points} == {5}


def test_old_derived_files_are_refused(planted: Path, tmp_path: Path, recorded: Recorder) -> None:
    part = planted_folder(tmp_path / "part", SEEDS, left_out=(LOST.run_id,), figures=False)
    report(part)
    for tile in (part / "raw").iterdir():
        tile.unlink()
    for tile in (planted / "raw").iterdir():
        shutil.copy(tile, part / "raw")
    with pytest.raises(UserError, match=r"is older than .*raw: 1 runs have another status. Run 'relu-study report"):
        export(part, "wandb")
    (part / "runs.csv").unlink()
    with pytest.raises(UserError, match=r"runs.csv is missing. Rebuild it with 'relu-study report"):
        export(part, "wandb")
    assert not recorded.calls


def test_a_draw_study_is_one_run_with_its_cells(tmp_path: Path, recorded: Recorder) -> None:
    folder = drawn(tmp_path / "coins")
    lines = export(folder, "wandb")
    assert lines[0] == "exported 1 run of the study"
    (run,) = recorded.runs.values()
    assert run.tables["cells"].shape[0] == len(pd.read_csv(folder / "cells.csv")) and "verdicts" in run.tables
    assert run.summary["cells/unfinished"] == 0 and run.complete and "verdict/K1" in run.summary
    with pytest.raises(UserError, match=r"is a draw study and has no seeds. Leave out --per-seed"):
        export(folder, "wandb", per_seed=True)


def test_absent_outputs_are_named(planted: Path, tmp_path: Path, recorded: Recorder) -> None:
    folder = Path(shutil.copytree(planted, tmp_path / "less"))
    (folder / "tables" / f"{STUDY.tables[0].name}.csv").unlink()
    assert f"Left out, since the folder lacks them: tables/{STUDY.tables[0].name}.csv." in export(folder, "wandb")


def test_a_refused_request_is_one_line(planted: Path, recorded: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(Exception):
        pass

    def refuse(run: ExportedRun) -> None:
        raise Refused("no such\nproject")

    recorder = Recorder(errors=(Refused,))
    monkeypatch.setattr(recorder, "start", refuse)
    monkeypatch.setattr("relu_study.report.exports.export.open_tracker", lambda *_, **__: recorder)
    with pytest.raises(UserError, match=r"^wandb refuses the export after 0 runs: no such project$"):
        export(planted, "wandb")


def test_every_point_is_sent_in_order(stored: StoredStudy) -> None:
    recorder = Recorder()
    run = next(configuration_runs(stored))
    send(run, recorder)
    assert [call[0] for call in recorder.calls] == ["start", *["log"] * len(run.points), "summary", "finish"]
    assert [call[1:] for call in recorder.calls if call[0] == "log"] == [(step, values) for step, values in run.points]
