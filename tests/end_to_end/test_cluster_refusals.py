"""Clusters and workers that cannot be used: one line, exit status 2, and names; listeners on the loopback device only."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from cluster_faults import Faults
from ray_cluster import RayCluster, environment, finish, needs_ray, same_bytes, start
from tiers import QUICK
from user_process import COMMANDS

pytestmark = [pytest.mark.slow, needs_ray]
TINY = """
from relu_study import Experiment, RunSpec, Study

base = RunSpec(rows=200, batch_size=32, width=4, epochs=1, optimizer="sgd")
study = Study("tiny", "Tiny", "?", [Experiment("main", {"relu": base})], seeds=2, metrics=("val_loss",))
"""


def refused(done: subprocess.CompletedProcess[str], text: str) -> None:
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert len(done.stderr.splitlines()) == 1 and text in done.stderr, done.stderr


def timed(*words: str, cwd: Path, env: dict[str, str], before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command, and print its seconds and its CPU seconds."""
    began, spent = time.monotonic(), psutil.Process().cpu_times()
    done = finish(start(*words, cwd=cwd, environment=env, before=before), 100)
    now = psutil.Process().cpu_times()
    cpu = now.children_user + now.children_system - spent.children_user - spent.children_system
    print(f"{' '.join(words)}: exit {done.returncode} after {time.monotonic() - began:.1f} s, {cpu:.1f} s of CPU")
    return done


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("ray", "there is no Ray cluster. Start one with 'ray start --head'"),
        ("ray:127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9"),
        ("ray:no.such.host.invalid:6379", "no Ray cluster answers at no.such.host.invalid:6379"),
        ("ray:127.0.0.1", "has no host and port"),
        ("ray://127.0.0.1:10001", "an address of Ray Client, which is not supported"),
        ("dask", "is no cluster. Give ray, ray:HOST:PORT or ray:local."),
    ],
)
def test_no_cluster(address: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    env = environment(tmp_path, RAY_ADDRESS="", RAY_TMPDIR=str(tmp_path))
    refused(timed("run", "tiny.py", "--out", "o", "--cluster", address, cwd=tmp_path, env=env), text)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("words", [("--shard", "1/2"), ("--only", "0123456789ab")])
def test_parts_of_a_study_are_refused(words: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    done = timed("run", "tiny.py", "--cluster", "ray:local", *words, cwd=tmp_path, env=environment(tmp_path))
    refused(done, f"{words[0]} does not apply to a cluster")


def test_wrong_token(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    mode = {"RAY_AUTH_MODE": "token"}
    cluster = RayCluster([], tmp_path / "cache", **mode, RAY_AUTH_TOKEN="a" * 64)
    try:
        for more in ({**mode, "RAY_AUTH_TOKEN": "b" * 64}, mode, {"RAY_AUTH_MODE": "disabled"}):
            env = environment(tmp_path, **more, HOME=str(tmp_path))
            done = timed("run", "tiny.py", "--out", "o", "--cluster", cluster.address, cwd=tmp_path, env=env)
            refused(done, f"the Ray cluster at {cluster.address[4:]} refuses the authentication token")
    finally:
        cluster.close()


def test_cluster_that_cannot_start(tmp_path: Path) -> None:
    """Ray's sockets need a short path."""
    (tmp_path / "tiny.py").write_text(TINY)
    (long := tmp_path / ("long" * 20)).mkdir()
    env = environment(tmp_path, RAY_TMPDIR=str(long))
    done = timed("run", "tiny.py", "--out", "o", "--cluster", "ray:local", cwd=tmp_path, env=env)
    refused(done, "a Ray cluster cannot be started on this machine: ")


def test_ray_that_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    before = "import sys\nsys.modules['ray'] = None\n"
    for address in ("ray", "ray:local", "ray:127.0.0.1:6379"):
        done = timed("run", "tiny.py", "--cluster", address, cwd=tmp_path, env=environment(tmp_path), before=before)
        text = "--cluster needs the Python package ray, which is not installed. Install ray and grpcio with: "
        refused(done, f"{text}pip install 'relu_study[ray]'")


def test_commands_without_a_cluster_import_no_ray(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    lines = ["--help", "run --help", "plan tiny.py", "run tiny.py --out o", "report o", "table o", "diagnose o", "list"]
    code = COMMANDS + "print(sorted(name for name in sys.modules if name.partition('.')[0] == 'ray'), file=sys.stderr)\n"
    done = subprocess.run(
        [sys.executable, "-c", code, ";".join(lines)],
        env=environment(tmp_path, XLA_FLAGS=QUICK),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and done.stderr.splitlines()[-1] == "[]", done.stderr


def test_worker_with_another_version_is_left_out_by_name(ray_cluster: RayCluster, tmp_path: Path) -> None:
    """One worker reports other versions. The other worker trains everything."""
    faults = Faults(tmp_path, 2)
    faults.set({"kind": "version"})
    done = ray_cluster.command("run", "grains.py", "--out", "there", cwd=tmp_path, XLA_FLAGS=QUICK)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^worker \S+-\d has jax 0\.0\.1 \(driver \S+\), .*: it is left out$", done.stderr, re.M)
    assert len({record.process for record in faults.records()}) == 1


def test_worker_with_other_bits_is_left_out_by_name(ray_cluster: RayCluster, tmp_path: Path) -> None:
    """One of three workers has another digest."""
    faults = Faults(tmp_path, 4)
    faults.set({"kind": "digest"}, {"kind": "sleep", "seconds": 0.3})
    node = ray_cluster.add(1)
    try:
        done = ray_cluster.command("run", "grains.py", "--out", "there", cwd=tmp_path, XLA_FLAGS=QUICK)
    finally:
        ray_cluster.remove(node, graceful=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^worker \S+-\d does not give the bits of the others \(.*digest 000000000000, not", done.stderr, re.M)
    assert len({record.process for record in faults.records()}) == 2
    here = finish(
        start("run", "grains.py", "--out", "here", cwd=tmp_path, environment={**ray_cluster.environment, "XLA_FLAGS": QUICK})
    )
    assert here.returncode == 0 and same_bytes(tmp_path / "here", tmp_path / "there"), here.stderr


def is_loopback(text: str) -> bool:
    """Whether an address is of the loopback device, also as an IPv4 address in IPv6."""
    address = ipaddress.ip_address(text)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


class Seen(NamedTuple):
    """The listeners of processes as (address, port, command), and their values of RAY_USAGE_STATS_ENABLED."""

    listeners: list[tuple[str, int, str]]
    statistics: list[str]


def seen(processes: list[psutil.Process]) -> Seen:
    found = Seen([], [])
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            name, variables = " ".join(process.cmdline()[:3]), process.environ()
            connections = [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
            found.listeners.extend((c.laddr.ip, c.laddr.port, name) for c in connections)
            found.statistics.extend(filter(None, [variables.get("RAY_USAGE_STATS_ENABLED")]))
    return found


@pytest.mark.parametrize("place", ["local", "nodes"])
def test_listeners_and_usage_statistics(place: str, ray_cluster: RayCluster, tmp_path: Path) -> None:
    """Of a driver with a cluster on this machine, and all its processes; of a driver alone on the test's cluster."""
    faults = Faults(tmp_path, 1)
    faults.set({"kind": "sleep", "seconds": 600})
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as sessions:  # a short path, for sockets
        env = {**ray_cluster.environment, "XLA_FLAGS": QUICK, "RAY_TMPDIR": sessions}
        address = "ray:local" if place == "local" else ray_cluster.address
        process = start("run", "grains.py", "--cluster", address, cwd=tmp_path, environment=env)
        try:
            limit = time.monotonic() + 240
            while not faults.records():
                assert process.poll() is None and time.monotonic() < limit, finish(process, 10).stderr
                time.sleep(0.1)
            driver = psutil.Process(process.pid)
            found = seen([driver, *driver.children(recursive=True)])
        finally:
            process.terminate()
            finish(process, 60)
        assert not list(Path(sessions).rglob("usage_stats.json")), "usage statistics are collected"
    print(place, json.dumps(sorted(found.listeners)))
    least = 4 if place == "local" else 1
    assert len(found.listeners) >= least and all(is_loopback(ip) for ip, _, _ in found.listeners), found.listeners
    assert 8265 not in [port for _, port, _ in found.listeners], "the dashboard listens"
    if place == "local":  # Ray's processes have the driver's environment
        assert set(found.statistics) == {"0"} and len(found.statistics) > 3
