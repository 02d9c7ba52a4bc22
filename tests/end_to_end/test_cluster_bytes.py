"""Studies on two workers, one worker and this machine, and resumed across them: the same raw files, CSV files and report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from paths import ROOT
from ray_cluster import RayCluster, needs_ray, same_bytes, start
from tiers import QUICK
from user_process import COMMANDS

pytestmark = [pytest.mark.slow, needs_ray]
SUPPORT = ROOT / "tests" / "support"
OWN = """
from relu_study import Experiment, Figure, RunSpec, Study, Table, activation, data_file
from own_part import SLOPE, scaled

SHIFT = float(open(data_file("data/shift.txt")).read())


@activation("own_bent", smooth=True)
def own_bent(x):
    return scaled(x) * SLOPE + SHIFT + float(open(data_file("data/late.txt")).read())


base = RunSpec(rows=200, batch_size=32, width=4, epochs=1, optimizer="sgd")
arms = {name: base.replace(activation="own_bent", epochs=epochs) for name, epochs in (("one", 1), ("two", 2), ("three", 3))}
arms["tanh"] = base.replace(activation="tanh")
study = Study(
    "own", "Own", "?", [Experiment("main", arms)], seeds=3, metrics=("val_loss",),
    tables=[Table("main", "Loss.", ("main",), ("val_loss",), baseline="one")],
)
"""


def written(name: str, folder: Path) -> list[str]:
    """Write a study, and return the words that run it."""
    if name != "own":
        path = SUPPORT / f"{name}.py"
        return ["run", str(path), *(["--max-draws", "3000"] if "draw" in name else [])]
    (folder / "data").mkdir()
    (folder / "data" / "shift.txt").write_text("0.25")
    (folder / "data" / "late.txt").write_text("0.125")
    (folder / "own_part.py").write_text("import jax\n\nSLOPE = 0.75\n\n\ndef scaled(x):\n    return x * jax.nn.sigmoid(x)\n")
    (folder / "own.py").write_text(OWN)
    return ["run", "own.py"]


def pages(folder: Path) -> dict[str, object]:
    """The report of a folder with its figures, and the manifest: without command, seconds and the number of devices."""
    manifest = json.loads((folder / "manifest.json").read_text())
    lines = [line for line in (folder / "report.md").read_text().splitlines() if not line.startswith("- command: ")]
    figures = {path.name: path.read_bytes() for path in folder.glob("figures/*")}
    return {
        "report": lines,
        **figures,
        **{name: manifest[name] for name in manifest.keys() - {"command", "timing", "checksum", "device"}},
    }


def run(lines: list[list[str]], cluster: RayCluster, folder: Path) -> str:
    """Run commands in one process, and return its messages."""
    process = start(
        ";".join(" ".join(line) for line in lines),
        cwd=folder,
        environment={**cluster.environment, "XLA_FLAGS": QUICK},
        before=COMMANDS + "raise SystemExit\n",
    )
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return err


def part(whole: Path, folder: Path, keep: int) -> None:
    """A results folder whose run was interrupted: every second raw file of another folder, and its manifest."""
    (folder / "raw").mkdir(parents=True)
    names = sorted(path.name for path in (whole / "raw").iterdir())
    assert len(names) > 1
    for name in names[keep::2]:
        shutil.copy(whole / "raw" / name, folder / "raw" / name)
    shutil.copy(whole / "manifest.json", folder / "manifest.json")


@pytest.mark.parametrize("name", ["small_study", "own", "small_draw_study"])
def test_cluster_and_local_runs_have_the_same_bytes(name: str, ray_cluster: RayCluster, tmp_path: Path) -> None:
    words, there = written(name, tmp_path), ["--cluster", ray_cluster.address]
    messages = run(
        [
            [*words, "--out", "here"],
            [*words, "--out", "two", *there],
            [*words, "--out", "one", *there, "--workers", "1"],
            [*words, "--out", "sharded", "--shard", "1/2"],
        ],
        ray_cluster,
        tmp_path,
    )
    assert messages.count("worker ") >= 3, messages  # a line for each worker
    part(tmp_path / "here", tmp_path / "local_first", 0)
    part(tmp_path / "two", tmp_path / "cluster_first", 1)
    stored = {path.name for path in (tmp_path / "sharded" / "raw").iterdir()}
    assert stored and stored < {path.name for path in (tmp_path / "here" / "raw").iterdir()}
    run(
        [
            [*words, "--out", "local_first", *there],
            [*words, "--out", "cluster_first"],
            [*words, "--out", "sharded", *there],
        ],
        ray_cluster,
        tmp_path,
    )
    for other in ("two", "one", "local_first", "cluster_first", "sharded"):
        assert same_bytes(tmp_path / "here", tmp_path / other), other
        assert pages(tmp_path / "here") == pages(tmp_path / other), other
