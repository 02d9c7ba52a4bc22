"""The public functions that run a study: `run` and `run_draws`."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict, Unpack, overload

import pandas as pd

from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.report.cell_report import load_cells
from relu_study.runner.callback import Callback
from relu_study.runner.cluster_address import check_request
from relu_study.runner.devices import use_devices
from relu_study.runner.execute import execute
from relu_study.stats.numpy_defaults import numpy_defaults
from relu_study.storage import configurations
from relu_study.storage.frames import load
from relu_study.storage.results import Results
from relu_study.study.draw_study import DrawStudy
from relu_study.study.shard import Shard, shard_of
from relu_study.study.study import Study

# ------------------------------------------------------------------------------------------ run


class RunSettings(TypedDict, total=False):
    """The settings of `run`, described there."""

    preset: str | None
    seeds: int | None
    epochs: float | None
    probe_examples: int | None
    val_examples: int | None
    keep_params: bool
    all_epochs: bool
    per_seed: bool
    callback: Callback | None
    cluster: str | None
    workers: int | None


@overload
def run(study: Study, out: str | Path | None = None, *, shard: None = None, **settings: Unpack[RunSettings]) -> Results: ...


@overload
def run(study: Study, out: str | Path, *, shard: tuple[int, int], **settings: Unpack[RunSettings]) -> None: ...


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
    shard: tuple[int, int] | None = None,
    cluster: str | None = None,
    workers: int | None = None,
) -> Results | None:
    """Train the missing runs of a study, write its results folder and return runs, curves and summary.

    Configures JAX first: devices and compilation cache. An interrupted call keeps finished tiles; the same call resumes.

    Args:
        study: The study.
        out: Results folder; None uses a temporary folder.
        preset: Name of a preset of the study.
        seeds: Seeds of each configuration.
        epochs: Epochs of every run.
        probe_examples: Training examples in the probe set (None: 8192, or all if fewer).
        val_examples: Validation examples that val_loss reads (None: all).
        keep_params: Return the final parameters as `Results.params[run_id]`.
        all_epochs: Write every epoch to summary.csv.
        per_seed: Add a TensorBoard run for each seed.
        callback: Receives the events of the run.
        shard: (i, n) trains part i of n into a shared folder and returns None.
            After all parts, the same call without `shard` writes the report.
        cluster: Train on a Ray cluster: "ray", "ray:HOST:PORT" or "ray:local". None: on this machine.
            Afterwards this process uses its CPU only: train on its own accelerators in another process.
        workers: Number of workers to ask the cluster for. None: one a CPU node or GPU.

    Raises:
        UserError: The study, the folder or an argument is not valid.
    """
    sized, measure_config = study.with_preset(preset, seeds=seeds, epochs=epochs), MeasureConfig(probe_examples, val_examples)
    command_info = {"command": "relu_study.run", "preset": preset or "default"}
    part = _shard(shard, out)
    check_request(cluster, workers, "shard" if part else "")
    with _results_folder(out) as folder:
        options = keep_params, all_epochs, per_seed, part, cluster, workers
        execute(sized, folder, measure_config, callback or Callback(), command_info, *options)
        if part:
            return None
        results = load(folder)
        if keep_params:
            results.params = configurations.stored_params(folder)
            if missing := set(results.runs.run_id) - set(results.params):
                raise UserError(f"{folder} holds {len(missing)} runs without stored parameters. Use another folder with out=.")
        return results


@contextlib.contextmanager
def _results_folder(out: str | Path | None) -> Iterator[Path]:
    """The results folder, a temporary one if `out` is None, with JAX and NumPy configured."""
    use_devices()
    with contextlib.nullcontext(out) if out else tempfile.TemporaryDirectory() as folder, numpy_defaults():
        yield Path(folder).expanduser()


def _shard(shard: tuple[int, int] | None, out: str | Path | None) -> Shard | None:
    if shard is None:
        return None
    if out is None:
        raise UserError("A shard requires the folder that all shards share. Give it with out=.")
    return shard_of(*shard)


class DrawSettings(TypedDict, total=False):
    """The settings of `run_draws`, described there."""

    preset: str | None
    draws: int | None
    callback: Callback | None
    cluster: str | None
    workers: int | None


@overload
def run_draws(
    study: DrawStudy, out: str | Path | None = None, *, shard: None = None, **settings: Unpack[DrawSettings]
) -> pd.DataFrame: ...


@overload
def run_draws(study: DrawStudy, out: str | Path, *, shard: tuple[int, int], **settings: Unpack[DrawSettings]) -> None: ...


def run_draws(
    study: DrawStudy,
    out: str | Path | None = None,
    *,
    preset: str | None = None,
    draws: int | None = None,
    callback: Callback | None = None,
    shard: tuple[int, int] | None = None,
    cluster: str | None = None,
    workers: int | None = None,
) -> pd.DataFrame | None:
    """Compute the missing draws of a draw study, write its results folder and return its cells.csv as a DataFrame.

    Configures JAX first: devices and compilation cache. An interrupted call keeps finished blocks; the same call resumes.

    Args:
        study: The draw study.
        out: Results folder; None uses a temporary folder.
        preset: Name of a preset of the study.
        draws: Maximum number of draws of each cell.
        callback: Receives the events of the run.
        shard: (i, n) draws part i of n into a shared folder and returns None.
            After all parts, the same call without `shard` writes the report.
        cluster: Draw on a Ray cluster: "ray", "ray:HOST:PORT" or "ray:local". None: on this machine.
            Afterwards this process uses its CPU only, as with `run`.
        workers: Number of workers to ask the cluster for. None: one a CPU node or GPU.

    Raises:
        UserError: The study, the folder or an argument is not valid.
    """
    command_info = {"command": "relu_study.run_draws", "preset": preset or "default"}
    part = _shard(shard, out)
    check_request(cluster, workers, "shard" if part else "")
    with _results_folder(out) as folder:
        sized, options = study.with_preset(preset, draws), (False, False, False, part, cluster, workers)
        execute(sized, folder, MeasureConfig(), callback or Callback(), command_info, *options)
        return None if part else load_cells(folder)
