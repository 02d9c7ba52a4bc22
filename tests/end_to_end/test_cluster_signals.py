"""A driver that ends by SIGTERM, Ctrl-C or SIGKILL: its exit status, its workers, its folder, and the next run."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from cluster_faults import Faults
from ray_cluster import RayCluster, finish, is_worker, needs_ray, same_bytes, start
from tiers import QUICK

pytestmark = [pytest.mark.slow, needs_ray]
WORDS = ("run", "grains.py", "--out", "there")


def waits(condition: Callable[[], object], seconds: float = 240) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "too slow"
        time.sleep(0.02)


def tiles(folder: Path) -> int:
    return len(list((folder / "there" / "raw").glob("tile-*")))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_signal_to_the_driver(name: str, ray_cluster: RayCluster, tmp_path: Path) -> None:
    """A driver on a cluster of several nodes. The first run is the one that is stopped, the second one completes it."""
    number, faults = signal.Signals[name], Faults(tmp_path)
    faults.set({"kind": "sleep", "seconds": 0.5})
    process = ray_cluster.start(*WORDS, cwd=tmp_path, XLA_FLAGS=QUICK)
    waits(lambda: tiles(tmp_path) >= 3 or process.poll() is not None)
    sent = time.monotonic()
    process.send_signal(number)
    done = finish(process, 60)
    print(f"{name}: ended {time.monotonic() - sent:.1f} s after the signal")
    assert done.returncode == (-9 if name == "SIGKILL" else 128 + number), done.stderr
    assert ("interrupted: " in done.stderr and "resume with: " in done.stderr) == (name != "SIGKILL"), done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.glob("*core*"))
    stored = {path.name: path.read_bytes() for path in (tmp_path / "there" / "raw").glob("tile-*")}
    assert (3 <= len(stored) < 24 and not list((tmp_path / "there" / "raw").glob("*.tmp"))) or name == "SIGKILL"
    waits(lambda: not ray_cluster.workers(), 60)  # no orphans

    faults.set()
    environment = {**ray_cluster.environment, "XLA_FLAGS": QUICK}
    again = ray_cluster.command(*WORDS, cwd=tmp_path, XLA_FLAGS=QUICK)
    here = finish(start("run", "grains.py", "--out", "here", cwd=tmp_path, environment=environment))
    assert again.returncode == here.returncode == 0, again.stderr + here.stderr
    assert same_bytes(tmp_path / "here", tmp_path / "there")
    assert all((tmp_path / "there" / "raw" / path).read_bytes() == content for path, content in stored.items())


def test_ctrl_c_in_a_terminal_reaches_a_cluster_of_this_machine(ray_cluster: RayCluster, tmp_path: Path) -> None:
    """The signal goes to the whole group of processes: to the driver, and to the processes that it started."""
    faults = Faults(tmp_path)
    faults.set({"kind": "sleep", "seconds": 0.5})
    environment = {**ray_cluster.environment, "XLA_FLAGS": QUICK}
    process = start(*WORDS, "--cluster", "ray:local", cwd=tmp_path, environment=environment, new_session=True)
    waits(lambda: tiles(tmp_path) >= 3 or process.poll() is not None)
    assert process.poll() is None, finish(process).stderr
    children = psutil.Process(process.pid).children(recursive=True)
    assert any(is_worker(child) for child in children)
    os.killpg(process.pid, signal.SIGINT)
    done = finish(process, 60)
    assert done.returncode == 130 and "interrupted: " in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not list(tmp_path.glob("*core*")) and sys.platform == "linux"
    waits(lambda: not any(child.is_running() for child in children), 60)
