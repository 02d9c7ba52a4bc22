"""The meeting of the two wings: cut a study into tiles, dispatch them to devices, drain them into the store."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any, overload

import jax
import pandas as pd

from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.report.cell_report import load_cells
from relu_study.runner.callback import Callback
from relu_study.runner.execute import execute, execute_draws
from relu_study.stats.numpy_defaults import numpy_defaults
from relu_study.storage import configurations
from relu_study.storage.frames import Results, load
from relu_study.study.draw_study import DrawStudy
from relu_study.study.shard import Shard, shard_of
from relu_study.study.study import Study


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
    callback: Callback | None = None,
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
    callback: Callback | None = None,
    shard: tuple[int, int] | None = None,
) -> Results | None:
    """Train whatever a study still lacks, write its results folder and return runs, curves and summary.

    `out=None` leaves no folder behind. `keep_params` returns the final parameters too, as
    `Results.params[run_id]`. `per_seed` adds a TensorBoard run for each single seed. Interrupted, it keeps every
    finished tile; the same call goes on from there. `shard=(i, n)` trains the i-th of n parts, beside those that train the
    others into the same folder, and returns None; once all are done, the same call without it reports.
    """
    use_devices()
    sized, asked = study.with_preset(preset, seeds=seeds, epochs=epochs), _shard(shard, out)
    with contextlib.ExitStack() as stack:
        stack.enter_context(numpy_defaults())
        folder = Path(out).expanduser() if out else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        command_info = {"command": "relu_study.run", "preset": preset or "default"}
        probing = MeasureConfig(sized.probe_examples if probe_examples is None else probe_examples, val_examples)
        execute(sized, folder, probing, callback or Callback(), command_info, keep_params, all_epochs, per_seed, asked)
        if asked:
            return None
        results = load(folder)
        if keep_params:
            results.params = configurations.stored_params(folder)
            if missing := set(results.runs.run_id) - set(results.params):
                raise UserError(
                    f"{folder} holds {len(missing)} runs trained without keeping parameters; name another folder with out="
                )
        return results


def _shard(asked: tuple[int, int] | None, out: str | Path | None) -> Shard | None:
    if asked is None:
        return None
    if out is None:
        raise UserError("a shard needs the folder that it shares with the others: name it with out=")
    return shard_of(*asked)


@overload
def run_draws(
    study: DrawStudy,
    out: str | Path | None = None,
    *,
    preset: str | None = None,
    draws: int | None = None,
    callback: Callback | None = None,
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
    callback: Callback | None = None,
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
        command_info = {"command": "relu_study.run_draws", "preset": preset or "default"}
        execute_draws(study.with_preset(preset, draws), folder, callback or Callback(), command_info, asked)
        return None if asked else load_cells(folder)
