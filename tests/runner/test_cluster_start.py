"""The start of a cluster run in the driver: refusals before the connection. No Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import pytest
from small_study import study as small

from relu_study.errors import UserError
from relu_study.runner import cluster, devices, run
from relu_study.runner.cluster_address import Address
from relu_study.study.study import Experiment, Study


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
