"""Tables on demand from the folder of a monitored training: sites, steps and members by metrics."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from relu_study.errors import UserError, nearest
from relu_study.report.conditions import split_condition
from relu_study.report.labels import is_share, words
from relu_study.report.markup import RenderedTable, format_mean_ci, latex_table, markdown_table
from relu_study.stats import intervals
from relu_study.storage.monitor_log import MonitorInfo, read_info
from relu_study.storage.monitor_results import load_monitor

FACTORS = ("site", "step", "member")
SHOWN = ("dead_fraction", "nearly_dead_fraction", "saturated_fraction", "dormant_fraction", "grad_norm", "update_ratio")
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    **{"=": operator.eq, "!=": operator.ne},
    **{"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge},
}


def monitor_table(
    folder: Path,
    rows: Sequence[str],
    cols: Sequence[str],
    metrics: Sequence[str],
    site: str,
    step: str | float,
    where: Sequence[str],
    format: str,
) -> str:
    """Return a table of a monitored training as text; each entry is a mean over members with its 95 % t interval.

    `rows` and `cols` are of site, step and member; `metrics` are "metric" or "metric/site". Empty `rows` are the sites, empty
    `metrics` the usual ones. Without step among the factors, `step` is "last" or a measured step.

    Raises:
      UserError: for an unknown name or value.
    """
    info, curves = read_info(folder), load_monitor(folder).curves
    rows = tuple(rows) or ("site",)
    for name in (*rows, *cols):
        if name not in FACTORS:
            raise nearest(name, FACTORS, "factor of a monitored training")
        if (*rows, *cols).count(name) > 1:
            raise UserError(f"{name} occurs twice among the rows and columns. Leave one out.")
    wanted = [_metric(name, info, site if "site" not in (*rows, *cols) else "") for name in metrics or _usual(info)]
    kept = _selected(curves, info, (*rows, *cols), step, where)
    order = pd.CategoricalDtype([*info.units, "all"])
    kept = kept.astype({"site": order}).sort_values(list((*rows, *cols)), kind="stable").astype({"site": object})
    frame = _frame(kept, (*rows, *cols), wanted)
    if frame.empty:
        raise UserError(f"no measurement of {folder} meets {' and '.join(where) or 'the request'}. Leave a condition out.")
    if format == "csv":
        steps = {} if "step" in frame else {"step": kept["step"].iloc[0]}
        return frame.drop(columns="column").assign(**steps).to_csv(index=False, lineterminator="\n")
    shown = _rendered(frame, rows, cols, kept, info)
    return (
        markdown_table(shown) if format == "markdown" else latex_table(shown, f"tab:{'-'.join(dict.fromkeys(frame['metric']))}")
    )


def _usual(info: MonitorInfo) -> list[str]:
    return [name for name in SHOWN if name in info.metrics]


def _metric(name: str, info: MonitorInfo, site: str) -> tuple[str, str]:
    """Return the metric and the site of a column; "": every site."""
    metric, _, named = name.partition("/")
    if metric not in info.metrics:
        raise nearest(metric, info.metrics, "metric")
    chosen = named or ("all" if not info.metrics[metric].sites and site else site)
    if chosen and f"{metric}/{chosen}" not in info.series:
        of = [series.partition("/")[2] for series in info.series if series.partition("/")[0] == metric]
        raise nearest(chosen, of, f"site of {metric}")
    return metric, chosen


def _selected(
    curves: pd.DataFrame, info: MonitorInfo, factors: Sequence[str], step: str | float, where: Sequence[str]
) -> pd.DataFrame:
    """Return the measurements at a step that meet all conditions."""
    kept = curves.astype({"site": object, "metric": object})
    for text in where:
        name, compared, values = split_condition(text)
        if name not in FACTORS:
            raise nearest(name, FACTORS, "factor of a monitored training")
        if name != "site" and not all(value.lstrip("-").isdigit() for value in values):
            raise UserError(f"{text!r} needs whole numbers. Write for example {name}=0.")
        if name == "site" and (compared not in ("=", "!=") or not set(values) <= {*info.units, "all"}):
            raise nearest(next((v for v in values if v not in info.units), text), [*info.units, "all"], "site")
        met = [COMPARISONS[compared](kept[name], value if name == "site" else int(value)) for value in values]
        kept = kept[np.logical_and.reduce(met) if compared == "!=" else np.logical_or.reduce(met)]
    if "step" in factors:
        if step != "last":
            raise UserError("step is a factor, so the table has every step. Leave the epoch out, or select by step=... instead.")
        return kept
    steps = kept["step"].unique().tolist()
    if step == "last":
        return kept[kept["step"] == max(steps, default=0)]
    if not str(step).replace(".0", "").isdigit() or int(float(step)) not in steps:
        few = ", ".join(map(str, steps)) if len(steps) < 12 else f"{steps[0]}, {steps[1]}, ... {steps[-1]}"
        raise UserError(f"there is no measurement at step {step}. The measured steps are {few}.")
    return kept[kept["step"] == int(float(step))]


def _frame(kept: pd.DataFrame, factors: Sequence[str], wanted: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Return one row an entry: its factors, metric, column title, and mean over members."""
    parts = []
    for metric, site in wanted:
        chosen = kept[(kept["metric"] == metric) & ((kept["site"] == site) if site else True)]
        for key, group in chosen.groupby(list(factors), sort=False):
            cell = intervals.summarise(group["value"].to_numpy())
            title = words(metric) + (f", {site}" if site not in ("", "all") else "")
            row: dict[str, Any] = dict(zip(factors, key, strict=True)) | {"metric": metric, "column": title}
            row |= {name: cell[name].item() for name in ("n", "n_finite", "mean", "ci_lo", "ci_hi")}
            parts.append(row)
    return pd.DataFrame(parts)


def _rendered(
    frame: pd.DataFrame, rows: Sequence[str], cols: Sequence[str], kept: pd.DataFrame, info: MonitorInfo
) -> RenderedTable:
    row_keys, col_keys = (
        [tuple(key) for key in frame[list(names)].drop_duplicates().itertuples(index=False)] for names in (rows, cols)
    )
    titles = list(dict.fromkeys(frame["column"]))
    columns = list(itertools.product(col_keys if cols else [()], titles))
    entries = {
        (tuple(entry[name] for name in rows), tuple(entry[name] for name in cols), entry["column"]): entry
        for entry in frame.to_dict("records")
    }
    named = len(titles) > 1 or not cols
    headers = [", ".join([*map(str, key), *([title] if named else [])]) for key, title in columns]
    texts = [[*map(str, key), *(_text(entries.get((key, col, title))) for col, title in columns)] for key in row_keys]
    steps = kept["step"].unique()
    note = [
        f"Mean ± half width of the 95 % interval over {info.members} members."
        if info.members > 1 and "member" not in (*rows, *cols)
        else "",
        f"Step {steps[0]}." if len(steps) == 1 else "",
        f"Fractions on N = {info.probe_examples:,} probe examples." if any(map(is_share, frame["metric"])) else "",
    ]
    metrics = ", ".join(map(words, dict.fromkeys(frame["metric"])))
    caption = f"{metrics[:1].upper()}{metrics[1:]} by {' and '.join((*rows, *cols))}."
    return RenderedTable(caption, [*map(words, rows), *headers], texts, set(), len(rows), " ".join(filter(None, note)))


def _text(entry: Mapping[Any, Any] | None) -> str:
    if entry is None:
        return "- (not defined)"
    if not entry["n_finite"]:
        return "- (nonfinite)" if entry["metric"] not in ("update_norm", "update_ratio") else "- (no earlier finite measurement)"
    missing = "" if entry["n_finite"] == entry["n"] else f" (n={entry['n_finite']}/{entry['n']})"
    return format_mean_ci(entry["mean"], (entry["ci_hi"] - entry["ci_lo"]) / 2) + missing
