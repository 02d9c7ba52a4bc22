"""Tiles with other bins in one folder are refused by name. TensorBoard shows linear bins during and after a sweep."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from minimal_folders import SEEDS, STUDY, trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from relu_study import Experiment, RunSpec, Study, run
from relu_study.errors import UserError
from relu_study.report.report import report
from relu_study.report.tensorboard import live
from relu_study.report.tensorboard.event_files import EVENT_FILE, write_events
from relu_study.stats.histogram_bins import BINS, LINEAR, POWERS, linear_edges
from relu_study.storage import configurations, tile_files
from relu_study.storage.declaration import read_declared
from relu_study.storage.frames import load
from relu_study.storage.manifest import read_manifest, write_manifest


def split(
    folder: Path, bins: tuple[np.ndarray | None, np.ndarray | None], said: tuple[str, str] = (LINEAR, LINEAR)
) -> list[Path]:
    """Store the runs of tanh as two tiles with separate bins and provenance. The manifest has `said[0]`."""
    manifest = read_manifest(folder)
    write_manifest(folder, {**manifest, "provenance": {**manifest["provenance"], "histogram_bins": said[0]}})
    written = []
    for path in tile_files.tile_paths(folder):
        tile = tile_files.read_tile(path)
        tanh = '"tanh"' in str(tile["spec"][0])
        parts = [slice(0, 2), slice(2, SEEDS)] if tanh else [slice(0, SEEDS)]
        path.unlink()
        for number, rows in enumerate(parts):
            made = {**json.loads(str(tile["provenance"])), "histogram_bins": said[number]}
            part = {n: v[rows] if n != "epoch" and v.shape[:1] == (SEEDS,) else v for n, v in tile.items()}
            part |= {"epoch": tile["epoch"], "provenance": np.array(json.dumps(made))}
            if tanh and (span := bins[number]) is not None:
                part["bins:post:site_1"] = span
            found = tile_files.write_tile(folder, part)
            written += [found] if tanh else []
    return written


SPAN = np.array([-1.0, 1.0])
OTHER = {
    "powers and linear": (None, SPAN),
    "linear and powers": (SPAN, None),
    "other range": (SPAN, np.array([0.0, 1.0])),
    "another end": (SPAN, np.array([-1.0, np.nextafter(1.0, 2)])),
}


@pytest.mark.parametrize("kind", OTHER)
def test_tiles_of_one_configuration_with_other_bins_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    trained(tmp_path)
    paths = split(tmp_path, OTHER[kind])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for reads in (report, load, lambda folder: configurations.collect(folder, histograms=True)):
        with pytest.raises(UserError, match=r"tile-\w+\.npz.*sites or bins") as refused:
            reads(tmp_path)
        assert any(path.name in str(refused.value) for path in paths)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("said", [(LINEAR, POWERS), (POWERS, LINEAR)])
def test_tiles_with_other_bins_than_the_manifest_are_refused_by_name(said: tuple[str, str], tmp_path: Path) -> None:
    trained(tmp_path)
    paths = split(tmp_path, (SPAN, SPAN), said)
    for reads in (report, load):
        with pytest.raises(
            UserError, match=f"different provenance .*histogram_bins: {said[1]} there, {said[0]} here|histogram_bins"
        ) as e:
            reads(tmp_path)
        assert paths[1].name in str(e.value) and "Move it away, or run the study into a new folder" in str(e.value)


def test_tiles_of_equal_bins_add_up(tmp_path: Path) -> None:
    trained(tmp_path)
    split(tmp_path, (SPAN, SPAN))
    found = {c.spec["activation"]: c for c in configurations.collect(tmp_path, histograms=True).values()}
    assert found["tanh"].bins == {"post:site_1": (-1.0, 1.0)} and found["relu"].bins == {}
    assert (found["tanh"].histograms["post:site_1"] == SEEDS).all() and STUDY.seeds == SEEDS


def shown(folder: Path) -> dict[str, np.ndarray]:
    """Return the last histogram of the first site's output of each run in TensorBoard."""
    found = {}
    for file in (folder / "tensorboard").rglob(EVENT_FILE):
        events = EventAccumulator(str(file.parent), size_guidance={"tensors": 0}).Reload()
        for tag in events.Tags()["tensors"]:
            if "post" in tag and "site_1" in tag and make_ndarray(events.Tensors(tag)[-1].tensor_proto).ndim == 2:
                found[file.parent.name] = make_ndarray(events.Tensors(tag)[-1].tensor_proto)
    return found


@pytest.mark.slow
def test_tensorboard_shows_linear_bins_during_a_sweep_as_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FREE_SECONDS", math.inf)
    during: list[dict[str, bytes]] = []
    write = live.Live.write

    def writes(self: Any) -> None:
        write(self)
        during.append({file.parent.name: file.read_bytes() for file in (tmp_path / "tensorboard").rglob(EVENT_FILE)})

    monkeypatch.setattr(live.Live, "write", writes)
    base = RunSpec(rows=80, batch_size=20, width=8, epochs=1, initializer="he_normal")
    arms = {name: base.replace(activation=name) for name in ("tanh", "relu6", "relu")}
    study = Study("bounded", "Bounded", "?", [Experiment("main", arms)], seeds=2)
    run(study, tmp_path)
    final = {file.parent.name: file.read_bytes() for file in (tmp_path / "tensorboard").rglob(EVENT_FILE)}
    assert any(len(state) < len(final) for state in during) and len(final) == len(arms)
    assert all(state[name] == final[name] for state in during for name in state)
    found, spans = shown(tmp_path), {"tanh": (-1, 1), "relu6": (0, 6)}
    collected = {c.spec["activation"]: c for c in configurations.collect(tmp_path, histograms=True).values()}
    for activation, (low, high) in spans.items():
        (buckets,) = (value for name, value in found.items() if name.split("@")[0] == activation)
        counts = collected[activation].histograms["post:site_1"][-1]
        assert counts.shape == (BINS,) and buckets[:, 2].sum() == counts.sum()
        assert collected[activation].bins["post:site_1"] == (low, high)
        inner = set(np.round(buckets[:, :2].ravel().astype(float), 6)) - {0.0}
        edges = set(np.round(linear_edges(low, high), 6))
        assert edges - {0.0} <= inner and len(inner - edges) <= 2, "the only further borders are those of the bucket of zero"
    assert collected["relu"].bins == {}
    before = dict(final)
    write_events(read_declared(tmp_path), configurations.collect(tmp_path, histograms=True), tmp_path)
    assert {file.parent.name: file.read_bytes() for file in (tmp_path / "tensorboard").rglob(EVENT_FILE)} == before
