"""Queue model of a cluster for `cluster.py`: places that compute tiles, and a driver that serves one answer at a time.

Assumptions:
1. The driver is one core. It serves first the call of a worker (answer received, next tile chosen and sent), then the storage of
   the tile, in the order of arrival. In the real driver other threads run during the compression of a file.
2. The cost of a tile is `fixed + per_mb * MB` CPU seconds, as measured with one worker, plus the measured growth of the
   scheduler's cost with the number of places. That is linear beyond the most places measured.
3. A place computes one tile at a time, and a second one waits there. The seconds of tiles vary by 10 % (lognormal).
4. An answer takes half an empty call to the driver, and so does a tile to its place. The network is never full.
5. Every place has compiled its programs. No place is lost, and no tile is repeated.
6. The first tiles, four for each place, and the time after the last tile is handed out, do not count.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

SPREAD = 0.1
SLOTS = 2
ROUNDS, SKIPPED_ROUNDS, LEAST_TILES = 12, 4, 200


class Driver(NamedTuple):
    """CPU seconds of the driver per tile: for the call of a worker, and for the storage. `delay` is one way of a message."""

    call: float
    store: float
    delay: float

    @property
    def capacity(self) -> float:
        """Tiles per second of a driver that is always busy."""
        return 1 / (self.call + self.store)


class Constants(NamedTuple):
    """Seconds of the driver: `fixed + per_mb * MB` of a call and of the rest, and of the scheduler by places."""

    call: tuple[float, float]
    rest: tuple[float, float]
    scheduler: dict[int, float]
    delay: float

    def driver(self, mb: float, places: int) -> Driver:
        """The driver of a cluster with so many places and tiles of so many megabytes."""
        counts = sorted(self.scheduler)
        seconds = [self.scheduler[count] for count in counts]
        more = float(np.interp(places, counts, seconds))
        if places > counts[-1] and len(counts) > 1:
            more += (places - counts[-1]) * (seconds[-1] - seconds[-2]) / (counts[-1] - counts[-2])
        more = max(more - seconds[0], 0.0)
        return Driver(self.call[0] + self.call[1] * mb + more, self.rest[0] + self.rest[1] * mb, self.delay)


def line_through(mbs: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Fixed seconds and seconds per MB by least squares of relative errors, neither below zero."""
    columns = np.stack([np.ones(len(mbs)), mbs], axis=1) / np.asarray(seconds)[:, None]
    fixed, slope = np.linalg.lstsq(columns, np.ones(len(mbs)), rcond=None)[0]
    if fixed < 0:
        return 0.0, float(np.mean(np.asarray(seconds) / mbs))
    return float(fixed), max(float(slope), 0.0)


class Outcome(NamedTuple):
    """The steady state of a simulation."""

    efficiency: float  # share of the time in which places compute
    rate: float  # tiles per second
    backlog: int  # most answers that wait for the driver


@dataclass
class _Place:
    free_at: float = 0.0
    intervals: list[tuple[float, float]] = field(default_factory=list)


def simulate(places: int, seconds: float, driver: Driver, rounds: int = ROUNDS) -> Outcome:
    """Simulate a cluster of so many places with tiles of so many seconds."""
    draws, members = random.Random(0), [_Place() for _ in range(places)]
    todo = max(rounds * places, LEAST_TILES)
    events: list[tuple[float, int, str, int]] = []
    count = served = answered = backlog = 0
    free_at, begin, end = 0.0, 0.0, 0.0

    def at(moment: float, kind: str, place: int) -> None:
        nonlocal count
        heapq.heappush(events, (moment, count, kind, place))
        count += 1

    def send(moment: float, place: int) -> None:
        """Give a tile to a place; it computes when the place is free."""
        nonlocal todo, end
        todo, end = todo - 1, moment
        member = members[place]
        start = max(moment + driver.delay, member.free_at)
        member.free_at = start + seconds * draws.lognormvariate(0.0, SPREAD)
        member.intervals.append((start, member.free_at))
        at(member.free_at + driver.delay, "answer", place)

    for place in SLOTS * [*range(places)]:
        free_at += driver.call
        send(free_at, place)
    pending: deque[float] = deque()  # ends of the driver's services
    while events and todo:
        now, _, kind, place = heapq.heappop(events)
        while pending and pending[0] <= now:
            pending.popleft()
        free_at = max(now, free_at) + (driver.call if kind == "answer" else driver.store)
        pending.append(free_at)
        if kind == "answer":
            answered += 1
            if answered == SKIPPED_ROUNDS * places:
                begin, served = free_at, 0
            send(free_at, place)
            at(free_at, "store", place)
        else:
            served += 1
        if begin:
            backlog = max(backlog, len(pending))
    busy = sum(max(0.0, min(stop, end) - max(start, begin)) for member in members for start, stop in member.intervals)
    return Outcome(busy / (places * (end - begin)), served / (end - begin), backlog)
