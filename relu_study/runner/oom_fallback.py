"""Where a program does not fit in memory: narrower tiles before a cohort's first is stored, and after it a clear end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relu_study.engine import draw_plan, plan
from relu_study.engine.draw_plan import Block
from relu_study.engine.plan import Tile
from relu_study.errors import UserError
from relu_study.runner.callback import Callback
from relu_study.runner.prepare import Job
from relu_study.runner.prepare_draws import DrawJob
from relu_study.storage import block_files, manifest, tile_files


class HalvingFallback:
    """Halves the width of a cohort that does not fit, writes that into the manifest and says it: `dispatch.Fallback`.

    A run's bits depend on its tile's width: once a tile of a cohort is stored, its width is settled, and so is that of a shard,
    which the others share.
    """

    def __init__(self, job: Job | DrawJob, folder: Path, callback: Callback) -> None:
        self.job, self.folder, self.callback = job, folder, callback
        self.widths = dict(job.widths)
        self.lost: list[str] = []  # runs and cells that do not fit
        self.settled: list[str] = []  # what there is to say of cohorts whose width is

    def narrower(self, tiles: Sequence[Any], why: str) -> Sequence[Any] | None:
        """The same runs in tiles of half the width; None where a tile of the cohort is stored, or these are the narrowest."""
        first = tiles[0]
        if self.job.shard or _stored(self.folder, first.cohort):
            return None
        cut = draw_plan.halve_block(tiles) if isinstance(first, Block) else plan.halve_width(tiles, self.job.plan.platform)
        if cut is None:
            return None
        self.widths[first.cohort] = cut[0].width
        self._record()
        self.callback.on_retile(tiles, cut)
        self.callback.on_message(
            f"{self._named(first)} does not fit in memory at a width of {first.width:,} ({why}): it goes on at {cut[0].width:,}"
        )
        return cut

    def unfit(self, tiles: Sequence[Any], why: str) -> None:
        """Runs of a cohort without a stored tile are `oom`, and a later run chooses its width anew."""
        first = tiles[0]
        if stored := _stored(self.folder, first.cohort) or self.job.shard:
            self.settled.append(
                f"{self._named(first)} does not fit in memory at its width of {first.width:,} ({why}), and "
                + (
                    "tiles of that width are stored: free memory or take another device and run the study again, or name a new "
                    "folder with --out, where a narrower width is chosen"
                    if stored is True
                    else "all shards share it: run the study on this machine without --shard until it says that it goes on at a "
                    "narrower width and has stored a tile, then start the shards again"
                )
                + f"; what is stored in {self.folder} is kept"
            )
            return
        lost = [first.cohort] if isinstance(first, Block) else [run.run_id for tile in tiles for run in tile.runs]
        self.lost = sorted({*self.lost, *lost})
        self.widths.pop(first.cohort, None)
        self._record()
        self.callback.on_message(
            f"{self._named(first)} does not fit in memory at its narrowest width, {first.width:,} ({why}): left out"
        )

    def conclude(self) -> None:
        """Stop (UserError) where a cohort whose width is settled did not fit; all other tiles are stored by then."""
        if self.settled:
            raise UserError("; ".join(self.settled))

    def _record(self) -> None:
        manifest.amend_manifest(
            self.folder, {}, widths=dict(sorted(self.widths.items())), **({"oom": self.lost} if self.lost else {})
        )

    def _named(self, tile: Tile | Block) -> str:
        if isinstance(tile, Block):
            return f"cell {tile.cohort} ({tile.statistic} {', '.join(f'{name}={value}' for name, value in tile.cell)})"
        assert isinstance(self.job, Job)
        return f"cohort {tile.cohort} ({next(c.work.title for c in self.job.plan.cohorts if c.name == tile.cohort)})"


def _stored(folder: Path, cohort: str) -> bool:
    """Has anybody stored a tile or a block of a cohort? Asked of the files, which another process may have written since."""
    made = [*(about for _, about in tile_files.stored_runs(folder, []).values()), *block_files.stored_blocks(folder, []).values()]
    return any(about.get("cohort") == cohort for about in made)
