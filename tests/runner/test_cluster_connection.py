"""The driver's connection to a cluster: an earlier connection of the process, and signals while Ray connects. No Ray."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from relu_study.cli.signals import StopSignal, handle_signals
from relu_study.errors import UserError
from relu_study.runner.cluster import _own_signals, _ray
from relu_study.runner.cluster_address import Address

NICENESS = "RAY_worker_niceness"


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray in a process that has called `ray.init` itself."""
    ray, private = ModuleType("ray"), ModuleType("ray._private")
    ray.__dict__.update(
        is_initialized=lambda: True,
        get_runtime_context=lambda: SimpleNamespace(gcs_address="127.0.0.1:6379"),
        util=SimpleNamespace(get_node_ip_address=lambda: "10.0.0.7"),
    )
    private.__dict__["ray_constants"] = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray._private", private)


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.0.0.7"])
def test_an_earlier_connection_to_the_same_cluster_stays(host: str) -> None:
    with _ray(Address(False, host, 6379)):
        pass


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize(
    ("address", "named"),
    [
        (Address(False, "10.0.0.8", 6379), "not to 10.0.0.8:6379"),
        (Address(False, "127.0.0.1", 6380), "not to 127.0.0.1:6380"),
        (Address(True), "so ray:local cannot start one"),
    ],
)
def test_an_earlier_connection_to_another_cluster_is_refused(address: Address, named: str) -> None:
    with pytest.raises(UserError, match=f"connected to the Ray cluster at 127.0.0.1:6379, {named}") as error, _ray(address):
        raise AssertionError("used")
    assert "ray:127.0.0.1:6379" in str(error.value) and "ray.shutdown()" in str(error.value)


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize(("address", "nice"), [(Address(True), "0"), (Address(False, "10.0.0.7", 6379), None)])
def test_workers_of_a_new_cluster_are_not_nice(address: Address, nice: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of `ray.init` have the driver's environment. Those of a running cluster do not."""
    for name in (NICENESS, "RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        monkeypatch.setenv(name, "x")  # removed again at the end
        monkeypatch.delenv(name)
    started: list[str | None] = []
    monkeypatch.setitem(vars(sys.modules["ray"]), "is_initialized", lambda: False)
    monkeypatch.setitem(vars(sys.modules["ray"]), "init", lambda **_: started.append(os.environ.get(NICENESS)))
    monkeypatch.setitem(vars(sys.modules["ray"]), "shutdown", lambda: None)
    monkeypatch.setattr(sys.modules["ray._private"].ray_constants, "ENABLE_RAY_CLUSTER", True, raising=False)
    with _ray(address):
        assert started == [nice]


def of_ray(number: int, _: Any) -> None:
    sys.exit(number)


of_ray.__module__ = "ray._private.worker"


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="sets signal handlers")
def test_handlers_that_ray_replaces_are_restored() -> None:
    with handle_signals():
        before = signal.getsignal(signal.SIGTERM)
        with _own_signals():
            signal.signal(signal.SIGTERM, of_ray)
        assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ray_connects_keeps_the_handler_of_the_second_one(number: signal.Signals) -> None:
    with handle_signals():
        first = signal.getsignal(signal.SIGINT)
        with pytest.raises(StopSignal) as stop, _own_signals():
            signal.signal(signal.SIGTERM, of_ray)
            signal.raise_signal(number)
        assert stop.value.status == 128 + number
        second = {signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
        assert len(second) == 1 and not second & {first, of_ray}, "a second signal exits immediately"
