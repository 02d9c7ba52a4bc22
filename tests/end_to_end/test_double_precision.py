"""Double precision in tiles, files, resumed studies and draws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from event_reader import read as read_events
from minimal_folders import trained
from user_process import command, commands

from relu_study import UserError, compare, figure, load, table
from relu_study.report.report import report
from relu_study.report.tensorboard.event_files import run_names
from relu_study.storage.configurations import collect
from relu_study.storage.declaration import read_declared
from relu_study.storage.frames import summary_frame
from relu_study.storage.manifest import read_manifest, write_manifest
from relu_study.storage.tile_files import read_tile, tile_paths, write_tile
from relu_study.storage.tile_identity import number_type


def in_doubles(folder: Path) -> Path:
    """The minimal folder as stored under double precision, with one value outside single precision."""
    trained(folder)
    manifest = read_manifest(folder)
    made = {**manifest["provenance"], "precision": "float64"}
    for path in tile_paths(folder):
        tile = read_tile(path)
        tile["provenance"] = np.array(json.dumps({**json.loads(str(tile["provenance"])), "precision": "float64"}))
        doubles = {name: values.astype(np.float64) for name, values in tile.items() if name.startswith("metric:")}
        doubles["metric:val_loss/all"] += 1e-12 / 3
        path.unlink()
        write_tile(folder, tile | doubles)
    write_manifest(folder, {**manifest, "provenance": made})
    report(folder)
    return folder


def test_doubles_are_read_to_the_last_bit(tmp_path: Path) -> None:
    folder = in_doubles(tmp_path / "doubles")
    results = load(folder)
    assert results.curves["value"].dtype == np.float64
    raw = next(iter(collect(folder).values())).values["val_loss/all"]
    assert raw.dtype == np.float64 and (raw != raw.astype(np.float32)).all()
    stored = results.runs.set_index("run_id")["val_loss/all"]
    config = next(iter(collect(folder).values()))
    assert stored.dtype == np.float64 and stored[config.run_ids].tolist() == raw[:, -1].tolist()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert report(folder) == [] and {path: path.read_bytes() for path in before} == before
    assert "val loss" in table(folder) and len(compare(folder)) == 1
    assert figure(folder, "curves", metrics="val_loss", out=tmp_path / "curves.png")[0].stat().st_size > 5_000


@pytest.mark.parametrize("said", ["float32", "float64"])
def test_tile_of_another_precision_is_refused(tmp_path: Path, said: str) -> None:
    folder = in_doubles(tmp_path / "doubles")
    path = tile_paths(folder)[0]
    tile = read_tile(path)
    tile["provenance"] = np.array(json.dumps({**json.loads(str(tile["provenance"])), "precision": said}))
    if said == "float64":
        tile["metric:val_loss/all"] = tile["metric:val_loss/all"].astype(np.float32)
    write_tile(folder, tile)
    with pytest.raises(UserError, match=r"metric:.* does not fit"):
        read_tile(path)


def test_number_type_follows_the_precision() -> None:
    assert [number_type(made) for made in ({}, {"precision": "float32"}, {"precision": "float64"})] == [
        np.float32,
        np.float32,
        np.float64,
    ]


X64 = """
import sys
import jax
if sys.argv[2] == "update":
    jax.config.update("jax_enable_x64", True)
from relu_study import Draws, DrawStudy, Experiment, RunSpec, Study, run, run_draws, table
base = RunSpec(rows=60, epochs=2, depth=2, width=4, batch_size=28, initializer="he_normal")
{study}
"""

TRAINED = """
arms = {"adam": base, "batch": base.replace(norm="batch_norm"), "layer": base.replace(norm="layer_norm"),
        "crelu": base.replace(activation="crelu"),
        "drop": base.replace(dropout="dropout", dropout_rate=0.25), 
        "momentum": base.replace(optimizer="momentum"),
        "rmsprop": base.replace(optimizer="rmsprop"), "digits": base.replace(task="digits"),
        "lu": base.replace(task="lu_targets")}
arms |= {name: base.replace(initializer=name) for name in ("orthogonal", "rai", "sign_flip",
         "negative_uniform", "pytorch_default")}
study = Study("x64", "Double", "?", [Experiment("main", arms)], seeds=2)
for _ in range(2):
    found = run(study, sys.argv[1])
    assert (found.runs.status == "ok").all() and str(found.runs["val_loss/all"].dtype) == "float64"
print(table(sys.argv[1]))
"""

DRAWN = """
from relu_study.components.registry import statistics
study = DrawStudy("d64", "Double", "?", [Draws(name, name, {"all": {}}, 20) for name in statistics])
for _ in range(2):
    found = run_draws(study, sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("study", [TRAINED, DRAWN], ids=["trained", "drawn"])
@pytest.mark.parametrize("how", ["environment", "update"])
def test_double_precision_works_end_to_end(tmp_path: Path, study: str, how: str) -> None:
    given = {"JAX_ENABLE_X64": "1"} if how == "environment" else {}
    done = command(str(tmp_path / "out"), how, code=X64.replace("{study}", study), **given)
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    assert read_manifest(tmp_path / "out")["provenance"]["precision"] == "float64"
    again = command("report", str(tmp_path / "out"))
    assert again.returncode == 0 and not again.stderr, again.stderr.decode()


STUDY64 = """
import jax
if "update" in __file__:
    jax.config.update("jax_enable_x64", True)
from relu_study import Experiment, RunSpec, Study
base = RunSpec(rows=60, epochs=2, depth=1, width=4, batch_size=28, initializer="he_normal")
arms = {"relu": base, "tanh": base.replace(activation="tanh")}
study = Study("double", "Double", "?", [Experiment("main", arms)], seeds=3, metrics=("val_loss",))
"""

DRAWS64 = """
import jax
if "update" in __file__:
    jax.config.update("jax_enable_x64", True)
from relu_study import Draws, DrawStudy
study = DrawStudy("drawn64", "Double", "?", [Draws("dead_unit", "dead_unit", {"all": {}}, 3000)])
"""


def doubles_of(folder: Path) -> dict[str, np.ndarray]:
    """Return run_id -> every metric of a stored run."""
    found = {}
    for path in tile_paths(folder):
        tile = read_tile(path)
        names = sorted(name for name in tile if name.startswith("metric:"))
        assert all(tile[name].dtype == np.float64 for name in names)
        found |= {str(run): np.stack([tile[name][row] for name in names]) for row, run in enumerate(tile["run_id"])}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", ["environment", "update"])
def test_commands_resume_and_retrain_in_double_precision(tmp_path: Path, how: str) -> None:
    study, parts, whole, one = (tmp_path / name for name in (f"{how}.py", "parts", "whole", "one"))
    study.write_text(STUDY64)
    given = {"JAX_ENABLE_X64": "1"} if how == "environment" else {}
    run = f"run {study} --out"
    commands(f"{run} {parts} --seeds 2", f"{run} {parts}", f"{run} {whole}", **given)
    stored = doubles_of(whole)
    assert len(stored) == 6 and any(
        (values != values.astype(np.float32))[np.isfinite(values)].any() for values in stored.values()
    )
    resumed = doubles_of(parts)
    assert resumed.keys() == stored.keys() and all(np.array_equal(resumed[run], stored[run], equal_nan=True) for run in stored)
    chosen = sorted(stored)[3]
    said = commands(
        f"run {study} --only {chosen} --widths-from {whole} --out {one}", f"report {whole}", f"table {whole}", **given
    )
    (row,) = (line for line in (whole / "runs.csv").read_text().splitlines() if line.startswith(chosen))
    assert row in said.splitlines() and row in (one / "runs.csv").read_text() and "| relu |" in said
    assert np.array_equal(doubles_of(one)[chosen], stored[chosen], equal_nan=True)
    manifest = read_declared(whole)
    assert manifest.provenance["precision"] == "float64"
    summary = summary_frame(collect(whole, manifest), manifest)
    for config_id, name in run_names(manifest).items():
        series = read_events(whole / "tensorboard" / name)
        rows = summary[(summary["config_id"] == config_id) & (summary["metric"] == "val_loss")]
        for tag, column in (("mean", "mean"), ("lo", "ci_lo"), ("hi", "ci_hi")):
            wanted = {int(epoch): float(np.float32(value)) for epoch, value in zip(rows["epoch"], rows[column], strict=True)}
            assert series[f"val_loss/all/{tag}"] == wanted and len(wanted) == 3


@pytest.mark.slow
@pytest.mark.parametrize("how", ["environment", "update"])
def test_draws_resume_in_double_precision(tmp_path: Path, how: str) -> None:
    study, parts, whole = (tmp_path / name for name in (f"{how}.py", "parts", "whole"))
    study.write_text(DRAWS64)
    given = {"JAX_ENABLE_X64": "1"} if how == "environment" else {}
    run = f"run {study} --out"
    commands(f"{run} {parts} --max-draws 1000", f"{run} {parts}", f"report {parts}", f"{run} {whole}", **given)
    assert read_manifest(parts)["provenance"]["precision"] == "float64"
    assert (parts / "cells.csv").read_bytes() == (whole / "cells.csv").read_bytes()
