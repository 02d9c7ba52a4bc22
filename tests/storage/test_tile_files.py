"""Tile files: atomic writes, named corrupt files, and configurations in seed order with any runs missing."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relu_study.errors import UserError
from relu_study.storage import configurations, tile_files
from relu_study.storage.declaration import parse_manifest
from relu_study.storage.manifest import FORMAT, read_manifest, write_manifest
from relu_study.study.run_spec import RunSpec

RELU = RunSpec(width=3)
TANH = RELU.replace(activation="tanh")
DEAD = np.array([[[True, False, True], [False, True, True]]])  # one run, two epochs, three units


def tile(*runs: RunSpec, loss: float = 0.0) -> tile_files.TileArrays:
    """A stored tile of two epochs: the loss of a run is its seed plus `loss`, and at the end ten more."""
    seeds = np.array([run.seed for run in runs], np.float32)
    return {
        "run_id": np.array([run.run_id for run in runs]),
        "spec": np.array([json.dumps(run.changed()) for run in runs]),
        "status": np.array(["ok"] * len(runs)),
        "first_bad_epoch": np.full(len(runs), np.nan),
        "epoch": np.array([0.0, 1.5]),
        "probe_examples": np.array(64),
        "provenance": np.array(json.dumps({"engine": 1, "width": len(runs)})),
        "metric:val_loss/all": np.stack([seeds, seeds + 10], axis=1) + np.float32(loss),
        "dead:site_1": np.packbits(np.repeat(DEAD, len(runs), axis=0), axis=-1),
        "units:site_1": np.array(3),
    }


def manifest(*specs: RunSpec, seeds: int = 3) -> dict[str, Any]:
    specs_of = {s.config_id: {k: v for k, v in s.as_dict().items() if k != "seed"} for s in specs}
    plain = [{"experiment": "a", "arm": "b", "config_id": name, "spec": spec} for name, spec in specs_of.items()]
    empty = {key: [] for key in ("targets", "claims", "tables", "figures", "sections", "columns", "factors", "report_epochs")}
    declaration = {**empty, "title": "", "text": "", "metrics": {}, "configurations": plain, "seeds": seeds}
    return {"format": FORMAT, "study": "small", "provenance": {}, "widths": {}, "declaration": declaration}


def names(folder: Path) -> list[str]:
    return sorted(os.path.relpath(path, folder) for path in folder.rglob("*") if path.is_file())


def test_tile_round_trips(tmp_path: Path) -> None:
    made = tile(RELU, RELU.replace(seed=1))
    path = tile_files.write_tile(tmp_path, made)
    read = tile_files.read_tile(path)
    assert read.keys() == made.keys()
    for name, values in made.items():
        assert read[name].dtype == values.dtype and read[name].shape == values.shape, name
        np.testing.assert_array_equal(read[name], values)
    assert tile_files.read_tile(path, ("status", "run_id")).keys() == {"status", "run_id"}
    assert names(tmp_path) == [f"raw/{path.name}"] and tile_files.tile_paths(tmp_path) == [path]
    assert path.stat().st_mode & 0o777 == 0o644, "readable for others, as any file"


def test_tile_name_follows_from_its_runs(tmp_path: Path) -> None:
    path = tile_files.write_tile(tmp_path, tile(RELU, TANH))
    assert tile_files.write_tile(tmp_path, tile(TANH, RELU, loss=1.0)) == path and tile_files.tile_paths(tmp_path) == [path]
    assert tile_files.write_tile(tmp_path, tile(RELU.replace(seed=1))) != path
    stored = tile_files.stored_runs(tmp_path)
    assert {run: made["width"] for run, (_, made) in stored.items()} == {
        RELU.run_id: 2,
        TANH.run_id: 2,
        RELU.replace(seed=1).run_id: 1,
    }
    assert {status for status, _ in stored.values()} == {"ok"}


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.9, -1])
def test_truncated_tile_is_named(kept: float, tmp_path: Path) -> None:
    path = tile_files.write_tile(tmp_path, tile(RELU))
    write_manifest(tmp_path, manifest(RELU))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept) if isinstance(kept, float) else kept])
    for use in (tile_files.stored_runs, configurations.collect, configurations.stored_params):
        with pytest.raises(UserError, match=f"{path} is not a readable tile .*Move it away and run the study again"):
            use(tmp_path)


def test_foreign_tile_is_named(tmp_path: Path) -> None:
    path = tile_files.write_tile(tmp_path, tile(RELU))
    npy = io.BytesIO()
    np.save(npy, np.zeros(3))
    for content, said in (
        (b"not a tile at all", ""),
        (npy.getvalue(), ""),
        (path.read_bytes().replace(b"status", b"sutats"), "its checksum does not match its contents"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{path} is not a readable tile .*{said}"):
            tile_files.read_tile(path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "{}", '{"format": 1', '{"format": 1}', "\x00", '{"format": {"name": 1}}', b"\xff\xfe\x00{"]
)
def test_corrupt_manifest_is_named(content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"{path} is corrupt .*Restore it, run the study into a new folder"):
        read_manifest(tmp_path)


def test_unknown_or_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} is not a results folder.*relu-study run STUDY --out"):
        read_manifest(tmp_path)
    write_manifest(tmp_path, manifest(RELU))
    assert read_manifest(tmp_path) == manifest(RELU)
    write_manifest(tmp_path, {**manifest(RELU), "format": FORMAT + 1})
    with pytest.raises(UserError, match=f"has format {FORMAT + 1}, and this relu-study reads formats up to {FORMAT}"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("fault", [OSError("no space left on device"), KeyboardInterrupt()])
def test_failed_write_keeps_the_old_file(fault: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(tmp_path, manifest(RELU))
    before = (tmp_path / "manifest.json").read_bytes()

    def refuse(*_: Any) -> None:
        raise fault

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(type(fault)):
        write_manifest(tmp_path, manifest(TANH))
    with pytest.raises(type(fault)):
        tile_files.write_tile(tmp_path, tile(RELU))
    assert names(tmp_path) == ["manifest.json"] and (tmp_path / "manifest.json").read_bytes() == before


def test_collect_with_missing_runs(tmp_path: Path) -> None:
    """Seed 1 of relu is not stored, of tanh only seed 1 is, of sigmoid nothing; a tile also holds a run nobody asked for."""
    tile_files.write_tile(tmp_path, tile(RELU.replace(seed=3), RELU.replace(seed=2), TANH.replace(seed=1)))
    tile_files.write_tile(tmp_path, tile(RELU.replace(seed=7), RELU))
    specs = [TANH, RELU.replace(activation="sigmoid"), RELU]
    found = configurations.collect(tmp_path, parse_manifest(manifest(*specs, seeds=4)))
    assert list(found) == [TANH.config_id, RELU.config_id], "in declared order"
    relu, tanh = found[RELU.config_id], found[TANH.config_id]
    assert relu.seeds.tolist() == [0, 2, 3] and relu.num_requested == 4, "in seed order, as no tile has them"
    assert relu.run_ids == [RELU.replace(seed=seed).run_id for seed in (0, 2, 3)]
    assert tanh.seeds.tolist() == [1] and tanh.num_requested == 4
    np.testing.assert_array_equal(relu.values["val_loss/all"], [[0, 10], [2, 12], [3, 13]])
    np.testing.assert_array_equal(tanh.values["val_loss/all"], [[1, 11]])
    np.testing.assert_array_equal(relu.dead["site_1"], np.repeat(DEAD, 3, axis=0))
    assert relu.sites == ["site_1"] and relu.certified_dead == {} and relu.epochs.tolist() == [0, 1.5]
    assert relu.probe_examples == 64 and relu.status.tolist() == ["ok"] * 3 and relu.spec["width"] == 3


def test_run_in_two_tiles_counts_once(tmp_path: Path) -> None:
    tile_files.write_tile(tmp_path, tile(RELU, RELU.replace(seed=1)))
    tile_files.write_tile(tmp_path, tile(RELU))
    found = configurations.collect(tmp_path, parse_manifest(manifest(RELU)))[RELU.config_id]
    assert found.seeds.tolist() == [0, 1] and found.values["val_loss/all"].shape == (2, 2)
