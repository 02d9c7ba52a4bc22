"""One worker of a cluster, and one of its places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from relu_study.engine.draw_plan import DrawPlan
from relu_study.engine.places import Started
from relu_study.engine.plan import Plan
from relu_study.engine.work import assign_devices
from relu_study.report.markup import counted
from relu_study.runner.cluster_backend import Node
from relu_study.runner.worker import Report, numbers_of

if TYPE_CHECKING:
    from relu_study.runner.remote_places import RemotePlaces

SLOTS = 2  # tiles in flight at a place: one computes, one waits


@dataclass(eq=False)
class Member:
    """A worker, from its request to its end."""

    handle: Any
    node: Node | None
    name: str = ""
    report: Report | None = None
    places: list[RemotePlace] = field(default_factory=list)
    dead: bool = False
    killed: bool = False


class RemotePlace:
    """One device of a worker. It starts a tile there and waits for its numbers."""

    slots = SLOTS

    def __init__(self, number: int, index: int, member: Member, cluster: RemotePlaces) -> None:
        self.number, self.index, self.member, self.cluster = number, index, member, cluster
        self.worker, self.name = member.name, f"place {index} of {member.name}"

    def start(self, tile: Any, should_continue: Callable[[], bool]) -> Started | None:
        """Compute a tile, and return its numbers. Raises PlaceLost if the worker ends."""
        answer = self.cluster.call(self.member, *self.cluster.request(tile, self.index))
        if not should_continue():
            return None
        numbers = numbers_of(answer, self.member.name)
        self.cluster.accounts.add(self.member.name, tile, answer)
        return Started(numbers, answer.compiling, answer.seconds)

    def collect(self, pending: Any) -> Any:
        """Return the numbers of a tile."""
        return pending


def forecast(members: Sequence[Member], plan: Plan | DrawPlan) -> list[str]:
    """One line a worker: places, device, processor, and the cohorts that it compiles if it takes its part of the work."""
    numbers = [place.number for member in members for place in member.places]
    assigned = assign_devices(plan.tiles, cast(Any, plan.cost), len(numbers))
    cohorts, parts = Counter(numbers[i] for i in assigned.values()), "cells" if plan.noun == "draws" else "cohorts"
    return [
        f"worker {member.name}: {counted(len(member.places), 'place')} on {member.report.host['device']}, "
        f"{member.report.processor.get('processor', '')}, "
        f"compiles about {sum(cohorts[place.number] for place in member.places)} {parts}"
        for member in members
        if member.report is not None
    ]
