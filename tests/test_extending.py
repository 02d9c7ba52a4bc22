"""An arm added to a study that was run trains alone and moves no byte of what was there, wherever it is declared."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_study import arms, base
from small_study import study as small

from relu_study import runner
from relu_study.plan import Tile
from relu_study.progress import Watcher
from relu_study.spec import RunSpec
from relu_study.study import Experiment, Study

SEEDS = 6  # of fewer the bootstrap's interval is all there is, however it is drawn
study = replace(small, seeds=SEEDS)
KEYS = {"runs": 2, "summary": 1, "units": 1, "survival": 1, "experiments": 2, "verdicts": 3}  # columns that say whose a row is
ADDED = {
    "in a cohort of its own": base.but(activation="sigmoid"),
    "in a cohort that is there": base.but(gain=2),
    "of another length": base.but(epochs=1),
}


class Counted(Watcher):
    """Keeps the runs that were trained, and their tiles' widths."""

    def __init__(self) -> None:
        self.trained: list[RunSpec] = []
        self.widths: dict[str, int] = {}

    def tile(self, tile: Tile, dead_fraction: float) -> None:
        self.trained += tile.runs
        self.widths[tile.cohort] = tile.width


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "small"
    runner.run(study, folder)
    return folder


def extended(spec: RunSpec) -> Study:
    """The study with one arm more, before all others."""
    return replace(study, experiments=[Experiment("main", {"added": spec, **arms}), *study.experiments[1:]])


def files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob(pattern)}


def lines(folder: Path) -> dict[str, list[str]]:
    return {name: (folder / f"{name}.csv").read_text().splitlines() for name in KEYS}


@pytest.mark.parametrize("spec", ADDED.values(), ids=ADDED)
def test_a_new_arm_trains_alone_and_old_rows_keep_their_bytes(spec: RunSpec, finished: Path, tmp_path: Path) -> None:
    folder, watcher = shutil.copytree(finished, tmp_path / "small"), Counted()
    before, widths = lines(folder), json.loads((folder / "manifest.json").read_text())["widths"]
    runner.run(extended(spec), folder, watcher=watcher)
    new = [spec.but(target="wave", seed=seed) for seed in range(SEEDS)]
    assert sorted(run.run_id for run in watcher.trained) == sorted(run.run_id for run in new)
    chosen = json.loads((folder / "manifest.json").read_text())["widths"]
    assert chosen == {**watcher.widths, **widths} and watcher.widths.items() <= chosen.items(), "once chosen, a width stays"

    config_id = new[0].config_id
    for name, (header, *rows) in lines(folder).items():
        mine = [row for row in rows if config_id in row.split(",")[: KEYS[name]]]
        assert header == before[name][0], name
        assert [row for row in rows if row not in mine] == before[name][1:], name
        assert len(mine) == {"runs": SEEDS, "experiments": 1, "verdicts": 0}.get(name, len(mine)) and (mine or name == "verdicts")
    raw = files(finished, "raw/*")
    assert files(folder, "raw/*").items() > raw.items() and len(files(folder, "raw/*")) == len(raw) + 1


def test_taken_out_again_it_leaves_the_folder_as_it_was(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "small")
    runner.run(extended(ADDED["in a cohort that is there"]), folder)
    grown = files(folder, "*.csv")
    runner.run(study, folder, watcher=(fewer := Counted()))
    assert fewer.trained == [] and files(folder, "*.csv") == files(finished, "*.csv") != grown
    runner.run(extended(ADDED["in a cohort that is there"]), folder, watcher=(back := Counted()))
    assert back.trained == [] and files(folder, "*.csv") == grown, "its runs were kept"


def test_an_arm_that_stands_for_the_same_runs_trains_nothing(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "small")
    runner.run(extended(base), folder, watcher=(same := Counted()))
    assert same.trained == [] and files(folder, "runs.csv") == files(finished, "runs.csv")
    with (folder / "experiments.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4, "one configuration of one experiment, by whatever label"
