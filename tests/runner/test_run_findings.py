"""Findings of a running study: one line a configuration, counts at the end, resumed folders, the same stored bytes."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from small_study import base, study

from relu_study.cli.progress import MAX_FINDINGS, Progress
from relu_study.cli.summary import summary
from relu_study.diagnosis.diagnose import diagnose
from relu_study.diagnosis.finding import Finding
from relu_study.diagnosis.tiles import history_of
from relu_study.engine import plan as planning
from relu_study.engine.plan import RunCost
from relu_study.runner import run as runner
from relu_study.runner.callback import Callback
from relu_study.runner.findings import FindingCounts, StudyFindings
from relu_study.storage.tile_files import read_tile, tile_paths
from relu_study.study.run_spec import RunSpec
from relu_study.study.study import Experiment

arms = {
    "healthy": base.replace(activation="tanh"),
    "dead": base.replace(bias_shift=-50.0),  # every unit, from the start
    "diverging": base.replace(activation="tanh", learning_rate=1e30),
}
sick = replace(
    study, experiments=[Experiment("main", arms)], seeds=2, metrics=("dead_fraction",), claims=(), tables=(), figures=()
)


class Heard(Callback):
    """Keeps the events of a run."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[RunSpec, Finding]] = {}
        self.counts: FindingCounts | None = None
        self.tiles = 0

    def on_tile_end(self, *_: Any) -> None:
        self.tiles += 1

    def on_finding(self, run: RunSpec, arm: str, finding: Finding) -> None:
        assert self.tiles and arm not in self.found
        self.found[arm] = run, finding

    def on_finding_counts(self, counts: FindingCounts) -> None:
        self.counts = counts


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Heard]:
    folder, heard = tmp_path_factory.mktemp("findings") / "sick", Heard()
    runner.run(sick, folder, callback=heard)
    return folder, heard


def test_each_sick_configuration_is_found_once(done: tuple[Path, Heard]) -> None:
    _, heard = done
    assert set(heard.found) == {"main/dead", "main/diverging"}
    run, dead = heard.found["main/dead"]
    assert (dead.problem, dead.site, dead.units, dead.onset) == ("dying", "site_1", (8, 8), 0)
    assert run.config_id == arms["dead"].replace(target="wave").config_id
    run, diverging = heard.found["main/diverging"]
    assert diverging.problem == "exploding" and 0 < diverging.onset <= 2 and run.learning_rate == 1e30
    assert heard.counts is not None and heard.counts[:2] == (3, 2)
    assert heard.counts.by_problem["dying"] >= 1 and heard.counts.by_problem["exploding"] == 1


def test_live_findings_are_those_of_the_stored_tiles(done: tuple[Path, Heard]) -> None:
    folder, heard = done
    stored: dict[str, list[Finding]] = {}
    for path in tile_paths(folder):
        tile = read_tile(path)
        stored |= dict(zip(tile["run_id"].tolist(), diagnose(history_of(tile)), strict=True))
    for run, finding in heard.found.values():
        assert finding in stored[run.run_id]
        assert finding.onset == min(other.onset for other in stored[run.run_id])
    sick_runs = {run_id for run_id, findings in stored.items() if findings}
    expected = {run.config_id for run in sick.runs() if run.run_id in sick_runs}
    assert expected == {run.config_id for run, _ in heard.found.values()}


def test_a_resumed_study_counts_stored_runs_and_repeats_no_finding(done: tuple[Path, Heard]) -> None:
    folder, first = done
    heard = Heard()
    runner.run(sick, folder, callback=heard)
    assert not heard.tiles and not heard.found and heard.counts == first.counts
    more = Heard()
    runner.run(replace(sick, seeds=3), folder, callback=more)
    assert more.tiles and not more.found and more.counts is not None and more.counts[:2] == (3, 2)


def test_findings_change_no_stored_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(sick, seeds=1)
    runner.run(few, tmp_path / "with")
    monkeypatch.setattr("relu_study.runner.kinds.Training.findings", lambda *_: None)
    runner.run(few, tmp_path / "without")
    names = {path.relative_to(tmp_path / "with") for path in (tmp_path / "with").rglob("*") if path.suffix in (".csv", ".npz")}
    assert len(names) > 3
    for name in names:
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes(), name


def test_missing_metrics_abstain() -> None:
    findings = StudyFindings(sick.declaration())
    runs = [run for run in sick.runs() if run.seed == 0]
    loss = np.array([[1, 0.5, 0.2]] * 3, np.float32)
    numbers = {"epoch": np.arange(3.0), "first_bad_epoch": np.full(3, np.nan), "metric:train_loss/all": loss}
    assert findings.tile(runs, numbers) == [] and findings.counts() == (3, 0, {})


def test_an_arm_on_several_targets_is_named_with_its_target() -> None:
    both = replace(sick, use_targets=())
    findings, runs = StudyFindings(both.declaration()), [run for run in both.runs() if run.bias_shift and not run.seed]
    numbers = {"epoch": np.arange(2.0), "first_bad_epoch": np.ones(2), "metric:train_loss/all": np.ones((2, 2), np.float32)}
    assert [found.arm for found in findings.tile(runs, numbers)] == ["main/dead on wave", "main/dead on sum"]


def test_the_progress_prints_a_bounded_number_of_lines(capsys: pytest.CaptureFixture[str]) -> None:
    finding = Finding("dying", "dying", "site_1", (8, 8), 2, 2, 1, 0.5, "share of dead units at site_1: 8 of 8 units", "")
    with Progress("my results") as progress:
        for number in range(MAX_FINDINGS + 5):
            progress.on_finding(base.replace(seed=7), f"main/[red]{number}", finding)
    lines = capsys.readouterr().err.splitlines()
    run_id = base.replace(seed=7).run_id
    assert lines[0] == f"dying: main/[red]0, seed 7, run {run_id}: share of dead units at site_1: 8 of 8 units"
    assert len(lines) == MAX_FINDINGS + 1 and lines[-1] == "further findings: relu-study diagnose 'my results'"


def test_findings_are_above_the_live_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    with Progress("out") as progress:
        progress.console = Console(file=screen, force_terminal=True, width=200)
        progress.on_start(planning.plan(sick.runs(), lambda _: RunCost("a", "", 10, 10, 32, 1, 1), {"a": 2}, 1, "cpu"), 0)
        finding = Finding("exploding", "exploding", "", None, 1, 1, float("inf"), 10, "train loss: infinite, since epoch 1", "")
        progress.on_finding(base, "main/relu", finding)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    line = f"exploding: main/relu, seed 0, run {base.run_id}: train loss: infinite, since epoch 1"
    assert line in text and "0/6" in text.partition(line)[2]  # the bar is drawn again below it


def test_the_summary_counts_configurations(done: tuple[Path, Heard]) -> None:
    folder, _ = done
    lines = summary(folder, FindingCounts(1200, 30, {"dying": 20, "not_learning": 11}))
    assert "findings: 30 of 1,200 configurations (20 dying, 11 not learning)" in lines
    assert f"  relu-study diagnose {folder}  list the findings" in lines
    assert "findings: none in 1 configuration" in summary(folder, FindingCounts(1, 0, {}))
    assert not [line for line in summary(folder) if line.startswith("findings")]


def test_the_best_constant_of_a_tile_is_the_reference() -> None:
    runs = [run for run in sick.runs() if run.seed == 0][:3]
    loss = np.repeat(np.array([[1], [1 / 3], [0.1]], np.float32), 9, axis=1)  # flat: a third, a constant, and learned
    numbers = {"epoch": np.arange(9.0), "first_bad_epoch": np.full(3, np.nan), "metric:train_loss/all": loss}
    found = StudyFindings(sick.declaration()).tile(runs, numbers | {"constant_loss": np.full(3, 1 / 3, np.float32)})
    assert [(sick_run.finding.problem, round(sick_run.finding.score, 3)) for sick_run in found] == [
        ("not_learning", 3),
        ("not_learning", 1),
    ]
