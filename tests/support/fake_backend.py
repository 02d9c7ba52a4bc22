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
    """Workers as reports: one a node.

    Workers for later nodes wait, or start on the node `later` unless they avoid it, or do not start with an exception.
    """

    def __init__(
        self,
        reports: Sequence[Report | Exception],
        answer: Callable[..., Answer] | None = None,
        later: int | Exception | None = None,
    ) -> None:
        self.reports, self.answer, self.later = list(reports), answer, later
        self.started: list[int] = []
        self.killed: list[int] = []
        self.without: list[Sequence[str]] = []
        self.silent: bool | Exception = False

    def answers(self) -> bool:
        if isinstance(self.silent, Exception):
            raise self.silent
        return not self.silent

    def nodes(self) -> list[Node]:
        return [Node(f"id{i}", f"node{i}", 2, 0, 0) for i in range(len(self.reports))]

    def start(self, node: Node | None, platform: str, places: int, own: Sequence[str], without: Sequence[str]) -> int:
        self.without.append(without)
        self.started.append(int(node.id[2:]) if node else -1)
        return len(self.started) - 1

    def report(self, handle: int) -> tuple[str, Report] | None:
        if self.started[handle] < 0:
            if isinstance(self.later, Exception):
                raise self.later
            if self.later is None or f"id{self.later}" in self.without[handle]:
                return None
            return f"id{self.later}", self.reports[self.later]
        found = self.reports[self.started[handle]]
        if isinstance(found, Exception):
            raise found
        return f"id{self.started[handle]}", found

    def call(self, handle: int, method: str, *arguments: Any) -> Answer:
        assert self.answer is not None
        return self.answer(handle, method, *arguments)

    def send(self, handle: int, method: str, *arguments: Any) -> None:
        self.sent = (handle, method, *arguments)

    def kill(self, *handles: int) -> None:
        self.killed += handles


def places_of(
    backend: FakeBackend, workers: int | None = None, own: dict[str, Any] | None = None
) -> tuple[RemotePlaces, list[str]]:
    """Places of a fake cluster, and the lines for the user."""
    told: list[str] = []
    return RemotePlaces(backend, HERE, own or {}, told.append, workers), told
