"""Places in this process for tests of the scheduler: each computes with a function, and may be slow, lost or added later."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from relu_study.engine import scheduler
from relu_study.engine.places import PlaceLost, Started
from relu_study.engine.plan import Tile
from relu_study.engine.work import Finished, Work


def tile(cohort: str, steps: int) -> Tile:
    return Tile(cohort, 2, (), steps, 1)


class FakePlace:
    """A place whose `compute(tile, place)` gives the numbers, raises PlaceLost, or blocks until `lost` is set."""

    def __init__(self, number: int, compute: Callable[[Tile, FakePlace], Any], worker: str = "", slots: int = 2) -> None:
        self.number, self.worker, self.slots, self.compute = number, worker or f"w{number}", slots, compute
        self.name = f"place of {self.worker}"
        self.lost = threading.Event()
        self.turn = threading.Lock()
        self.began: list[Tile] = []

    def start(self, tile: Tile, should_continue: Callable[[], bool]) -> Started | None:
        with self.turn:
            if self.lost.is_set():
                raise PlaceLost("ended before", counted=False)
            self.began.append(tile)
            numbers = self.compute(tile, self)
        if self.lost.is_set():
            raise PlaceLost("killed")
        return Started(numbers, 0.0, 0.01 * getattr(tile, "steps", 1)) if should_continue() else None

    def collect(self, pending: Any) -> Any:
        return pending


class FakePlaces:
    """Places that tests add and remove. `replace(worker)` gives the places that follow a lost worker."""

    changing = True

    def __init__(
        self, places: Sequence[FakePlace], exact: bool = True, replace: Callable[[str], Sequence[FakePlace]] | None = None
    ):
        self.places, self.exact, self.replace = list(places), exact, replace
        self.messages: list[str] = []
        self.killed: list[str] = []
        self.replaced: set[str] = set()
        self.lock = threading.Lock()

    def current(self) -> list[FakePlace]:
        with self.lock:
            for place in [place for place in self.places if place.lost.is_set() and place.worker not in self.replaced]:
                self.replaced.add(place.worker)
                self.places += self.replace(place.worker) if self.replace else ()
            return [place for place in self.places if not place.lost.is_set()]

    def kill(self, place: FakePlace, reason: str) -> None:
        self.killed.append(place.worker)
        self.lose(place.worker)

    def lose(self, worker: str) -> None:
        for place in self.places:
            if place.worker == worker:
                place.lost.set()

    def close(self) -> None:
        for place in self.places:
            place.lost.set()

    def on_message(self, line: str) -> None:
        self.messages.append(line)


class Crashes:
    """A fallback that records the given up tiles, and their numbers in each call."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.crashed: list[tuple[Tile, str]] = []

    def retile(self, tiles: Any, why: str) -> None:
        return None

    def give_up(self, tiles: Any, why: str) -> None:
        raise AssertionError(why)

    def crash(self, tiles: Sequence[Tile], why: str) -> None:
        self.sizes.append(len(tiles))
        self.crashed += [(tile, why) for tile in tiles]


def numbers(tile: Tile, place: Any = None) -> dict[str, np.ndarray]:
    return {"steps": np.array([tile.steps])}


def carried_out(tiles: Sequence[Tile], places: FakePlaces, fallback: Any = None, pause: float = 0.0) -> list[Finished[Any, Any]]:
    """Run the tiles at fake places, with a pause of the caller after each."""
    done = []
    for one in carried_out_one_by_one(tiles, places, fallback):
        done.append(one)
        time.sleep(pause)
    return done


def carried_out_one_by_one(tiles: Sequence[Tile], places: FakePlaces, fallback: Any = None) -> Iterator[Finished[Any, Any]]:
    """Run the tiles at fake places. Local starts are an error."""

    def never(*_: Any) -> Any:
        raise AssertionError("started on this machine")

    work = Work(tiles, lambda one: float(one.steps), never, never, lambda one: set(), lambda key: None)
    return scheduler.finished(work, fallback, places)


def finished_once(done: list[Any], tiles: list[Tile]) -> bool:
    """Whether exactly these tiles are finished, each once."""
    return Counter(id(one.tile) for one in done) == Counter(map(id, tiles))
