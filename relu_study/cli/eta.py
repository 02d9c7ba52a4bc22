"""When a plan will be finished, from what its first tiles took: so much a unit of price, and so much for a cohort's programs."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relu_study.engine.draw_plan import DrawPlan
    from relu_study.engine.plan import Plan


class EtaEstimator:
    """Seconds until a plan is finished, learnt from its own tiles as they are stored; times are seconds since it began.

    A device works on one tile after the other, so a stored tile took the time since that device's last one. What of it went into
    programs is known (`compiling`), and tells what those cost that remain, by the number of layers. The rest is so much a unit of
    price: that of the cohort's own tiles, or of all others where none is stored yet; in either case of those alone that opened no
    cohort, if there are any, since one that does waits for others. What remains is dealt to the devices as they will take it.
    """

    def __init__(self, plan: Plan | DrawPlan) -> None:
        self._price: Callable[[Any], float] = plan.cost
        self.left = self._priced(plan.tiles)
        self._compiling: Callable[[Any], float] = plan.compiling
        self.opened: set[tuple[str, int]] = set()  # cohorts, and the devices that have their programs
        self.on_programs = self.layers = 0.0  # seconds, and what they bought
        self.worked: dict[tuple[str, bool], list[float]] = {}  # cohort, did it open it -> seconds, price
        self.free = dict.fromkeys(range(plan.devices), 0.0)  # device -> since when

    def cut_anew(self, old: Sequence[Any], new: Sequence[Any]) -> None:
        """Told that tiles will not be made as planned: others in their place."""
        for tile in old:
            self.left.pop(id(tile), None)
        self.left = self._priced(new) | self.left

    def stored(self, tile: Any, now: float, device: int, compiling: float) -> None:
        """Told when a tile is stored, by which device it was made, and what its programs took."""
        _, price = self.left.pop(id(tile))
        opens = (tile.cohort, device) not in self.opened
        worked = self.worked.setdefault((tile.cohort, opens), [0.0, 0.0])
        worked[0] += max(now - self.free[device] - compiling, 0.0)
        worked[1] += price
        self.free[device] = now
        self.on_programs += compiling
        if opens:
            self.opened.add((tile.cohort, device))
            self.layers += self._compiling(tile)

    def seconds(self, now: float) -> float:
        """Seconds until everything is stored; before the first tile is, not a number."""
        if not self.worked:
            return float("nan")
        todo: dict[str, deque[tuple[Any, float]]] = {}
        for tile, price in self.left.values():
            todo.setdefault(tile.cohort, deque()).append((tile, price))
        rates = self._rates(todo)
        # As `dispatch` has it: a device takes tiles of its own cohorts, else of one that none has begun, else of any.
        own = {device: [cohort for cohort, by in self.opened if by == device] for device in self.free}
        begun = {cohort for cohort, _ in self.opened}
        new, in_flight = deque(cohort for cohort in todo if cohort not in begun), set(self.free)
        free = sorted((since, device) for device, since in self.free.items())
        while todo:
            since, device = free[0]
            own[device] = [cohort for cohort in own[device] if cohort in todo]
            opens = not own[device]
            if opens:
                own[device].append(new.popleft() if new else next(iter(todo)))
            cohort = own[device][0]
            tile, price = todo[cohort].popleft()
            end = since + price * rates[cohort] + opens * self._compiling(tile) * self.on_programs / self.layers
            if not todo[cohort]:
                del todo[cohort]
            heapq.heapreplace(free, (max(end, now) if device in in_flight else end, device))
            in_flight.discard(device)
        return max(now, *(since for since, _ in free)) - now

    def _rates(self, cohorts: Iterable[str]) -> dict[str, float]:
        later, first = ([self.worked[key] for key in self.worked if key[1] is opens] for opens in (False, True))
        others = _rate(later or first)
        return {
            cohort: next((_rate([self.worked[key]]) for key in ((cohort, False), (cohort, True)) if key in self.worked), others)
            for cohort in cohorts
        }

    def _priced(self, tiles: Sequence[Any]) -> dict[int, tuple[Any, float]]:
        return {id(tile): (tile, self._price(tile)) for tile in tiles}


def _rate(worked: Sequence[Sequence[float]]) -> float:
    seconds, price = (sum(column) for column in zip(*worked, strict=True))
    return seconds / price if price else 0.0


def eta_from_manifest(plan: Plan, timing: Mapping[str, float]) -> float | None:
    """Seconds that the missing runs of a folder will take, at the speed of its stored ones; None where nothing is known of it."""
    paid = sum(cohort.stored_cost for cohort in plan.cohorts)
    trained = plan.devices * timing.get("wall_s", 0.0) - timing.get("compile_s", 0.0)
    if not paid or trained <= 0:
        return None
    known, new = ([c for c in plan.cohorts if bool(c.stored_cost) == stored and (stored or c.tiles)] for stored in (True, False))
    layers = sum(c.work.layers for c in known)
    compiling = timing["compile_s"] * sum(c.work.layers for c in new) / layers
    return (trained / paid * sum(plan.cost(tile) for tile in plan.tiles) + compiling) / plan.devices
