"""Account of the work of one worker of a cluster, for the summary of a run."""

from __future__ import annotations

from dataclasses import dataclass

from relu_study.runner.worker import Answer


@dataclass
class WorkerAccount:
    """Sums over the finished tiles of a worker."""

    places: int
    tiles: int = 0
    results: int = 0  # runs or draws
    seconds: float = 0.0  # of training, summed over places
    compiling: float = 0.0
    programs: int = 0
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
        ended = ", ended early" if self.ended else ""
        return (
            f"worker {name}: {self.tiles:,} tiles, {self.results:,} {noun}, {self.rate:,.1f} {noun}/s, "
            f"{self.programs:,} programs compiled or read from the cache in {self.compiling:,.1f} s{ended}"
        )
