"""Figures of a draw study, from the rows of cells.csv: a map over two factors, or lines along one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from relu_study.report.factors import format_value, sorted_values
from relu_study.report.figures import heatmap
from relu_study.report.figures.canvas import (
    COLOURS,
    DASHES,
    FAINT,
    ROUND,
    Panel,
    finite,
    legend_below,
    log_scale,
    log_ticks,
    num_rows,
    panel_grid,
)
from relu_study.report.labels import factor, stacked, words
from relu_study.storage.declaration import QuantityInfo
from relu_study.study.outputs import CellFigure

Numbers = Mapping[str, Mapping[str, QuantityInfo]]  # statistic -> its declared quantities

PANEL_HEIGHT, TITLES = 2.2, 0.4  # inches
THIN = 0.8  # points: the lines of bounds and theory
THEORY: dict[str, Any] = {"linestyle": ":", "marker": "x", "markersize": 3}
INTERVALS = (("q25", "q75"), ("ci_lo", "ci_hi"))  # the inner half of the draws if stored, else the interval of the mean


def arranged(figure: CellFigure, frame: pd.DataFrame, numbers: Numbers) -> Callable[[], Figure] | None:
    """Return the function that draws a figure from the frame of cells.csv, or None without values."""
    rows = frame[frame["experiment"].isin(figure.experiments)]
    rows = rows[rows["number"] == figure.number] if figure.number else rows
    rows = rows[rows[figure.cols].notna()]
    if not rows[figure.column].notna().any():
        return None
    by = figure.by
    groups = {_named(by, v): rows[rows[by] == v] for v in sorted_values(list(rows[by]))} if by else {"": rows}
    return partial(_map if figure.kind == "map" else _lines, figure, groups, _label(figure, rows, numbers))


def _short(value: Any) -> str:
    """Return a factor's value as in cell labels: floats with six digits."""
    return f"{value:g}" if isinstance(value, float) and value % 1 else format_value(value)


def _named(factor_name: str, value: Any) -> str:
    return words(value) if isinstance(value, str) else f"{words(factor_name)} {_short(value)}"


def _label(figure: CellFigure, rows: pd.DataFrame, numbers: Numbers) -> str:
    """Return the axis label of a figure's numbers: the text of their statistic if all have the same."""
    names = set(rows["number"])
    texts = {numbers[statistic][name].text for statistic, name in zip(rows["statistic"], rows["number"], strict=True)}
    what = texts.pop() if len(texts) == 1 else words(names.pop()) if len(names) == 1 else "value"
    return stacked(what if figure.column == "estimate" else f"{what}, {words(figure.column)}")


def _map(figure: CellFigure, groups: Mapping[str, pd.DataFrame], label: str) -> Figure:
    every, ways = pd.concat(list(groups.values())), {"rows": figure.rows, "cols": figure.cols}
    axes = {way: sorted_values(list(every[name])) for way, name in ways.items()}
    boards = {}
    for name, rows in groups.items():
        shape = len(axes["rows"]), len(axes["cols"])
        values, known = np.full(shape, np.nan), np.zeros(shape, bool)
        for row, col, value in zip(rows[figure.rows], rows[figure.cols], rows[figure.column], strict=True):
            place = axes["rows"].index(row), axes["cols"].index(col)
            values[place], known[place] = value, True
        boards[name] = heatmap.Heatmap(values, known, [[""] * shape[1] for _ in range(shape[0])])
    down, along = ((factor(name), [_short(v) for v in axes[way]]) for way, name in ways.items())
    return heatmap.maps([heatmap.Heatmaps(label, boards, figure.log, between=figure.between)], list(boards), down, along)


def _lines(figure: CellFigure, groups: Mapping[str, pd.DataFrame], label: str) -> Figure:
    every = pd.concat(list(groups.values()))
    kinds = sorted_values(list(every[figure.rows])) if figure.rows else [""]
    looks = {kind: {"color": COLOURS[i % 7], "linestyle": DASHES[i // 7 % 4]} for i, kind in enumerate(kinds)}
    (panels,) = panel_grid(list(groups), [{}], min(len(groups), 3))
    has_theory = False
    for panel, rows in zip(panels, groups.values(), strict=True):
        for kind in kinds:
            line = (rows[rows[figure.rows] == kind] if figure.rows else rows).sort_values(figure.cols)
            line = line[line[figure.column].notna()]
            if not line.empty:
                has_theory |= _line(panel.ax, figure, line, looks[kind])
        _axes(panel, figure, rows, every[figure.cols])
        panel.ax.tick_params(labelleft=panel.first or len(groups) > 1, labelbottom=True)
        if panel.first:
            panel.ax.set_ylabel(label)
    picture = panels[0].ax.figure
    assert isinstance(picture, Figure)
    handles = [Line2D([], [], label=_named(figure.rows, kind), **looks[kind]) for kind in kinds if figure.rows]
    handles += [Line2D([], [], color=FAINT, **THEORY, label="theory")] if has_theory else []
    legend = legend_below(picture, handles, "") if handles else 0.0
    picture.set_size_inches(picture.get_figwidth(), PANEL_HEIGHT * num_rows(panels) + TITLES + legend)
    return picture


def _line(ax: Axes, figure: CellFigure, line: pd.DataFrame, look: Mapping[str, Any]) -> bool:
    """Draw one line with its band, bounds and theory. Returns whether it has theory."""
    x, colour = line[figure.cols].to_numpy(float), look["color"]
    low, high = next((pair for pair in INTERVALS if line[pair[0]].notna().any()), INTERVALS[-1])
    middle = "median" if low == "q25" else figure.column
    ax.plot(x, line[middle], marker="." if len(x) < 12 else "", **look)
    ax.fill_between(x, line[low], line[high], color=colour, alpha=0.15, linewidth=0)
    for bound in ("lower", "upper") if figure.bounds else ():
        ax.plot(x, line[bound], color=colour, linestyle="--", linewidth=THIN)
    has_theory = bool(line["theory"].notna().any())
    if has_theory:
        ax.plot(x, line["theory"], color=colour, **THEORY, linewidth=THIN)
    return has_theory


def _axes(panel: Panel, figure: CellFigure, rows: pd.DataFrame, x: pd.Series) -> None:
    """Set the scales of a panel. `x` are the values of all panels."""
    if figure.log_cols:
        panel.ax.set_xscale("log")
        panel.ax.set_xticks(*log_ticks(float(x.min()), float(x.max())))
        panel.ax.set_xticks([], minor=True)
    elif (x % 1 == 0).all():
        panel.ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=ROUND))
    panel.ax.set_xlabel(factor(figure.cols) if panel.last else "")
    if figure.log:
        log_scale(panel.ax, finite([rows[figure.column].to_numpy(float)]))
