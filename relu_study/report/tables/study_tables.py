"""Declared tables of a study: CSV, Markdown and LaTeX (booktabs).

Tables read runs.csv and summary.csv only, so a clone of the repository rebuilds the same bytes. Rows are the arms of each
target. Entries are means over runs with 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd

from relu_study.errors import UserError, nearest
from relu_study.report.labels import words
from relu_study.report.markup import table_files
from relu_study.report.tables import event_counts
from relu_study.report.tables.columns import Column, Lookup, arm_entries, in_runs, in_summary, parse_column
from relu_study.report.tables.entries import RunLookup, SummaryLookup
from relu_study.report.tables.table_layout import NoteTexts, Row, TableLayout, render
from relu_study.stats import hypothesis_tests
from relu_study.storage.declaration import Declaration, StudyManifest
from relu_study.study.epochs import epoch_number, parse_epoch
from relu_study.study.outputs import EventTable, Table, check_factors
from relu_study.study.run_spec import FIELDS


class Line(NamedTuple):
    """A row of a table: an arm on a target, with the chosen value of the tuned field."""

    target: str
    arm: str
    config_id: str
    tuned: Any = ""


def check(declaration: Declaration) -> None:
    """Raise UserError for a table with unknown metrics, epochs, arms or tuned fields. Needs no results."""
    labels = {entry.arm for entry in declaration.configurations}
    if not declaration.skip:  # a preset that skips experiments may lack their options
        check_factors(declaration.tables, declaration.options)
    for table in declaration.tables:
        where = f"of table {table.name}"
        for label in [*table.arms, *([table.baseline] if isinstance(table, Table) and table.baseline else [])]:
            if label not in labels and not declaration.skip:  # a preset that skips experiments may lack the arm
                raise nearest(label, labels, f"arm {where}")
        if isinstance(table, EventTable):
            event_counts.check(table, declaration.metrics)
            continue
        columns = _columns(table, declaration)
        if not columns:
            raise UserError(f"table {table.name} names no metrics. Name some, e.g. metrics=('val_loss',).")
        if table.tune and any(column.epoch is not None for column in columns):
            raise UserError(
                f"table {table.name} tunes {table.tune} and so reports the last epoch. Omit `epoch`, and @ in metrics."
            )


def tables(manifest: StudyManifest, runs: pd.DataFrame, summary: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Return name -> {"csv", "md", "tex"} of every declared table that has an arm in this preset.

    `runs` and `summary` are the frames of runs.csv and summary.csv. Bold marks the best mean of a column on each target, by the
    metric's direction. Arms with a nonfinite run are not marked. `entries.rank_entries` documents the other marks.
    """
    declaration = manifest.declaration
    columns = {table.name: _columns(table, declaration) for table in declaration.tables if isinstance(table, Table)}
    metrics_used = {column.metric for of_table in columns.values() for column in of_table}
    lookup = SummaryLookup(summary, metrics_used, declaration.seeds_of)
    # Folders without a list of measured metrics show no reasons, so their committed tables keep their bytes.
    reasons = "measured" in manifest.provenance
    all_seeds = in_summary(lookup, RunLookup(runs, reasons=reasons))
    # Tuned tables report odd seeds only, because even seeds choose the tuned value.
    odd_seeds = in_runs(RunLookup(runs, (runs["seed"] % 2 == 1).to_numpy(), reasons=reasons))
    rendered = {}
    for table in declaration.tables:
        if isinstance(table, EventTable):
            files = event_counts.counted(table, declaration, runs, summary)
        else:
            lines = _tuned(table, table.tune, declaration, runs) if table.tune else _lines(table, declaration)
            layout = _layout(table, columns[table.name], lines, odd_seeds if table.tune else all_seeds, lookup.probe_examples)
            files = _files(table, layout, lookup.probe_examples)
        if files:
            rendered[table.name] = files
    return rendered


def _columns(table: Table, declaration: Declaration) -> tuple[Column, ...]:
    """Return the columns of a table's metrics "metric/site@epoch", without repetitions."""
    of_table = f" of table {table.name}"
    columns: dict[tuple[str, str, float | None], Column] = {}
    for name in table.metrics:
        text, _, own_epoch = name.partition("@")
        column = parse_column(text, declaration, "all", parse_epoch(own_epoch or table.epoch, f"{name}{of_table}"), of_table)
        header = f"{column.header}, epoch {column.epoch:g}" if own_epoch and column.epoch is not None else column.header
        columns.setdefault((column.metric, column.site, column.epoch), replace(column, name=name, header=header))
    return tuple(columns.values())


# ------------------------------------------------------------------------------------------------- rows


def _lines(table: Table, declaration: Declaration) -> list[Line]:
    """Return the rows of a table in declared order, by target and then by arm."""
    entries = arm_entries(table, declaration)
    targets = dict.fromkeys(target for target, _ in entries)
    arms = table.arms or dict.fromkeys(arm for _, arm in entries)
    pairs = [(target, arm) for target in targets for arm in arms if (target, arm) in entries]
    return [Line(target, arm, entries[target, arm].config_id) for target, arm in pairs]


def _tuned(table: Table, field: str, declaration: Declaration, runs: pd.DataFrame) -> list[Line]:
    """Return one row for each group of arms that differ only in the tuned field.

    The row shows the arm with the best validation loss on even seeds. Its value is empty if no even seed has a finite run.
    """
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for target, arm, config_id, _ in _lines(table, declaration):
        untuned = str({name: value for name, value in declaration.specs[config_id].items() if name != field})
        groups.setdefault((target, untuned), {}).setdefault(config_id, arm)
    by_config = {str(config_id): part for config_id, part in runs.groupby("config_id", sort=False)}
    lines = []
    for (target, _), arms in groups.items():
        config_ids = list(arms)
        parts = [by_config[config_id] for config_id in config_ids]
        best = hypothesis_tests.tuned([p["seed"].to_numpy() for p in parts], [p["val_loss/all"].to_numpy(float) for p in parts])
        chosen = config_ids[max(best, 0)]
        lines.append(Line(target, arms[chosen], chosen, declaration.specs[chosen].get(field) if best >= 0 else ""))
    return lines


# --------------------------------------------------------------------------------------------- rendering


def _layout(
    table: Table, columns: tuple[Column, ...], lines: Sequence[Line], look: Lookup, probe_examples: Mapping[str, int]
) -> TableLayout:
    """Return the rendered rows of a table. A single target has no column."""
    has_target = len({line.target for line in lines}) > 1

    def key_of(target: str, arm: str, tuned: Any) -> tuple[Any, ...]:
        return (*((target,) if has_target else ()), arm, *((tuned,) if table.tune else ()))

    heads, rows = key_of("target", "arm", table.tune), []
    for line in lines:
        key = key_of(line.target, line.arm, line.tuned)
        entries = tuple(look(line.config_id, column) for column in columns)
        rows.append(Row(key, (line.config_id,) * len(columns), entries, line.target, line.arm == table.baseline))
    sizes = {probe_examples[line.config_id] for line in lines if line.config_id in probe_examples}
    return TableLayout(table.caption, heads, heads.index("arm"), tuple(rows), columns, sizes)


def _files(table: Table, layout: TableLayout, probe_examples: Mapping[str, int]) -> dict[str, str]:
    """Return the texts of a table by format; empty without rows."""
    if not layout.rows:
        return {}
    frame, shown = _csv_frame(table, layout, probe_examples), render(layout, _note_texts(table, layout))
    return table_files(table.name, frame, shown, (table.tune,) if table.tune and table.tune not in FIELDS else ())


def _csv_frame(table: Table, layout: TableLayout, probe_examples: Mapping[str, int]) -> pd.DataFrame:
    """Return the frame of a table's CSV file: a row per arm and target, four columns per metric."""
    rows, config_ids = layout.rows, [row.config_ids[0] for row in layout.rows]
    frame = pd.DataFrame({"target": [row.group for row in rows], "arm": [row.key[layout.label] for row in rows]})
    frame["config_id"] = config_ids
    if table.tune:
        frame[table.tune] = [row.key[-1] for row in rows]
    frame["n"] = [max(entry.n for entry in row.entries) for row in rows]
    frame["probe_examples"] = pd.array([probe_examples.get(config_id) for config_id in config_ids], "Int64")
    for i, column in enumerate(layout.columns):
        for name, part in (("mean", "mean"), ("ci_lo", "lo"), ("ci_hi", "hi"), ("n_finite", "n_finite")):
            frame[f"{column.name} {name}"] = [getattr(row.entries[i], part) for row in rows]
    return frame


def _note_texts(table: Table, layout: TableLayout) -> NoteTexts:
    """Return the texts of a table's note: tuning, epochs and untested columns."""
    tuned = f", the odd ones; {words(table.tune)} chosen by validation loss on the even ones" if table.tune else ""
    epoch = epoch_number(table.epoch)
    when = "After the last epoch" if epoch is None else f"After epoch {epoch:g}"
    others = ", unless a column names another" if any("@" in column.name for column in layout.columns) else ""
    untested = "Columns at an epoch of their own are not tested." if any(c.epoch is not None for c in layout.columns) else ""
    return NoteTexts(tuned, f"{when}{others}.", untested=untested)
