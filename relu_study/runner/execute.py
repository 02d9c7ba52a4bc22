"""Execution of a prepared study: train or draw, store, derive the results."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from relu_study.engine import scheduler
from relu_study.engine.compile_time import Stopwatch
from relu_study.engine.jax_settings import pinned
from relu_study.engine.plan import Tile
from relu_study.engine.state import MeasureConfig
from relu_study.report.report import derive
from relu_study.report.tensorboard.event_files import check_per_seed
from relu_study.report.tensorboard.live import Live
from relu_study.runner.callback import Callback
from relu_study.runner.oom_fallback import HalvingFallback
from relu_study.runner.prepare import Job, begin, prepare
from relu_study.runner.prepare_draws import DrawJob, prepare_draws
from relu_study.runner.provenance import with_digest
from relu_study.storage import block_files, locks, tile_files
from relu_study.storage.atomic_write import check_exists, check_writable
from relu_study.storage.manifest import amend_manifest
from relu_study.study.draw_study import DrawStudy, blocks_of
from relu_study.study.shard import Shard
from relu_study.study.study import Study


@pinned()
def execute(
    study: Study,
    folder: Path,
    probing: MeasureConfig,
    callback: Callback,
    about: Mapping[str, Any],
    keep_params: bool = False,
    all_epochs: bool = False,
    per_seed: bool = False,
    shard: Shard | None = None,
) -> None:
    """Train whatever a sized study still lacks in `folder` and derive everything else from it; `about` enters the manifest.

    `per_seed` adds a TensorBoard run for each single seed; more than 500 are refused (UserError) before anything is trained.
    A `shard` trains its own part and derives nothing. Who else writes the folder meanwhile is refused, or this process is.
    """
    with locks.writer_lock(folder, shard):
        job = prepare(study, folder, probing, shard=shard)
        job = replace(job, provenance=with_digest(job.provenance))
        if per_seed:
            check_per_seed(job.declaration)
        locks.remove_stale_temporaries(folder, shard)
        check_writable(folder)
        shown = train_tiles(job, folder, callback, keep_params, about, per_seed)
        for line in [_part_done(job, folder)] if shard else derive(folder, all_epochs, per_seed, shown):
            callback.on_message(line)


@pinned()
def execute_draws(
    study: DrawStudy, folder: Path, callback: Callback, about: Mapping[str, Any], shard: Shard | None = None
) -> None:
    """Draw whatever a sized draw study still lacks in `folder`, and derive the rest from it; `about` enters the manifest.

    A `shard` draws its own part and derives nothing.
    """
    with locks.writer_lock(folder, shard):
        job = prepare_draws(study, folder, shard=shard)
        job = replace(job, provenance=with_digest(job.provenance))
        locks.remove_stale_temporaries(folder, shard)
        check_writable(folder)
        draw_blocks(job, folder, callback, about)
        for line in [_part_done(job, folder)] if shard else derive(folder):
            callback.on_message(line)


def _part_done(job: Job | DrawJob, folder: Path) -> str:
    mine = job.stored + sum(tile.size for tile in job.plan.tiles)
    if isinstance(job, Job):
        wanted = len(ids := {run.run_id for run in job.study.runs()})
        stored = len(ids & set(tile_files.stored_runs(folder)))
    else:
        asked = {(c["cell_id"], *block) for c in job.declaration["cells"] for block in blocks_of(c["draws"])}
        wanted, stored = (
            sum(count for _, _, count in found) for found in (asked, asked & set(block_files.stored_blocks(folder)))
        )
    return f"shard {job.shard} is done, {mine:,} {job.plan.noun}; {folder} holds {stored:,} of {wanted:,}"


def train_tiles(
    job: Job, folder: Path, callback: Callback, keep_params: bool, about: Mapping[str, Any], per_seed: bool = False
) -> set[str]:
    """Train every tile of a job and store each as it is finished; complete configurations appear in TensorBoard meanwhile.

    Returns the configurations whose TensorBoard files are written.
    """
    clock, manifest = Stopwatch(), begin(job, folder, callback.on_message, about)
    live = None if job.shard else Live(folder, manifest, per_seed)
    fallback = HalvingFallback(job, folder, callback)
    callback.on_start(job.plan, job.stored)

    def close() -> None:
        check_exists(folder)
        counts = {"ok": 0, "nonfinite": 0}
        wanted = {run.run_id for run in job.study.runs()}
        for status in (status for run, (status, _) in tile_files.stored_runs(folder, []).items() if run in wanted):
            counts[status] += 1
        if unfit := len(fallback.lost):
            counts["oom"] = unfit
        counts["interrupted"] = len(wanted) - sum(counts.values())
        amend_manifest(folder, clock.spent(), counts=counts)
        if live is not None:
            live.write()

    with _closed(close), contextlib.closing(scheduler.trained(job.plan, job.probing, keep_params, fallback)) as finished:
        for tile, numbers, device, compiling in finished:
            check_exists(folder)
            path = tile_files.write_tile(folder, tile_record(tile, numbers, job))
            if live is not None:
                live.tile(path, [run.run_id for run in tile.runs])
            callback.on_tile_end(tile, device, compiling, _dead_fraction(numbers))
        fallback.conclude()
    return set() if live is None else live.shown


def draw_blocks(job: DrawJob, folder: Path, callback: Callback, about: Mapping[str, Any]) -> None:
    """Draw every block of a job and store each as it is finished."""
    clock = Stopwatch()
    begin(job, folder, callback.on_message, about)
    fallback = HalvingFallback(job, folder, callback)
    callback.on_start(job.plan, job.stored)

    def close() -> None:
        check_exists(folder)
        amend_manifest(folder, clock.spent())

    with _closed(close), contextlib.closing(scheduler.drawn(job.plan, fallback)) as finished:
        for block, sums, device, compiling in finished:
            check_exists(folder)
            made = {**job.provenance, "cohort": block.cohort, "width": block.width}
            block_files.write_block(folder, (block.cohort, block.first, block.count), sums, made)
            callback.on_tile_end(block, device, compiling, math.nan)
        fallback.conclude()


@contextlib.contextmanager
def _closed(close: Callable[[], None]) -> Iterator[None]:
    """Call `close` at the end, whatever ends it: what then cannot be done never hides the error that came first."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            close()
        raise
    close()


def tile_record(tile: Tile, numbers: tile_files.Tile, job: Job) -> tile_files.Tile:
    """A tile as it is stored: its numbers, who they belong to and what they depend on."""
    return {
        "run_id": np.array([run.run_id for run in tile.runs]),
        "spec": np.array([json.dumps(run.changed()) for run in tile.runs]),
        "provenance": np.array(json.dumps({**job.provenance, "cohort": tile.cohort, "width": tile.width}, sort_keys=True)),
        **numbers,
    }


def _dead_fraction(numbers: tile_files.Tile) -> float:
    last = numbers["metric:dead_fraction/all"][:, -1]
    return float(np.nanmean(last)) if np.isfinite(last).any() else math.nan
