"""Inputs of figures: their arms, targets, metrics and numbers, from a results folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from relu_study.errors import UserError, nearest
from relu_study.stats.histogram_bins import KINDS
from relu_study.storage.configurations import Configuration
from relu_study.storage.declaration import Declaration, DeclaredConfiguration
from relu_study.study.outputs import Figure

NEEDED = {  # CSV files needed by each kind; histograms are only in raw/
    "curves": ("summary", "survival"),
    "survival": ("summary", "survival"),
    "forest": ("verdicts",),
    "depth": ("runs",),
    "histograms": (),
    "map": ("summary",),
}

Draw = Callable[[], Any]  # of a Matplotlib figure: a study without figures never imports Matplotlib


# ------------------------------------------------------------------------------ arguments


def select_arms(figure: Figure, declaration: Declaration) -> list[DeclaredConfiguration]:
    """Return the configurations that a figure shows, in declared order."""
    return [
        entry
        for entry in declaration.configurations
        if (not figure.experiments or entry.experiment in figure.experiments) and (not figure.arms or entry.arm in figure.arms)
    ]


def layout(figure: Figure, declaration: Declaration) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Return the arms of a figure, and target -> arm -> config_id, in declared order."""
    entries = select_arms(figure, declaration)
    columns: dict[str, dict[str, str]] = {target: {} for target in targets_of(entries, declaration)}
    for entry in entries:
        columns[entry.target][entry.arm] = entry.config_id
    present = dict.fromkeys(entry.arm for entry in entries)
    return [arm for arm in dict.fromkeys(figure.arms or present) if arm in present], columns


def title(target: str, declaration: Declaration) -> str:
    """Return the title above the panels of a target, empty if the study declares no targets."""
    return f"target: {target}" if declaration.targets else ""


def targets_of(entries: Sequence[DeclaredConfiguration], declaration: Declaration) -> list[str]:
    """Return the targets of some configurations, in declared order."""
    present = {entry.target for entry in entries}
    return [t.name for t in declaration.targets if t.name in present] or sorted(present)


def expand_metrics(figure: Figure, declaration: Declaration) -> list[str]:
    """Return the "metric/site" names of a figure's metrics ("metric/*": every site). Raises UserError for unknown ones."""
    declared: Sequence[str] = declaration.columns
    if figure.kind == "histograms":
        sites = dict.fromkeys(name.partition("/")[2] for name in declared if not name.endswith("/all"))
        declared = [f"{kind}/{site}" for kind in KINDS for site in sites]
    return list(dict.fromkeys(name for asked in figure.metrics for name in _expanded(asked, figure, declared)))


def _expanded(metric_name: str, figure: Figure, declared: Sequence[str]) -> list[str]:
    metric, _, site = metric_name.partition("/")
    where = f"of figure {figure.name}" if figure.name else "of the figure"
    of_metric = [name for name in declared if name.startswith(f"{metric}/")]
    if not of_metric:
        raise nearest(metric, {name.partition("/")[0] for name in declared}, f"metric {where}")
    with_site = [name for name in of_metric if not name.endswith("/all")]
    every = figure.kind == "depth"
    if (site == "*" or every) and not with_site:
        have = dict.fromkeys(name.partition("/")[0] for name in declared if not name.endswith("/all"))
        raise UserError(f"{metric} {where} is measured for the whole network only. Metrics with sites are {', '.join(have)}.")
    if every and site not in ("", "*"):
        raise UserError(f"{metric_name} {where}: kind depth shows every site of a metric. Write {metric} without a site.")
    if site == "*" or every:
        return with_site
    if f"{metric}/{site or 'all'}" not in of_metric:
        raise nearest(site or "all", ["*", *(name.partition("/")[2] for name in of_metric)], f"site of {metric} {where}")
    return [f"{metric}/{site or 'all'}"]


def finite_runs(c: Configuration) -> int:
    """Return the number of runs that stay finite."""
    return int((c.status == "ok").sum())


@dataclass(frozen=True)
class FigureData:
    """Inputs of figures: the frames of summary.csv and survival.csv, the rows of verdicts.csv, and the runs.

    Curves need every epoch in `summary`, `depth` the values in `configurations` at its epoch, and `histograms` their histograms.
    Without `configurations`, counts cannot separate missing runs from nonfinite ones.
    """

    summary: pd.DataFrame
    survival: pd.DataFrame
    verdicts: Sequence[Mapping[str, Any]] = ()
    configurations: Mapping[str, Configuration] = field(default_factory=dict)


def missing_input(figure: Figure, csvs: Mapping[str, pd.DataFrame], folder: Path) -> str:
    """Return the input that a figure lacks besides the CSV files `found`, or an empty value. A clone has no raw/."""
    raw = folder / "raw"
    missing = [f"{name}.csv" for name in NEEDED[figure.kind] if name not in csvs]
    if missing:
        return missing[0]
    if figure.kind == "histograms":
        return f"{raw} (no CSV file holds histograms)"
    if figure.kind == "curves":
        at = [set(zip(csvs[name]["config_id"], csvs[name]["epoch"], strict=True)) for name in NEEDED["curves"]]
        return "" if at[0] >= at[1] else f"{raw} (summary.csv has the report epochs only)"
    if figure.kind == "depth":
        return "" if all(epoch == "last" for epoch in figure.epochs) else f"{raw} (runs.csv has the last epoch only)"
    (epoch,) = figure.epochs
    if figure.kind == "map" and epoch != "last" and float(epoch) not in set(csvs["summary"]["epoch"]):
        return f"{raw} (summary.csv has no epoch {float(epoch):g})"
    return ""


def not_run_counts(numbers: FigureData) -> dict[str, int]:
    """Return config_id -> number of missing runs."""
    return {config_id: c.num_requested - len(c.run_ids) for config_id, c in numbers.configurations.items()}


def nine_digits(value: Any) -> float:
    """Return a cell of a CSV file as a number with nine digits, or NaN if empty."""
    return float(f"{float(value):.9g}") if value != "" and not pd.isna(value) else math.nan
