"""A Ray cluster on the loopback device for tests: a head and nodes in a process of their own, and the command on it.

The processes of the cluster listen on 127.0.0.1 only, as `--cluster ray:local` makes them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from paths import ROOT

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install -e '.[ray]'")

# A line of JSON on stdin is a request, a line of JSON on stdout its answer.
SERVER = """
import json, os, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
from ray._private import ray_constants
ray_constants.ENABLE_RAY_CLUSTER = False
from ray.cluster_utils import Cluster
out, sys.stdout = sys.stdout, sys.stderr
arguments = {"include_dashboard": False, "node_ip_address": "127.0.0.1"}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **arguments})
nodes = {}
def add(cpus):
    node = cluster.add_node(num_cpus=cpus, **arguments)
    nodes[node.unique_id] = node
    return node.unique_id
def remove(node, graceful):
    cluster.remove_node(nodes.pop(node), allow_graceful=graceful)
def kill_raylet(node):
    nodes[node].kill_raylet()
for cpus in json.loads(sys.argv[1]):
    add(cpus)
print(json.dumps([cluster.address, list(nodes)]), file=out, flush=True)
for line in sys.stdin:
    name, *words = json.loads(line)
    print(json.dumps({"add": add, "remove": remove, "kill_raylet": kill_raylet}[name](*words)), file=out, flush=True)
cluster.shutdown()
"""


class RayCluster:
    """A head without CPUs, and nodes. `address` is the value of `--cluster`."""

    def __init__(self, cpus: list[int], folder: Path, **more: str) -> None:
        """Start the nodes, each with its number of CPUs. Compiled programs are kept in `folder`. `more` is environment."""
        self.environment = environment(folder, **more)
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, json.dumps(cpus)],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        gcs, self.nodes = self._answer()
        self.address = f"ray:{gcs}"

    def add(self, cpus: int) -> str:
        """Add a node and return its id."""
        return self._request("add", cpus)

    def remove(self, node: str, graceful: bool = False) -> None:
        """End a node with its workers."""
        self._request("remove", node, graceful)

    def kill_raylet(self, node: str) -> None:
        """Kill the daemon of a node."""
        self._request("kill_raylet", node)

    def close(self) -> None:
        """End all processes of the cluster."""
        with self._process:  # closes the pipes
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(60)

    def start(self, *words: str, cwd: Path, before: str = "", **more: str) -> subprocess.Popen[str]:
        """Start `relu-study` on this cluster, after the code `before`."""
        return start(*words, "--cluster", self.address, cwd=cwd, environment={**self.environment, **more}, before=before)

    def command(
        self, *words: str, cwd: Path, timeout: float = 300, before: str = "", **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `relu-study` on this cluster."""
        return finish(self.start(*words, cwd=cwd, before=before, **more), timeout)

    def processes(self) -> list[psutil.Process]:
        """The processes of this cluster, with its workers."""
        return psutil.Process(self._process.pid).children(recursive=True)

    def workers(self) -> list[int]:
        """The process ids of the actors of all drivers on this cluster."""
        return [process.pid for process in self.processes() if is_worker(process)]

    def _request(self, *request: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the cluster has ended"
        return json.loads(line)


QUIET = {"RAY_worker_niceness": "0"}  # Ray's 15 would make tests wait for all other work of the machine


def environment(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a user's process with its cache of compiled programs in a folder."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    return {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(folder), "JAX_PLATFORMS": "cpu", **QUIET, **more}


MAIN = "\nfrom relu_study.cli.commands import main\nmain()\n"


def start(
    *words: str, cwd: Path, environment: dict[str, str], before: str = "", new_session: bool = False
) -> subprocess.Popen[str]:
    """Start `relu-study` in a process of its own, after the code `before`."""
    command = [sys.executable, *(["-c", before + MAIN] if before else ["-m", "relu_study"]), *words]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=new_session,
    )


def is_worker(process: psutil.Process) -> bool:
    """Whether a process is a worker of a study."""
    with contextlib.suppress(psutil.Error):
        return any("ray::Worker" in word for word in process.cmdline())
    return False


def finish(process: subprocess.Popen[str], timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Wait for a started command."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


DERIVED = ("*.csv", "tables/*", "units.csv")


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two results folders have the same raw files, CSV files and tables, byte for byte."""
    names = [{path.relative_to(folder) for kind in ("raw/*", *DERIVED) for path in folder.glob(kind)} for folder in (one, other)]
    assert any(str(name).startswith("raw/") for name in names[0]), f"{one} has no raw files"
    return names[0] == names[1] and all((one / name).read_bytes() == (other / name).read_bytes() for name in names[0])
