"""Estimated time left, from the tiles finished so far: seconds per unit of cost, plus compile time per cohort."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relu_study.engine.draw_plan import DrawPlan
    from relu_study.engine.plan import Plan


class EtaEstimator:
    """Estimator of the seconds until a plan is finished. Times are seconds since the start.

    A device works on one tile at a time, so a stored tile took the time since the previous tile of its device.
    The compile time of each tile is known (`compiling`); it gives the seconds per layer for the programs still to compile.
    The remaining time is charged per unit of cost, at the cohort's own rate.
    While none of its tiles is stored, the average rate of all others applies.
    Tiles that were first in their cohort also waited for compilation, so they are used only if there are no others.
    The remaining tiles are simulated in the order in which the devices will take them.
    A device may join later, as on a cluster.
    """

    def __init__(self, plan: Plan | DrawPlan) -> None:
        self._cost: Callable[[Any], float] = plan.cost
        self.unfinished = self._with_costs(plan.tiles)
        self._compiling: Callable[[Any], float] = plan.compiling
        self.compiled: set[tuple[str, int]] = set()  # (cohort, device) pairs whose programs are compiled
        self.compile_seconds = self.compiled_layers = 0.0
        self.totals: dict[tuple[str, bool], list[float]] = {}  # (cohort, first on its device) -> seconds, cost
        self.free_since = dict.fromkeys(range(plan.devices), 0.0)  # device -> time of its last stored tile

    def retile(self, old: Sequence[Any], new: Sequence[Any]) -> None:
        """Replace planned tiles by narrower ones."""
        for tile in old:
            self.unfinished.pop(id(tile), None)
        self.unfinished = self._with_costs(new) | self.unfinished

    def stored(self, tile: Any, now: float, device: int, compiling: float) -> None:
        """Record a stored tile, its device and its compile time in seconds."""
        _, cost = self.unfinished.pop(id(tile))
        first = (tile.cohort, device) not in self.compiled
        if device in self.free_since:  # else it is new, and when it began is unknown
            total = self.totals.setdefault((tile.cohort, first), [0.0, 0.0])
            total[0] += max(now - self.free_since[device] - compiling, 0.0)
            total[1] += cost
        self.free_since[device] = now
        self.compile_seconds += compiling
        if first:
            self.compiled.add((tile.cohort, device))
            self.compiled_layers += self._compiling(tile)

    def seconds(self, now: float) -> float:
        """Seconds until every tile is stored; NaN before the first tile is stored."""
        if not self.totals:
            return float("nan")
        todo: dict[str, deque[tuple[Any, float]]] = {}
        for tile, cost in self.unfinished.values():
            todo.setdefault(tile.cohort, deque()).append((tile, cost))
        rates = self._rates(todo)
        # The order of `scheduler`: a device prefers a cohort that it has compiled, then an unstarted one, then any.
        cohorts = {device: [cohort for cohort, by in self.compiled if by == device] for device in self.free_since}
        started = {cohort for cohort, _ in self.compiled}
        unstarted, in_flight = deque(cohort for cohort in todo if cohort not in started), set(self.free_since)
        free = sorted((since, device) for device, since in self.free_since.items())
        while todo:
            since, device = free[0]
            cohorts[device] = [cohort for cohort in cohorts[device] if cohort in todo]
            first = not cohorts[device]
            if first:
                cohorts[device].append(unstarted.popleft() if unstarted else next(iter(todo)))
            cohort = cohorts[device][0]
            tile, cost = todo[cohort].popleft()
            end = since + cost * rates[cohort] + first * self._compiling(tile) * self.compile_seconds / self.compiled_layers
            if not todo[cohort]:
                del todo[cohort]
            heapq.heapreplace(free, (max(end, now) if device in in_flight else end, device))
            in_flight.discard(device)
        return max(now, *(since for since, _ in free)) - now

    def _rates(self, cohorts: Iterable[str]) -> dict[str, float]:
        later, first = ([self.totals[key] for key in self.totals if key[1] is is_first] for is_first in (False, True))
        average = _rate(later or first)
        return {
            cohort: next((_rate([self.totals[key]]) for key in ((cohort, False), (cohort, True)) if key in self.totals), average)
            for cohort in cohorts
        }

    def _with_costs(self, tiles: Sequence[Any]) -> dict[int, tuple[Any, float]]:
        return {id(tile): (tile, self._cost(tile)) for tile in tiles}


def _rate(totals: Sequence[Sequence[float]]) -> float:
    seconds, cost = (sum(column) for column in zip(*totals, strict=True))
    return seconds / cost if cost else 0.0
