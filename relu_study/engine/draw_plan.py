"""Blocks and plan of a draw study. Plain data, no JAX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Block:
    """Draws first..first + count - 1 of one cell: the unit of scheduling, storage and resuming, like a tile of runs.

    The program of the cell computes `width` draws at a time.
    """

    cohort: str  # the cell's id: each cell has its own program
    width: int
    statistic: str
    cell: tuple[tuple[str, Any], ...]
    first: int
    count: int
    operations: float  # of one draw

    @property
    def size(self) -> int:
        """Number of draws."""
        return self.count

    @property
    def cost(self) -> float:
        """Relative cost."""
        return self.count * self.operations


def halve_block(blocks: Sequence[Block]) -> list[Block] | None:
    """The blocks of a cell at half their width; None if the width is 1."""
    return [replace(block, width=block.width // 2) for block in blocks] if blocks[0].width > 1 else None


@dataclass(frozen=True)
class DrawPlan:
    """All blocks to draw."""

    tiles: list[Block]  # costliest first, so that devices finish together
    devices: int
    platform: str
    noun: str = "draws"

    def cost(self, block: Block) -> float:
        """Relative cost of a block."""
        return block.cost

    def compiling(self, block: Block) -> float:
        """Relative compile cost of a block's cell: equal for all cells."""
        return 1.0
