"""Figures of a draw study, from cells.csv: heatmaps over two factors, or lines along one factor."""

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
from relu_study.storage.quantities import QuantityInfo
from relu_study.study.outputs import CellFigure

Numbers = Mapping[str, Mapping[str, QuantityInfo]]  # statistic -> its declared quantities

PANEL_HEIGHT, TITLE_HEIGHT = 2.2, 0.4  # inches
THIN = 0.8  # points, the width of lines of bounds and theory
THEORY: dict[str, Any] = {"linestyle": ":", "marker": "x", "markersize": 3}
# Columns of a band: the quartiles of the draws if they are stored, else the interval of the mean.
INTERVALS = (("q25", "q75"), ("ci_lo", "ci_hi"))


def arranged(figure: CellFigure, frame: pd.DataFrame, numbers: Numbers) -> Callable[[], Figure] | None:
    """Return a function that draws the figure from the frame of cells.csv, or None if the figure has no values."""
    rows = frame[frame["experiment"].isin(figure.experiments)]
    rows = rows[rows["number"] == figure.number] if figure.number else rows
    rows = rows[rows[figure.cols].notna()]
    if not rows[figure.column].notna().any():
        return None
    draw = _map if figure.kind == "map" else _lines
    return partial(draw, figure, _panels(figure.by, rows), _label(figure, rows, numbers))


def _panels(by: str, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return panel title -> the panel's rows: a panel for each value of factor `by`, or one panel without a title."""
    if not by:
        return {"": rows}
    return {_named(by, value): rows[rows[by] == value] for value in sorted_values(list(rows[by]))}


def _short(value: Any) -> str:
    """Return a factor's value as text, as in cell labels: fractions with six significant digits."""
    return f"{value:g}" if isinstance(value, float) and value % 1 else format_value(value)


def _named(factor_name: str, value: Any) -> str:
    """Return a factor's value as a title: a name by itself, a number after the factor."""
    return words(value) if isinstance(value, str) else f"{words(factor_name)} {_short(value)}"


def _label(figure: CellFigure, rows: pd.DataFrame, numbers: Numbers) -> str:
    """Return the axis label: the text of the quantity if all rows share it, else its name, else "value".

    The label names the plotted column, unless the column is the estimate.
    """
    names = set(rows["number"])
    texts = {numbers[statistic][name].text for statistic, name in zip(rows["statistic"], rows["number"], strict=True)}
    quantity = texts.pop() if len(texts) == 1 else words(names.pop()) if len(names) == 1 else "value"
    return stacked(quantity if figure.column == "estimate" else f"{quantity}, {words(figure.column)}")


def _map(figure: CellFigure, groups: Mapping[str, pd.DataFrame], label: str) -> Figure:
    """Return the heatmaps of all panels. All panels have the same axes."""
    all_rows = pd.concat(list(groups.values()))
    row_values, col_values = (sorted_values(list(all_rows[name])) for name in (figure.rows, figure.cols))
    panels = {title: _heatmap(figure, rows, row_values, col_values) for title, rows in groups.items()}
    row_axis = factor(figure.rows), [_short(value) for value in row_values]
    col_axis = factor(figure.cols), [_short(value) for value in col_values]
    maps = heatmap.Heatmaps(label, panels, figure.log, between=figure.between)
    return heatmap.maps([maps], list(panels), row_axis, col_axis)


def _heatmap(figure: CellFigure, rows: pd.DataFrame, row_values: list[Any], col_values: list[Any]) -> heatmap.Heatmap:
    """Return one panel's heatmap, without counts. Entries without a row are unknown."""
    shape = len(row_values), len(col_values)
    values, known = np.full(shape, np.nan), np.zeros(shape, bool)
    for row, col, value in zip(rows[figure.rows], rows[figure.cols], rows[figure.column], strict=True):
        entry = row_values.index(row), col_values.index(col)
        values[entry], known[entry] = value, True
    return heatmap.Heatmap(values, known, [[""] * shape[1] for _ in range(shape[0])])


def _lines(figure: CellFigure, groups: Mapping[str, pd.DataFrame], label: str) -> Figure:
    """Return the panels of lines: a line for each value of factor `figure.rows`, or one line."""
    all_rows = pd.concat(list(groups.values()))
    kinds = sorted_values(list(all_rows[figure.rows])) if figure.rows else [""]
    styles = {kind: {"color": COLOURS[i % 7], "linestyle": DASHES[i // 7 % 4]} for i, kind in enumerate(kinds)}
    (panels,) = panel_grid(list(groups), [{}], min(len(groups), 3))
    has_theory = False
    for panel, rows in zip(panels, groups.values(), strict=True):
        for kind in kinds:
            line = (rows[rows[figure.rows] == kind] if figure.rows else rows).sort_values(figure.cols)
            line = line[line[figure.column].notna()]
            if not line.empty:
                has_theory |= _line(panel.ax, figure, line, styles[kind])
        _set_axes(panel, figure, rows, all_rows[figure.cols])
        panel.ax.tick_params(labelleft=panel.first or len(groups) > 1, labelbottom=True)
        if panel.first:
            panel.ax.set_ylabel(label)
    canvas = panels[0].ax.figure
    assert isinstance(canvas, Figure)
    handles = [Line2D([], [], label=_named(figure.rows, kind), **styles[kind]) for kind in kinds if figure.rows]
    if has_theory:
        handles.append(Line2D([], [], color=FAINT, **THEORY, label="theory"))
    legend_height = legend_below(canvas, handles, "") if handles else 0.0
    canvas.set_size_inches(canvas.get_figwidth(), PANEL_HEIGHT * num_rows(panels) + TITLE_HEIGHT + legend_height)
    return canvas


def _line(ax: Axes, figure: CellFigure, line: pd.DataFrame, style: Mapping[str, Any]) -> bool:
    """Draw one line with its band, bounds and theory. Return whether the line has a theory."""
    x, colour = line[figure.cols].to_numpy(float), style["color"]
    low, high = next(((low, high) for low, high in INTERVALS if line[low].notna().any()), INTERVALS[-1])
    middle = "median" if low == "q25" else figure.column
    ax.plot(x, line[middle], marker="." if len(x) < 12 else "", **style)
    ax.fill_between(x, line[low], line[high], color=colour, alpha=0.15, linewidth=0)
    for bound in ("lower", "upper") if figure.bounds else ():
        ax.plot(x, line[bound], color=colour, linestyle="--", linewidth=THIN)
    has_theory = bool(line["theory"].notna().any())
    if has_theory:
        ax.plot(x, line["theory"], color=colour, **THEORY, linewidth=THIN)
    return has_theory


def _set_axes(panel: Panel, figure: CellFigure, rows: pd.DataFrame, x: pd.Series) -> None:
    """Set the scales, ticks and x label of a panel. `x` has the horizontal values of all panels, so their ticks agree."""
    if figure.log_cols:
        panel.ax.set_xscale("log")
        panel.ax.set_xticks(*log_ticks(float(x.min()), float(x.max())))
        panel.ax.set_xticks([], minor=True)
    elif (x % 1 == 0).all():
        panel.ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=ROUND))
    panel.ax.set_xlabel(factor(figure.cols) if panel.last else "")
    if figure.log:
        log_scale(panel.ax, finite([rows[figure.column].to_numpy(float)]))
