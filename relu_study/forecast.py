"""When a plan will be finished, from what its first tiles took: so much a unit of price, and so much to compile a cohort."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relu_study.draws import DrawPlan
    from relu_study.plan import Plan


class Forecast:
    """Seconds until a plan is finished, learnt from its own tiles as they are stored; times are seconds since it began.

    A device works on one tile after the other, so each stored tile took the time since that device's last one. The first ones of
    a cohort, one for each device that opens it, compile its programs as well: what they took beyond the rate of all others is
    what compiling costs, by the number of layers. The tiles that remain are dealt to the devices in their order at that rate,
    and compiling the cohorts that remain is added. While first ones alone are stored, what was heard of compiling (`compiled`)
    parts the two.
    """

    def __init__(self, plan: Plan | DrawPlan) -> None:
        self._price: Callable[[Any], float] = plan.price
        self.left = self._priced(plan.tiles)
        self.unopened = plan.openings()
        devices = max(min(plan.devices, len(self.left)), 1)
        self.begun = [0.0] * devices  # when each device began what it works on, the earliest first
        self.first: list[tuple[float, float]] = []  # device seconds that stored tiles took, and their prices
        self.later: list[tuple[float, float]] = []
        self.layers = self.heard = 0.0

    def compiled(self, seconds: float) -> None:
        """Told what compiling took so far, over all devices, as far as it was heard of."""
        self.heard = seconds

    def cut_anew(self, old: Sequence[Any], new: Sequence[Any]) -> None:
        """Told that tiles will not be made as planned: others in their place."""
        for tile in old:
            self.left.pop(id(tile), None)
        self.left = self._priced(new) | self.left

    def stored(self, tile: Any, now: float) -> None:
        """Told when a tile is stored."""
        _, price = self.left.pop(id(tile))
        kind = self.later
        if opening := self.unopened[tile.cohort]:
            kind = self.first
            self.layers += opening.pop()
        kind.append((now - heapq.heapreplace(self.begun, now), price))

    def seconds(self, now: float) -> float:
        """Seconds until everything is stored; before the first tile is, not a number."""
        if not self.layers:
            return float("nan")
        # A device that is still compiling may hand in its first tile after another's second: the slowest do not count.
        slowest = sorted(self.later, key=lambda one: one[0] / one[1])
        kept = slowest[: len(slowest) - min(len(slowest) // 3, len(self.begun) - 1)]
        (first, opened), (later, priced) = (
            [sum(column) for column in zip((0.0, 0.0), *some, strict=True)] for some in (self.first, kept)
        )
        share = (first + later) / (first + later + sum(now - begun for begun in self.begun) or 1.0)
        rate = later / priced if priced else max(first - self.heard * share, 0.02 * first) / opened
        each = max(first - rate * opened, 0.0) / self.layers
        free = list(self.begun)
        for i, (_, price) in enumerate(self.left.values()):
            end = free[0] + rate * price
            heapq.heapreplace(free, max(end, now) if i < len(self.begun) else end)
        compiling = each * sum(sum(layers) for layers in self.unopened.values())
        return max(*free, now) - now + compiling / len(self.begun)

    def _priced(self, tiles: Sequence[Any]) -> dict[int, tuple[Any, float]]:
        return {id(tile): (tile, self._price(tile)) for tile in tiles}


def by_manifest(plan: Plan, timing: Mapping[str, float]) -> float | None:
    """Seconds that the missing runs of a folder will take, at the speed of its stored ones; None where nothing is known of it."""
    paid = sum(cohort.paid for cohort in plan.cohorts)
    trained = plan.devices * timing.get("wall_s", 0.0) - timing.get("compile_s", 0.0)
    if not paid or trained <= 0:
        return None
    known, new = ([c for c in plan.cohorts if bool(c.paid) == stored and (stored or c.tiles)] for stored in (True, False))
    layers = sum(c.work.layers for c in known)
    compiling = timing["compile_s"] * sum(c.work.layers for c in new) / layers
    return (trained / paid * sum(plan.price(tile) for tile in plan.tiles) + compiling) / plan.devices
