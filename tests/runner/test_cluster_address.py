"""Values of `--cluster`, and where a running cluster is looked for."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from relu_study.errors import UserError
from relu_study.runner import cluster_address
from relu_study.runner.cluster_address import Address, check_cluster, check_request, parse_address

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


def test_addresses() -> None:
    assert parse_address("ray") == Address(local=False)
    assert parse_address("ray:local") == Address(local=True)
    assert parse_address("ray:head:6379") == Address(False, "head", 6379)
    assert parse_address("ray:[::1]:6379") == Address(False, "[::1]", 6379)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dask", "is no cluster"),
        ("ray:", "has no host and port"),
        ("ray:head", "has no host and port"),
        ("ray::6379", "has no host and port"),
        ("ray:head:0", "has no host and port"),
        ("ray:head:65536", "has no host and port"),
        ("ray://head:10001", "an address of Ray Client"),
    ],
)
def test_invalid_addresses_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_address(text)


def test_requests_that_do_not_fit_are_refused() -> None:
    check_request(None, None)
    with pytest.raises(UserError, match="Give a cluster too"):
        check_request(None, 2)
    with pytest.raises(UserError, match="--shard does not apply to a cluster"):
        check_request("ray:local", None, "--shard")
    with pytest.raises(UserError, match="0 is no number of workers"):
        check_request("ray:local", 0)


@needs_ray
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Ray does not read TMPDIR")
def test_running_cluster_is_found_in_the_temporary_folder_of_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM sets TMPDIR, and Ray then writes its address there."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(cluster_address, "_check_answer", lambda address: None)  # the head of this test speaks no gRPC
    with pytest.raises(UserError, match="there is no Ray cluster"):
        check_cluster("ray")
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}")
        assert check_cluster("ray") == Address(False, "127.0.0.1", port)
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "other"))
        with pytest.raises(UserError, match="there is no Ray cluster"):
            check_cluster("ray")
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        assert check_cluster("ray") == Address(False, "127.0.0.1", port)


@needs_ray
def test_ray_client_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(UserError, match="RAY_ADDRESS is ray://head:10001"):
        check_cluster("ray")


class Head:
    """A channel to a head whose answer is an error with this code."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __enter__(self) -> Head:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def unary_unary(self, _: str) -> Callable[..., bytes]:
        grpc = pytest.importorskip("grpc")

        class Failed(grpc.RpcError):  # type: ignore[misc]
            code = staticmethod(lambda: grpc.StatusCode[self.code])

        def call(*_: object, **__: object) -> bytes:
            raise Failed

        return call


@needs_ray
@pytest.mark.parametrize(
    ("code", "tls", "refused"),
    [
        ("UNAVAILABLE", "0", "does not answer as the head of a Ray cluster"),
        ("UNAUTHENTICATED", "0", "refuses the authentication token"),
        ("DEADLINE_EXCEEDED", "0", ""),  # a busy head: `ray.init` waits longer
        ("UNIMPLEMENTED", "0", ""),
        ("UNAVAILABLE", "1", ""),  # of a cluster with TLS
    ],
)
def test_answers_of_a_head(code: str, tls: str, refused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grpc = pytest.importorskip("grpc")
    monkeypatch.setenv("RAY_USE_TLS", tls)
    monkeypatch.setattr(grpc, "insecure_channel", lambda *_, **__: Head(code))
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"ray:127.0.0.1:{head.getsockname()[1]}"
        with pytest.raises(UserError, match=refused) if refused else contextlib.nullcontext():
            assert check_cluster(address).port == head.getsockname()[1]


def test_windows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match="--cluster does not run on Windows"):
        check_cluster("ray:local")


@pytest.mark.parametrize("missing", ["ray", "grpc"])
def test_a_missing_package_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(UserError, match=rf"needs the Python package {missing}, .*'relu_study\[ray\]'"):
        check_cluster("ray:127.0.0.1:6379")
