"""The callback of a running study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relu_study.engine.draw_plan import Block, DrawPlan
    from relu_study.engine.plan import Plan, Tile


class Callback:
    """Events of a running study. Override the methods to follow it; these do nothing."""

    def on_start(self, plan: Plan | DrawPlan, stored: int) -> None:
        """Called before the first tile is queued; `stored` is the number of stored runs or draws."""

    def on_retile(self, old: Sequence[Tile | Block], new: Sequence[Tile | Block]) -> None:
        """Called when the tiles of a cohort do not fit in memory and narrower tiles replace them."""

    def on_tile_end(self, tile: Tile | Block, device: int, compiling: float, dead_fraction: float) -> None:
        """Called when a tile is stored.

        `device` is the device number, `compiling` the compile time in seconds.
        `dead_fraction` is the mean over the runs of the tile (NaN for draws).
        """

    def on_message(self, line: str) -> None:
        """Called with one line of text for the user."""
