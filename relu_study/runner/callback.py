"""The callback of a running study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relu_study.engine.draw_plan import Block, DrawPlan
    from relu_study.engine.plan import Plan, Tile


class Callback:
    """Whoever follows a run: told the plan, then each stored tile. This one is silent."""

    def on_start(self, plan: Plan | DrawPlan, stored: int) -> None:
        """Told before the first tile is queued."""

    def on_retile(self, old: Sequence[Tile | Block], new: Sequence[Tile | Block]) -> None:
        """Told when the tiles of a cohort did not fit in memory and narrower ones take their place."""

    def on_tile_end(self, tile: Tile | Block, device: int, compiling: float, dead_fraction: float) -> None:
        """Told when a tile is stored: its device, seconds of compiling there, mean dead fraction of its runs (NaN for draws)."""

    def on_message(self, line: str) -> None:
        """Told one line for the person who waits."""
