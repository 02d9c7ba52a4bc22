"""Extending a stored study: only additions are trained, and stored bytes stay, wherever the addition is declared."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import kill_harness
import numpy as np
import pytest
from small_study import arms, base
from small_study import study as small
from tiers import tiered

from relu_study.engine.plan import Tile
from relu_study.errors import UserError
from relu_study.report.report import report
from relu_study.runner import provenance
from relu_study.runner import run as runner
from relu_study.runner.callback import Callback
from relu_study.storage import manifest, tile_files
from relu_study.storage.frames import load
from relu_study.study.run_spec import RunSpec
from relu_study.study.study import Experiment, Study

SEEDS = 6  # of fewer the bootstrap's interval is all there is, however it is drawn
study = replace(small, seeds=SEEDS)
# columns that say whose a row is
KEYS = {"runs": 2, "summary": 1, "units": 1, "survival": 1, "experiments": 2, "verdicts": 3, "health": 1}
ADDED = {
    "in a cohort of its own": base.replace(activation="sigmoid"),
    "in a cohort that is there": base.replace(gain=2),
    "of another length": base.replace(epochs=1),
}


class Counted(Callback):
    """A callback that records the trained runs and their tiles' widths."""

    def __init__(self) -> None:
        self.trained: list[RunSpec] = []
        self.widths: dict[str, int] = {}

    def on_tile_end(self, tile: Tile, *_: Any) -> None:
        self.trained += tile.runs
        self.widths[tile.cohort] = tile.width


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "small"
    runner.run(study, folder)
    return folder


def extended(spec: RunSpec) -> Study:
    """Return the study with one more arm before all others."""
    return replace(study, experiments=[Experiment("main", {"added": spec, **arms}), *study.experiments[1:]])


def files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob(pattern)}


def lines(folder: Path) -> dict[str, list[str]]:
    return {name: (folder / f"{name}.csv").read_text().splitlines() for name in KEYS}


@pytest.mark.parametrize("case", tiered(ADDED, "in a cohort that is there"))
def test_new_arm_keeps_existing_bytes(case: str, finished: Path, tmp_path: Path) -> None:
    spec = ADDED[case]
    folder, callback = shutil.copytree(finished, tmp_path / "small"), Counted()
    before, widths = lines(folder), json.loads((folder / "manifest.json").read_text())["widths"]
    runner.run(extended(spec), folder, callback=callback)
    new = [spec.replace(target="wave", seed=seed) for seed in range(SEEDS)]
    assert sorted(run.run_id for run in callback.trained) == sorted(run.run_id for run in new)
    chosen = json.loads((folder / "manifest.json").read_text())["widths"]
    assert chosen == {**callback.widths, **widths} and callback.widths.items() <= chosen.items(), "once chosen, a width stays"

    config_id = new[0].config_id
    for name, (header, *rows) in lines(folder).items():
        mine = [row for row in rows if config_id in row.split(",")[: KEYS[name]]]
        assert header == before[name][0], name
        assert [row for row in rows if row not in mine] == before[name][1:], name
        assert len(mine) == {"runs": SEEDS, "experiments": 1, "verdicts": 0}.get(name, len(mine)) and (mine or name == "verdicts")
    raw = files(finished, "raw/*")
    assert files(folder, "raw/*").items() > raw.items() and len(files(folder, "raw/*")) == len(raw) + 1


def test_removed_arm_restores_the_folder(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "small")
    runner.run(extended(ADDED["in a cohort that is there"]), folder)
    grown = files(folder, "*.csv")
    runner.run(study, folder, callback=(fewer := Counted()))
    assert fewer.trained == [] and files(folder, "*.csv") == files(finished, "*.csv") != grown
    runner.run(extended(ADDED["in a cohort that is there"]), folder, callback=(back := Counted()))
    assert back.trained == [] and files(folder, "*.csv") == grown, "its runs were kept"


def test_arm_with_equal_runs_trains_nothing(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "small")
    runner.run(extended(base), folder, callback=(same := Counted()))
    assert same.trained == [] and files(folder, "runs.csv") == files(finished, "runs.csv")
    with (folder / "experiments.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4, "one configuration of one experiment, by whatever label"


@pytest.mark.slow
def test_more_seeds_and_a_new_experiment_train_only_missing_runs(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "small")
    before, tiles = lines(folder), kill_harness.held(folder).tiles
    more = replace(
        study,
        experiments=[*study.experiments, Experiment("gains", {"added": base.replace(gain=2), "old": base})],
        seeds=SEEDS + 3,
    )
    runner.run(more, folder, callback=(grown := Counted()))
    old = {run.run_id for run in study.runs()}
    assert sorted(run.run_id for run in grown.trained) == sorted({run.run_id for run in more.runs()} - old)
    assert len(grown.trained) == 3 * 3 + SEEDS + 3
    kept = kill_harness.held(folder).tiles
    assert tiles.items() < kept.items() and kill_harness.once(folder)
    rows = lines(folder)
    assert set(before["runs"]) < set(rows["runs"]) and set(before["experiments"]) < set(rows["experiments"])

    runner.run(study, folder, callback=(fewer := Counted()))
    assert fewer.trained == [] and kill_harness.held(folder).tiles == kept, "a view: nothing is deleted"
    assert files(folder, "*.csv") == files(finished, "*.csv")


# --------------------------------------------------------------------------- different provenance

OTHERWISE = {
    "engine": (0, "engine: 0 there"),
    "versions": ({"jax": "0.1"}, "versions: {'jax': '0.1'} there"),
    "device": ("gpu: H100", "device: gpu: H100 there, cpu"),
    "precision": ("float64", "precision: float64 there, float32 here"),
    "probe_examples": (100, "probe_examples: 100 there, 8192 here"),
    "val_examples": (None, "val_examples: None there, 8192 here"),
    "metrics": ("dead_fraction", "metrics: dead_fraction there, dead_fraction, val_loss here"),
    "own": ({"activation mine": "0123456789ab"}, "activation mine has changed"),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_tile_of_another_provenance_never_mixes(
    name: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, (there, said) = Path(shutil.copytree(finished, tmp_path / "small")), OTHERWISE[name]
    made = manifest.read_manifest(folder)
    if name == "own":
        made["provenance"]["own"] = {"activation mine": "as it is now"}
        manifest.write_manifest(folder, made)
        monkeypatch.setattr(provenance, "sources", lambda brought: {"activation mine": "as it is now"})
    path = tile_files.tile_paths(folder)[-1]
    tile = tile_files.read_tile(path)
    if name == "precision":
        tile |= {series: values.astype(there) for series, values in tile.items() if series.startswith("metric:")}
    tile_files.write_tile(
        folder, {**tile, "provenance": np.array(json.dumps({**json.loads(str(tile["provenance"])), name: there}))}
    )
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(
        UserError, match=rf"different provenance \(.*{re.escape(said)}.*cannot be combined.*Name another folder with --out"
    ):
        runner.run(study, folder, seeds=SEEDS + 1)
    for reads in (report, load):
        with pytest.raises(UserError, match=rf"{path.name} has a different provenance .*{re.escape(said)}.*Move it away, or run"):
            reads(folder)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


# ------------------------------------------------------------------------------- by the command


@pytest.mark.slow
def test_command_adds_seeds_and_an_experiment(tmp_path: Path) -> None:
    words, folder = ["run", "short.py", "--out", str(tmp_path / "out")], tmp_path / "out"
    (tmp_path / "short.py").write_text(text := kill_harness.STUDY.replace("seeds=2", "seeds=20"))
    assert kill_harness.ended(kill_harness.born(words, tmp_path)) == 0
    tiles, rows = kill_harness.held(folder).tiles, (folder / "runs.csv").read_text().splitlines()
    new = '[Experiment("main", arms), Experiment("wide", {"wide": base.replace(width=12, epochs=2)})]'
    text = text.replace("seeds=20", "seeds=30").replace('[Experiment("main", arms)]', new)
    (tmp_path / "short.py").write_text(text)
    assert kill_harness.ended(kill_harness.born(["plan", *words[1:]], tmp_path)) == 0
    assert "90 runs to train (120 stored)" in (tmp_path / "said.txt").read_text()
    assert kill_harness.ended(kill_harness.born(words, tmp_path)) == 0
    assert "210/210 runs" in (tmp_path / "said.txt").read_text()
    kept = kill_harness.held(folder).tiles
    assert tiles.items() < kept.items() and kill_harness.once(folder)
    assert set(rows) < set((folder / "runs.csv").read_text().splitlines())
    (tmp_path / "short.py").write_text(kill_harness.STUDY)
    assert kill_harness.ended(kill_harness.born(words, tmp_path)) == 0
    assert len((folder / "runs.csv").read_text().splitlines()) == 1 + 12 and kill_harness.held(folder).tiles == kept
