"""Blocks and plan of a draw study. Plain data, no JAX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    def ids(self) -> list[str]:
        """The cell_id."""
        return [self.cohort]

    @property
    def cost(self) -> float:
        """Relative cost."""
        return self.count * self.operations


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

    def table(self) -> list[tuple[str, ...]]:
        """Rows of text, one per statistic, below a header."""
        rows: list[tuple[str, ...]] = [("statistic", "cells", "draws", "blocks")]
        for name in dict.fromkeys(block.statistic for block in self.tiles):
            blocks = [block for block in self.tiles if block.statistic == name]
            cells, draws = len({block.cohort for block in blocks}), sum(block.count for block in blocks)
            rows.append((name, f"{cells:,}", f"{draws:,}", f"{len(blocks):,}"))
        return rows

    def totals(self, stored: int, timing: Mapping[str, float], memory: str = "") -> str:
        """The totals in words, with `memory` inserted. The time of draws is unknown."""
        return (
            f"{sum(block.count for block in self.tiles):,} draws to compute ({stored:,} stored) in "
            f"{len({block.cohort for block in self.tiles}):,} cells and {len(self.tiles):,} blocks on "
            f"{self.devices} {self.platform} device(s); one compilation per cell; "
            f"{memory}time: unknown until the first blocks are done"
        )

    def halve(self, blocks: Sequence[Block]) -> list[Block] | None:
        """The blocks of a cell at half their width; None if the width is 1."""
        return [replace(block, width=block.width // 2) for block in blocks] if blocks[0].width > 1 else None

    def describe(self, block: Block) -> str:
        """The cell of a block, in words."""
        return f"cell {block.cohort} ({block.statistic} {', '.join(f'{name}={value}' for name, value in block.cell)})"
