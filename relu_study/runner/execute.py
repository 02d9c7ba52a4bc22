"""Execution of a study: compute the missing tiles, store them, derive the results."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from relu_study.engine import scheduler
from relu_study.engine.compile_time import Stopwatch
from relu_study.engine.jax_settings import pinned
from relu_study.engine.state import MeasureConfig
from relu_study.report.report import derive
from relu_study.report.tensorboard.event_files import check_per_seed
from relu_study.runner.callback import Callback
from relu_study.runner.oom_fallback import HalvingFallback
from relu_study.runner.prepare import Job, begin, prepare
from relu_study.runner.provenance import with_digest
from relu_study.storage import locks
from relu_study.storage.atomic_write import check_exists, check_writable
from relu_study.storage.manifest import amend_manifest
from relu_study.study.draw_study import DrawStudy
from relu_study.study.shard import Shard
from relu_study.study.study import Study


@pinned()
def execute(
    study: Study | DrawStudy,
    folder: Path,
    measure_config: MeasureConfig,
    callback: Callback,
    command_info: Mapping[str, Any],
    keep_params: bool = False,
    all_epochs: bool = False,
    per_seed: bool = False,
    shard: Shard | None = None,
) -> None:
    """Compute the missing runs or draws of a sized study in `folder` and derive the results.

    `command_info` enters the manifest. `per_seed` adds a TensorBoard run for each seed.
    A `shard` computes only its own part and derives nothing.
    Raises UserError before training if `per_seed` gives more than 500 runs, or if another process writes the folder.
    """
    with locks.writer_lock(folder, shard):
        job = prepare(study, folder, measure_config, shard=shard)
        job = replace(job, provenance=with_digest(job.provenance))
        if per_seed:
            check_per_seed(len(job.ids))
        locks.remove_stale_temporaries(folder, shard)
        check_writable(folder)
        shown = run_tiles(job, folder, callback, command_info, keep_params, per_seed)
        for line in [_part_done(job, folder)] if shard else derive(folder, all_epochs, per_seed, shown):
            callback.on_message(line)


def _part_done(job: Job[Any, Any], folder: Path) -> str:
    size = job.stored + sum(tile.size for tile in job.plan.tiles)
    requested, stored = job.kind.count(job.ids), job.kind.count(set(job.ids) & job.kind.stored(folder).keys())
    return f"shard {job.shard} is done, {size:,} {job.kind.noun}; {folder} holds {stored:,} of {requested:,}"


def run_tiles(
    job: Job[Any, Any],
    folder: Path,
    callback: Callback,
    command_info: Mapping[str, Any],
    keep_params: bool = False,
    per_seed: bool = False,
) -> set[str]:
    """Compute every tile of a job and store each as soon as it is finished.

    Configurations appear in TensorBoard as soon as they are complete. Returns the configurations written there.
    """
    stopwatch, manifest = Stopwatch(), begin(job, folder, callback.on_message, command_info)
    live = None if job.shard else job.kind.live(folder, manifest, per_seed)
    work, fallback = job.kind.work(job, keep_params), HalvingFallback(job, folder, callback)
    callback.on_start(job.plan, job.stored)

    def close() -> None:
        check_exists(folder)
        amend_manifest(folder, stopwatch.spent(), **job.kind.counts(folder, job.ids, len(fallback.oom_ids)))
        if live is not None:
            live.write()

    with _closed(close), contextlib.closing(scheduler.finished(work, fallback)) as finished:
        for tile, numbers, device, compiling in finished:
            check_exists(folder)
            path = job.kind.save(folder, tile, numbers, job.tile_provenance(tile))
            if live is not None:
                live.tile(path, tile.ids)
            callback.on_tile_end(tile, device, compiling, _dead_fraction(numbers))
        fallback.raise_if_blocked()
    return set() if live is None else live.shown


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


def _dead_fraction(numbers: Mapping[str, np.ndarray]) -> float:
    """The mean dead fraction of a tile at its last epoch; NaN for draws."""
    dead = numbers.get("metric:dead_fraction/all")
    return math.nan if dead is None or not np.isfinite(dead[:, -1]).any() else float(np.nanmean(dead[:, -1]))
