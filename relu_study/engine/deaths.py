"""Ends of workers by the tiles that they had: suspects, tiles that are given up, and neighbours that are not to blame."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

DEATHS = 3  # different workers that end with a tile before it is given up


@dataclass
class Deaths:
    """The workers that ended with each unfinished tile."""

    workers: dict[int, tuple[Any, set[Hashable]]] = field(default_factory=dict)  # id of a tile -> the tile, its workers

    def add(self, tile: Any, worker: Hashable) -> bool:
        """Count the end of a worker with a tile. True if the tile must be given up."""
        _, workers = self.workers.setdefault(id(tile), (tile, set()))
        workers.add(worker)
        return len(workers) >= DEATHS

    def of(self, tile: Any) -> int:
        """The number of workers that ended with a tile."""
        return len(self.workers[id(tile)][1]) if id(tile) in self.workers else 0

    def is_suspect(self, tile: Any) -> bool:
        """Whether a tile may have ended all workers but one. It then runs with no other tile on its worker.

        The last death of a tile is then its own fault, and no other tile is ever given up for it.
        """
        return self.of(tile) >= DEATHS - 1

    def forget(self, tile: Any) -> None:
        """Forget a finished tile."""
        self.workers.pop(id(tile), None)
