"""Workers and nodes that are lost, late, hung or slow: the bytes of a local run, and no tile stored twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from cluster_faults import Faults
from ray_cluster import RayCluster, environment, finish, needs_ray, same_bytes, start
from tiers import QUICK

pytestmark = [pytest.mark.slow, needs_ray]
RUN = ("run", "grains.py", "--out")
LIMITS = "from relu_study.engine import flights\nflights.{0}_FACTOR, flights.{0}_SECONDS = 2.0, {1}\n"


@pytest.fixture(scope="module")
def changing_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A cluster whose nodes are removed and added. Every result goes through the object store of its node."""
    cluster = RayCluster([1, 1], tmp_path_factory.mktemp("changing"), RAY_max_direct_call_object_size="0")
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Callable[[RayCluster, Faults], Path]:
    """The results folder of a local run of the study without faults. All tests of this file compare with it."""
    found: list[Path] = []

    def made(cluster: RayCluster, faults: Faults) -> Path:
        if not found:
            place = tmp_path_factory.mktemp("here")
            place.joinpath("grains.py").write_text(faults.study.read_text())
            done = finish(start(*RUN, "here", cwd=place, environment={**cluster.environment, "XLA_FLAGS": QUICK}))
            assert done.returncode == 0, done.stderr
            found.append(place / "here")
        return found[0]

    return made


@pytest.fixture
def faults(tmp_path_factory: pytest.TempPathFactory) -> Faults:
    return Faults(tmp_path_factory.mktemp("grains"))


def started(cluster: RayCluster, faults: Faults, before: str = "") -> subprocess.Popen[str]:
    """Start the study on a cluster."""
    return cluster.start(*RUN, "there", cwd=faults.study.parent, XLA_FLAGS=QUICK, before=before)


def tiles(faults: Faults) -> int:
    """The number of stored tiles."""
    return len(stored(faults))


def stored(faults: Faults) -> dict[Path, bytes]:
    """The stored tiles."""
    return {path: path.read_bytes() for path in (faults.study.parent / "there" / "raw").glob("tile-*")}


def until(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 240) -> None:
    """Wait for a condition while a process runs."""
    limit = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {finish(process).stderr}")
        assert time.monotonic() < limit, "too slow"
        time.sleep(0.02)


def check(process: subprocess.Popen[str], faults: Faults, local: Path) -> str:
    """Wait for a run, compare its folder with the local one, and return its messages."""
    done = finish(process, 400)
    assert done.returncode == 0, done.stderr
    assert same_bytes(local, faults.study.parent / "there"), done.stderr  # the same names too: no tile is stored twice
    return done.stderr


def test_killed_workers(ray_cluster: RayCluster, here: Callable[[RayCluster, Faults], Path], faults: Faults) -> None:
    """Six workers are killed in the middle of a tile, at moments of a seeded generator. No tile is hit by three of them."""
    local, chance, kills = here(ray_cluster, faults), random.Random(27), 6
    faults.set({"kind": "sleep", "seconds": 0.5})
    process = started(ray_cluster, faults)
    stored = 0
    for _ in range(kills):
        until(lambda stored=stored: tiles(faults) >= stored + 2, process)
        stored, began = tiles(faults), len(faults.records())
        until(lambda began=began: len(faults.records()) > began, process)
        time.sleep(chance.uniform(0, 0.5))
        victim = next(r.process for r in reversed(faults.records()) if r.process in ray_cluster.workers())
        os.kill(victim, signal.SIGKILL)
    messages = check(process, faults, local)
    assert messages.count("its tiles go to other places") == kills, messages
    assert len({record.process for record in faults.records()}) >= kills


@pytest.mark.parametrize("way", ["remove", "kill_raylet"])
def test_lost_node_and_a_later_one(
    way: str, changing_cluster: RayCluster, here: Callable[[RayCluster, Faults], Path], faults: Faults
) -> None:
    """No idle place repeats the tile that the lost node has begun, so the run cannot end before the loss is known."""
    local = here(changing_cluster, faults)
    faults.set({"kind": "sleep", "seconds": 6})
    process = started(changing_cluster, faults, LIMITS.format("REPEAT", 1e9))
    until(lambda: len({record.process for record in faults.records()}) == 2 and tiles(faults) >= 1, process)
    before = {record.process for record in faults.records()}
    getattr(changing_cluster, way)(changing_cluster.nodes.pop())
    changing_cluster.nodes.append(changing_cluster.add(1))
    until(lambda: {record.process for record in faults.records()} - before, process)
    faults.set()
    messages = check(process, faults, local)
    assert "has ended (its node" in messages and "has joined with 1 place" in messages, messages


LATE = """
import pathlib, time
import ray
get, calls, folder = ray.get, [], pathlib.Path({folder!r})

def late_get(reference, **more):
    if isinstance(reference, list) or (folder / "lost").exists():
        return get(reference, **more)
    ray.wait([reference], timeout=None, fetch_local=False)
    calls.append(reference)
    (folder / f"made{{len(calls)}}").touch()
    while not (folder / "lost").exists():
        time.sleep(0.02)
    return get(reference, **more)

ray.get = late_get
"""


def test_node_lost_between_a_result_and_its_fetch(
    changing_cluster: RayCluster, here: Callable[[RayCluster, Faults], Path], faults: Faults
) -> None:
    """The driver fetches the first four results, two of each node, after one node has ended."""
    local = here(changing_cluster, faults)
    process = started(changing_cluster, faults, LATE.format(folder=str(faults.folder)))
    until(lambda: (faults.folder / "made4").exists(), process)
    began = time.monotonic()
    changing_cluster.remove(changing_cluster.nodes.pop())
    changing_cluster.nodes.append(changing_cluster.add(1))
    (faults.folder / "lost").touch()
    messages = check(process, faults, local)
    print(f"ended {time.monotonic() - began:.0f} s after the loss")
    trained = Counter(record.tile for record in faults.records("ended"))
    assert max(trained.values()) >= 2, "no result was lost"
    assert "has ended (" in messages, messages


def test_hung_worker_is_ended(ray_cluster: RayCluster, here: Callable[[RayCluster, Faults], Path], faults: Faults) -> None:
    """The limit is 5 seconds and twice the longest compile time, instead of 5 minutes. No idle place repeats the tile.

    The third tile of a cohort hangs: a late one could hang where an idle place repeats it, and its first place would answer.
    """
    local = here(ray_cluster, faults)
    faults.set({"kind": "sleep", "seconds": 10_000, "tile": "tanh 2.8", "once": True})
    before = LIMITS.format("SLOW", 5.0) + "flights.REPEAT_SECONDS, flights.COMPILE_SECONDS = 1e9, 0.0\n"
    messages = check(started(ray_cluster, faults, before), faults, local)
    assert "is ended: a tile takes" in messages and "far over its forecast" in messages, messages
    hung = [record for record in faults.records() if "tanh 2.8" in record.tile]
    assert len({record.process for record in hung}) == len(hung) == 2


def test_slow_place(ray_cluster: RayCluster, here: Callable[[RayCluster, Faults], Path], faults: Faults) -> None:
    """One tile sleeps for so long that an idle place repeats it, and both answer."""
    local = here(ray_cluster, faults)
    faults.set({"kind": "sleep", "seconds": 0.3}, {"kind": "sleep", "seconds": 600, "tile": "bent 1.4", "once": True})
    messages = check(started(ray_cluster, faults, LIMITS.format("REPEAT", 2.0)), faults, local)
    slow = [record for record in faults.records() if "bent 1.4" in record.tile]
    assert len({record.process for record in slow}) == len(slow) == 2, "the tile is repeated once, by the other worker"
    assert "its tiles go to other places" not in messages and "different numbers" not in messages, messages


def test_head_that_ends(faults: Faults, tmp_path: Path) -> None:
    """One line and status 2 before Ray ends the driver, which it does a minute after the head."""
    cluster = RayCluster([1], tmp_path)
    try:
        faults.set({"kind": "sleep", "seconds": 0.5})
        process = started(cluster, faults)
        until(lambda: tiles(faults) >= 2, process)
        before = stored(faults)
        (head,) = [one for one in cluster.processes() if "gcs_server" in one.name()]
        head.kill()
        faults.set({"kind": "sleep", "seconds": 600})
        done = finish(process, 60)
    finally:
        cluster.close()
    assert done.returncode == 2 and "has not answered for 30 s. Stored results are kept" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "GCS" not in done.stderr, done.stderr
    assert before.items() <= stored(faults).items(), "a stored tile is lost or changed"
    assert (faults.study.parent / "there" / "manifest.json").exists()


def test_ray_of_the_machine_of_the_driver_ends(faults: Faults, tmp_path: Path) -> None:
    """The next access to the store of objects would end the driver without a line."""
    faults.set({"kind": "sleep", "seconds": 0.5})
    environ = {**environment(tmp_path), "XLA_FLAGS": QUICK}
    process = start(*RUN, "there", "--cluster", "ray:local", cwd=faults.study.parent, environment=environ)
    until(lambda: tiles(faults) >= 2, process)
    faults.set({"kind": "sleep", "seconds": 600})
    children = psutil.Process(process.pid).children(recursive=True)
    next(child for child in children if child.name() == "raylet").kill()
    done = finish(process, 60)
    assert done.returncode == 2 and "the processes of Ray on this machine have ended" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "plasma" not in done.stderr, done.stderr
    psutil.wait_procs(children, 60)
    assert not any(child.is_running() for child in children)
