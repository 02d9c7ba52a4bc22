"""The meeting of the two wings: cut a study into tiles, dispatch them to devices, drain them into the store."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import jax
import numpy as np
import pandas as pd

from relu_study import dispatch, estimates, locks, store
from relu_study.cell_report import load_cells
from relu_study.clock import Clock
from relu_study.draw_job import DrawJob, prepare_draws
from relu_study.draws import DrawStudy, blocks_of
from relu_study.events import check_per_seed
from relu_study.fallback import Narrower
from relu_study.frames import Results, load
from relu_study.job import Job, begin, prepare, with_digest
from relu_study.live import Live
from relu_study.plan import Shard, Tile, shard_of
from relu_study.programs import Probing
from relu_study.progress import Watcher
from relu_study.registry import UserError
from relu_study.report import derive
from relu_study.settings import pinned
from relu_study.streams import numpy_defaults
from relu_study.study import Study
from relu_study.writes import check_there, make_ready


def use_devices() -> None:
    """One XLA device per core where there is no accelerator, and a compilation cache that keeps every program."""
    with contextlib.suppress(RuntimeError):  # a process that has used JAX already keeps the devices it has
        if jax.config.jax_num_cpu_devices < 0 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
            jax.config.update(
                "jax_num_cpu_devices", len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            )
    if not jax.config.jax_compilation_cache_dir:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "relu_study" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# ------------------------------------------------------------------------------------------ run


@overload
def run(
    study: Study,
    out: str | Path | None = None,
    *,
    preset: str | None = None,
    seeds: int | None = None,
    epochs: float | None = None,
    probe_examples: int | None = None,
    val_examples: int | None = 8192,
    keep_params: bool = False,
    all_epochs: bool = False,
    per_seed: bool = False,
    watcher: Watcher | None = None,
    shard: None = None,
) -> Results: ...


@overload
def run(study: Study, out: str | Path, *, shard: tuple[int, int], **settings: Any) -> None: ...


def run(  # type: ignore[misc]  # `settings` are its own
    study: Study,
    out: str | Path | None = None,
    *,
    preset: str | None = None,
    seeds: int | None = None,
    epochs: float | None = None,
    probe_examples: int | None = None,
    val_examples: int | None = 8192,
    keep_params: bool = False,
    all_epochs: bool = False,
    per_seed: bool = False,
    watcher: Watcher | None = None,
    shard: tuple[int, int] | None = None,
) -> Results | None:
    """Train whatever a study still lacks, write its results folder and return runs, curves and summary.

    `out=None` leaves no folder behind. `keep_params` returns the final parameters too, as
    `Results.params[run_id]`. `per_seed` adds a TensorBoard run for each single seed. Interrupted, it keeps every
    finished tile; the same call goes on from there. `shard=(i, n)` trains the i-th of n parts, beside those that train the
    others into the same folder, and returns None; once all are done, the same call without it reports.
    """
    use_devices()
    sized, asked = study.sized(preset, seeds=seeds, epochs=epochs), _shard(shard, out)
    with contextlib.ExitStack() as stack:
        stack.enter_context(numpy_defaults())
        folder = Path(out).expanduser() if out else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        about = {"command": "relu_study.run", "preset": preset or "default"}
        probing = Probing(sized.probe_examples if probe_examples is None else probe_examples, val_examples)
        carry_out(sized, folder, probing, watcher or Watcher(), about, keep_params, all_epochs, per_seed, asked)
        if asked:
            return None
        results = load(folder)
        if keep_params:
            results.params = store.stored_params(folder)
            if missing := set(results.runs.run_id) - set(results.params):
                raise UserError(
                    f"{folder} holds {len(missing)} runs trained without keeping parameters; name another folder with out="
                )
        return results


@pinned()
def carry_out(
    study: Study,
    folder: Path,
    probing: Probing,
    watcher: Watcher,
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
    with locks.hold(folder, shard):
        job = prepare(study, folder, probing, shard=shard)
        job = replace(job, provenance=with_digest(job.provenance))
        if per_seed:
            check_per_seed(job.declaration)
        locks.clear(folder, shard)
        make_ready(folder)
        shown = train(job, folder, watcher, keep_params, about, per_seed)
        for line in [_part_done(job, folder)] if shard else derive(folder, all_epochs, per_seed, shown):
            watcher.say(line)


@pinned()
def carry_out_draws(
    study: DrawStudy, folder: Path, watcher: Watcher, about: Mapping[str, Any], shard: Shard | None = None
) -> None:
    """Draw whatever a sized draw study still lacks in `folder`, and derive the rest from it; `about` enters the manifest.

    A `shard` draws its own part and derives nothing.
    """
    with locks.hold(folder, shard):
        job = prepare_draws(study, folder, shard=shard)
        job = replace(job, provenance=with_digest(job.provenance))
        locks.clear(folder, shard)
        make_ready(folder)
        draw(job, folder, watcher, about)
        for line in [_part_done(job, folder)] if shard else derive(folder):
            watcher.say(line)


def _shard(asked: tuple[int, int] | None, out: str | Path | None) -> Shard | None:
    if asked is None:
        return None
    if out is None:
        raise UserError("a shard needs the folder that it shares with the others: name it with out=")
    return shard_of(*asked)


def _part_done(job: Job | DrawJob, folder: Path) -> str:
    mine = job.stored + sum(tile.size for tile in job.plan.tiles)
    if isinstance(job, Job):
        wanted = len(ids := {run.run_id for run in job.study.runs()})
        stored = len(ids & set(store.stored_runs(folder)))
    else:
        asked = {(c["cell_id"], *block) for c in job.declaration["cells"] for block in blocks_of(c["draws"])}
        wanted, stored = (sum(count for _, _, count in found) for found in (asked, asked & set(estimates.stored_blocks(folder))))
    return f"shard {job.shard} is done, {mine:,} {job.plan.noun}; {folder} holds {stored:,} of {wanted:,}"


def train(
    job: Job, folder: Path, watcher: Watcher, keep_params: bool, about: Mapping[str, Any], per_seed: bool = False
) -> set[str]:
    """Train every tile of a job and store each as it is finished; complete configurations appear in TensorBoard meanwhile.

    Returns the configurations whose TensorBoard files are written.
    """
    clock, manifest = Clock(), begin(job, folder, watcher.say, about)
    live = None if job.shard else Live(folder, manifest, per_seed)
    fallback = Narrower(job, folder, watcher)
    watcher.begin(job.plan, job.stored)

    def close() -> None:
        check_there(folder)
        counts = {"ok": 0, "nonfinite": 0}
        wanted = {run.run_id for run in job.study.runs()}
        for status in (status for run, (status, _) in store.stored_runs(folder, []).items() if run in wanted):
            counts[status] += 1
        if unfit := len(fallback.lost):
            counts["oom"] = unfit
        counts["interrupted"] = len(wanted) - sum(counts.values())
        store.amend_manifest(folder, clock.spent(), counts=counts)
        if live is not None:
            live.write()

    with _closed(close), contextlib.closing(dispatch.trained(job.plan, job.probing, keep_params, fallback)) as finished:
        for tile, numbers, device, compiling in finished:
            check_there(folder)
            path = store.write_tile(folder, message(tile, numbers, job))
            if live is not None:
                live.tile(path, [run.run_id for run in tile.runs])
            watcher.tile(tile, device, compiling, _dead_fraction(numbers))
        fallback.conclude()
    return set() if live is None else live.shown


def draw(job: DrawJob, folder: Path, watcher: Watcher, about: Mapping[str, Any]) -> None:
    """Draw every block of a job and store each as it is finished."""
    clock = Clock()
    begin(job, folder, watcher.say, about)
    fallback = Narrower(job, folder, watcher)
    watcher.begin(job.plan, job.stored)

    def close() -> None:
        check_there(folder)
        store.amend_manifest(folder, clock.spent())

    with _closed(close), contextlib.closing(dispatch.drawn(job.plan, fallback)) as finished:
        for block, sums, device, compiling in finished:
            check_there(folder)
            made = {**job.provenance, "cohort": block.cohort, "width": block.width}
            estimates.write_block(folder, (block.cohort, block.first, block.count), sums, made)
            watcher.tile(block, device, compiling, math.nan)
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


def message(tile: Tile, numbers: store.Tile, job: Job) -> store.Tile:
    """A tile as it is stored: its numbers, who they belong to and what they depend on."""
    return {
        "run_id": np.array([run.run_id for run in tile.runs]),
        "spec": np.array([json.dumps(run.changed()) for run in tile.runs]),
        "provenance": np.array(json.dumps({**job.provenance, "cohort": tile.cohort, "width": tile.width}, sort_keys=True)),
        **numbers,
    }


def _dead_fraction(numbers: store.Tile) -> float:
    last = numbers["metric:dead_fraction/all"][:, -1]
    return float(np.nanmean(last)) if np.isfinite(last).any() else math.nan


@overload
def run_draws(
    study: DrawStudy,
    out: str | Path | None = None,
    *,
    preset: str | None = None,
    draws: int | None = None,
    watcher: Watcher | None = None,
    shard: None = None,
) -> pd.DataFrame: ...


@overload
def run_draws(study: DrawStudy, out: str | Path, *, shard: tuple[int, int], **settings: Any) -> None: ...


def run_draws(  # type: ignore[misc]  # as of `run`
    study: DrawStudy,
    out: str | Path | None = None,
    *,
    preset: str | None = None,
    draws: int | None = None,
    watcher: Watcher | None = None,
    shard: tuple[int, int] | None = None,
) -> pd.DataFrame | None:
    """Draw whatever a draw study still lacks, write its results folder and return its cells.csv as a DataFrame.

    `out=None` leaves no folder behind; `draws`: at most so many in each cell. Interrupted, it keeps every finished block.
    `shard=(i, n)` draws the i-th of n parts and returns None; once all are done, the same call without it reports.
    """
    use_devices()
    asked = _shard(shard, out)
    with contextlib.ExitStack() as stack:
        stack.enter_context(numpy_defaults())
        folder = Path(out).expanduser() if out else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        about = {"command": "relu_study.run_draws", "preset": preset or "default"}
        carry_out_draws(study.sized(preset, draws), folder, watcher or Watcher(), about, asked)
        return None if asked else load_cells(folder)
