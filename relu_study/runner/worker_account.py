"""Accounts of the work of a cluster's workers, for the progress and the summary of a run."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from relu_study.report.markup import counted
from relu_study.runner.worker import Answer


@dataclass
class WorkerAccount:
    """Sums over the finished tiles of a worker. A tile that another worker has repeated counts for both."""

    places: int
    tiles: int = 0
    results: int = 0  # runs or draws
    seconds: float = 0.0  # of training, summed over places
    compiling: float = 0.0
    programs: int = 0
    recompiled: int = 0  # programs of cohorts that another worker had compiled before
    ended: bool = False

    def add(self, results: int, answer: Answer) -> None:
        """Add a finished tile."""
        self.tiles += 1
        self.results += results
        self.seconds += answer.seconds
        self.compiling += answer.compiling
        self.programs += answer.programs

    @property
    def rate(self) -> float:
        """Results per second of training."""
        return self.results * self.places / self.seconds if self.seconds else 0.0

    def line(self, name: str, noun: str) -> str:
        """The account in words. `noun` names the results."""
        recompiled = f", {self.recompiled:,} recompiled" if self.recompiled else ""
        ended = ", ended early" if self.ended else ""
        return (
            f"worker {name}: {counted(self.tiles, 'tile')}, {counted(self.results, noun.removesuffix('s'))}, "
            f"{self.rate:,.1f} {noun}/s, {counted(self.programs, 'program')} compiled or read from the cache in "
            f"{self.compiling:,.1f} s{recompiled}{ended}"
        )


class Accounts:
    """The accounts of all workers of a run by name. Threads may call it."""

    def __init__(self) -> None:
        """No worker."""
        self._accounts: dict[str, WorkerAccount] = {}
        self._compiled: dict[str, str] = {}  # cohort -> the worker that compiled it first
        self._lock = threading.Lock()

    def open(self, worker: str, places: int) -> None:
        """Add a worker."""
        with self._lock:
            self._accounts[worker] = WorkerAccount(places)

    def end(self, worker: str) -> None:
        """Mark a worker that ended early."""
        with self._lock:
            self._accounts[worker].ended = True

    def add(self, worker: str, tile: Any, answer: Answer) -> None:
        """Add a finished tile. Its programs are recompilations if another worker had compiled programs of its cohort."""
        with self._lock:
            account = self._accounts[worker]
            account.add(tile.size, answer)
            if answer.programs and self._compiled.setdefault(tile.cohort, worker) != worker:
                account.recompiled += answer.programs

    def rates(self) -> dict[str, float]:
        """The results per second of each worker that has not ended."""
        with self._lock:
            return {name: account.rate for name, account in sorted(self._accounts.items()) if not account.ended}

    def deaths(self) -> int:
        """Number of workers that ended early."""
        with self._lock:
            return sum(account.ended for account in self._accounts.values())

    def recompilations(self) -> int:
        """Number of programs that a worker compiled although another one had compiled them."""
        with self._lock:
            return sum(account.recompiled for account in self._accounts.values())

    def compile_seconds(self) -> float:
        """The compile time of all workers in seconds."""
        with self._lock:
            return sum(account.compiling for account in self._accounts.values())

    def summary(self, noun: str) -> list[str]:
        """One line a worker: tiles, rate, programs, whether it ended early. Then the sums. `noun` names the results."""
        lines = [account.line(name, noun) for name, account in sorted(self._accounts.items())]
        total = (
            f"{len(lines):,} workers in all, repeated tiles included, ended early: {self.deaths():,}, "
            f"recompiled programs: {self.recompilations():,}"
        )
        return [*lines, *([total] if len(lines) > 1 else [])]
