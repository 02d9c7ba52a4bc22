"""Tiles that cannot be computed: narrower tiles when memory is short, and a status for runs that do not fit or crash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relu_study.engine.draw_plan import Block
from relu_study.engine.plan import Tile
from relu_study.errors import UserError
from relu_study.runner.callback import Callback
from relu_study.runner.prepare import Job
from relu_study.storage import manifest


class HalvingFallback:
    """A `scheduler.Fallback` that halves the width of a cohort, records it in the manifest and reports it.

    It also records the tiles that end every worker.

    A run's bits depend on the width of its tile. The width is therefore fixed once a tile of the cohort is stored.
    A shard never changes a width, because all shards share it.
    """

    def __init__(self, job: Job[Any, Any], folder: Path, callback: Callback) -> None:
        self.job, self.folder, self.callback = job, folder, callback
        self.widths = dict(job.widths)
        self.oom_ids: list[str] = []  # runs and cells that do not fit
        self.crashed: dict[str, str] = {}  # run or cell -> reason
        self.blocked: list[str] = []  # errors of the cohorts whose width is fixed

    def retile(self, tiles: Sequence[Tile | Block], why: str) -> Sequence[Any] | None:
        """The same runs in tiles of half the width; None if the width is fixed or minimal."""
        first = tiles[0]
        if self.job.shard or self._is_stored(first.cohort) or (narrow := self.job.plan.halve(tiles)) is None:
            return None
        self.widths[first.cohort] = narrow[0].width
        self._record()
        self.callback.on_retile(tiles, narrow)
        self.callback.on_message(
            f"{self.job.plan.describe(first)} does not fit in memory at width {first.width:,} ({why}): "
            f"it continues at {narrow[0].width:,}"
        )
        return narrow

    def give_up(self, tiles: Sequence[Tile | Block], why: str) -> None:
        """Mark the runs of a cohort `oom`, or block the cohort if its width is fixed. A later run chooses the width again."""
        first = tiles[0]
        if stored := self._is_stored(first.cohort) or self.job.shard:
            self.blocked.append(
                f"{self.job.plan.describe(first)} does not fit in memory at its width of {first.width:,} ({why}), and "
                + (
                    "tiles of that width are stored. Free memory or use another device and run the study again, or use a new "
                    "folder with --out to choose a narrower width"
                    if stored is True
                    else "all shards share it. Run the study on this machine without --shard until it continues at a narrower "
                    "width and has stored a tile, then start the shards again"
                )
                + f". The stored results in {self.folder} are kept"
            )
            return
        self.oom_ids = sorted({*self.oom_ids, *(name for tile in tiles for name in tile.ids)})
        self.widths.pop(first.cohort, None)
        self._record()
        self.callback.on_message(
            f"{self.job.plan.describe(first)} does not fit in memory at its narrowest width, {first.width:,} ({why}): "
            "its runs are skipped"
        )

    def crash(self, tiles: Sequence[Tile | Block], why: str) -> None:
        """Mark the runs of a tile or of a cohort `crashed`. A later run tries them again."""
        self.crashed = dict(sorted({**self.crashed, **{name: why for tile in tiles for name in tile.ids}}.items()))
        size = f"{sum(tile.size for tile in tiles):,} {self.job.kind.noun}"
        manifest.amend_manifest(self.folder, {}, crashed=self.crashed)
        self.callback.on_message(
            f"{self.job.plan.describe(tiles[0])}: "
            + (
                f"a tile of {size} has ended several workers and is"
                if len(tiles) == 1
                else f"no worker finishes a tile of this cohort. Its {size} are"
            )
            + f" not tried again in this run ({why})"
        )

    def raise_if_blocked(self) -> None:
        """Raise UserError if a cohort of fixed width did not fit. All other tiles are stored before."""
        if self.blocked:
            raise UserError("; ".join(self.blocked))

    def _record(self) -> None:
        manifest.amend_manifest(
            self.folder, {}, widths=dict(sorted(self.widths.items())), **({"oom": self.oom_ids} if self.oom_ids else {})
        )

    def _is_stored(self, cohort: str) -> bool:
        """Whether a tile of a cohort is stored. Reads the files, because another process may have written some."""
        return any(provenance.get("cohort") == cohort for provenance in self.job.kind.stored(self.folder, []).values())
