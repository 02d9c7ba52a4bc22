"""Configurations with fewer seeds than the study: every file, table, figure and TensorBoard run has exactly these."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from known_results import noise, planted_arms, planted_folder, planted_study

from relu_study.errors import UserError
from relu_study.report.figures import forest
from relu_study.report.report import report
from relu_study.report.tables.pivot_table import compare, table
from relu_study.report.tensorboard.live import Live
from relu_study.storage.configurations import collect
from relu_study.storage.declaration import DeclaredConfiguration, parse_manifest, read_declared
from relu_study.storage.frames import load
from relu_study.storage.manifest import read_manifest, write_manifest
from relu_study.storage.tile_files import tile_paths
from relu_study.study.claims import Claim

SEEDS, FEW, ARMS = 8, 3, ("leaky_relu", "lecun_normal")
IDS = {key: spec.config_id for key, spec in planted_arms(planted_study()).items()}
SMALL = {IDS[arm, target] for arm in ARMS for target in ("wave", "coin_flip")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The known results with 20 configurations, four of them declaring three seeds. Their other five runs are stored too."""
    path = planted_folder(tmp_path_factory.mktemp("fewer"))
    manifest = read_manifest(path)
    for entry in manifest["declaration"]["configurations"]:
        entry["seeds"] = FEW if entry["config_id"] in SMALL else SEEDS
    manifest["declaration"] |= {"figures": [], "sections": []}
    write_manifest(path, manifest)
    report(path, per_seed=True)
    return path


def test_each_configuration_has_its_own_runs(folder: Path) -> None:
    runs = load(folder).runs
    found = {str(config_id): part["seed"].tolist() for config_id, part in runs.groupby("config_id")}
    assert found == {config_id: list(range(FEW if config_id in SMALL else SEEDS)) for config_id in IDS.values()}
    specs = planted_arms(planted_study())
    wanted = [spec.replace(seed=seed).run_id for key, spec in specs.items() for seed in found[IDS[key]]]
    assert sorted(runs["run_id"]) == sorted(set(wanted)) and (runs["status"] != "interrupted").all()
    # lecun_normal is arm 2, wave target 0
    mine = runs[runs["config_id"] == IDS["lecun_normal", "wave"]]
    assert mine["val_loss/all"].tolist() == [1.5 + 2 / 4 - 5 / 64 + noise(seed, SEEDS) for seed in range(FEW)]


def test_the_summary_is_over_its_own_seeds(folder: Path) -> None:
    summary = load(folder).summary
    found = summary.groupby("config_id")["n"].agg(["min", "max"])
    assert {str(c): tuple(n) for c, n in found.iterrows()} == {c: (FEW, FEW) if c in SMALL else (8, 8) for c in IDS.values()}
    cell = summary[(summary["config_id"] == IDS["lecun_normal", "wave"]) & (summary["metric"] == "val_loss")].iloc[-1]
    assert cell["mean"] == pytest.approx(2 - 5 / 64 + np.mean([noise(seed, SEEDS) for seed in range(FEW)]), abs=1e-8)


def test_pairs_use_common_seeds(folder: Path) -> None:
    verdicts = pd.read_csv(folder / "verdicts.csv")
    n = {(row.claim, row.contrast): row.n for row in verdicts[verdicts["contrast"] != "overall"].itertuples()}
    assert n["P1", "leaky_relu vs baseline"] == FEW and n["P3", "stuck vs 0"] == SEEDS
    found = compare(folder, "arm", "val_loss", where=["arm=baseline,leaky_relu,tanh", "target=wave"])
    compared = found.set_index(["name", "against"])
    assert compared.loc[("baseline", "leaky_relu"), "n"] == FEW and compared.loc[("baseline", "tanh"), "n"] == SEEDS


def test_notes_name_both_numbers(folder: Path) -> None:
    assert f"over n = {FEW} to {SEEDS} seeds" in (folder / "tables" / "initialisers.md").read_text()
    assert f"over n = {SEEDS} seeds" in (folder / "tables" / "shapes.md").read_text()
    assert f"over n = {FEW} to {SEEDS} seeds" in table(folder, "arm", where="arm=baseline,leaky_relu")
    assert f"over n = {FEW} seeds" in table(folder, "arm", where="arm=leaky_relu,lecun_normal")


def test_forest_counts_only_requested_seeds_as_missing(folder: Path) -> None:
    declaration = read_declared(folder).declaration
    rows = pd.read_csv(folder / "verdicts.csv", keep_default_na=False).to_dict("records")
    counts = {(e.label, e.column): e.count for e in forest.arrange_effects(rows, declaration, {})}
    assert {count for (label, _), count in counts.items() if "leaky_relu" in label or "stuck" in label} == {""}
    lost = {label for (label, _), count in counts.items() if count}
    assert lost == {"P2  he_normal vs baseline"} and "n=7/8" in counts.values()


def test_arms_with_nested_labels_are_distinct(folder: Path) -> None:
    entries = tuple(
        DeclaredConfiguration("main", arm, arm, {"target": "t"}, seeds)
        for arm, seeds in (("relu", 9), ("relu, wide", 5), ("tanh", 7))
    )
    claims = tuple(
        Claim("A", "", "val_loss", arm, against, "less", 0.0)
        for arm, against in (("relu", "tanh"), ("relu, wide", "tanh"), ("relu", 1.0), (("relu", "tanh"), 1.0))
    )
    declaration = replace(read_declared(folder).declaration, configurations=entries, claims=claims, seeds=9)
    contrasts = {"relu vs tanh": 7, "relu, wide vs tanh": 5, "relu vs 1": 9, "the mean of relu and tanh vs 1": 7, "unknown": 9}
    for contrast, seeds in contrasts.items():
        row = {"claim": "A", "contrast": contrast, "target": "t", "n": 0}
        assert forest._pairs(row, declaration, {}) == f"n=0/{seeds}", contrast


def test_tensorboard_has_their_single_runs(folder: Path) -> None:
    seeds = {path.name: len(list(path.glob("seed-*"))) for path in (folder / "tensorboard").iterdir()}
    few = {f"{arm}@{target}" for arm in ARMS for target in ("wave", "coin_flip")}
    assert seeds == {name: FEW if name in few else SEEDS for name in seeds} and few < set(seeds)


def test_a_configuration_is_live_once_its_own_seeds_are_stored(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "raw", tmp_path / "raw")
    live = Live(tmp_path, read_manifest(folder))
    assert set(live._ready) == set(IDS.values()) and not live._config_of_run


def test_earlier_manifest_uses_the_seeds_of_its_study(folder: Path) -> None:
    declaration = read_manifest(folder)["declaration"]
    earlier = [{name: value for name, value in entry.items() if name != "seeds"} for entry in declaration["configurations"]]
    manifest = parse_manifest({**read_manifest(folder), "declaration": {**declaration, "configurations": earlier}})
    assert set(manifest.declaration.seeds_of.values()) == {SEEDS}
    assert {len(c.seeds) for c in collect(folder, manifest).values()} == {SEEDS} and tile_paths(folder)


def test_runs_csv_of_other_seeds_is_refused(folder: Path, tmp_path: Path) -> None:
    clone = Path(shutil.copytree(folder, tmp_path / "clone", ignore=shutil.ignore_patterns("raw", "tensorboard")))
    before = (clone / "report.md").read_bytes()
    report(clone)
    assert (clone / "report.md").read_bytes() == before
    text = (clone / "runs.csv").read_text()
    run = next(line for line in text.splitlines() if IDS["leaky_relu", "wave"] in line)
    (clone / "runs.csv").write_text(text.replace(run, re.sub(r",2,ok,", ",5,ok,", re.sub(r",[01],ok,", ",5,ok,", run))))
    with pytest.raises(UserError, match=r"has 139 of the 140 runs declared in manifest.json"):
        load(clone)
