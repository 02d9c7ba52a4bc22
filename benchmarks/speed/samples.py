"""What is seen of a long sweep from within: memory, descriptors, threads and runs done, every few seconds, and what they say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import psutil

from relu_study.runner.memory import resident

FIRST_MINUTE = 60.0  # seconds in which programs are compiled and buffers are filled
LEAST = 10  # samples after it, below which nothing is said
FLAT, EVEN = 0.05, 0.10  # how far memory may range, and how far apart the rates of the first and of the last fifth may be


class Sample(NamedTuple):
    """One look at a process, `seconds` after the first."""

    seconds: float
    mib: float  # resident
    descriptors: int
    threads: int
    runs: int


class Sampler:
    """Looks at this process every `every` seconds while the `with` lasts, in a thread of its own; `done` says how many runs."""

    def __init__(self, done: Callable[[], int], every: float) -> None:
        self.samples: list[Sample] = []
        self._done, self._every = done, every
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Sampler:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stopped.set()
        self._thread.join()

    def _work(self) -> None:
        while True:
            self.samples.append(self._look())
            if self._stopped.wait(self._every):
                return

    def _look(self) -> Sample:
        process = psutil.Process()
        counted = process.num_fds(), process.num_threads()
        return Sample(time.monotonic() - self._began, resident() / 2**20, *counted, self._done())


def judged(samples: Sequence[Sample], total: int) -> list[dict[str, Any]]:
    """A row for each goal, from the samples after the first minute and before all of `total` runs are done, when programs go.

    Memory: how far it ranges, over its least, and in the middle of the first and of the last fifth. Descriptors and threads: the
    fewest in each of the two fifths, since a file that is open for a moment is no growth. Runs a second in each of them.
    """
    later = [s for s in samples if s.seconds >= FIRST_MINUTE and s.runs < total]
    if len(later) < LEAST:
        raise SystemExit(f"{len(later)} samples after the first minute say nothing: give it more --minutes")
    fifth = (later[-1].seconds - later[0].seconds) / 5
    first = [s for s in later if s.seconds <= later[0].seconds + fifth]
    last = [s for s in later if s.seconds >= later[-1].seconds - fifth]
    mib = [s.mib for s in later]
    middle = [sorted(s.mib for s in part)[len(part) // 2] for part in (first, last)]
    rates = [(part[-1].runs - part[0].runs) / (part[-1].seconds - part[0].seconds) for part in (first, last)]
    rows = [_row("resident MiB", *middle, mib, f"ranges over at most {FLAT:.0%}", max(mib) <= (1 + FLAT) * min(mib))]
    for name in ("descriptors", "threads"):
        fewest = [min(getattr(s, name) for s in part) for part in (first, last)]
        rows.append(_row(name, *fewest, [getattr(s, name) for s in later], "no growth", fewest[1] <= fewest[0]))
    even = abs(rates[1] - rates[0]) <= EVEN * rates[0]
    return [*rows, _row("runs a second", *rates, rates, f"within {EVEN:.0%} of the first fifth", even)]


def _row(what: str, first: float, last: float, seen: Sequence[float], goal: str, held: bool) -> dict[str, Any]:
    numbers = {"first_fifth": first, "last_fifth": last, "least": min(seen), "most": max(seen)}
    said = {name: f"{value:.4g}" for name, value in numbers.items()}
    return {"what": what, **said, "goal": goal, "held": "yes" if held else "no"}
