"""Columns of a table: their metrics, sites and epochs, and the lookup of their entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from relu_study.errors import UserError, nearest
from relu_study.report.labels import words
from relu_study.report.tables.entries import Entry, RunLookup, SummaryLookup
from relu_study.storage.declaration import Declaration, DeclaredConfiguration
from relu_study.study.outputs import EventTable, Table

Key = tuple[Any, ...]  # values of factors


@dataclass(frozen=True)
class Column:
    """One metric of a table, at one site and epoch (None: the last of each arm).

    `key` holds the values of the factors that a pivot table spreads over its columns.
    """

    name: str
    metric: str
    site: str
    epoch: float | None
    direction: str
    header: str
    key: Key = ()


Lookup = Callable[[str, Column], Entry]


def parse_column(name: str, declaration: Declaration, site: str, epoch: float | None, of: str = "") -> Column:
    """Return the column of "metric" or "metric/site" (default: `site`). `of` names the table in errors.

    Raises:
        UserError: the study has no such metric, or the metric has no such site.
    """
    metrics = declaration.metrics
    metric, _, named_site = name.partition("/")
    site = named_site or site
    if metric not in metrics:
        raise nearest(metric, metrics, f"metric{of}")
    if site != "all" and not metrics[metric].sites:
        raise UserError(f"{metric}{of} is measured for the whole network only, not for {site}. Leave out the site.")
    check_site(metric, site, declaration.columns, of)
    header = words(metric) + ("" if site == "all" else f", {site}")
    return Column(name, metric, site, epoch, metrics[metric].direction, header)


def arm_entries(table: Table | EventTable, declaration: Declaration) -> dict[tuple[str, str], DeclaredConfiguration]:
    """Return (target, arm) -> the configuration of a table's experiments, in declared order."""
    entries = [entry for entry in declaration.configurations if entry.experiment in table.experiments]
    return {(entry.target, entry.arm): entry for entry in entries}


def check_site(metric: str, site: str, columns: Sequence[str], of: str) -> None:
    """Raise UserError (with the nearest name) for a site without a column of `metric`."""
    if f"{metric}/{site}" not in columns:
        sites = [name.partition("/")[2] for name in columns if name.startswith(f"{metric}/")]
        raise nearest(site, sites, f"site of {metric}{of}")


def in_runs(runs: RunLookup) -> Lookup:
    """Return a function that looks up the entry of a configuration and column in a frame of runs."""
    return lambda config_id, column: runs.cell(config_id, column.metric, column.site)


def in_summary(summary: SummaryLookup, runs: RunLookup) -> Lookup:
    """Return a function that looks up entries in summary.csv. An entry at the last epoch also has the values of the runs."""

    def entry_of(config_id: str, column: Column) -> Entry:
        cell = summary.cell(config_id, column.metric, column.site, column.epoch)
        not_run, unmeasured = runs.missing(config_id, column.metric, column.epoch, cell.n_finite)
        cell = replace(cell, not_run=not_run, unmeasured=unmeasured)
        if not cell.defined:
            if column.epoch is not None and (config_id, column.epoch) not in summary.alive:
                reason = f"no epoch {column.epoch:g}" if runs.reasons else ""
            else:
                reason = runs.reason(config_id, column.metric, column.site, column.epoch)
            cell = replace(cell, reason=reason)
        if column.epoch is not None:
            return cell
        return replace(cell, values=runs.values(config_id, f"{column.metric}/{column.site}"))

    return entry_of
