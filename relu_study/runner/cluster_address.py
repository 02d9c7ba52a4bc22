"""Values of `--cluster`: parsed and probed without an import of Ray or JAX."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import sys
from pathlib import Path
from typing import NamedTuple

from relu_study.errors import UserError

FORMS = "ray, ray:HOST:PORT or ray:local"
PROBE_SECONDS = 2.0  # to reach the port of a cluster, and for its answer
CLUSTER_ID = "/ray.rpc.NodeInfoGcsService/GetClusterId"


class Address(NamedTuple):
    """A parsed value of `--cluster`."""

    local: bool  # start a cluster on this machine
    host: str = ""  # empty: RAY_ADDRESS, or else the cluster that was started last on this machine
    port: int = 0


def parse_address(text: str) -> Address:
    """Return the address of a value of `--cluster`. Raises UserError for an invalid one."""
    kind, _, rest = text.partition(":")
    if text.startswith("ray://"):
        raise UserError(
            f"--cluster {text!r} is an address of Ray Client, which is not supported. Run this command on a node of the cluster "
            "with --cluster ray, or give ray:HOST:PORT with the port of the head (6379)."
        )
    if kind != "ray":
        raise UserError(f"--cluster {text!r} is no cluster. Give {FORMS}.")
    if rest in ("", "local") and (rest or ":" not in text):
        return Address(local=bool(rest))
    host, _, port = rest.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(f"--cluster {text!r} has no host and port. Give {FORMS}, for example ray:10.0.0.1:6379.")
    return Address(False, host, int(port))


def check_request(cluster: str | None, workers: int | None, other: str = "") -> None:
    """Check the options of a cluster before anything is loaded. `other` is an option that excludes a cluster.

    Raises:
        UserError: an option is invalid, or the cluster cannot be reached.
    """
    if cluster is None:
        if workers is not None:
            raise UserError("workers are those of a cluster. Give a cluster too, for example ray.")
        return
    if other:
        raise UserError(f"{other} does not apply to a cluster, which divides the study itself. Use one of them.")
    if workers is not None and workers < 1:
        raise UserError(f"{workers} is no number of workers. Give a whole number of at least 1.")
    check_cluster(cluster)


def check_cluster(text: str) -> Address:
    """Return the address of a cluster that can be reached. Imports no Ray.

    Raises:
        UserError: the value is invalid, Ray is not installed, or there is no cluster at the address.
    """
    address = parse_address(text)
    if sys.platform == "win32":
        raise UserError("--cluster does not run on Windows. Run this command on Linux or macOS, or use --shard.")
    for module in ("ray", "grpc"):  # plain Ray does not require gRPC
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"--cluster needs the Python package {module}, which is not installed. Install ray and grpcio with: "
                "pip install 'relu_study[ray]'"
            )
    if address.local:
        return address
    if not address.host:
        found = _running_cluster()
        if not found:
            raise UserError("there is no Ray cluster. Start one with 'ray start --head', or give --cluster ray:local.")
        if "://" in found:
            raise UserError(
                f"RAY_ADDRESS is {found}, an address of Ray Client, which is not supported. Run this command on a node of the "
                "cluster, and set RAY_ADDRESS to HOST:PORT of its head."
            )
        host, _, port = found.rpartition(":")
        if not host or not port.isdecimal():
            raise UserError(f"the address of the Ray cluster, {found!r}, is not HOST:PORT. Correct RAY_ADDRESS.")
        address = Address(False, host, int(port))
    try:
        socket.create_connection((address.host.strip("[]"), address.port), PROBE_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise UserError(
            f"no Ray cluster answers at {address.host}:{address.port} ({reason}). Start one with 'ray start --head', correct the "
            "address, or give --cluster ray:local."
        ) from None
    _check_answer(address)
    return address


def check_connection(address: Address, connected: str, here: str) -> None:
    """Raise UserError if this process is connected to another cluster than the requested one. `here` is the node's address."""
    if address.local:
        raise UserError(
            f"this process is already connected to the Ray cluster at {connected}, so ray:local cannot start one. Give "
            f"ray:{connected}, or call ray.shutdown() first."
        )
    host, _, port = connected.rpartition(":")
    if str(address.port) != port or not _addresses(address.host, here) & _addresses(host, here):
        raise UserError(
            f"this process is already connected to the Ray cluster at {connected}, not to {address.host}:{address.port}. Give "
            f"ray:{connected}, or call ray.shutdown() first."
        )


def _addresses(host: str, here: str) -> set[str]:
    """The addresses of a host. This machine has the loopback address and that of its node."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host.strip("[]"), None)}
    except OSError:
        found = {host}
    return found | {"127.0.0.1", here} if found & {"127.0.0.1", "::1", here} else found


def _check_answer(address: Address) -> None:
    """Ask the head of a cluster for its id: `ray.init` would try for a minute.

    Raises:
        UserError: the token is wrong, or something else answers at the address.

    A cluster with TLS is left to `ray.init`, which reads the certificates. So is a head that is too busy to answer in time.
    """
    if os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):
        return
    import grpc

    at, token = f"{address.host}:{address.port}", _token()
    with grpc.insecure_channel(at, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(CLUSTER_ID)
        try:
            call(b"", timeout=PROBE_SECONDS, metadata=(("authorization", f"Bearer {token}"),) if token else ())
        except grpc.RpcError as error:
            code = error.code()
            if code is grpc.StatusCode.UNAUTHENTICATED:
                raise UserError(
                    f"the Ray cluster at {at} refuses the authentication token. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
                    "~/.ray/auth_token to the token of its head (there 'ray get-auth-token' prints it)."
                ) from None
            if code not in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.DEADLINE_EXCEEDED):  # another version of Ray; busy
                raise UserError(
                    f"{at} does not answer as the head of a Ray cluster ({code.name}). Give the address that 'ray status' prints."
                ) from None


def _token() -> str:
    """The authentication token of this process, from the places that Ray reads; empty without one."""
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return ""
    if given := os.environ.get("RAY_AUTH_TOKEN"):
        return given.strip()
    with contextlib.suppress(OSError):
        return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").read_text().strip()
    return ""


def _running_cluster() -> str:
    """The address in RAY_ADDRESS, or else of the cluster that was started last on this machine; empty without one."""
    given = os.environ.get("RAY_ADDRESS", "")
    if given and given not in ("auto", "local"):
        return given
    names = ["RAY_TMPDIR", "TMPDIR"] if sys.platform == "linux" else ["RAY_TMPDIR"]  # as Ray
    temporary = next((os.environ[name] for name in names if os.environ.get(name)), "/tmp")
    file = Path(temporary) / "ray" / "ray_current_cluster"
    with contextlib.suppress(OSError):
        return file.read_text().strip()
    return ""
