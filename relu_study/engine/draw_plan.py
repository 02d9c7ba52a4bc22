"""Blocks of draws: the unit of work of a draw study. Plain data, no JAX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Block:
    """Draws first..first + count - 1 of one cell: the unit of dispatch, of storage and of resuming, as a tile is of runs.

    `width` of them are made at a time by one program, which is that of the cell.
    """

    cohort: str  # the cell's id: a cell has a program of its own
    width: int
    statistic: str
    cell: tuple[tuple[str, Any], ...]
    first: int
    count: int
    operations: float  # of one draw

    @property
    def size(self) -> int:
        """Its draws."""
        return self.count

    @property
    def cost(self) -> float:
        """Its cost beside that of other blocks."""
        return self.count * self.operations


def halve_block(blocks: Sequence[Block]) -> list[Block] | None:
    """The blocks of a cell drawn half as many at a time; None where that is one."""
    return [replace(block, width=block.width // 2) for block in blocks] if blocks[0].width > 1 else None


@dataclass(frozen=True)
class DrawPlan:
    """Everything that will be drawn, before anything is."""

    tiles: list[Block]  # the costliest first, so that devices finish together
    devices: int
    platform: str
    noun: str = "draws"

    def cost(self, block: Block) -> float:
        """The cost of a block beside that of others."""
        return block.cost

    def compiling(self, block: Block) -> float:
        """What compiling the program of a block's cell costs beside those of others: they are all alike."""
        return 1.0
