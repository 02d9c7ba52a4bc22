"""The benchmark of an accelerator, at a small size on a CPU."""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

SCRIPT = ROOT / "benchmarks" / "speed" / "accelerator.py"
COLUMNS = {"part", "net", "batch", "width", "quantity", "value", "least", "most", "unit", "repeats", "note", "device", "command"}
PARTS = ("peers", "widths", "shares", "bits", "runs", "study")
MISSING = "torch.func.vmap", "peak memory of the device"  # without torch, and on a CPU
pytestmark = pytest.mark.slow


def benchmark(*words: str, cache: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cache)}
    return subprocess.run([sys.executable, str(SCRIPT), *words], env=env, cwd=cache, capture_output=True, text=True)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "gpu.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_part_runs_small_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = benchmark("--small", "--out", str(out), cache=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in out.iterdir()} == {"gpu.csv", "gpu.md", "gpu.png", "gpu.svg"}
    rows = rows_of(out)
    assert set(rows[0]) >= COLUMNS and list(dict.fromkeys(row["part"] for row in rows)) == list(PARTS)
    for row in rows:
        assert bool(row["value"]) != (row["repeats"] == "0"), row
        if not row["value"]:  # never without a reason
            assert row["note"] and row["quantity"].endswith(MISSING), row
        elif row["part"] == "bits":
            assert row["value"] in ("yes", "no") or 0 <= float(row["value"]) <= 1, row
        else:
            assert 0 < float(row["least"]) <= float(row["value"]) <= float(row["most"]), row
    values = {row["quantity"]: row["value"] for row in rows if row["value"]}
    assert values["equal bits in the same process"] == values["equal bits in other processes"] == "yes"  # as on any CPU
    assert values["networks in one study"] == "16" and values["networks in the study"] == "4"
    assert any(row["quantity"] == "relu_study over relu_study on 2 CPU cores" for row in rows)
    torch = [row for row in rows if row["quantity"].endswith(": torch.func.vmap")]
    if importlib.util.find_spec("torch") is None:
        assert [row["note"] for row in torch] == ["not measured: ModuleNotFoundError: No module named 'torch'"]

    again = benchmark("--small", "--out", str(out), "--parts", "shares", "--nets", "A", cache=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    places = [[(row["part"], row["net"], row["quantity"]) for row in some] for some in (rows, rows_of(out))]
    assert sorted(places[0]) == sorted(places[1]), "the rows of the other parts and nets stay"


def test_the_committed_table_is_not_written_on_a_cpu(tmp_path: Path) -> None:
    before = sorted((ROOT / "results" / "speed").glob("gpu.*"))
    for words in ([], ["--small"]):
        done = benchmark(*words, cache=tmp_path)
        assert done.returncode == 1 and "Give --out" in done.stderr
    assert sorted((ROOT / "results" / "speed").glob("gpu.*")) == before
