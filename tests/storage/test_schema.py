"""Corrupt files and manifests are named; manifests of earlier versions are completed with defaults."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from known_results import planted_folder
from tiers import tiered

import relu_study
from relu_study.errors import UserError
from relu_study.report.report import report
from relu_study.report.tables.pivot_table import compare, table
from relu_study.storage.manifest import read_manifest, write_manifest
from relu_study.study.outputs import Figure

CURVES = Figure("activations", "", "curves", ("activations",), metrics=("val_loss",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = planted_folder(tmp_path_factory.mktemp("contract"), figures=(CURVES,))
    report(path)
    return path


@pytest.fixture(scope="module")
def clone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clone") / "results"
    shutil.copytree(folder, path, ignore=shutil.ignore_patterns("raw", "tensorboard"))
    return path


@pytest.mark.parametrize(
    "name",
    tiered([f"{name}.csv" for name in ("runs", "summary", "survival", "units", "verdicts", "health")], "units.csv", "health.csv"),
)
def test_corrupt_file_of_a_clone_is_named(clone: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(clone, tmp_path / "damaged"))
    whole = (folder / name).read_text()
    header = whole.splitlines()[0]
    frame = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
    for column in header.split(","):
        (folder / name).write_text(frame.drop(columns=column).to_csv(index=False))
        with pytest.raises(UserError, match=rf"{name} has no column {column}"):
            report(folder)
        (folder / name).write_text(whole)
    for text in ("", header, whole[: len(whole) // 2].rstrip("\n")):
        (folder / name).write_text(text)
        with pytest.raises(UserError, match=rf"{name} is corrupt"):
            report(folder)


def test_missing_runs_of_a_clone_are_counted(clone: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clone, tmp_path / "damaged"))
    (folder / "runs.csv").write_text("".join((folder / "runs.csv").read_text().splitlines(keepends=True)[:21]))
    for use in (report, table, lambda f: compare(f, "arm", where="target=wave")):
        with pytest.raises(UserError, match=r"runs.csv has 20 of the 160 runs declared in manifest.json"):
            use(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: None, "expected `object`, got `null` at `$`"),
        (lambda d: d | {"configurations": []}, "length >= 1 at `$.configurations`"),
        (lambda d: {k: v for k, v in d.items() if k != "metrics"}, "missing required field `metrics`"),
        (lambda d: d | {"metrics": []}, "expected `object`, got `array` at `$.metrics`"),
        (lambda d: d | {"figures": [{}]}, "missing required field `name` at `$.figures[0]`"),
        (lambda d: d | {"configurations": [{"arm": "a"}]}, "missing required field `experiment` at `$.configurations[0]`"),
        (
            lambda d: d | {"configurations": [{**d["configurations"][0], "spec": {"colour": 1}}]},
            "unknown field `colour` at `$.configurations[0].spec`",
        ),
        (lambda d: d | {"configurations": [{**d["configurations"][0], "spec": {"depth": 0}}]}, "depth must be at least 1"),
        (
            lambda d: d | {"configurations": [d["configurations"][0] | {"seeds": 0}]},
            "expected `int` >= 1 at `$.configurations[0].seeds`",
        ),
        (
            lambda d: d | {"configurations": [d["configurations"][0] | {"seeds": "8"}]},
            "expected `int`, got `str` at `$.configurations[0].seeds`",
        ),
        (lambda d: d | {"tables": [{"name": "a", "events": {}}]}, "missing required field `caption` at `$.tables[0]`"),
    ],
)
def test_incomplete_manifest_is_refused(clone: Path, tmp_path: Path, change, message: str) -> None:
    folder = Path(shutil.copytree(clone, tmp_path / "other"))
    manifest = read_manifest(folder)
    write_manifest(folder, manifest | {"declaration": change(manifest["declaration"])})
    for use in (report, table, relu_study.load, lambda f: relu_study.figure(f, "survival")):
        with pytest.raises(UserError, match=re.escape(message)):
            use(folder)


def test_manifest_of_an_earlier_version_gets_defaults(clone: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clone, tmp_path / "earlier"))
    manifest = read_manifest(folder)
    for entry in manifest["declaration"]["configurations"]:
        assert entry["spec"].pop("weight_decay") == 0
        assert entry.pop("seeds") == manifest["declaration"]["seeds"]
    for claim in manifest["declaration"]["claims"]:
        del claim["targets"]
    for figure in manifest["declaration"]["figures"]:
        del figure["rows"], figure["cols"], figure["epoch"]
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    assert table(folder) == table(clone)
    report(folder)
    assert (folder / "report.md").read_bytes() == (clone / "report.md").read_bytes()
