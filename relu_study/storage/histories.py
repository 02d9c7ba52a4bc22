"""Stored runs as histories for detectors: from tiles, from runs.csv, and from a monitored training. No JAX."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from relu_study.diagnosis.history import History
from relu_study.errors import UserError
from relu_study.stats.unit_events import NONFINITE
from relu_study.storage.configurations import Configuration, collect
from relu_study.storage.csv_files import read_csv, read_runs
from relu_study.storage.declaration import Declaration, StudyManifest
from relu_study.storage.frames import configurations_from_runs_csv
from relu_study.storage.monitor_log import read_stored
from relu_study.storage.tile_files import tile_paths
from relu_study.study.claims import Target

LOSS = "train_loss/all"
OF_MONITOR = {"loss/all": LOSS}  # series of a monitor with another name in studies


@dataclass(frozen=True)
class StoredHistory:
    """The runs of one configuration as a history, in seed order.

    `timed` tells for which runs the epochs before the last are stored. The onset of a problem is unknown for the others.
    """

    history: History
    timed: Bool[np.ndarray, " R"]


def stored_histories(
    folder: Path, manifest: StudyManifest, only: Collection[str] | None = None
) -> tuple[dict[str, StoredHistory], bool]:
    """Return the stored runs of a training study by config_id, and whether they are those of raw/.

    Without raw/ each run has the last epoch of runs.csv only.

    Args:
        folder: The results folder.
        manifest: Its manifest.
        only: The config_ids to read (default: all).

    Raises:
        CorruptFileError: a file is corrupt.
        UserError: there is neither raw/ nor runs.csv.
    """
    if tile_paths(folder):
        return tile_histories(collect(folder, manifest, only=only), manifest.declaration), True
    stored = configurations_from_runs_csv(read_runs(folder, manifest))
    wanted = {config_id: c for config_id, c in stored.items() if only is None or config_id in only}
    return last_histories(wanted, manifest.declaration, unit_counts(folder)), False


def tile_histories(configurations: Mapping[str, Configuration], declaration: Declaration) -> dict[str, StoredHistory]:
    """Return every measurement of configurations read from tiles."""
    losses = constant_losses(declaration)  # of folders without constant_loss in their tiles
    found = {}
    for config_id, c in configurations.items():
        bad = np.where(np.isnan(c.first_bad_epoch), np.inf, c.first_bad_epoch)
        metrics = {name: np.asarray(values, np.float64) for name, values in c.values.items()}
        finite = c.epochs < bad[:, None]
        if LOSS not in metrics:  # nonfinite runs are found without it
            metrics[LOSS] = np.full(finite.shape, np.nan)
        else:
            finite &= np.logical_and.accumulate(np.isfinite(metrics[LOSS]), axis=1)
        history = History(
            epochs=np.asarray(c.epochs, np.float64),
            sites=tuple(c.sites),
            metrics={name: np.where(finite, values, np.nan) for name, values in metrics.items()},
            finite=finite,
            constant_loss=_declared(losses, c) if c.constant_loss is None else np.asarray(c.constant_loss, np.float64),
            total_epochs=float(c.spec["epochs"]),
            units={site: dead.shape[2] for site, dead in c.dead.items()},
        )
        found[config_id] = StoredHistory(history, np.ones(len(c.seeds), bool))
    return found


def last_histories(
    configurations: Mapping[str, Configuration], declaration: Declaration, units: Mapping[str, Mapping[str, int]]
) -> dict[str, StoredHistory]:
    """Return the last measurement of configurations read from runs.csv.

    Epoch 0 and the epochs at which runs went nonfinite are measurements with unknown values. A rule that compares measurements
    therefore abstains. The onset is known for nonfinite runs only.
    """
    losses = constant_losses(declaration)
    found = {}
    for config_id, c in configurations.items():
        last, bad = float(c.spec["epochs"]), c.first_bad_epoch
        epochs = np.unique([0.0, last, *bad[~np.isnan(bad)]])
        finite = epochs < np.where(np.isnan(bad), np.inf, bad)[:, None]
        known = {name: np.asarray(values[:, 0], np.float64) for name, values in c.values.items() if not np.isnan(values).all()}
        metrics = {name: np.full(finite.shape, np.nan) for name in c.values if name in known or name.endswith("/all")}
        for name, values in known.items():
            metrics[name][:, -1] = np.where(finite[:, -1], values, np.nan)
        sites = dict.fromkeys(name.partition("/")[2] for name in known)
        history = History(
            epochs=epochs,
            sites=tuple(site for site in sites if site != "all"),
            metrics=metrics,
            finite=finite,
            constant_loss=_declared(losses, c),
            total_epochs=last,
            units=units.get(config_id, {}),
        )
        found[config_id] = StoredHistory(history, ~np.isnan(bad))
    return found


def monitor_history(folder: Path) -> StoredHistory:
    """Return a monitored training as a history. Its members are the runs, its steps the epochs.

    Raises:
        CorruptFileError: a file is corrupt.
        UserError: nothing is measured yet.
    """
    stored = read_stored(folder)
    if not stored.steps:
        raise UserError(f"{folder} has no complete measurement yet. Train the model, then diagnose it.")
    bad = np.full(stored.info.members, np.inf)
    for event in stored.events:
        if event.event == NONFINITE:
            bad[event.member] = min(bad[event.member], event.step)
    steps = np.array(stored.steps, np.float64)
    finite = steps < bad[:, None]
    names = [OF_MONITOR.get(name, name) for name in stored.info.series]
    history = History(
        epochs=steps,
        sites=tuple(stored.info.units),
        metrics={name: np.where(finite, stored.values[:, :, i].T, np.nan) for i, name in enumerate(names)},
        finite=finite,
        constant_loss=np.full(stored.info.members, np.nan),
        total_epochs=float(steps[-1]),
        units=stored.info.units,
    )
    return StoredHistory(history, np.ones(stored.info.members, bool))


def constant_losses(declaration: Declaration) -> dict[str, float]:
    """Return the loss of the best constant prediction by target: its declared variance.

    A study that declares no target has `Target(name)` for each in its manifest. Its variances are unknown and left out.
    """
    if all(target == Target(target.name) for target in declaration.targets):
        return {}
    return {target.name: target.variance for target in declaration.targets}


def _declared(losses: Mapping[str, float], configuration: Configuration) -> Float[np.ndarray, " R"]:
    return np.full(len(configuration.seeds), losses.get(str(configuration.spec["target"]), math.nan))


def unit_counts(folder: Path) -> dict[str, dict[str, int]]:
    """Return config_id -> site -> number of units of one run, from units.csv; empty without it."""
    if not (folder / "units.csv").is_file():
        return {}
    counts: dict[str, dict[str, int]] = {}
    for row in read_csv(folder / "units.csv").to_dict("records"):
        counts.setdefault(str(row["config_id"]), {})[str(row["site"])] = int(row["units"]) // max(int(row["runs"]), 1)
    return counts
