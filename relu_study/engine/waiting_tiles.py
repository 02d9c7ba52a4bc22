"""Tiles that wait for a place, by cohort and in the order of the plan."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic

from relu_study.engine.work import T


class WaitingTiles(Generic[T]):
    """A queue of tiles for each cohort. Its time to take a tile grows with the cohorts, not with the tiles."""

    def __init__(self, tiles: Sequence[T]) -> None:
        """All tiles of a plan, the first one first."""
        self._queues: dict[str, deque[tuple[int, T]]] = {}  # with the position of each tile
        self._first, self._count = 0, len(tiles)
        for position, tile in enumerate(tiles):
            self._queues.setdefault(tile.cohort, deque()).append((position, tile))

    def __len__(self) -> int:
        """Number of tiles."""
        return self._count

    def put_first(self, tiles: Sequence[T]) -> None:
        """Add tiles before all others."""
        for tile in reversed(tiles):
            self._first -= 1
            self._queues.setdefault(tile.cohort, deque()).appendleft((self._first, tile))
        self._count += len(tiles)

    def take(self, rank: Callable[[str], int | None], is_allowed: Callable[[T], bool]) -> T | None:
        """Remove and return the first allowed tile of the cohorts with the smallest rank. Cohorts of rank None wait."""
        best: tuple[int, int] | None = None
        chosen = 0
        for cohort, queue in self._queues.items():
            if (order := rank(cohort)) is None:
                continue
            for index, (position, tile) in enumerate(queue):
                if best is not None and (order, position) > best:
                    break
                if is_allowed(tile):
                    best, chosen, source = (order, position), index, queue
                    break
        if best is None:
            return None
        tile = source[chosen][1]
        self._delete(source, chosen)
        return tile

    def remove(self, tile: T) -> None:
        """Remove a tile, if it waits."""
        queue = self._queues.get(tile.cohort, ())
        for index, (_, other) in enumerate(queue):
            if other is tile:
                self._delete(self._queues[tile.cohort], index)
                return

    def remove_cohort(self, cohort: str) -> None:
        """Remove all tiles of a cohort."""
        self._count -= len(self._queues.pop(cohort, ()))

    def _delete(self, queue: deque[tuple[int, T]], index: int) -> None:
        _, tile = queue[index]
        del queue[index]
        self._count -= 1
        if not queue:
            del self._queues[tile.cohort]
