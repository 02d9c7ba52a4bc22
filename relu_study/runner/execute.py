"""Execution of a study: computation and storage of the missing tiles, then the derived results."""

from __future__ import annotations

import contextlib
import functools
import gc
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
from relu_study.runner.devices import cpu_note
from relu_study.runner.oom_fallback import HalvingFallback
from relu_study.runner.prepare import Job, begin, prepare
from relu_study.runner.provenance import with_digest
from relu_study.runner.remote_places import RemotePlaces
from relu_study.storage import locks
from relu_study.storage.atomic_write import check_exists, check_writable
from relu_study.storage.manifest import amend_manifest
from relu_study.study.draw_study import DrawStudy
from relu_study.study.shard import Shard
from relu_study.study.study import Study

ALLOCATIONS = 50_000  # of Python objects between two garbage collections; Python's own is 700


@contextlib.contextmanager
def _rare_collection() -> Iterator[None]:
    """Collect Python's garbage rarely. Tracing makes very many objects and few cycles, and collections take a tenth of it."""
    before = gc.get_threshold()
    if gc.isenabled() and before[0]:
        gc.set_threshold(max(ALLOCATIONS, before[0]), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@pinned()
@_rare_collection()
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
    cluster: str | None = None,
    workers: int | None = None,
) -> None:
    """Compute the missing runs or draws of a sized study in `folder`, and derive the results.

    A shard computes only its own part and derives nothing. On a cluster, workers compute and this process writes every file.

    Args:
      command_info: entries of the manifest.
      keep_params: store the trained parameters.
      all_epochs: write every epoch to summary.csv.
      per_seed: add a TensorBoard run for each seed.
      cluster: address of a cluster, such as "ray" (None: this machine).
      workers: workers to ask the cluster for.

    Raises:
      UserError: before training, if `per_seed` gives more than 500 runs, or if another process writes the folder.
    """
    if per_seed and isinstance(study, Study):
        check_per_seed(len(study.runs()))
    if cluster is None and (note := cpu_note()):
        callback.on_message(note)
    places_of_study = places_of(cluster, study, workers, callback.on_message, folder, measure_config)
    with locks.writer_lock(folder, shard), places_of_study as places:
        job = prepare(study, folder, measure_config, shard=shard, machine=None if places is None else places.machine)
        job = replace(job, provenance=with_digest(job.provenance, job.machine.digest))
        locks.remove_stale_temporaries(folder, shard)
        check_writable(folder)
        if job.undecidable_rows:
            callback.on_message(job.undecidable_rows)
        written = run_tiles(job, folder, callback, command_info, keep_params, per_seed, places)
        for line in [_shard_summary(job, folder)] if shard else derive(folder, all_epochs, per_seed, written):
            callback.on_message(line)


def places_of(
    cluster: str | None,
    study: Study | DrawStudy,
    workers: int | None,
    on_message: Callable[[str], None],
    folder: Path | None,
    measure_config: MeasureConfig,
) -> contextlib.AbstractContextManager[RemotePlaces | None]:
    """The places of a cluster for a study; None without a cluster, for this machine. Raises UserError."""
    if cluster is None:
        return contextlib.nullcontext()
    from relu_study.runner.cluster import connected

    return connected(cluster, study, workers, on_message, folder, measure_config)


def _shard_summary(job: Job[Any, Any], folder: Path) -> str:
    """Return the last line of a shard: its number of runs or draws, and the folder's number."""
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
    places: RemotePlaces | None = None,
) -> set[str]:
    """Compute the missing tiles of a job, and store each as soon as it is finished.

    Configurations appear in TensorBoard as soon as they are complete. Return the configurations in TensorBoard. A shard writes no
    TensorBoard files. `places` are those of a cluster (default: this machine).
    """
    stopwatch, manifest = Stopwatch(), begin(job, folder, callback.on_message, command_info)
    findings = job.kind.findings(folder, manifest, job.stored)
    tensorboard = None if job.shard else job.kind.live(folder, manifest, per_seed)
    rate = None if places is None else functools.partial(places.rate, measure_config=job.measure_config)
    job = job.kind.with_measured_widths(job, folder, callback.on_message, rate)
    work, fallback = job.kind.work(job, keep_params), HalvingFallback(job, folder, callback)
    if places is not None:
        work = places.work(work, job.measure_config, keep_params)
    callback.on_start(job.plan, job.stored)
    if places is not None:
        callback.on_workers(places.accounts)

    def close() -> None:
        check_exists(folder)
        spent = stopwatch.spent()
        spent["compile_s"] += places.accounts.compile_seconds() if places is not None else 0.0
        amend_manifest(folder, spent, **job.kind.counts(folder, job.ids))
        if tensorboard is not None:
            tensorboard.write()

    with _always_closed(close), contextlib.closing(scheduler.finished(work, fallback, places)) as finished:
        for tile, numbers, device, compiling in finished:
            check_exists(folder)
            path = job.kind.save(folder, tile, numbers, job.tile_provenance(tile))
            if tensorboard is not None:
                tensorboard.tile(path, tile.ids)
            callback.on_tile_end(tile, device, compiling, _dead_fraction(numbers))
            for sick in findings.tile(tile.runs, numbers) if findings else ():
                callback.on_finding(*sick)
        fallback.raise_if_blocked()
    for line in places.accounts.summary(job.kind.noun) if places is not None else ():
        callback.on_message(line)
    if findings is not None:
        callback.on_finding_counts(findings.counts())
    return set() if tensorboard is None else tensorboard.shown


@contextlib.contextmanager
def _always_closed(close: Callable[[], None]) -> Iterator[None]:
    """Call `close` at the end, even after an error. An error in `close` never hides an earlier error."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            close()
        raise
    close()


def _dead_fraction(numbers: Mapping[str, np.ndarray]) -> float:
    """Return the mean dead fraction of a tile at its last epoch. NaN for draws."""
    dead = numbers.get("metric:dead_fraction/all")
    return math.nan if dead is None or not np.isfinite(dead[:, -1]).any() else float(np.nanmean(dead[:, -1]))
