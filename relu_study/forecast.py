"""When a plan will be finished, from what its first tiles took: so much a unit of price, and so much for a cohort's programs."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relu_study.draws import DrawPlan
    from relu_study.plan import Plan


class Forecast:
    """Seconds until a plan is finished, learnt from its own tiles as they are stored; times are seconds since it began.

    A device works on one tile after the other, so a stored tile took the time since that device's last one. What of it went into
    programs is known (`compiling`), and tells what those cost that remain, by the number of layers. The rest is so much a unit of
    price: that of the cohort's own tiles, or of all others where none is stored yet; in either case of those alone that opened no
    cohort, if there are any, since one that does waits for others. What remains is dealt to the devices as they will take it.
    """

    def __init__(self, plan: Plan | DrawPlan) -> None:
        self._price: Callable[[Any], float] = plan.price
        self.left = self._priced(plan.tiles)
        self._compiling: Callable[[Any], float] = plan.compiling
        self.opened: set[tuple[str, int]] = set()  # cohorts, and the devices that have their programs
        self.compiled = [0.0, 0.0]  # seconds, and layers
        self.worked: list[tuple[str, bool, float, float]] = []  # cohort, did it open it, seconds, price
        self.free = dict.fromkeys(range(max(min(plan.devices, len(self.left)), 1)), 0.0)  # device -> since when

    def cut_anew(self, old: Sequence[Any], new: Sequence[Any]) -> None:
        """Told that tiles will not be made as planned: others in their place."""
        for tile in old:
            self.left.pop(id(tile), None)
        self.left = self._priced(new) | self.left

    def stored(self, tile: Any, now: float, device: int, compiling: float) -> None:
        """Told when a tile is stored, by which device it was made, and what its programs took."""
        _, price = self.left.pop(id(tile))
        opens = (tile.cohort, device) not in self.opened
        self.worked.append((tile.cohort, opens, max(now - self.free.get(device, 0.0) - compiling, 0.0), price))
        self.free[device] = now
        self.compiled[0] += compiling
        if opens:
            self.opened.add((tile.cohort, device))
            self.compiled[1] += self._compiling(tile)

    def seconds(self, now: float) -> float:
        """Seconds until everything is stored; before the first tile is, not a number."""
        if not self.worked:
            return float("nan")
        todo: dict[str, deque[tuple[Any, float]]] = {}
        for tile, price in self.left.values():
            todo.setdefault(tile.cohort, deque()).append((tile, price))
        rates = {cohort: self._rate(cohort) for cohort in todo}
        opened, at_work = set(self.opened), dict[int, str]()
        free = sorted((since, device) for device, since in self.free.items())
        while todo:
            since, device = free[0]
            in_flight = device not in at_work
            cohort = at_work[device] = self._next(todo, opened, device, at_work.get(device))
            tile, price = todo[cohort].popleft()
            end = since + price * rates[cohort]
            if (cohort, device) not in opened:
                opened.add((cohort, device))
                end += self._compiling(tile) * self.compiled[0] / self.compiled[1]
            if not todo[cohort]:
                del todo[cohort]
            heapq.heapreplace(free, (max(end, now) if in_flight else end, device))
        return max(now, *(since for since, _ in free)) - now

    @staticmethod
    def _next(todo: Collection[str], opened: set[tuple[str, int]], device: int, cohort: str | None) -> str:
        """The cohort whose tile a device takes: as `dispatch` does, its own, else one that none has opened, else any."""
        if cohort is not None and cohort in todo:
            return cohort
        begun = {one for one, _ in opened}
        return min(todo, key=lambda one: 0 if (one, device) in opened else 1 if one not in begun else 2)

    def _rate(self, cohort: str) -> float:
        own = [one for one in self.worked if one[0] == cohort] or self.worked
        _, _, seconds, prices = zip(*([one for one in own if not one[1]] or own), strict=True)
        return sum(seconds) / sum(prices)

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
