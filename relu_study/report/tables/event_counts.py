"""Tables of event counts: the number of runs of each arm with an event, as CSV, Markdown and LaTeX.

They need only runs.csv and summary.csv. Counts at the last epoch come from runs.csv, where an event can combine several
metrics of one run. Counts at a given epoch come from summary.csv: n times the mean of one 0/1 metric.
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
from relu_study.storage.statuses import STORED
from relu_study.study.epochs import parse_epoch
from relu_study.study.outputs import EventTable

Event = Sequence[tuple[str, float | None]]  # metrics with their epochs (None: the last); any of them makes the event


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
    """Return the texts of the table as "csv", "md" and "tex", or no texts if the study's preset has none of its arms.

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
        metrics = [_split(name, event) for name in names]
        columns[event] = pd.array([count(entry.config_id, metrics) for entry in entries], "Int64")
    frame = pd.DataFrame(columns)
    last_event = frame.iloc[:, -1].to_numpy(float, na_value=float("nan"))
    frame["ci_lo"], frame["ci_hi"] = intervals.wilson(last_event, frame["n"].to_numpy(float))
    shown = _rendered(table, frame, int((stored["status"] == "nonfinite").sum()))
    options = [header for header, key in table.keys.items() if key in declaration.options]
    return table_files(table.name, frame, shown, options)


def _split(name: str, where: str) -> tuple[str, float | None]:
    """Return the metric and the epoch (None: the last) of "metric@epoch". `where` names the event in errors."""
    metric, _, epoch = name.partition("@")
    return metric.removesuffix("/all"), parse_epoch(epoch or "last", f"{name} in {where}")


def _entries(table: EventTable, declaration: Declaration) -> list[DeclaredConfiguration]:
    """Return the configuration of each row: by target, then by arm, in declared order."""
    entries = arm_entries(table, declaration)
    kept = [entry for (_, arm), entry in entries.items() if not table.arms or arm in table.arms]
    targets = [target.name for target in declaration.targets]
    return sorted(kept, key=lambda entry: targets.index(entry.target))


def _key(entry: DeclaredConfiguration, key: str | Mapping[str, str]) -> Any:
    """Return a row's key: the value of a factor, or the declared words for its arm on its target, or for its arm."""
    if isinstance(key, str):
        return factor(entry, key)
    return key.get(f"{entry.arm}@{entry.target}", key.get(entry.arm, entry.arm))


def _counter(stored: pd.DataFrame, summary: pd.DataFrame) -> Callable[[str, Event], int | None]:
    """Return a function that counts the runs of a configuration with an event. The count is None if it was not measured."""
    runs_of = dict(iter(stored.groupby("config_id", sort=False)))
    rows = summary[["config_id", "metric", "epoch", "mean", "n_finite"]].itertuples(index=False)
    at_epoch = {(config_id, metric, epoch): round(mean * n) if n else 0 for config_id, metric, epoch, mean, n in rows}

    def count(config_id: str, event: Event) -> int | None:
        (metric, epoch), *_ = event
        if epoch is not None:  # `check` refuses several metrics here
            return at_epoch.get((config_id, metric, epoch))
        is_one = runs_of.get(config_id, stored[:0])[[f"{metric}/all" for metric, _ in event]] == 1
        return int(is_one.any(axis=1).sum())

    return count


def _rendered(table: EventTable, frame: pd.DataFrame, nonfinite: int) -> RenderedTable:
    """Return the table as text, with the share of the last event and a note. `nonfinite` is a number of runs."""
    keys, events = list(table.keys), list(table.events)
    rows = []
    for line in frame.to_dict("records"):
        numbers = ["-" if pd.isna(line[name]) else f"{line[name]:,}" for name in ("n", *events)]
        has_share, interval = not pd.isna(line["ci_lo"]), f"[{line['ci_lo']:.3g}, {line['ci_hi']:.3g}]"
        share = f"{line[events[-1]] / line['n']:.3g} {interval}" if has_share else "-"
        rows.append([*("-" if pd.isna(line[key]) else format_value(line[key]) for key in keys), *numbers, share])
    texts = [
        f"n: the runs that are stored; share: {words(events[-1])} of n [95 % Wilson interval].",
        f"{nonfinite:,} of the runs went nonfinite, and nothing is counted of what came after." if nonfinite else "",
    ]
    headers = [*map(words, (*keys, "n", *events)), "share"]
    return RenderedTable(table.caption, headers, rows, set(), len(keys), " ".join(filter(None, texts)))
