"""Tables of event counts: in how many runs of each arm an event happened, as CSV, Markdown and LaTeX.

They are built from runs.csv and summary.csv only. Events of several metrics come from runs.csv, which has the last epoch.
Counts at earlier epochs come from summary.csv, as the mean of zeros and ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from relu_study.errors import UserError, nearest
from relu_study.report.factors import factor, format_value
from relu_study.report.labels import words
from relu_study.report.markup import RenderedTable, table_files
from relu_study.report.tables.columns import arm_entries
from relu_study.stats import intervals
from relu_study.storage.declaration import Declaration, DeclaredConfiguration
from relu_study.storage.frames import BINARY_METRICS
from relu_study.storage.tile_identity import STORED
from relu_study.study.epochs import parse_epoch
from relu_study.study.outputs import EventTable

Declared = Mapping[str, Any]  # a `study.Counts`, or an entry of the declaration's configurations


def check(table: EventTable, metrics: Collection[str]) -> None:
    """Raise UserError for an event that cannot be counted. Needs no results."""
    binary = [name for name in BINARY_METRICS if name in metrics]
    for event, names in table.events.items():
        where = f"event {event} of table {table.name}"
        for metric, epoch in (_split(name, where) for name in names):
            if metric not in binary:
                raise nearest(metric, binary, f"metric (0 or 1 a run) in {where}")
            if epoch is not None and len(names) > 1:
                raise UserError(
                    f"{where} has several metrics, and their runs are known at the last epoch only. Leave out @{epoch:g}."
                )


def counted(table: EventTable, declaration: Declaration, runs: pd.DataFrame, summary: pd.DataFrame) -> dict[str, str]:
    """Return the table as "csv", "md" and "tex", or nothing if the preset has none of its arms.

    A count at an epoch without measurements is empty.
    """
    entries = _entries(table, declaration)
    if not entries:
        return {}
    ids = {entry.config_id for entry in entries}
    stored = runs[runs["status"].isin(STORED) & runs["config_id"].isin(ids)]
    count = _counter(stored, summary[summary["metric"].isin(BINARY_METRICS) & summary["config_id"].isin(ids)])
    columns: dict[str, Any] = {header: [_key(entry, key) for entry in entries] for header, key in table.keys.items()}
    sizes = stored["config_id"].value_counts()
    columns["n"] = [int(sizes.get(entry.config_id, 0)) for entry in entries]
    for event, names in table.events.items():
        events = [_split(name, event) for name in names]
        columns[event] = pd.array([count(entry.config_id, events) for entry in entries], "Int64")
    frame = pd.DataFrame(columns)
    last = frame.iloc[:, -1].to_numpy(float, na_value=float("nan"))
    frame["ci_lo"], frame["ci_hi"] = intervals.wilson(last, frame["n"].to_numpy(float))
    return table_files(table.name, frame, _rendered(table, frame, int((stored["status"] == "nonfinite").sum())))


def _split(name: str, where: str) -> tuple[str, float | None]:
    """Return a metric and its epoch (None: the last)."""
    metric, _, epoch = name.partition("@")
    return metric.removesuffix("/all"), parse_epoch(epoch or "last", f"{name} in {where}")


def _entries(table: EventTable, declaration: Declaration) -> list[DeclaredConfiguration]:
    """Return the configurations of the rows, each once, targets outermost, in declared order."""
    entries = arm_entries(table, declaration)
    kept = [entry for (_, arm), entry in entries.items() if not table.arms or arm in table.arms]
    targets = [target.name for target in declaration.targets]
    return sorted(kept, key=lambda entry: targets.index(entry.target))


def _key(entry: DeclaredConfiguration, key: str | Mapping[str, str]) -> Any:
    if isinstance(key, str):
        return factor(entry, key)
    return key.get(f"{entry.arm}@{entry.target}", key.get(entry.arm, entry.arm))


def _counter(stored: pd.DataFrame, summary: pd.DataFrame) -> Callable[[str, Sequence[tuple[str, float | None]]], int | None]:
    """Return a function that counts the runs of a configuration with any of some (metric, epoch) equal to 1."""
    of = dict(iter(stored.groupby("config_id", sort=False)))
    rows = summary[["config_id", "metric", "epoch", "mean", "n_finite"]].itertuples(index=False)
    before = {(config_id, metric, epoch): round(mean * n) if n else 0 for config_id, metric, epoch, mean, n in rows}

    def count(config_id: str, events: Sequence[tuple[str, float | None]]) -> int | None:
        (metric, epoch), *_ = events
        if epoch is not None:
            return before.get((config_id, metric, epoch))
        ones = of.get(config_id, stored[:0])[[f"{metric}/all" for metric, _ in events]] == 1
        return int(ones.any(axis=1).sum())

    return count


def _rendered(table: EventTable, frame: pd.DataFrame, nonfinite: int) -> RenderedTable:
    keys, events = list(table.keys), list(table.events)
    rows = []
    for line in frame.to_dict("records"):
        numbers = ["-" if pd.isna(line[name]) else f"{line[name]:,}" for name in ("n", *events)]
        has_share, interval = not pd.isna(line["ci_lo"]), f"[{line['ci_lo']:.3g}, {line['ci_hi']:.3g}]"
        share = f"{line[events[-1]] / line['n']:.3g} {interval}" if has_share else "-"
        rows.append([*(format_value(line[key]) for key in keys), *numbers, share])
    texts = [
        f"n: the runs that are stored; share: {words(events[-1])} of n [95 % Wilson interval].",
        f"{nonfinite:,} of the runs went nonfinite, and nothing is counted of what came after." if nonfinite else "",
    ]
    headers = [*map(words, (*keys, "n", *events)), "share"]
    return RenderedTable(table.caption, headers, rows, set(), len(keys), " ".join(filter(None, texts)))
