"""Curves over epochs with 95 % bands, and survival of units."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from relu_study.report.figures import canvas, inputs
from relu_study.report.figures.canvas import COLOURS, DASHES, FAINT, ROUND, finite, legend_below, log_scale, new_figure, runs
from relu_study.report.figures.inputs import FigureData, nine_digits, not_run_counts
from relu_study.report.labels import at_site, count, is_share, probe_set, stacked, unit
from relu_study.storage.declaration import Declaration
from relu_study.storage.quantities import MetricInfo
from relu_study.storage.tile_identity import LOSSES
from relu_study.study import outputs


@dataclass(frozen=True)
class Band:
    """A line over E epochs with its 95 % interval, its number of runs, and the size of their probe set.

    `count` is "n=31/32" if runs are missing or go nonfinite, else empty.
    """

    epochs: Float[np.ndarray, " E"]
    mean: Float[np.ndarray, " E"]
    lo: Float[np.ndarray, " E"]
    hi: Float[np.ndarray, " E"]
    runs: int
    probe_examples: int
    count: str = ""


@dataclass(frozen=True)
class Row:
    """One row of panels: the bands by arm for each column. `low` and `high` bound the possible values."""

    label: str
    cells: Sequence[Mapping[str, Band]]
    log: bool = False
    low: float | None = None
    high: float | None = None
    steps: bool = False


def curves(rows: Sequence[Row], columns: Sequence[str], arms: Sequence[str], title: str, note: str = "") -> Figure:
    """Draw a grid of panels, with one line and band per arm. An arm has the same colour and dashes in every panel.

    `note` is shown below the title of the legend.
    """
    # Seven colours and four dash patterns give 28 styles. Solid lines are drawn first, so coinciding lines stay visible.
    looks = {arm: {"color": COLOURS[i % 7], "linestyle": DASHES[i % 4], "zorder": 2 + i % 4 / 4} for i, arm in enumerate(arms)}
    shown = [arm for arm in arms if any(arm in cell for row in rows for cell in row.cells)]
    handles = [Line2D([], [], label=textwrap.fill(arm + _counts(arm, rows, columns), 60), **looks[arm]) for arm in shown]
    picture = new_figure(len(columns))
    axes = picture.subplots(len(rows), len(columns), squeeze=False, sharex=True)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row.cells):
            _panel(axes[i, j], row, cell, looks)
        axes[i, 0].set_ylabel(row.label)
        if row.high is not None:
            _share_limits(list(axes[i]), row)
    for ax, name in zip(axes[0], columns, strict=True):
        ax.set_title(name)
    bands = [band for row in rows for cell in row.cells for band in cell.values()]
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(canvas.epoch_ticks(6, [band.epochs for band in bands]))
    legend = legend_below(picture, handles, f"{title} {runs({band.runs for band in bands})}", note)
    picture.set_size_inches(picture.get_figwidth(), 1.6 * len(rows) + 0.5 + legend)
    return picture


def _counts(arm: str, rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return the text on missing or nonfinite runs in an arm's legend entry, with the column unless it holds for all."""
    arms_by_text: dict[str, dict[str, None]] = {}
    for row in rows:
        for column, cell in zip(columns, row.cells, strict=True):
            if arm in cell:
                arms_by_text.setdefault(cell[arm].count, {})[column] = None
    words = [
        ", ".join(filter(None, [count] if len(arms_by_text) == 1 else [*names, count]))
        for count, names in arms_by_text.items()
        if count
    ]
    return f" ({'; '.join(words)})" if words else ""


def _panel(ax: Axes, row: Row, cell: Mapping[str, Band], looks: Mapping[str, dict[str, Any]]) -> None:
    if not cell:
        ax.text(0.5, 0.5, "no values", transform=ax.transAxes, ha="center", va="center", color=FAINT)
        ax.set_yticks([])
        return
    for arm, band in cell.items():
        marks: dict[str, Any] = {"marker": ".", "markersize": 4} if len(band.epochs) < 10 else {}
        ax.plot(band.epochs, band.mean, drawstyle="steps-post" if row.steps else "default", **looks[arm], **marks)
        shade: dict[str, Any] = {"color": looks[arm]["color"], "alpha": 0.13 if len(cell) < 7 else 0.08, "linewidth": 0}
        ax.fill_between(band.epochs, band.lo, band.hi, step="post" if row.steps else None, **shade)
    if row.log:
        log_scale(ax, finite(band.mean for band in cell.values()))
    else:
        ax.set_ylim(limits(cell.values(), row.low, row.high))
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))


def limits(bands: Collection[Band], low: float | None, high: float | None) -> tuple[float, float]:
    """Return limits that show all lines, cut intervals that would hide the lines, and stay in the possible range."""
    least, most = -np.inf if low is None else low, np.inf if high is None else high
    means, edges = finite(b.mean for b in bands), finite(x for b in bands for x in (b.mean, b.lo, b.hi))
    spread = 2 * np.ptp(means) or np.inf
    bottom, top = max(edges.min(), means.min() - spread, least), min(edges.max(), means.max() + spread, most)
    if top == bottom:
        bottom, top = max(bottom - 0.05 * max(abs(top), 1), least), min(top + 0.05 * max(abs(top), 1), most)
    return bottom - 0.05 * (top - bottom), top + 0.05 * (top - bottom)


def _share_limits(axes: Sequence[Axes], row: Row) -> None:
    used = [ax for ax, cell in zip(axes, row.cells, strict=True) if cell]
    for ax in used:
        ax.set_ylim(limits([band for cell in row.cells for band in cell.values()], row.low, row.high))
        ax.tick_params(labelleft=ax is used[0])


# ------------------------------------------------------------------------------ curves, survival


def arrange_curves(
    figure: outputs.Figure, declaration: Declaration, numbers: FigureData, note: str
) -> Callable[[], canvas.Figure] | None:
    """Return the function that draws curves or survival, or None where there is no value."""
    arms, columns = inputs.layout(figure, declaration)
    shown = {config_id for ids in columns.values() for config_id in ids.values()}
    survival = figure.kind == "survival"
    if survival:
        bands = _survival_bands(numbers, shown)
        names = sorted({name for _, name in bands}, key=lambda name: (len(name), name))
    else:
        names = inputs.expand_metrics(figure, declaration)
        bands = _metric_bands(numbers, shown, {name.partition("/")[0] for name in names})
    rows, empty = [], []
    for name in names:
        found = [{arm: bands[ids[arm], name] for arm in arms if (ids.get(arm), name) in bands} for ids in columns.values()]
        cells = [{arm: band for arm, band in cell.items() if np.isfinite(band.mean).any()} for cell in found]
        if any(cells):
            rows.append(_row(name, cells, figure.log, declaration.metrics))
        else:
            empty.append(at_site(*name.split("/")))
    if not rows:
        return None
    absent = [arm for arm in arms if not any(arm in cell for row in rows for cell in row.cells)]
    stored = numbers.configurations
    unrun = {arm for arm in absent if stored and not any(ids.get(arm) in stored for ids in columns.values())}
    empty += [f"{arm} (not run)" if arm in unrun else arm for arm in absent]
    titles = [inputs.title(target, declaration) for target in columns]
    kind = "share and its 95 % band over" if survival else "mean and 95 % interval over"
    notes = "\n".join(filter(None, [note, f"no values: {', '.join(empty)}" if empty else ""]))
    return partial(curves, rows, titles, arms, kind, notes)


def _metric_bands(numbers: FigureData, shown: set[str], metrics: set[str]) -> dict[tuple[str, str], Band]:
    counts, not_run = _run_counts(numbers), not_run_counts(numbers)
    rows = numbers.summary[numbers.summary["metric"].isin(metrics) & numbers.summary["config_id"].isin(shown)]
    cells = rows.groupby(["config_id", "metric", "site"], sort=False)
    bands = {(str(c), f"{m}/{s}"): _band(cell, ("mean", "ci_lo", "ci_hi"), "n_finite", counts) for (c, m, s), cell in cells}
    for (config_id, metric, site), cell in cells:
        if metric in LOSSES:  # may be nonfinite in finite runs
            finite, wanted = cell.sort_values("epoch")[["n_finite", "n"]].iloc[-1]
            name = str(config_id), f"{metric}/{site}"
            bands[name] = replace(bands[name], count=count(int(finite), int(wanted), not_run.get(name[0], 0)))
    return bands


def _survival_bands(numbers: FigureData, shown: set[str]) -> dict[tuple[str, str], Band]:
    counts = _run_counts(numbers)
    cells = numbers.survival[numbers.survival["config_id"].isin(shown)].groupby(["config_id", "site"], sort=False)
    return {(str(c), f"survival/{s}"): _band(cell, ("survival", "lo", "hi"), "runs", counts) for (c, s), cell in cells}


def _run_counts(numbers: FigureData) -> dict[str, str]:
    """Return config_id -> "n=31/32" for configurations with missing or nonfinite runs."""
    summary, not_run = numbers.summary, not_run_counts(numbers)
    last = summary[summary["epoch"] == summary.groupby("config_id")["epoch"].transform("max")]
    last_rows = last.groupby("config_id")[["n_finite", "n"]].max()
    return {
        str(c): count(int(alive), int(n), not_run.get(str(c), 0))
        for c, (alive, n) in zip(last_rows.index, last_rows.to_numpy(), strict=True)
    }


def _band(rows: pd.DataFrame, columns: Sequence[str], runs: str, counts: Mapping[str, str]) -> Band:
    # Nine digits, as in the CSVs, so figures from memory and from files are equal.
    mean, lo, hi = (np.array([nine_digits(x) for x in rows[column].to_numpy(float)]) for column in columns)
    first = rows.iloc[0]
    n = counts.get(str(first["config_id"]), "")
    return Band(rows["epoch"].to_numpy(float), mean, lo, hi, int(rows[runs].max()), int(first["probe_examples"]), n)


def _row(name: str, cells: list[dict[str, Band]], log: bool, metrics: Mapping[str, MetricInfo]) -> Row:
    metric, site = name.split("/")
    n = stacked(probe_set({band.probe_examples for cell in cells for band in cell.values()}))
    if metric == "survival":
        return Row(f"units not yet dead, {site}\n(share of those born alive)\n{n}", cells, low=0, high=1, steps=True)
    about = metrics.get(metric, MetricInfo())
    label = stacked(at_site(metric, site)) + unit(metric, about, "\n")
    share = is_share(metric)
    return Row(f"{label}\n{n}" if share else label, cells, log and not share, about.low, about.high)
