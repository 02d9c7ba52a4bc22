"""Execution of a study: train or draw the missing tiles, store them, derive the results."""

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
    command_info: Mapping[str, Any],
    keep_params: bool = False,
    all_epochs: bool = False,
    per_seed: bool = False,
    shard: Shard | None = None,
) -> None:
    """Train the missing runs of a sized study into `folder` and derive the results; `command_info` enters the manifest.

    `per_seed` adds a TensorBoard run for each seed. A `shard` trains only its own part and derives nothing.
    Raises UserError before training if `per_seed` gives more than 500 runs, or if another process writes the folder.
    """
    with locks.writer_lock(folder, shard):
        job = prepare(study, folder, probing, shard=shard)
        job = replace(job, provenance=with_digest(job.provenance))
        if per_seed:
            check_per_seed(job.declaration)
        locks.remove_stale_temporaries(folder, shard)
        check_writable(folder)
        shown = train_tiles(job, folder, callback, keep_params, command_info, per_seed)
        for line in [_part_done(job, folder)] if shard else derive(folder, all_epochs, per_seed, shown):
            callback.on_message(line)


@pinned()
def execute_draws(
    study: DrawStudy, folder: Path, callback: Callback, command_info: Mapping[str, Any], shard: Shard | None = None
) -> None:
    """Compute the missing draws of a sized draw study in `folder` and derive the results; `command_info` enters the manifest.

    A `shard` draws only its own part and derives nothing.
    """
    with locks.writer_lock(folder, shard):
        job = prepare_draws(study, folder, shard=shard)
        job = replace(job, provenance=with_digest(job.provenance))
        locks.remove_stale_temporaries(folder, shard)
        check_writable(folder)
        draw_blocks(job, folder, callback, command_info)
        for line in [_part_done(job, folder)] if shard else derive(folder):
            callback.on_message(line)


def _part_done(job: Job | DrawJob, folder: Path) -> str:
    size = job.stored + sum(tile.size for tile in job.plan.tiles)
    if isinstance(job, Job):
        requested = len(ids := {run.run_id for run in job.study.runs()})
        stored = len(ids & set(tile_files.stored_runs(folder)))
    else:
        blocks = {(c["cell_id"], *block) for c in job.declaration["cells"] for block in blocks_of(c["draws"])}
        requested, stored = (
            sum(count for _, _, count in part) for part in (blocks, blocks & set(block_files.stored_blocks(folder)))
        )
    return f"shard {job.shard} is done, {size:,} {job.plan.noun}; {folder} holds {stored:,} of {requested:,}"


def train_tiles(
    job: Job, folder: Path, callback: Callback, keep_params: bool, command_info: Mapping[str, Any], per_seed: bool = False
) -> set[str]:
    """Train every tile of a job and store each as soon as it is finished.

    Configurations appear in TensorBoard as soon as they are complete. Returns the configurations written there.
    """
    stopwatch, manifest = Stopwatch(), begin(job, folder, callback.on_message, command_info)
    live = None if job.shard else Live(folder, manifest, per_seed)
    work, fallback = scheduler.training(job.plan, job.probing, keep_params), HalvingFallback(job, folder, callback)
    callback.on_start(job.plan, job.stored)

    def close() -> None:
        check_exists(folder)
        counts = {"ok": 0, "nonfinite": 0}
        requested = {run.run_id for run in job.study.runs()}
        for status in (status for run, (status, _) in tile_files.stored_runs(folder, []).items() if run in requested):
            counts[status] += 1
        if num_oom := len(fallback.oom_ids):
            counts["oom"] = num_oom
        counts["interrupted"] = len(requested) - sum(counts.values())
        amend_manifest(folder, stopwatch.spent(), counts=counts)
        if live is not None:
            live.write()

    with _closed(close), contextlib.closing(scheduler.finished(work, fallback)) as finished:
        for tile, numbers, device, compiling in finished:
            check_exists(folder)
            path = tile_files.write_tile(folder, tile_record(tile, numbers, job))
            if live is not None:
                live.tile(path, [run.run_id for run in tile.runs])
            callback.on_tile_end(tile, device, compiling, _dead_fraction(numbers))
        fallback.raise_if_blocked()
    return set() if live is None else live.shown


def draw_blocks(job: DrawJob, folder: Path, callback: Callback, command_info: Mapping[str, Any]) -> None:
    """Draw every block of a job and store each as soon as it is finished."""
    stopwatch = Stopwatch()
    begin(job, folder, callback.on_message, command_info)
    fallback = HalvingFallback(job, folder, callback)
    callback.on_start(job.plan, job.stored)

    def close() -> None:
        check_exists(folder)
        amend_manifest(folder, stopwatch.spent())

    with _closed(close), contextlib.closing(scheduler.finished(scheduler.drawing(job.plan), fallback)) as finished:
        for block, sums, device, compiling in finished:
            check_exists(folder)
            provenance = {**job.provenance, "cohort": block.cohort, "width": block.width}
            block_files.write_block(folder, (block.cohort, block.first, block.count), sums, provenance)
            callback.on_tile_end(block, device, compiling, math.nan)
        fallback.raise_if_blocked()


@contextlib.contextmanager
def _closed(close: Callable[[], None]) -> Iterator[None]:
    """Call `close` at the end, also after an error. An error in `close` never hides the first error."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            close()
        raise
    close()


def tile_record(tile: Tile, numbers: tile_files.Tile, job: Job) -> tile_files.Tile:
    """The arrays of a tile file: the numbers, their run ids, RunSpecs and provenance."""
    return {
        "run_id": np.array([run.run_id for run in tile.runs]),
        "spec": np.array([json.dumps(run.changed()) for run in tile.runs]),
        "provenance": np.array(json.dumps({**job.provenance, "cohort": tile.cohort, "width": tile.width}, sort_keys=True)),
        **numbers,
    }


def _dead_fraction(numbers: tile_files.Tile) -> float:
    last = numbers["metric:dead_fraction/all"][:, -1]
    return float(np.nanmean(last)) if np.isfinite(last).any() else math.nan
