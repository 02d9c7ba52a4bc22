"""Two thousand tiles on a cluster: the memory of the driver and the object store do not grow with their number."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import psutil
import pytest
from cluster_faults import Faults
from ray_cluster import RayCluster, finish, needs_ray
from tiers import QUICK

pytestmark = [pytest.mark.slow, needs_ray]
SEEDS = 2000  # of two cohorts, in tiles of two runs
NARROW = "from relu_study.engine import plan\nplan.WIDTH_LIMITS['cpu'] = plan.WidthLimits(2, 2, 4 << 20)\n"


def test_two_thousand_tiles(ray_cluster: RayCluster, tmp_path: Path) -> None:
    """The last fifth of the tiles adds at most 5 % to the driver's memory, and nothing to the object store."""
    Faults(tmp_path, 1, SEEDS)
    began = time.monotonic()
    process = ray_cluster.start("run", "grains.py", "--out", "there", cwd=tmp_path, before=NARROW, XLA_FLAGS=QUICK)
    driver, raw, samples = psutil.Process(process.pid), tmp_path / "there" / "raw", []
    raylets = [one for one in ray_cluster.processes() if "raylet" in one.name()]
    assert len(raylets) == 3
    while process.poll() is None and not (tmp_path / "there" / "runs.csv").exists():
        tiles = len(list(raw.glob("tile-*")))
        with contextlib.suppress(psutil.NoSuchProcess):
            store = sum(one.memory_info().shared for one in raylets)
            samples.append((tiles, driver.memory_info().rss / 2**20, store / 2**20))
        time.sleep(1)
    done = finish(process, 300)
    assert done.returncode == 0 and len(list(raw.glob("tile-*"))) == SEEDS, done.stderr
    shown = [samples[i * (len(samples) - 1) // 10] for i in range(11)]
    print(f"{time.monotonic() - began:.0f} s; tiles, MiB of the driver, MiB shared by the raylets:", *shown, sep="\n")
    middle = [sample for sample in samples if 0.4 * SEEDS <= sample[0] < 0.6 * SEEDS]
    late = [sample for sample in samples if sample[0] >= 0.9 * SEEDS]
    for column, slack in ((1, 1.05), (2, 1.05)):
        before, after = (sorted(sample[column] for sample in part)[len(part) // 2] for part in (middle, late))
        assert after <= before * slack + 4, (column, before, after)
