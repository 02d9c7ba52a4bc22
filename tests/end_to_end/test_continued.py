"""Folders continued by another study file: other metrics are refused by name, and unverified objects are listed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from relu_study.components import registry
from relu_study.storage.manifest import read_manifest, write_manifest
from relu_study.storage.tile_files import read_tile, tile_paths, write_tile

Here = Callable[..., tuple[int, str, str]]
STUDY = """
from relu_study import Experiment, RunSpec, Study
base = RunSpec(rows=60, width=4, epochs=1, batch_size=30, network="mlp", optimizer="sgd", task={task!r})
study = Study("own", "Own", "?", [Experiment("main", {{"arm": base}})], seeds=1, metrics={metrics})
"""
METRIC = """
from relu_study.components.metrics.metric import metric

@metric("own_gap", per="network", unit="loss", direction="lower", requires=("val_loss", "train_loss"))
def own_gap(snapshot):
    "The validation loss less the training loss."
    return snapshot.val_loss - snapshot.train_loss
"""
TASK = """
import threading
import jax
from relu_study import Signature, Task, task

LOCK = threading.Lock()

class Odd:
    @property
    def __wrapped__(self):
        raise RuntimeError("no")

def drawn(mark):
    def sample(key, phase):
        mark
        x = jax.random.uniform(key, (60, 2), minval=-1.0)
        return x, x[:, :1]
    return lambda spec: Task(Signature(30, 30, 2, 1), sample)

task("own_data")(drawn({mark}))
"""
MARKS = {"unverified": "LOCK", "unverifiable": "Odd()"}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remove the components of a study file after each test."""
    for known in (registry.metrics, registry.tasks):
        monkeypatch.setattr(known, "_entries", dict(known._entries))
    yield


def study_file(name: str, head: str = "", metrics: tuple[str, ...] = (), task: str = "lu_targets") -> str:
    Path(name).write_text(head + STUDY.format(metrics=metrics, task=task))
    return name


def made_earlier(folder: Path) -> None:
    """Turn a folder into one of a version without a list of metrics."""
    manifest = read_manifest(folder)
    for path in tile_paths(folder):
        tile = read_tile(path)
        made = {k: v for k, v in json.loads(str(tile["provenance"])).items() if k not in ("measured", "histograms", "digest")}
        path.unlink()
        write_tile(folder, tile | {"provenance": np.array(json.dumps(made))})
    write_manifest(folder, {**manifest, "provenance": made})


def forgotten() -> None:
    registry.metrics._entries.pop("own_gap", None)


def refused(said: tuple[int, str, str], *words: str) -> None:
    status, _, noise = said
    assert status == 2 and noise.count("\n") == 1 and all(word in noise for word in words), noise


@pytest.mark.parametrize(
    "earlier", [pytest.param(False, id="this version", marks=pytest.mark.slow), pytest.param(True, id="an earlier one")]
)
def test_added_or_removed_metric_is_refused_by_name_before_training(here: Here, earlier: bool) -> None:
    without, having = study_file("without.py"), study_file("having.py", METRIC)
    for first, second in ((without, having), (having, without)):
        folder = Path(f"of_{Path(first).stem}")
        forgotten()
        assert (done := here("run", first, "--out", str(folder)))[0] == 0, done
        made_earlier(folder) if earlier else None
        stored = {path.name for path in tile_paths(folder)}
        forgotten()
        advice = "or name another" if earlier else "Name another"
        for words in (("run", second, "--seeds", "2"), ("run", second), ("plan", second, "--no-memory")):
            forgotten()
            refused(here(*words, "--out", str(folder)), str(folder), "own_gap", f"{advice} folder with --out")
        assert {path.name for path in tile_paths(folder)} == stored
        forgotten()
        assert here("run", first, "--out", str(folder), "--seeds", "2")[0] == 0  # with its own list it goes on
        assert len(tile_paths(folder)) > len(stored)


@pytest.mark.slow
def test_other_histograms_are_refused_before_training(here: Here) -> None:
    every, few = study_file("every.py"), study_file("few.py", metrics=("val_loss",))
    assert here("run", every, "--out", "every")[0] == here("run", few, "--out", "few")[0] == 0
    refused(here("run", few, "--out", "every", "--seeds", "2"), "histograms: True there, False here", "Name another folder")
    refused(here("run", every, "--out", "few", "--seeds", "2"), "histograms: False there, True here", "Name another folder")
    assert len(tile_paths(Path("every"))) == len(tile_paths(Path("few"))) == 1


def test_unverifiable_object_is_named_on_one_line(here: Here) -> None:
    name = study_file("own.py", TASK.replace("{mark}", MARKS["unverified"]), ("val_loss",), "own_data")
    line = "not verified: lock of task own_data. A change of their state is not noticed when out is continued"
    status, said, _ = here("plan", name, "--no-memory", "--out", "out")
    assert status == 0 and said.splitlines().count(line) == 1, (said, here("plan", name, "--no-memory", "--out", "out"))
    for seeds in ("1", "2"):
        registry.tasks._entries.pop("own_data")
        status, _, noise = here("run", name, "--out", "out", "--seeds", seeds)
        assert status == 0 and noise.splitlines().count(line) == 1, noise


def test_entry_without_a_fingerprint_trains_once_and_is_not_resumed(here: Here) -> None:
    name = study_file("own.py", TASK.replace("{mark}", MARKS["unverifiable"]), ("val_loss",), "own_data")
    line = "task own_data cannot be compared with a later one (RuntimeError while it is read): out cannot be continued"
    assert line in here("plan", name, "--no-memory", "--out", "out")[1].splitlines()
    registry.tasks._entries.pop("own_data")
    status, _, noise = here("run", name, "--out", "out")
    assert status == 0 and line in noise.splitlines(), noise
    for seeds in ("1", "2"):
        registry.tasks._entries.pop("own_data")
        refused(here("run", name, "--out", "out", "--seeds", seeds), "out cannot be continued: task own_data", "--out")
    assert len(tile_paths(Path("out"))) == 1
