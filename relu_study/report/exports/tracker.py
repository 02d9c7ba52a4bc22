"""The protocol of an experiment tracker, exported runs as plain data, and the destinations of an export by name."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pandas as pd

from relu_study.errors import UserError, nearest

Scalar = str | bool | int | float
Point = tuple[int, dict[str, float]]  # a step, and the values of metrics at it


@dataclass(frozen=True)
class ExportedRun:
    """One run of a tracker: a configuration, a seed of it, or the whole study.

    `run_id` is the same in each export of the study. `kind` is study, configuration or seed. `complete` is False if a run of
    the study behind it is not stored. `points` and `summary` have finite numbers only: a missing number is left out.
    """

    run_id: str
    name: str
    kind: str
    group: str
    tags: tuple[str, ...]
    config: Mapping[str, Scalar]
    complete: bool
    points: Sequence[Point] = ()
    summary: Mapping[str, Scalar] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    figures: Mapping[str, Path] = field(default_factory=dict)


@runtime_checkable
class Tracker(Protocol):
    """One project of an experiment tracker. `start` and `finish` enclose the calls of one run; `close` follows the last run.

    `errors` are the exceptions of its library that mean a refused request.
    """

    errors: tuple[type[Exception], ...]

    def start(self, run: ExportedRun) -> None:
        """Begin a run. An earlier run with the same run_id is replaced."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of metrics at a step."""

    def summary(self, values: Mapping[str, Scalar]) -> None:
        """Set final values."""

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Add a table. A NaN is an empty cell."""

    def figure(self, name: str, path: Path) -> None:
        """Add an image file."""

    def finish(self, complete: bool) -> None:
        """End the run, as failed if it is not complete."""

    def close(self) -> list[str]:
        """End the export. Return lines on where the runs are and how to see them."""


@dataclass(frozen=True)
class Destination:
    """A tracker: its module here, and its library, which has the name of the extra. `options` apply to it."""

    module: str
    library: str
    options: frozenset[str]


CARD = "hf"  # the destination without a library
TRACKERS = {
    "wandb": Destination("to_wandb", "wandb", frozenset({"offline", "per_seed", "project", "out"})),
    "mlflow": Destination("to_mlflow", "mlflow", frozenset({"per_seed", "project"})),
    "trackio": Destination("to_trackio", "trackio", frozenset({"per_seed", "project"})),
}
OPTIONS = {**{name: about.options for name, about in TRACKERS.items()}, CARD: frozenset({"out"})}
REASONS = {
    ("offline", "mlflow"): "MLflow writes to MLFLOW_TRACKING_URI, without it to a local store",
    ("offline", "trackio"): "Trackio is local",
    ("offline", CARD): "a dataset card is a local file",
    ("per_seed", CARD): "runs.csv has every seed",
    ("project", CARD): "the dataset gets its name from 'hf upload'",
    ("out", "mlflow"): "MLflow writes to MLFLOW_TRACKING_URI",
    ("out", "trackio"): "Trackio writes to TRACKIO_DIR",
}


def check_destination(to: str, given: Mapping[str, Any]) -> None:
    """Raise UserError for an unknown destination, an option that does not apply to it, or a missing library.

    `given` maps each option to its value; a false one is not given.
    """
    if to not in OPTIONS:
        raise nearest(to, OPTIONS, "destination")
    for option, value in given.items():
        if value and option not in OPTIONS[to]:
            raise UserError(f"--{option.replace('_', '-')} does not apply to {to}: {REASONS[option, to]}. Leave it out.")
    if to == CARD:
        return
    found = importlib.util.find_spec(TRACKERS[to].library)
    if found is None or found.origin is None:  # a local folder wandb/ is a package without origin
        raise UserError(f"--to {to} needs the extra `{to}`. Install it with pip install 'relu_study[{to}]'.")


def open_tracker(to: str, project: str, offline: bool = False, out: Path | None = None) -> Tracker:
    """Return a project of a tracker. Its library is imported here."""
    module = importlib.import_module(f"relu_study.report.exports.{TRACKERS[to].module}")
    tracker: Tracker = module.open_project(project, offline=offline, out=out)
    return tracker
