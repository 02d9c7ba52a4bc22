"""Tables on demand from a results folder: any factors as rows and columns, any metrics as entries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from relu_study.errors import UserError, nearest
from relu_study.report import conditions as selection
from relu_study.report import factors
from relu_study.report.conditions import Condition, parse
from relu_study.report.factors import format_value
from relu_study.report.labels import words
from relu_study.report.markup import latex_table, markdown_table
from relu_study.report.tables.columns import Column, Key, Lookup, in_runs, in_summary, parse_column
from relu_study.report.tables.entries import Entry, RunLookup, SummaryLookup
from relu_study.report.tables.monitor_table import monitor_table
from relu_study.report.tables.table_layout import NoteTexts, Row, TableLayout, mark_entries, render
from relu_study.stats import hypothesis_tests
from relu_study.stats.numpy_defaults import numpy_defaults
from relu_study.storage.configurations import collect
from relu_study.storage.csv_files import csv_text, read_runs, read_summary
from relu_study.storage.declaration import Declaration, DeclaredConfiguration, StudyManifest, read_declared
from relu_study.storage.frames import runs_frame
from relu_study.storage.manifest import is_monitored
from relu_study.storage.tile_files import tile_paths
from relu_study.study.epochs import parse_epoch
from relu_study.study.outputs import FACTORS

FORMATS = ("markdown", "latex", "csv")
AGAINST = {"n": "pairs", "ci_lo": "difference_lo", "ci_hi": "difference_hi"}  # next to an entry's n and interval


@dataclass(frozen=True)
class TableRequest:
    """The checked arguments of a table."""

    rows: tuple[str, ...]
    cols: tuple[str, ...]
    columns: tuple[Column, ...]  # one for each metric
    epoch: float | None  # None: the last
    where: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A table with its request. `fixed`: factors that vary in the study but are fixed in this table."""

    request: TableRequest
    layout: TableLayout
    fixed: Mapping[str, Any]


@numpy_defaults()
def table(
    folder: str | Path,
    rows: str | Sequence[str] | None = None,
    cols: str | Sequence[str] = (),
    metric: str | Sequence[str] | None = None,
    site: str = "all",
    epoch: str | float = "last",
    baseline: str | None = None,
    where: str | Sequence[str] = (),
    format: str = "markdown",
) -> str:
    """Return a table as text: `rows` by `cols`, each entry the mean of a metric over seeds with its interval.

    `rows` (default: arm) and `cols` are factors (RunSpec fields, options, `arm`, `experiment`); without `cols` several targets
    are the columns. In the folder of a monitor, factors are site (the default), step and member, and `epoch` is a step.
    Other varying factors are fixed at their most common value, unless `where` selects another (see `conditions.parse`).
    `metric` is one or more of "metric" or "metric/site" (default: val_loss). `epoch` is "last" or a number; comparisons at it, or
    one not in summary.csv, need raw/.
    `baseline` is the label of a row. `format` is markdown, latex (booktabs) or csv (one line per entry). Unknown names or values
    and a table without rows raise UserError. `entries.rank_entries` documents the marks.
    """
    folder = Path(folder).expanduser()
    if format not in FORMATS:
        raise nearest(format, FORMATS, "format")
    if is_monitored(folder):
        if baseline is not None:
            raise UserError("a monitored training has no baseline. Leave it out.")
        names = _names(rows or ()), _names(cols), _names(metric or ())
        return monitor_table(folder, *names, site, epoch, _names(where), format)
    manifest = read_declared(folder)
    names = _names("arm" if rows is None else rows), _names(cols), _names("val_loss" if metric is None else metric)
    request = _checked(manifest.declaration, *names, site, epoch, _names(where))
    grid = _grid(folder, manifest, request, baseline)
    if format == "csv":
        return csv_text(_csv_frame(grid), manifest.declaration.options)
    rendered = render(grid.layout, _note_texts(grid))
    if format == "markdown":
        return markdown_table(rendered)
    return latex_table(rendered, f"tab:{'-'.join(c.metric for c in request.columns)}")


@numpy_defaults()
def compare(
    folder: str | Path,
    by: str | Sequence[str] = "arm",
    metric: str = "val_loss",
    site: str = "all",
    epoch: str | float = "last",
    baseline: str | None = None,
    where: str | Sequence[str] = (),
) -> pd.DataFrame:
    """Compare the configurations of a results folder with a baseline, or in pairs, paired by seed.

    `by` are the factors in which they differ. All others are fixed as in `table`. Returns one row per comparison (see
    `hypothesis_tests.compare`), corrected by Holm with a baseline, and by Benjamini and Hochberg without.
    """
    folder = Path(folder).expanduser()
    manifest = read_declared(folder)
    request = _checked(manifest.declaration, _names(by), (), _names(metric), site, epoch, _names(where))
    if len(request.columns) > 1:
        raise UserError("a comparison takes one metric. Leave out the others.")
    grid = _grid(folder, manifest, request, baseline, targets=False)
    values = [entry.values for entry in grid.layout.entries if entry.values is not None]
    if not values:
        raise UserError(f"epoch {request.epoch:g} needs {folder / 'raw'} to compare run by run. Leave the epoch out.")
    labels, better = [_label(row.key) for row in grid.layout.rows], request.columns[0].direction
    return pd.DataFrame(hypothesis_tests.compare(labels, np.stack(values, axis=1), better, baseline))


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _checked(
    declaration: Declaration,
    rows: tuple[str, ...],
    cols: tuple[str, ...],
    metrics: tuple[str, ...],
    site: str,
    epoch: str | float,
    where: tuple[str, ...],
) -> TableRequest:
    for kind, names in (("rows", rows), ("columns", cols)):
        for name in names:
            if name == "seed":
                raise UserError("a cell is a mean over seeds, so seed cannot be among the rows or columns. See runs.csv.")
            if name not in (valid := (*FACTORS, *declaration.options)):
                raise nearest(name, valid, f"factor among the {kind}")
    twice = [name for name in (*rows, *cols) if (*rows, *cols).count(name) > 1]
    if twice:
        raise UserError(f"{twice[0]} occurs twice among the rows and columns. Leave one out.")
    if not rows or not metrics:
        raise UserError("a table needs at least one factor as rows and one metric. For example: rows arm, metric val_loss.")
    at = parse_epoch(epoch, "a table")
    columns = tuple(parse_column(name, declaration, site, at) for name in dict.fromkeys(metrics))
    return TableRequest(rows, cols, columns, at, where)


def _grid(folder: Path, manifest: StudyManifest, request: TableRequest, baseline: str | None, targets: bool = True) -> Grid:
    declaration = manifest.declaration
    conditions = parse(request.where, declaration)
    selected = selection.configurations(conditions, declaration)
    if not selected:
        raise UserError(f"no configuration of {folder} meets {' and '.join(request.where)}. Leave a condition out.")
    if targets and not request.cols and "target" not in request.rows and len({entry.target for entry in selected}) > 1:
        request = replace(request, cols=("target",))
    entries, fixed = factors.hold_fixed(selected, (*request.rows, *request.cols))
    rows, cols = (_keys(selected, names) for names in (request.rows, request.cols))
    config_ids = {(_key(entry, request.rows), _key(entry, request.cols)): entry.config_id for entry in entries}
    # Keep rows without entries, which are informative; drop such columns, which only take space, and rows without an option.
    cols = [col for col in cols if any((row, col) in config_ids for row in rows)]
    rows = [row for row in rows if None not in row or any((row, col) in config_ids for col in cols)]
    last, look, kept = _lookup(folder, manifest, request, conditions)
    columns = tuple(_under(col, column, request) for col in cols for column in request.columns)
    base = _baseline(baseline, rows, request.rows)
    table_rows = tuple(_row(row, columns, config_ids, look, row == base) for row in rows)
    if not any(entry.n for row in table_rows for entry in row.entries):
        raise UserError(
            f"no run of {folder} meets {' and '.join(request.where)}. Leave a condition out, or choose another value."
        )
    sizes = {int(n) for n in last.loc[kept & last["config_id"].isin(config_ids.values()), "probe_examples"].dropna()}
    return Grid(request, TableLayout(_caption(request), request.rows, len(request.rows) - 1, table_rows, columns, sizes), fixed)


def _row(
    key: Key, columns: tuple[Column, ...], config_ids: Mapping[tuple[Key, Key], str], look: Lookup, is_baseline: bool
) -> Row:
    ids = tuple(config_ids.get((key, column.key), "") for column in columns)
    return Row(key, ids, tuple(map(look, ids, columns)), is_baseline=is_baseline)


def _under(col: Key, column: Column, request: TableRequest) -> Column:
    """Return a metric's column under the values of the column factors."""
    named = len(request.columns) > 1 or not request.cols
    return replace(column, key=col, header=", ".join(filter(None, [_label(col), column.header if named else ""])))


def _key(entry: DeclaredConfiguration, names: Sequence[str]) -> Key:
    return tuple(factors.factor(entry, name) for name in names)


def _keys(entries: Sequence[DeclaredConfiguration], names: Sequence[str]) -> list[Key]:
    """Return the distinct values, numbers in rising order and names as declared."""
    keys = dict.fromkeys(_key(entry, names) for entry in entries)
    orders = [factors.sorted_values([key[i] for key in keys]) for i in range(len(names))]
    return sorted(keys, key=lambda key: [order.index(value) for order, value in zip(orders, key, strict=True)])


def _baseline(label: str | None, rows: Sequence[Key], names: Sequence[str]) -> Key | None:
    if label is None:
        return None
    labels = [_label(row) for row in rows]
    if label not in labels:
        raise nearest(label, labels, f"baseline among the rows ({', '.join(names)})")
    return rows[labels.index(label)]


def _label(key: Key) -> str:
    return ", ".join(format_value(value) for value in key)


def _lookup(
    folder: Path, manifest: StudyManifest, request: TableRequest, conditions: Sequence[Condition]
) -> tuple[pd.DataFrame, Lookup, np.ndarray]:
    """Return the runs at their last epoch, the lookup of entries, and whether each run meets the conditions."""
    declaration = manifest.declaration
    last, frame = _frames(folder, manifest, request.epoch)
    kept = selection.runs(conditions, last, declaration)
    if frame is not None:
        return last, in_runs(RunLookup(frame, kept, request.epoch)), kept
    return last, _of_summary(folder, manifest, last, conditions, request), kept


def _of_summary(
    folder: Path, manifest: StudyManifest, last: pd.DataFrame, conditions: Sequence[Condition], request: TableRequest
) -> Lookup:
    """Return the entries of an epoch that is only in summary.csv. Their runs cannot be selected or compared."""
    if some := [condition.name for condition in conditions if not condition.of_configurations]:
        raise UserError(
            f"at epoch {request.epoch:g} a condition on {some[0]} needs {folder / 'raw'}, which is missing. Leave it out."
        )
    summary = read_summary(folder, manifest)
    _check_epoch(folder, request.epoch, summary["epoch"].unique().tolist(), f" (those between need {folder / 'raw'})")
    metrics, seeds = {column.metric for column in request.columns}, manifest.declaration.seeds_of
    look = in_summary(SummaryLookup(summary, metrics, seeds), RunLookup(last))
    nothing = Entry(math.nan, math.nan, math.nan, 0, 0, False, reason="no such configuration")
    return lambda config_id, column: look(config_id, column) if config_id else nothing


def _frames(folder: Path, manifest: StudyManifest, epoch: float | None) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Return one row per run, with the metrics of its last epoch (runs.csv) and of an epoch (raw/; None without raw/)."""
    if epoch is None or not tile_paths(folder):
        last = read_runs(folder, manifest)
        return last, last if epoch is None else None
    configurations = collect(folder, manifest)
    _check_epoch(folder, epoch, [float(measured) for c in configurations.values() for measured in c.epochs])
    return runs_frame(configurations, manifest), runs_frame(configurations, manifest, epoch)


def _check_epoch(folder: Path, epoch: float | None, available: Sequence[float], hint: str = "") -> None:
    if epoch not in (available := sorted(set(available))):
        few = ", ".join(f"{e:.9g}" for e in available) if len(available) < 12 else f"{available[0]:g} to {available[-1]:g}"
        raise UserError(f"{folder} has no epoch {epoch:g}. It has the epochs {few}{hint}.")


def _note_texts(grid: Grid) -> NoteTexts:
    request, columns = grid.request, grid.request.columns
    ends = {end: [c.header for c in columns if c.direction == end] for end in ("lower", "higher")}
    fixed_texts = [f"{words(name)} {format_value(value)}" for name, value in grid.fixed.items()]
    no_values = all(entry.values is None for entry in grid.layout.entries)
    return NoteTexts(
        seeds="",
        epoch="After the last epoch." if request.epoch is None else f"After epoch {request.epoch:g}.",
        directions=tuple(f"{end.capitalize()} is better: {', '.join(titles)}." for end, titles in ends.items() if titles),
        no_values="Nothing is compared: the runs at this epoch are not here." if no_values else "",
        end=(
            f"Held fixed: {', '.join(fixed_texts)}." if fixed_texts else "",
            f"Runs with {' and '.join(request.where)}." if request.where else "",
        ),
    )


def _caption(request: TableRequest) -> str:
    named = "; ".join(column.header for column in request.columns)
    return f"{named[0].upper()}{named[1:]} by {' and '.join(map(words, (*request.rows, *request.cols)))}."


def _csv_frame(grid: Grid) -> pd.DataFrame:
    """Return one line per entry: factors, numbers, marks and the comparison with the baseline."""
    # No marks against the baseline: the comparison columns contain the same tests.
    request, layout = grid.request, grid.layout
    marks, against = mark_entries(layout, with_baseline=False), _against_baseline(layout)
    lines = []
    for k, row in enumerate(layout.rows):
        for i, (column, config_id, entry) in enumerate(zip(layout.columns, row.config_ids, row.entries, strict=True)):
            line: dict[str, Any] = dict(zip((*request.rows, *request.cols), (*row.key, *column.key), strict=True))
            line |= {"metric": column.metric, "site": column.site, "epoch": "last" if column.epoch is None else column.epoch}
            line |= {"config_id": config_id, "n": entry.n, "n_finite": entry.n_finite}
            line |= {"mean": entry.mean, "ci_lo": entry.lo, "ci_hi": entry.hi}
            line |= {"best": marks[k, i].best, "near": marks[k, i].tied}
            lines.append(line | against.get((k, i), {}))
    return pd.DataFrame(lines)


def _against_baseline(layout: TableLayout) -> dict[tuple[int, int], dict[str, Any]]:
    """Return each entry's comparison with the baseline of its column, with p corrected over the whole table."""
    base = layout.baseline
    if base is None:
        return {}
    comparisons: dict[tuple[int, int], dict[str, Any]] = {}
    for k, row in enumerate(layout.rows):
        for i, (column, entry, other) in enumerate(zip(layout.columns, row.entries, base.entries, strict=True)):
            if row is not base and entry.values is not None and other.values is not None:
                comparison = hypothesis_tests.compared(entry.values - other.values, column.direction)
                comparisons[k, i] = {AGAINST.get(name, name): value for name, value in comparison.items()}
    hypothesis_tests.correct(list(comparisons.values()), hypothesis_tests.holm)
    return comparisons
