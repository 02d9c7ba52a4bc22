"""Errors of Ray's actors as losses of a place: whether the tile may be the cause. No Ray."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from relu_study.engine.places import PlaceLost
from relu_study.errors import UserError
from relu_study.runner import cluster, cluster_watch
from relu_study.runner.cluster import RayBackend, RayWorker
from relu_study.runner.cluster_backend import MemoryLost
from relu_study.runner.cluster_watch import ClusterWatch


class RayError(Exception):
    pass


class RayActorError(RayError):
    pass


class ActorUnavailableError(RayActorError):
    pass


class OutOfMemoryError(RayError):
    pass


class GetTimeoutError(RayError):
    pass


class RayTaskError(RayError):
    pass


ERRORS = (RayError, RayActorError, ActorUnavailableError, OutOfMemoryError, GetTimeoutError, RayTaskError)


class Actor:
    """A handle whose calls raise these errors in turn, and then answer."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.train = self.__ray_ready__ = SimpleNamespace(remote=lambda: self)

    def answer(self) -> bool:
        """The next error, or True."""
        if self.errors:
            raise self.errors.pop(0)
        return True


def backend(actor: Actor, alive: bool = True) -> Any:
    """A backend whose actor is on one node."""

    def get(handle: Actor, timeout: float) -> bool:
        return handle.answer()

    made = RayBackend.__new__(RayBackend)
    known = {error.__name__: error for error in ERRORS}
    made.ray = SimpleNamespace(exceptions=SimpleNamespace(**known), nodes=lambda: [{"Alive": alive, "NodeID": "n1"}], get=get)
    made.watch = ClusterWatch("", "")
    return made


def worker(actor: Actor) -> RayWorker:
    return RayWorker(actor, node="n1")


SOCKET = ActorUnavailableError("The actor is temporarily unavailable: RpcError: Socket closed")
DIED = RayActorError("The actor died.\nclass_name: Worker\nThe worker process has died.\npid: 7")
NODE = RayActorError("The actor died because its node has died.")


@pytest.mark.parametrize(
    ("later", "alive", "counted", "reason"),
    [
        ([DIED], True, True, "The worker process has died."),
        ([SOCKET, DIED], True, True, "The worker process has died."),
        ([SOCKET, NODE], True, False, "its node has ended"),
        ([DIED], False, False, "its node has ended"),
        ([], True, False, "it cannot be reached"),  # it answers again, without the result
    ],
)
def test_unavailable_actor(
    later: list[Exception], alive: bool, counted: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray says at first that an actor is unavailable, and later why. The end of a node is never counted."""
    monkeypatch.setattr(cluster, "UNAVAILABLE_POLL", 0.0)
    actor = Actor(*later)
    lost = backend(actor, alive)._lost(worker(actor), SOCKET)
    assert (lost.counted, lost.reason) == (counted, reason) and not actor.errors


def test_actor_that_stays_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "UNAVAILABLE_POLL", 0.01)
    monkeypatch.setattr(cluster, "UNAVAILABLE_SECONDS", 0.05)
    actor = Actor(*[SOCKET] * 1000)
    lost = backend(actor)._lost(worker(actor), SOCKET)
    assert (lost.counted, lost.reason) == (False, "it cannot be reached")


def test_worker_that_the_memory_monitor_ends() -> None:
    """Every call of it raises the same error, so an answer would hide its end."""
    actor = Actor(*[OutOfMemoryError("low")] * 2)
    made = backend(actor)
    for _ in range(2):
        with pytest.raises(MemoryLost, match="out of memory") as error:
            made.call(worker(actor), "train")
        assert not error.value.counted


def test_lost_result_is_not_counted() -> None:
    actor = Actor()
    lost = backend(actor)._lost(worker(actor), RayError("ObjectReconstructionFailedError"))
    assert not lost.counted and lost.reason == "its result is lost: RayError"


# ------------------------------------------------------------------------------------------ head


@pytest.fixture
def servers() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Ports of a head and of Ray on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as head, socket.create_server(("127.0.0.1", 0)) as raylet:
        yield head, raylet


def connected(actor: Actor, servers: tuple[socket.socket, socket.socket]) -> Any:
    """A backend that answers."""
    made = backend(actor)
    made.watch = ClusterWatch(*(f"127.0.0.1:{server.getsockname()[1]}" for server in servers))
    assert made.answers() and made.answers()
    return made


def test_head_that_ends(servers: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends with one line, and waiting calls end with it. Ray itself would end the process after a minute."""
    monkeypatch.setattr(cluster_watch, "HEAD_SECONDS", 0.2)
    actor = Actor(*[GetTimeoutError()] * 3)
    made = connected(actor, servers)
    servers[0].close()
    assert made.call(worker(actor), "train") and not actor.errors, "a call waits for its answer"
    assert not made.answers()
    time.sleep(0.3)
    with pytest.raises(UserError, match=r"the head of the Ray cluster at 127.0.0.1:\d+ has not answered.*run the same command"):
        made.answers()
    with pytest.raises(PlaceLost, match="head of its cluster has ended") as error:
        made.call(worker(actor), "train")
    assert not error.value.counted


def test_ray_on_this_machine_that_ends(servers: tuple[socket.socket, socket.socket]) -> None:
    """The next access to its store of objects would end the process."""
    actor = Actor()
    made = connected(actor, servers)
    servers[1].close()
    with pytest.raises(UserError, match="processes of Ray on this machine have ended"):
        made.answers()
    with pytest.raises(PlaceLost):
        made.call(worker(actor), "train")


def test_node_of_this_machine_that_ends() -> None:
    made = backend(Actor(), alive=False)
    made.split = 2
    assert made.nodes() == []
