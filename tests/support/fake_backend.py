"""A cluster software without a cluster: workers as reports, whose calls a function answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from relu_study.runner.cluster_backend import Node
from relu_study.runner.machine import package_digest, precision, software
from relu_study.runner.remote_places import RemotePlaces
from relu_study.runner.worker import Answer, Report

HERE = ({**software(), **precision()}, package_digest())


def report(**changes: Any) -> Report:
    """The report of a worker that is like the driver."""
    made = Report("cpu", "cpu", 2, {**HERE[0], "device": "cpu: cpu"}, {"processor": "one"}, None, "d1", HERE[1], {})
    return made._replace(**changes)


class FakeBackend:
    """Workers as reports: one a node."""

    def __init__(self, reports: Sequence[Report | Exception], answer: Callable[..., Answer] | None = None) -> None:
        self.reports, self.answer = list(reports), answer
        self.started: list[int] = []
        self.killed: list[int] = []
        self.silent = False

    def answers(self) -> bool:
        return not self.silent

    def nodes(self) -> list[Node]:
        return [Node(f"id{i}", f"node{i}", 2, 0, 0) for i in range(len(self.reports))]

    def start(self, node: Node | None, platform: str, places: int, own: Sequence[str]) -> int:
        self.started.append(int(node.id[2:]) if node else -1)
        return len(self.started) - 1

    def report(self, handle: int) -> tuple[str, Report]:
        found = self.reports[self.started[handle]]
        if isinstance(found, Exception):
            raise found
        return f"id{self.started[handle]}", found

    def call(self, handle: int, method: str, *arguments: Any) -> Answer:
        assert self.answer is not None
        return self.answer(handle, method, *arguments)

    def send(self, handle: int, method: str, *arguments: Any) -> None:
        self.sent = (handle, method, *arguments)

    def kill(self, handle: int) -> None:
        self.killed.append(handle)


def places_of(
    backend: FakeBackend, workers: int | None = None, own: dict[str, Any] | None = None
) -> tuple[RemotePlaces, list[str]]:
    """Places of a fake cluster, and the lines for the user."""
    told: list[str] = []
    return RemotePlaces(backend, HERE, own or {}, told.append, workers), told
