"""The benchmark of a cluster: its queue model, and all of it at a small size."""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from paths import ROOT
from ray_cluster import needs_ray

SPEED = ROOT / "benchmarks" / "speed"


@pytest.fixture(scope="module")
def queue() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cluster_queue", SPEED / "cluster_queue.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # its dataclass looks its module up
    spec.loader.exec_module(module)
    del sys.modules[spec.name]
    return module


def test_places_of_an_idle_driver_always_compute(queue: ModuleType) -> None:
    for places in (1, 7, 100):
        outcome = queue.simulate(places, 10.0, queue.Driver(1e-4, 1e-4, 1e-3))
        assert outcome.efficiency > 0.999 and outcome.rate == pytest.approx(places / 10.0, rel=0.05)


def test_a_driver_saturates_at_its_capacity(queue: ModuleType) -> None:
    driver = queue.Driver(0.01, 0.03, 1e-3)
    assert driver.capacity == pytest.approx(25)
    for places, seconds in ((100, 1.0), (400, 1.0), (400, 4.0)):
        outcome, share = queue.simulate(places, seconds, driver), 25 * seconds / places
        assert outcome.rate == pytest.approx(25, rel=0.05)
        assert outcome.efficiency == pytest.approx(share, rel=0.1)


def test_a_delay_costs_nothing_while_a_second_tile_waits(queue: ModuleType) -> None:
    hidden, seen = (queue.simulate(1, 1.0, queue.Driver(0.0, 1e-6, delay)).efficiency for delay in (0.2, 1.0))
    assert hidden > 0.99
    assert seen == pytest.approx(2 / 3, abs=0.05)  # two tiles in each 3 s: a tile, and a way there and back


def test_the_cost_of_a_tile_follows_its_size_and_the_places(queue: ModuleType) -> None:
    assert queue.line_through([0.1, 1.0, 4.0], [0.012, 0.03, 0.09]) == pytest.approx((0.01, 0.02))
    constants = queue.Constants((0.001, 0.002), (0.003, 0.05), {2: 0.0005, 100: 0.0005, 1100: 0.0015}, 0.001)
    assert constants.driver(2.0, 50) == pytest.approx((0.005, 0.103, 0.001))
    for places, more in ((600, 0.0005), (1100, 0.001), (4100, 0.004)):  # linear between the measured places and beyond
        assert constants.driver(2.0, places) == pytest.approx((0.005 + more, 0.103, 0.001))


@pytest.mark.slow
@needs_ray
def test_every_part_runs_small(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path)}
    out, script = tmp_path / "out", str(SPEED / "cluster.py")
    refused = subprocess.run([sys.executable, script, "--quick"], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 2 and "Give --out" in refused.stderr
    command = [sys.executable, script, "--quick", "--out", str(out)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in out.iterdir()} == {f"cluster.{kind}" for kind in ("csv", "md", "png", "svg")}
    with (out / "cluster.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(dict.fromkeys(row["part"] for row in rows)) == ["efficiency", "driver", "simulation"]
    for row in rows:
        if not row["value"]:  # never without a reason
            assert row["repeats"] == "0" and row["note"].startswith("not measured: "), row
        else:
            assert 0 <= float(row["least"]) <= float(row["value"]) <= float(row["most"]), row
    (alone, *_) = [row for row in rows if row["quantity"] == "throughput over local"]
    assert float(alone["value"]) > 0 and "equal bytes in " in alone["note"]
    shares = [float(row["value"]) for row in rows if row["quantity"] == "efficiency"]
    assert len(shares) > 9 and max(shares) <= 1
