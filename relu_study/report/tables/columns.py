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
    """Raise UserError (with the nearest name) for a site without a column of `metric`."""
    if f"{metric}/{site}" not in columns:
        sites = [name.partition("/")[2] for name in columns if name.startswith(f"{metric}/")]
        raise nearest(site, sites, f"site {where}, for {metric}:")


def epoch_of(text: str | float, where: str) -> float | None:
    """Return None for "last" and the number of an epoch. Raises UserError for anything else."""
    if text == "last":
        return None
    if not re.fullmatch(r"\d+(\.\d*)?", str(text)):
        raise UserError(f"{where}: the epoch must be 'last' or a number, not {text!r}.")
    return float(text)


def in_summary(summary: SummaryLookup, runs: RunLookup) -> Lookup:
    """Return the lookup of entries in summary.csv, with the values of the runs at their last epoch."""

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
