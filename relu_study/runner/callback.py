"""The callback of a running study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relu_study.diagnosis.finding import Finding
    from relu_study.engine.draw_plan import Block, DrawPlan
    from relu_study.engine.plan import Plan, Tile
    from relu_study.runner.findings import FindingCounts
    from relu_study.runner.worker_account import Accounts
    from relu_study.study.run_spec import RunSpec


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

    def on_workers(self, accounts: Accounts) -> None:
        """Called after `on_start` on a cluster. The accounts of its workers change with each tile."""

    def on_finding(self, run: RunSpec, arm: str, finding: Finding) -> None:
        """Called once for each configuration of a training study, when a tile with its first sick run is stored.

        `arm` names the configuration by experiment, arm and target. `finding` is the one of the run with the earliest onset.
        """

    def on_finding_counts(self, counts: FindingCounts) -> None:
        """Called after the last tile of a training study, with the number of configurations with a finding."""

    def on_message(self, line: str) -> None:
        """Called with one line of text for the user."""
