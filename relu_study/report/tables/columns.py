"""Columns of a declared table: their epochs, sites and values in summary.csv."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from relu_study.errors import UserError, nearest
from relu_study.report.tables.entries import Entry, RunLookup, SummaryLookup


@dataclass(frozen=True)
class Column:
    """One metric of a table, at one site and epoch (None: each arm's last)."""

    name: str
    metric: str
    site: str
    epoch: float | None
    direction: str


Lookup = Callable[[str, Column], Entry]


def check_site(metric: str, site: str, columns: Sequence[str], where: str) -> None:
    """Refuse a site that `metric` has no column for."""
    if f"{metric}/{site}" not in columns:
        sites = [name.partition("/")[2] for name in columns if name.startswith(f"{metric}/")]
        raise nearest(site, sites, f"site {where}, for {metric}:")


def epoch_of(text: str | float, where: str) -> float | None:
    """The epoch that "last" (None) or a number means; anything else is refused."""
    if text == "last":
        return None
    if not re.fullmatch(r"\d+(\.\d*)?", str(text)):
        raise UserError(f"{where}: the epoch must be 'last' or a number, not {text!r}")
    return float(text)


def in_summary(summary: SummaryLookup, runs: RunLookup) -> Lookup:
    """What summary.csv has of a configuration in a column; with the values of its runs, where those are of the last epoch."""

    def look(config_id: str, column: Column) -> Entry:
        cell = summary.cell(config_id, column.metric, column.site, column.epoch)
        not_run, unmeasured = runs.missing(config_id, column.metric, column.epoch, cell.n_finite)
        cell = replace(cell, not_run=not_run, unmeasured=unmeasured)
        if not cell.defined and column.epoch is not None and (config_id, column.epoch) not in summary.alive:
            cell = replace(cell, reason=f"no epoch {column.epoch:g}" if runs.reasons else "")
        elif not cell.defined:
            cell = replace(cell, reason=runs.reason(config_id, column.metric, column.site, column.epoch))
        if column.epoch is not None:
            return cell
        return replace(cell, values=runs.values(config_id, f"{column.metric}/{column.site}"))

    return look
