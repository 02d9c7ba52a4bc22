"""Declared tables of a study: CSV, Markdown and LaTeX (booktabs).

They are built from runs.csv and summary.csv only, so a clone rebuilds the same bytes. Rows are the arms of each target.
Entries are means over runs with 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from relu_study.errors import UserError, nearest
from relu_study.report.factors import format_value as shown_value
from relu_study.report.labels import is_share, words
from relu_study.report.markup import RenderedTable, latex_table, markdown_table
from relu_study.report.tables import event_counts
from relu_study.report.tables.columns import Column, Lookup, check_site, epoch_of, in_summary
from relu_study.report.tables.entries import (
    Entry,
    Group,
    Mark,
    RunLookup,
    SummaryLookup,
    format_entry,
    format_seed_count,
    notes,
    rank_entries,
)
from relu_study.stats import hypothesis_tests
from relu_study.storage.csv_files import csv_text
from relu_study.storage.manifest import seeds_of
from relu_study.study.run_spec import FIELDS


@dataclass(frozen=True)
class Line:
    """One row of a table: an arm on a target, its N, its entries, and the chosen value of a tuned field."""

    target: str
    arm: str
    config_id: str
    probe_examples: int | None
    cells: tuple[Entry, ...]
    tuned: Any = ""


def check(declaration: dict[str, Any]) -> None:
    """Raise UserError for a table with unknown metrics, epochs or arms. Needs no results."""
    labels = {entry["arm"] for entry in declaration["configurations"]}
    for table in declaration["tables"]:
        where = f"of table {table['name']}"
        for label in [*table["arms"], *([table["baseline"]] if table.get("baseline") else [])]:
            if label not in labels and not declaration["skip"]:  # the arm may be left out in this preset
                raise nearest(label, labels, f"arm {where}")
        if "events" in table:
            event_counts.check(table, declaration["metrics"])
            continue
        columns = _columns(table, declaration["metrics"])
        for column in columns:
            check_site(column.metric, column.site, declaration["columns"], where)
        if table["tune"] and table["tune"] not in FIELDS:
            raise nearest(table["tune"], FIELDS, f"tuned field {where}")
        if table["tune"] and any(column.epoch is not None for column in columns):
            raise UserError(f"table {table['name']} tunes {table['tune']} and so reports the last epoch. Leave out epoch and @.")


def tables(manifest: dict[str, Any], runs: pd.DataFrame, summary: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Return name -> {"csv", "md", "tex"} of every declared table that has an arm in this preset.

    `runs` and `summary` are the frames of runs.csv and summary.csv. Bold marks the best mean of a column on its target, by the
    metric's direction and among arms with only finite runs. `entries.rank_entries` documents the other marks.
    """
    declaration, rendered = manifest["declaration"], {}
    check(declaration)
    plain = [table for table in declaration["tables"] if "events" not in table]
    metrics_used = {column.metric for table in plain for column in _columns(table, declaration["metrics"])}
    lookup = SummaryLookup(summary, metrics_used, seeds_of(declaration))
    # Committed tables of folders without a list of measured metrics keep their bytes.
    reasons = "measured" in manifest["provenance"]
    look, probed = in_summary(lookup, RunLookup(runs, reasons=reasons)), lookup.probe_examples
    for table in declaration["tables"]:
        if "events" in table:
            if texts := event_counts.counted(table, declaration, runs, summary):
                rendered[table["name"]] = texts
            continue
        columns = _columns(table, declaration["metrics"])
        lines = [
            Line(
                target,
                arm,
                config_id,
                probed.get(config_id),
                tuple(cell(config_id, column) for column in columns),
                tuned,
            )
            for target, arm, config_id, tuned, cell in (
                _tuned(table, declaration, runs, reasons)
                if table["tune"]
                else ((*row, "", look) for row in _rows(table, declaration))
            )
        ]
        if lines:
            rendered[table["name"]] = {
                "csv": csv_text(_csv_frame(table, columns, lines)),
                "md": markdown_table(shown := _rendered(table, columns, lines)),
                "tex": latex_table(shown, f"tab:{table['name']}"),
            }
    return rendered


# ------------------------------------------------------------------------------- rows, columns, cells


def _columns(table: dict[str, Any], metrics: dict[str, dict[str, Any]]) -> list[Column]:
    columns: dict[tuple[str, str, float | None], Column] = {}
    for name in table["metrics"]:
        rest, _, at = name.partition("@")
        metric, _, site = rest.partition("/")
        if metric not in metrics:
            raise nearest(metric, metrics, f"metric of table {table['name']}")
        if site not in ("", "all") and not metrics[metric]["sites"]:
            raise UserError(f"{name} of table {table['name']}: {metric} is measured for the whole network only, not for {site}")
        epoch = epoch_of(at or table["epoch"], f"{name} of table {table['name']}")
        columns.setdefault(
            (metric, site or "all", epoch), Column(name, metric, site or "all", epoch, metrics[metric]["direction"])
        )
    return list(columns.values())


def _rows(table: dict[str, Any], declaration: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the (target, arm, config_id) rows of a table, targets outermost, in declared order."""
    entries = [entry for entry in declaration["configurations"] if entry["experiment"] in table["experiments"]]
    config_ids = {(entry["spec"]["target"], entry["arm"]): entry["config_id"] for entry in entries}
    targets, arms = (
        dict.fromkeys(target for target, _ in config_ids),
        table["arms"] or dict.fromkeys(arm for _, arm in config_ids),
    )
    return [(target, arm, config_ids[target, arm]) for target in targets for arm in arms if (target, arm) in config_ids]


def _tuned(
    table: dict[str, Any], declaration: dict[str, Any], runs: pd.DataFrame, reasons: bool
) -> Iterable[tuple[str, str, str, Any, Lookup]]:
    """Return one row for the arms that differ only in the tuned field: the best value on even seeds, evaluated on odd seeds."""
    specs = {entry["config_id"]: entry["spec"] for entry in declaration["configurations"]}
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for target, arm, config_id in _rows(table, declaration):
        rest = str({**specs[config_id], table["tune"]: None})
        groups.setdefault((target, rest), {}).setdefault(config_id, arm)
    by_config = {str(config_id): part for config_id, part in runs.groupby("config_id", sort=False)}
    unseen = RunLookup(runs, (runs["seed"] % 2 == 1).to_numpy(), reasons=reasons)
    for (target, _), arms in groups.items():
        tried = list(arms)
        parts = [by_config[config_id] for config_id in tried]
        best = hypothesis_tests.tuned([p["seed"].to_numpy() for p in parts], [p["val_loss/all"].to_numpy(float) for p in parts])
        chosen = tried[max(best, 0)]
        tuned = specs[chosen][table["tune"]] if best >= 0 else ""
        yield target, arms[chosen], chosen, tuned, lambda config_id, column: unseen.cell(config_id, column.metric, column.site)


# ------------------------------------------------------------------------------ rendering


def _csv_frame(table: dict[str, Any], columns: Sequence[Column], lines: Sequence[Line]) -> pd.DataFrame:
    frame = pd.DataFrame({name: [getattr(line, name) for line in lines] for name in ("target", "arm", "config_id")})
    if table["tune"]:
        frame[table["tune"]] = [line.tuned for line in lines]
    frame["n"] = [max((cell.n for cell in line.cells), default=0) for line in lines]
    frame["probe_examples"] = pd.array([line.probe_examples for line in lines], "Int64")
    for i, column in enumerate(columns):
        for name, part in (("mean", "mean"), ("ci_lo", "lo"), ("ci_hi", "hi"), ("n_finite", "n_finite")):
            frame[f"{column.name} {name}"] = [getattr(line.cells[i], part) for line in lines]
    return frame


def _rendered(table: dict[str, Any], columns: Sequence[Column], lines: Sequence[Line]) -> RenderedTable:
    several = len({line.target for line in lines}) > 1
    marked = _marked(table, columns, lines)
    heads = [
        [
            *([line.target] if several else []),
            line.arm + ("†" if line.arm == table["baseline"] else ""),
            *([shown_value(line.tuned)] if table["tune"] else []),
        ]
        for line in lines
    ]
    cells = [
        [
            format_entry(cell, column.metric, marked[k, i])
            for i, (cell, column) in enumerate(zip(line.cells, columns, strict=True))
        ]
        for k, line in enumerate(lines)
    ]
    return RenderedTable(
        caption=table["caption"],
        headers=[
            *(["target"] if several else []),
            "arm",
            *([words(table["tune"])] if table["tune"] else []),
            *map(_header, columns),
        ],
        rows=[head + row for head, row in zip(heads, cells, strict=True)],
        bold={(k, len(heads[0]) + i) for (k, i), mark in marked.items() if mark.best},
        left=len(heads[0]),
        note=_note(table, columns, lines, list(marked.values())),
    )


def _marked(table: dict[str, Any], columns: Sequence[Column], lines: Sequence[Line]) -> dict[tuple[int, int], Mark]:
    """Return (row, column) -> mark. Entries of one column and target are compared with each other."""
    places, groups = [], []
    for target in dict.fromkeys(line.target for line in lines):
        rows = [k for k, line in enumerate(lines) if line.target == target]
        base = next((i for i, k in enumerate(rows) if lines[k].arm == table["baseline"]), None)
        for i, column in enumerate(columns):
            places.append([(k, i) for k in rows])
            groups.append(Group(column.direction, [lines[k].cells[i] for k in rows], base))
    marks = rank_entries(groups)
    return {place: mark for at, said in zip(places, marks, strict=True) for place, mark in zip(at, said, strict=True)}


def _header(column: Column) -> str:
    epoch = f"epoch {column.epoch:g}" if "@" in column.name and column.epoch is not None else ""
    return ", ".join(filter(None, [words(column.metric), "" if column.site == "all" else column.site, epoch]))


def _note(table: dict[str, Any], columns: Sequence[Column], lines: Sequence[Line], marked: Sequence[Mark]) -> str:
    """Return the note below the table, including N."""
    cells = [cell for line in lines for cell in line.cells]
    metrics = {column.metric for column in columns}
    over = f"over n = {format_seed_count(cells)}"
    if table["tune"]:
        over += f", the odd ones; {words(table['tune'])} chosen by validation loss on the even ones"
    when = f"After epoch {table['epoch']:g}" if table["epoch"] != "last" else "After the last epoch"
    sizes = sorted({line.probe_examples for line in lines if line.probe_examples is not None})
    shares = any(map(is_share, metrics))
    how, *rest = notes(marked, cells, metrics, over, "column" + (" on its target" if len({x.target for x in lines}) > 1 else ""))
    texts = [
        how,
        f"{when}, unless a column names another." if any("@" in column.name for column in columns) else f"{when}.",
        f"Fractions on N = {', '.join(f'{n:,}' for n in sizes)} probe examples." if shares and sizes else "",
        *rest,
        "Columns at an epoch of their own are not tested." if rest and any(c.epoch is not None for c in columns) else "",
        "†: the baseline." if table["baseline"] in {line.arm for line in lines} else "",
    ]
    return " ".join(filter(None, texts))
