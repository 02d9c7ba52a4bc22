"""A table of one's own from a results folder: any factors as rows and columns, any metrics as cells."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from relu_study import comparisons, selection
from relu_study.cells import Cell, Group, Mark, Runs, legend, marks, text
from relu_study.frames import PROPORTIONS, csv_text, read_csv, runs_frame
from relu_study.registry import UserError, nearest
from relu_study.selection import LABELS, shown
from relu_study.store import collect, read_whole_manifest
from relu_study.study import FACTORS
from relu_study.tables import check_site, epoch_of
from relu_study.typeset import Shown, latex_table, markdown_table

FORMATS = ("markdown", "latex", "csv")
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Asked:
    """A table as it was asked for, its words checked."""

    rows: tuple[str, ...]
    cols: tuple[str, ...]
    metrics: tuple[str, ...]
    site: str
    epoch: float | None  # None: the last
    where: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """The cells of a table by row and column; `held`: the factors that vary in the study and do not in this table."""

    asked: Asked
    rows: list[Key]
    cols: list[Key]
    configs: Mapping[tuple[Key, Key], str]
    cells: Mapping[tuple[Key, Key, str], Cell]
    held: Mapping[str, Any]
    probe_examples: list[int]
    baseline: int | None


def table(
    folder: str | Path,
    rows: str | Sequence[str] = "arm",
    cols: str | Sequence[str] = (),
    metric: str | Sequence[str] = "val_loss",
    site: str = "all",
    epoch: str | float = "last",
    baseline: str | None = None,
    where: str | Sequence[str] = (),
    format: str = "markdown",
) -> str:
    """A table of a results folder as text: `rows` by `cols`, each cell the mean of a metric over the seeds with its interval.

    `rows` and `cols` are names of factors (RunSpec fields, `arm`, `experiment`). Every other factor that varies is held at its
    most common value, which the note names, unless `where` chooses another (see `selection.parse` for its conditions). `metric`
    may be several; `epoch` is "last" or a number, which needs raw/. `baseline` is the label of a row. `format` is markdown,
    latex (booktabs) or csv, which has a line for each cell, with every comparison. `cells.marks` says what is marked.

    Unknown names, values that no configuration has and a table without a row are refused, with the way out.
    """
    folder = Path(folder)
    manifest = read_whole_manifest(folder)
    if format not in FORMATS:
        raise nearest(format, FORMATS, "format")
    asked = _checked(manifest["declaration"], _names(rows), _names(cols), _names(metric), site, epoch, _names(where))
    grid = _grid(folder, manifest, asked, baseline)
    if format == "csv":
        return csv_text(_machine(grid, manifest["declaration"]["metrics"]))
    made = _shown(grid, manifest["declaration"]["metrics"])
    return markdown_table(made) if format == "markdown" else latex_table(made, f"tab:{'-'.join(asked.metrics)}")


def compare(
    folder: str | Path,
    by: str | Sequence[str] = "arm",
    metric: str = "val_loss",
    site: str = "all",
    epoch: str | float = "last",
    baseline: str | None = None,
    where: str | Sequence[str] = (),
) -> pd.DataFrame:
    """The configurations of a results folder against a baseline, or every pair of them, paired by seed.

    `by` are the factors in which they differ; all others are held as in `table`, whose words these are. One row a comparison,
    with the columns of `comparisons.compare`: Holm's correction with a baseline, Benjamini and Hochberg's without.
    """
    folder = Path(folder)
    manifest = read_whole_manifest(folder)
    asked = _checked(manifest["declaration"], _names(by), (), (metric,), site, epoch, _names(where))
    grid = _grid(folder, manifest, asked, baseline)
    values = [cell.values for cell in grid.cells.values() if cell.values is not None]
    direction = manifest["declaration"]["metrics"][metric]["direction"]
    return pd.DataFrame(comparisons.compare([_label(row) for row in grid.rows], np.stack(values, axis=1), direction, baseline))


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _checked(
    declaration: Mapping[str, Any],
    rows: tuple[str, ...],
    cols: tuple[str, ...],
    metrics: tuple[str, ...],
    site: str,
    epoch: str | float,
    where: tuple[str, ...],
) -> Asked:
    for kind, names in (("rows", rows), ("columns", cols)):
        for name in names:
            if name == "seed":
                raise UserError("a cell is a mean over seeds, so seed cannot be among the rows or columns; see runs.csv")
            if name not in FACTORS:
                raise nearest(name, FACTORS, f"factor among the {kind}")
    twice = [name for name in (*rows, *cols) if (*rows, *cols).count(name) > 1]
    if twice:
        raise UserError(f"{twice[0]} is asked for twice among the rows and columns; leave one out")
    if not rows or not metrics:
        raise UserError("a table needs at least one factor as rows and one metric; e.g. rows arm, metric val_loss")
    for metric in metrics:
        if metric not in declaration["metrics"]:
            raise nearest(metric, declaration["metrics"], "metric")
        check_site(metric, site, declaration["columns"], "in this table")
    return Asked(rows, cols, tuple(dict.fromkeys(metrics)), site, epoch_of(epoch, "this table"), where)


# ------------------------------------------------------------------------------------- rows, columns, cells


def _grid(folder: Path, manifest: dict[str, Any], asked: Asked, baseline: str | None) -> Grid:
    declaration = manifest["declaration"]
    conditions = selection.parse(asked.where, declaration)
    wanted = selection.configurations(conditions, declaration)
    if not wanted:
        raise UserError(f"no configuration of {folder} meets {' and '.join(asked.where)}; leave a condition out")
    entries, held = selection.held(wanted, (*asked.rows, *asked.cols))
    rows, cols = (_keys(wanted, names) for names in (asked.rows, asked.cols))
    found = {(_key(entry, asked.rows), _key(entry, asked.cols)): entry["config_id"] for entry in entries}
    # A row without any cell says something, a column without any only takes room.
    cols = [col for col in cols if any((row, col) in found for row in rows)]
    last, frame = _frames(folder, manifest, asked.epoch)
    kept = selection.runs(conditions, last, declaration)
    runs = Runs(frame, kept)
    cells = {
        (row, col, metric): runs.cell(found.get((row, col), ""), metric, asked.site)
        for row, col, metric in itertools.product(rows, cols, asked.metrics)
    }
    if not any(cell.n for cell in cells.values()):
        raise UserError(f"no run of {folder} meets {' and '.join(asked.where)}; leave a condition out, or choose another value")
    sizes = sorted({int(n) for n in frame.loc[kept & frame["config_id"].isin(found.values()), "probe_examples"].dropna()})
    return Grid(asked, rows, cols, found, cells, held, sizes, _baseline(baseline, rows, asked.rows))


def _key(entry: Mapping[str, Any], names: Sequence[str]) -> Key:
    return tuple(entry[name] if name in LABELS else entry["spec"][name] for name in names)


def _keys(entries: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Key]:
    """The values that there are, numbers in rising order and names as declared."""
    keys = list(dict.fromkeys(_key(entry, names) for entry in entries))
    order = [list(dict.fromkeys(key[i] for key in keys)) for i in range(len(names))]
    rank = [
        {value: i for i, value in enumerate(sorted(found) if not isinstance(found[0], str) else found)}
        for found in order
        if found
    ]
    return sorted(keys, key=lambda key: tuple(rank[i][value] for i, value in enumerate(key)))


def _baseline(label: str | None, rows: Sequence[Key], names: Sequence[str]) -> int | None:
    if label is None:
        return None
    labels = [_label(row) for row in rows]
    if label not in labels:
        raise nearest(label, labels, f"baseline among the rows ({', '.join(names)})")
    return labels.index(label)


def _label(key: Key) -> str:
    return ", ".join(shown(value) for value in key)


def _frames(folder: Path, manifest: dict[str, Any], epoch: float | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row a run, with its last metrics (runs.csv) and with those at an epoch (raw/)."""
    if epoch is None:
        last = read_csv(folder / "runs.csv")
        return last, last
    if not (folder / "raw").is_dir():
        raise UserError(
            f"epoch {epoch:g} needs {folder / 'raw'}, which is not there (runs.csv holds the last epoch); "
            f"leave the epoch out, or run the study again"
        )
    configurations = collect(folder, manifest)
    known = sorted({float(measured) for c in configurations.values() for measured in c.epochs})
    if epoch not in known:
        few = (
            f"they were at {', '.join(f'{e:g}' for e in known)}"
            if len(known) < 12
            else f"they were from {known[0]:g} to {known[-1]:g}"
        )
        raise UserError(f"no run of {folder} was measured at epoch {epoch:g}; {few}")
    return runs_frame(configurations, manifest), runs_frame(configurations, manifest, epoch)


# ---------------------------------------------------------------------------------------- as they are shown


def _marked(grid: Grid, metrics: Mapping[str, Any]) -> dict[tuple[Key, Key, str], Mark]:
    columns = list(itertools.product(grid.cols, grid.asked.metrics))
    groups = [
        Group(metrics[metric]["direction"], [grid.cells[row, col, metric] for row in grid.rows], grid.baseline)
        for col, metric in columns
    ]
    return {
        (row, col, metric): mark
        for (col, metric), found in zip(columns, marks(groups), strict=True)
        for row, mark in zip(grid.rows, found, strict=True)
    }


def _shown(grid: Grid, metrics: Mapping[str, Any]) -> Shown:
    asked, marked = grid.asked, _marked(grid, metrics)
    columns = list(itertools.product(grid.cols, asked.metrics))
    several = len(asked.metrics) > 1
    headers = [
        ", ".join(filter(None, [_label(col), _words(metric) if several or not asked.cols else ""])) for col, metric in columns
    ]
    left, body, bold = len(asked.rows), [], set()
    for k, row in enumerate(grid.rows):
        heads = [shown(value) for value in row]
        heads[-1] += "†" if k == grid.baseline else ""
        body.append(heads + [text(grid.cells[row, c, m], m, marked[row, c, m]) for c, m in columns])
        bold |= {(k, left + i) for i, (c, m) in enumerate(columns) if marked[row, c, m].best}
    by = f"by {' and '.join(_words(name) for name in (*asked.rows, *asked.cols))}"
    named = ", ".join(_words(metric) for metric in asked.metrics)
    caption = f"{named[0].upper()}{named[1:]}{'' if asked.site == 'all' else f', {asked.site}'} {by}."
    return Shown(caption, [*map(_words, asked.rows), *headers], body, bold, left, _note(grid, list(marked.values()), metrics))


def _note(grid: Grid, marked: Sequence[Mark], metrics: Mapping[str, Any]) -> str:
    asked, cells = grid.asked, list(grid.cells.values())
    counts = sorted({cell.n for cell in cells if cell.n})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    ends = {end: [_words(m) for m in asked.metrics if metrics[m]["direction"] == end] for end in ("lower", "higher")}
    better = [f"{end.capitalize()} is better: {', '.join(named)}." for end, named in ends.items() if named]
    shares = any(m in PROPORTIONS or m.endswith("_fraction") for m in asked.metrics)
    held = [f"{_words(name)} {shown(value)}" for name, value in grid.held.items()]
    how, *said = legend(marked, cells, asked.metrics, f"over n = {n} seed{'s' if n != '1' else ''}", "column")
    missing = len(grid.configs) < len(grid.rows) * len(grid.cols)
    texts = [
        how,
        "After the last epoch." if asked.epoch is None else f"After epoch {asked.epoch:g}.",
        *better,
        f"Fractions on N = {', '.join(f'{size:,}' for size in grid.probe_examples)} probe examples." if shares else "",
        *said,
        "†: the baseline." if grid.baseline is not None else "",
        "-: no such configuration, or no such number." if missing or any(not cell.defined for cell in cells) else "",
        f"Held fixed: {', '.join(held)}." if held else "",
        f"Runs with {' and '.join(asked.where)}." if asked.where else "",
    ]
    return " ".join(filter(None, texts))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _machine(grid: Grid, metrics: Mapping[str, Any]) -> pd.DataFrame:
    """One line a cell: its factors, its numbers, its marks and its comparison with the baseline."""
    asked, marked, against = grid.asked, _marked(grid, metrics), _against_baseline(grid, metrics)
    lines = []
    for row, col, metric in itertools.product(grid.rows, grid.cols, asked.metrics):
        cell, mark = grid.cells[row, col, metric], marked[row, col, metric]
        line: dict[str, Any] = dict(zip((*asked.rows, *asked.cols), (*row, *col), strict=True))
        line |= {"metric": metric, "site": asked.site, "epoch": "last" if asked.epoch is None else asked.epoch}
        line |= {"config_id": grid.configs.get((row, col), ""), "n": cell.n, "n_finite": cell.n_finite}
        line |= {"mean": cell.mean, "ci_lo": cell.lo, "ci_hi": cell.hi, "best": mark.best, "near_best": mark.near}
        lines.append(line | against.get((row, col, metric), {}))
    return pd.DataFrame(lines)


def _against_baseline(grid: Grid, metrics: Mapping[str, Any]) -> dict[tuple[Key, Key, str], dict[str, Any]]:
    """Every cell's comparison with the baseline of its column, p corrected over the whole table."""
    if grid.baseline is None:
        return {}
    base, labels = grid.rows[grid.baseline], [_label(row) for row in grid.rows]
    found: dict[tuple[Key, Key, str], dict[str, Any]] = {}
    for col, metric in itertools.product(grid.cols, grid.asked.metrics):
        values = [grid.cells[row, col, metric].values for row in grid.rows]
        table = np.stack([value for value in values if value is not None], axis=1)
        for row in comparisons.compare(labels, table, metrics[metric]["direction"], _label(base)):
            key = grid.rows[labels.index(row["name"])], col, metric
            found[key] = {
                "pairs": row["n"], "difference": row["difference"], "difference_lo": row["ci_lo"],
                "difference_hi": row["ci_hi"], "improvement": row["improvement"], "p": row["p"],
            }  # fmt: skip
    asked = [row for row in found.values() if row["pairs"]]
    for row, p in zip(asked, comparisons.holm([row["p"] for row in asked]), strict=True):
        row["p_corrected"] = float(p)
    return found
