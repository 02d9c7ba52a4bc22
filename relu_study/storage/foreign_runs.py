"""Recorded metrics of other tools as histories for detectors: points of runs, and CSV files. No JAX."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from relu_study.diagnosis.detector import detectors
from relu_study.diagnosis.history import History
from relu_study.errors import UserError, nearest
from relu_study.storage.checksums import CorruptFileError
from relu_study.storage.histories import StoredHistory

EPOCH, RUN = "epoch", "run"
OPTIONAL = ("accuracy",)  # metrics that rules read if they are there

Points = Mapping[float, float]  # epoch or step -> value
Series = Mapping[str, Points]  # "metric/site" -> its points


@dataclass(frozen=True)
class ForeignRuns:
    """Runs of another tool by name.

    `dropped` counts the epochs without a value of every named metric, `skipped` has the runs without any of these metrics.
    """

    histories: Mapping[str, StoredHistory]
    metrics: frozenset[str]
    dropped: int
    skipped: tuple[str, ...]


def metric_key(name: str) -> str:
    """Return "metric/site" of a named metric; the site is `all` if it has none.

    Raises:
        UserError: no detector reads the metric.
    """
    metric, _, site = name.partition("/")
    known = {need for detector in detectors.values() for need in (*detector.requires, *detector.reads)} | {*OPTIONAL}
    if metric not in known:
        raise nearest(metric, known, "metric")
    return f"{metric}/{site or 'all'}"


def parse_pairs(words: Sequence[str], option: str) -> dict[str, str]:
    """Return the NAME=VALUE pairs of an option. A comma separates pairs where NAME= follows.

    Raises:
        UserError: a word has no "=", or a name occurs twice.
    """
    pairs: dict[str, str] = {}
    for part in (part for word in words for part in _split(word)):
        name, equals, value = part.partition("=")
        if not (equals and name and value):
            raise UserError(f"{option} {part!r} is not NAME=VALUE. Write for example {option} train_loss=loss.")
        if name in pairs:
            raise UserError(f"{option} names {name} twice. Leave one out.")
        pairs[name] = value
    return pairs


def _split(word: str) -> list[str]:
    parts: list[str] = []
    for piece in word.split(","):
        if parts and "=" not in piece:
            parts[-1] += f",{piece}"
        else:
            parts.append(piece)
    return parts


def foreign_runs(series: Mapping[str, Series], constant_loss: float = math.nan) -> ForeignRuns:
    """Return the histories of runs from their points.

    The measurements of a run are the epochs at which each of its series has a value. It is nonfinite from the first NaN or
    infinity on. The planned length is the last epoch of all runs. Runs without series are skipped.

    Raises:
        UserError: a run has no epoch with a value of each series.
    """
    last = max((epoch for run in series.values() for points in run.values() for epoch in points), default=0.0)
    histories, dropped = {}, 0
    for name, run in series.items():
        if not run:
            continue
        every = {epoch for points in run.values() for epoch in points}
        shared = sorted(every.intersection(*run.values()))
        if not shared:
            raise UserError(f"run {name!r} has no epoch with a value of each of {', '.join(run)}. Name fewer metrics.")
        dropped += len(every) - len(shared)
        values = {key: np.array([[points[epoch] for epoch in shared]]) for key, points in run.items()}
        finite = np.logical_and.accumulate(np.isfinite(np.stack(list(values.values()))).all(axis=0), axis=-1)
        sites = dict.fromkeys(key.partition("/")[2] for key in values)
        history = History(
            epochs=np.array(shared),
            sites=tuple(site for site in sites if site != "all"),
            metrics={key: np.where(finite, numbers, np.nan) for key, numbers in values.items()},
            finite=finite,
            constant_loss=np.array([constant_loss]),
            total_epochs=last,
        )
        histories[name] = StoredHistory(history, np.ones(1, bool))
    metrics = frozenset(key.partition("/")[0] for run in series.values() for key in run)
    return ForeignRuns(histories, metrics, dropped, tuple(name for name, run in series.items() if not run))


def read_metric_csv(path: Path, columns: Mapping[str, str], constant_loss: float = math.nan) -> ForeignRuns:
    """Read a CSV file with one row per measurement.

    A blank cell is not measured. NaN and infinities, in any spelling of Python, are nonfinite measurements.

    Args:
        path: The CSV file.
        columns: Its column of `epoch`, of `run` (default: one run, named after the file), and of each metric: "metric/site" for
            a site, "metric" for the network. The sites are in their order here.
        constant_loss: The loss of the best constant prediction; NaN: unknown.

    Raises:
        UserError: a metric or column is unknown, a cell is no number, or a run has an epoch twice.
        CorruptFileError: the file is not comma-separated UTF-8.
    """
    if EPOCH not in columns:
        raise UserError("the column of epochs is not named. Add epoch=COLUMN with the column of epochs or steps.")
    keys = {metric_key(name): column for name, column in columns.items() if name not in (EPOCH, RUN)}
    if not keys:
        raise UserError("no metric is named. Add for example train_loss=COLUMN.")
    rows = _rows(path, [*dict.fromkeys(columns.values())])
    series: dict[str, dict[str, dict[float, float]]] = {}
    seen: set[tuple[str, float]] = set()
    for line, row in rows:
        name, epoch = row[columns[RUN]] if RUN in columns else path.stem, _epoch(path, line, columns[EPOCH], row)
        if (name, epoch) in seen:
            raise UserError(
                f"{path}, line {line}: run {name!r} has {columns[EPOCH]} {epoch:g} twice. "
                "Name the column of runs with run=COLUMN, or a column with one row per measurement as epoch."
            )
        seen.add((name, epoch))
        run = series.setdefault(name, {})
        for key, column in keys.items():
            if row[column].strip():
                run.setdefault(key, {})[epoch] = _number(path, line, column, row)
    if not any(series.values()):
        raise UserError(f"{path} has no value in {', '.join(keys.values())}. Name other columns.")
    ordered = {name: {key: run[key] for key in keys if key in run} for name, run in series.items()}
    return foreign_runs(ordered, constant_loss)


def _rows(path: Path, columns: list[str]) -> list[tuple[int, dict[str, str]]]:
    """Return the last line and the cells of each row. Raises UserError and CorruptFileError like `read_metric_csv`."""
    if not path.is_file():
        raise UserError(f"There is no file {path}. Give a CSV file with one row per measurement.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            header = next(reader, [])
            rows = [(reader.line_num, cells) for cells in reader if cells]
    except (OSError, ValueError, csv.Error) as error:
        raise CorruptFileError(path, "is not a readable CSV file", error, "write it again as comma-separated UTF-8") from None
    for column in columns:
        if column not in header:
            raise nearest(column, header, f"column of {path}")
        if header.count(column) > 1:
            raise UserError(f"{path} has several columns {column!r}. Rename all but one.")
    for line, cells in rows:
        if len(cells) != len(header):
            raise UserError(
                f"{path}, line {line}: it has {len(cells)} cells, and the header has {len(header)}. Correct the line."
            )
    if not rows:
        raise UserError(f"{path} has no rows. Give a CSV file with one row per measurement.")
    return [(line, dict(zip(header, cells, strict=True))) for line, cells in rows]


def _epoch(path: Path, line: int, column: str, row: Mapping[str, str]) -> float:
    epoch = _number(path, line, column, row)
    if not math.isfinite(epoch):
        raise UserError(f"{path}, line {line}: {column} is {epoch:g}. Give each row a finite epoch or step.")
    return epoch


def _number(path: Path, line: int, column: str, row: Mapping[str, str]) -> float:
    try:
        return float(row[column])
    except ValueError:
        raise UserError(f"{path}, line {line}: {column} has {row[column]!r}, which is not a number. Correct the line.") from None
