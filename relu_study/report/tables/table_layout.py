"""Layout of a table: rows by columns, rendered with marks and a note. Declared tables and pivot tables share it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from relu_study.report.factors import format_value
from relu_study.report.labels import is_share, words
from relu_study.report.markup import RenderedTable
from relu_study.report.tables.columns import Column, Key
from relu_study.report.tables.entries import Entry, Group, Mark, format_entry, format_seed_count, notes, rank_entries

Marks = Mapping[tuple[int, int], Mark]  # (row, column) -> mark


@dataclass(frozen=True)
class Row:
    """One row of a table: the values of its heads, and one configuration and entry per column. Rows of a `group` are compared."""

    key: Key
    config_ids: tuple[str, ...]
    entries: tuple[Entry, ...]
    group: str = ""
    is_baseline: bool = False


@dataclass(frozen=True)
class TableLayout:
    """Rows by columns. A declared table has arms as rows and targets as groups. A pivot table has one group.

    `heads` names the values in `Row.key`. `label` is the index of the head with the baseline's †.
    """

    caption: str
    heads: tuple[str, ...]
    label: int
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    probe_examples: Collection[int]

    @property
    def entries(self) -> list[Entry]:
        """Every entry, row by row."""
        return [entry for row in self.rows for entry in row.entries]

    @property
    def baseline(self) -> Row | None:
        """The first baseline row."""
        return next((row for row in self.rows if row.is_baseline), None)


@dataclass(frozen=True)
class NoteTexts:
    """The parts of a note that only one kind of table has, in their order. `untested` needs marks that explain a test."""

    seeds: str  # after the number of seeds
    epoch: str
    directions: tuple[str, ...] = ()
    untested: str = ""
    no_values: str = ""
    end: tuple[str, ...] = ()


def mark_entries(layout: TableLayout, with_baseline: bool = True) -> Marks:
    """Return the mark of each entry. The entries of one column and group are compared with each other."""
    groups: dict[str, list[int]] = {}
    for k, row in enumerate(layout.rows):
        groups.setdefault(row.group, []).append(k)
    columns = [(rows, i) for rows in groups.values() for i in range(len(layout.columns))]
    marks = rank_entries([_group(layout, rows, i, with_baseline) for rows, i in columns])
    return {(k, i): mark for (rows, i), found in zip(columns, marks, strict=True) for k, mark in zip(rows, found, strict=True)}


def _group(layout: TableLayout, rows: list[int], column: int, with_baseline: bool) -> Group:
    baseline = next((i for i, k in enumerate(rows) if layout.rows[k].is_baseline), None) if with_baseline else None
    return Group(layout.columns[column].direction, [layout.rows[k].entries[column] for k in rows], baseline)


def render(layout: TableLayout, texts: NoteTexts) -> RenderedTable:
    """Return a table as text, with bold best entries, marks, and the note below it."""
    marks, left = mark_entries(layout), len(layout.heads)
    return RenderedTable(
        caption=layout.caption,
        headers=[*map(words, layout.heads), *(column.header for column in layout.columns)],
        rows=[_row(layout, k, marks) for k in range(len(layout.rows))],
        bold={(k, left + i) for (k, i), mark in marks.items() if mark.best},
        left=left,
        note=_note(layout, texts, marks),
    )


def _row(layout: TableLayout, k: int, marks: Marks) -> list[str]:
    row = layout.rows[k]
    heads = [format_value(value) for value in row.key]
    heads[layout.label] += "†" if row.is_baseline else ""
    pairs = zip(row.entries, layout.columns, strict=True)
    return [*heads, *(format_entry(entry, column.metric, marks[k, i]) for i, (entry, column) in enumerate(pairs))]


def _note(layout: TableLayout, texts: NoteTexts, marks: Marks) -> str:
    entries, metrics = layout.entries, [column.metric for column in layout.columns]
    per = "column" + (" on its target" if len({row.group for row in layout.rows}) > 1 else "")
    over = f"over n = {format_seed_count(entries)}{texts.seeds}"
    how, *rest = notes(marks.values(), entries, metrics, over, per)
    sizes = ", ".join(f"{n:,}" for n in sorted(layout.probe_examples))
    sentences = [
        how,
        texts.epoch,
        *texts.directions,
        f"Fractions on N = {sizes} probe examples." if sizes and any(map(is_share, metrics)) else "",
        *rest,
        texts.untested if rest else "",
        texts.no_values,
        "†: the baseline." if layout.baseline else "",
        *texts.end,
    ]
    return " ".join(filter(None, sentences))
