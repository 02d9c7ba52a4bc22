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
            assert float(row["least"]) <= float(row["value"]) <= float(row["most"]), row
            # A rate of relu_study next to peers comes from a difference of two times. At this size, noise may exceed it.
            assert row["part"] == "peers" or float(row["least"]) > 0, row
    values = {row["quantity"]: row["value"] for row in rows if row["value"]}
    assert values["equal bits in the same process"] == values["equal bits in other processes"] == "yes"  # as on any CPU
    assert values["networks in one study"] == "16" and values["networks in the study"] == "4"
    assert any(row["quantity"] == "relu_study over relu_study on 2 CPU cores" for row in rows)
    torch = [row for row in rows if row["quantity"].endswith(": torch.func.vmap")]
    if importlib.util.find_spec("torch") is None:
        assert [row["note"] for row in torch] == ["not measured: ModuleNotFoundError: No module named 'torch'"]

    again = benchmark("--small", "--out", str(out), "--parts", "shares", cache=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    others = [[row for row in some if row["part"] != "shares"] for some in (rows, rows_of(out))]
    assert others[0] == others[1] and len(rows_of(out)) == len(rows), "the rows of the other parts stay"


def test_the_committed_table_is_not_written_on_a_cpu(tmp_path: Path) -> None:
    before = sorted((ROOT / "results" / "speed").glob("gpu.*"))
    for words in ([], ["--small"]):
        done = benchmark(*words, cache=tmp_path)
        assert done.returncode == 1 and "Give --out" in done.stderr
    assert sorted((ROOT / "results" / "speed").glob("gpu.*")) == before


RETRIES = """
import accelerator_studies
from peer_team import Competitor, Missing

class Team:
    started_teams = []

    def __init__(self, competitor, stack):
        self.competitor = competitor
        self.started_teams.append(self)

    def started(self):
        return "versions"

    def settle(self, job, seconds, tries):
        if tries > fitting:
            raise Missing("out of memory")

accelerator_studies.Team = Team
competitor = Competitor("vmap", "peer_jax.py", "nothing", choices=(8, 16, 32))
fitting = 2
first = Team(competitor, None)
team = accelerator_studies.settled(first, None, 1.0, None)
assert Team.started_teams == [first, team], "started again once"
fitting = 0
try:
    accelerator_studies.settled(first, None, 1.0, None)
except Missing as reason:
    print(reason)
"""


def test_a_peer_without_memory_is_started_again_without_its_widest_width(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(SCRIPT.parent)]), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", RETRIES], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "out of memory" and done.stdout.count("without its widest width") == 3
