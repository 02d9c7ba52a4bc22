"""Interface of a cluster software: nodes, and workers that are started, called and ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from relu_study.engine.places import PlaceLost
from relu_study.runner.worker import Answer, Report


class MemoryLost(PlaceLost):
    """A worker ended because the memory of its node ran low. One of its tiles may have been too wide."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, counted=False)


class Node(NamedTuple):
    """A machine of the cluster that is alive."""

    id: str
    host: str
    cpus: int
    gpus: int
    tpus: int

    def count(self, platform: str) -> int:
        """The places of a platform."""
        return {"cpu": self.cpus, "gpu": self.gpus, "tpu": self.tpus}[platform]


@runtime_checkable
class Backend(Protocol):
    """The calls of a cluster software. A handle is a worker."""

    def answers(self) -> bool:
        """Whether the cluster answers now. Raises UserError if it has not for long."""

    def nodes(self) -> Sequence[Node]:
        """The nodes that are alive."""

    def start(self, node: Node | None, platform: str, places: int, own: Sequence[str], without: Sequence[str]) -> Any:
        """Ask for a worker on a node (None: on any node but those `without`, new ones too). Returns its handle at once."""

    def report(self, handle: Any) -> tuple[str, Report] | None:
        """The node and the machine of a worker; None while it starts. Raises PlaceLost or UserError if it cannot start."""

    def call(self, handle: Any, method: str, *arguments: Any) -> Answer:
        """Call a method of `Worker` and wait for its answer. Raises PlaceLost, and MemoryLost for a lack of memory."""

    def send(self, handle: Any, method: str, *arguments: Any) -> None:
        """Call a method of `Worker` without waiting."""

    def kill(self, *handles: Any) -> None:
        """End workers at once."""
