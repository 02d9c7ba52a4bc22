"""Tiles on a cluster that end their workers, do not fit in memory, or compile: status, width and number of programs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from cluster_faults import Faults
from ray_cluster import RayCluster, finish, needs_ray, same_bytes, start
from tiers import QUICK

pytestmark = [pytest.mark.slow, needs_ray]


def run(cluster: RayCluster, faults: Faults, out: str, *words: str, before: str = "") -> subprocess.CompletedProcess[str]:
    return cluster.command(
        "run", "grains.py", "--out", out, *words, cwd=faults.study.parent, XLA_FLAGS=QUICK, timeout=400, before=before
    )


def run_here(cluster: RayCluster, faults: Faults, out: str, before: str = "") -> subprocess.CompletedProcess[str]:
    words = ("run", "grains.py", "--out", out)
    environment = {**cluster.environment, "XLA_FLAGS": QUICK}
    return finish(start(*words, cwd=faults.study.parent, environment=environment, before=before))


def manifest(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "manifest.json").read_text()))


def test_tile_that_ends_three_workers_crashes(ray_cluster: RayCluster, tmp_path: Path) -> None:
    """All other tiles finish. The next run tries the tile again."""
    faults = Faults(tmp_path, 4, 2, ("poison",))
    (faults.folder / "poison").touch()
    done = run(ray_cluster, faults, "there")
    assert done.returncode == 3, done.stderr
    deaths = [record for record in faults.records() if record.tile.startswith("poison")]
    assert len(deaths) == len({record.process for record in deaths}) == 3, deaths
    assert done.stderr.count("its tiles go to other places") == 3, done.stderr
    there, runs = manifest(tmp_path / "there"), pd.read_csv(tmp_path / "there" / "runs.csv")
    crashed = runs[runs["status"] == "crashed"]
    assert set(crashed["activation"]) == {"poison"} and len(crashed) == 2 and (runs["status"] == "ok").sum() == len(runs) - 2
    assert there["counts"] == {"ok": 16, "nonfinite": 0, "crashed": 2, "interrupted": 0}
    reasons = there["crashed"]
    assert isinstance(reasons, dict) and set(reasons) == set(crashed["run_id"])
    assert all(reasons.values()) and set(crashed["reason"]) == set(reasons.values()), reasons
    assert done.stderr.splitlines()[-1].startswith("relu-study: 2 runs crashed ("), done.stderr

    (faults.folder / "poison").unlink()
    again, here = run(ray_cluster, faults, "there"), run_here(ray_cluster, faults, "here")
    assert again.returncode == here.returncode == 0, again.stderr + here.stderr
    assert "crashed" not in manifest(tmp_path / "there") and same_bytes(tmp_path / "here", tmp_path / "there")


def test_tile_that_does_not_fit_halves_the_width_of_its_cohort(ray_cluster: RayCluster, tmp_path: Path) -> None:
    """A local run with the same memory has the same widths and bytes."""
    faults = Faults(tmp_path, 3, 4)
    faults.set({"kind": "memory", "tile": "tanh", "width": 2})
    done = run(ray_cluster, faults, "there")
    assert done.returncode == 0 and "does not fit in memory at width 4" in done.stderr, done.stderr
    widths = manifest(tmp_path / "there")["widths"]
    assert isinstance(widths, dict) and sorted(widths.values()) == [2, 4], widths
    (tmp_path / "local").mkdir()
    local = Faults(tmp_path / "local", 3, 4)
    local.study.write_text(faults.study.read_text())
    local.set({"kind": "memory", "tile": "tanh", "width": 2})
    before = f"import pathlib, cluster_faults\ncluster_faults.install(pathlib.Path({str(local.folder)!r}))\n"
    here = run_here(ray_cluster, local, "here", before)
    assert here.returncode == 0 and "does not fit in memory at width 4" in here.stderr, here.stderr
    assert manifest(tmp_path / "local" / "here")["widths"] == widths
    assert same_bytes(tmp_path / "local" / "here", tmp_path / "there")


def test_each_worker_compiles_a_cohort_once(ray_cluster: RayCluster, tmp_path: Path) -> None:
    """Only the first tile of a cohort at a worker needs programs, compiled or read from JAX's cache."""
    faults = Faults(tmp_path, 8)
    faults.set({"kind": "sleep", "seconds": 0.3})
    done = run(ray_cluster, faults, "there")
    assert done.returncode == 0, done.stderr
    programs: dict[tuple[int, str], list[int]] = {}
    for record in faults.records("queued"):
        programs.setdefault((record.process, record.tile.split()[0]), []).append(record.programs)
    print(sorted(programs.values()))
    assert len({process for process, _ in programs}) == 2 and sum(map(len, programs.values())) >= 16
    assert all(counts[0] > 0 and not any(counts[1:]) for counts in programs.values()), programs
