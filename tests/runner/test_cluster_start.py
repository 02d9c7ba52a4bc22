"""The start of a cluster run in the driver: refusals before the connection, workers of one machine. No Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from small_study import study as small

from relu_study.errors import UserError
from relu_study.runner import cluster, devices, run
from relu_study.runner.cluster import RayBackend
from relu_study.runner.cluster_address import Address
from relu_study.study.study import Experiment, Study


def backend(**resources: int) -> Any:
    """A backend of one node with these resources."""
    made = RayBackend.__new__(RayBackend)
    entry = {"Alive": True, "NodeID": "n1", "NodeManagerHostname": "node", "Resources": resources}
    made.ray = SimpleNamespace(nodes=lambda: [entry])
    return made


def test_workers_of_this_machine_divide_its_cores_or_take_an_accelerator_each() -> None:
    made = backend(CPU=4)
    made.divide(2, None)
    assert [node.cpus for node in made.nodes()] == [2, 2]
    with_gpus = backend(CPU=8, GPU=2)
    with_gpus.divide(2, None)
    assert [node.gpus for node in with_gpus.nodes()] == [2]
    with pytest.raises(UserError, match=r"ray:local has 2 GPUs for 3 workers\. Give --workers 2 or fewer"):
        with_gpus.divide(3, None)
    with_gpus.divide(3, "cpu")
    assert len(with_gpus.nodes()) == 3


class Refused(Exception):
    pass


@pytest.fixture
def unreached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that must not be connected to."""

    @contextlib.contextmanager
    def never(_: Address) -> Iterator[None]:
        raise Refused
        yield

    monkeypatch.setattr(cluster, "_ray", never)
    monkeypatch.setattr(cluster, "check_cluster", lambda text: Address(text == "ray:local", "head", 6379))
    monkeypatch.setattr(run, "check_request", lambda *_: None)
    monkeypatch.setattr(devices, "_restricted", [])


@pytest.mark.usefixtures("unreached")
def test_errors_of_a_study_come_before_the_connection(tmp_path: Any) -> None:
    with pytest.raises(Refused):
        run.run(small, tmp_path / "o", cluster="ray")
    spec = next(iter(small.experiments[0].arms.values()))
    wrong = Study("wrong", "Wrong", "?", [Experiment("main", {"a": spec.replace(activation="swich")})], seeds=1)
    with pytest.raises(UserError, match="swich"):
        run.run(wrong, tmp_path / "o", cluster="ray")
    many = Study("many", "Many", "?", [Experiment("main", {"a": spec})], seeds=501)
    with pytest.raises(UserError, match="500"):
        run.run(many, tmp_path / "o", cluster="ray", per_seed=True)
    with pytest.raises(UserError, match=r"ray:local has [\d,]+ cores? for 100,?000 workers\. Give --workers \d+ or fewer"):
        run.run(small, tmp_path / "o", cluster="ray:local", workers=100_000)


def test_a_line_tells_that_accelerators_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_restricted", [])
    monkeypatch.setattr(devices.importlib.metadata, "entry_points", lambda group: [group])
    assert devices.cpu_note() == ""
    before = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", None)
        devices.use_cpu()
        assert jax.config.jax_platforms == "cpu"
    finally:
        jax.config.update("jax_platforms", before)
    assert "an earlier run of this process used a cluster. Start a new process" in devices.cpu_note()
    monkeypatch.setattr(devices.importlib.metadata, "entry_points", lambda group: [])
    assert devices.cpu_note() == "", "no accelerator is installed"
