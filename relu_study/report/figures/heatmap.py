"""Heat maps: a number over two factors, written into each cell."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from relu_study.errors import UserError
from relu_study.report import factors
from relu_study.report.figures.canvas import (
    DIVERGING,
    HATCHED,
    SEQUENTIAL,
    WIDTH,
    Panel,
    finite,
    legend_below,
    log_ticks,
    num_rows,
    panel_grid,
    plain,
)
from relu_study.report.figures.inputs import Draw, expand_metrics, nine_digits, select_arms, targets_of, title
from relu_study.report.labels import WHICH_END, at_epoch, at_site, factor, is_share, probe_set, unit, words
from relu_study.report.tables.entries import Entry, SummaryLookup
from relu_study.storage.declaration import Declaration, DeclaredConfiguration
from relu_study.storage.quantities import MetricInfo
from relu_study.study import outputs
from relu_study.study.epochs import epoch_number

ABSENT: dict[str, Any] = {"facecolor": "#ECECEC", "edgecolor": "#ECECEC", "linewidth": 0}

# Widths in inches.
CELL, LETTER = 0.56, 0.07  # a number in a cell, a letter
SCALE = 1.1  # the scale of colours with its label
Y_LABEL, NAME_GAP, PANEL_GAP, TEXT_MARGIN = 0.5, 0.1, 0.15, 0.05

# Heights in inches.
CELL_HEIGHT, COUNTED_HEIGHT = 0.3, 0.4  # a cell without and with a count
TEXT_LINE, TEXT_PADDING = 0.13, 0.1  # text in a cell
NAME_LINE, NAME_HEIGHT = 0.14, 0.2  # the name of a row: each further line, and the first one
LEAST_PANEL, X_LABEL, COLUMN_NAMES, TITLES = 1.4, 0.3, 0.15, 0.25

NAME_WIDTH = 24  # characters
Factor = tuple[str, Sequence[str]]  # name with unit, and values


@dataclass(frozen=True)
class Heatmap:
    """A number over two factors: `values[i, j]` at `rows[i]`, `cols[j]`, with `counts` ("n=31/32") for missing runs.

    A count with reasons in parentheses has several lines. `known` marks existing configurations. A NaN there is undefined or
    has no run.
    """

    values: Float[np.ndarray, "A B"]
    known: Bool[np.ndarray, "A B"]
    counts: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Heatmaps:
    """A group of maps, one per column (target) with values. If `shared`, their colours have the same scale.

    Colours span the values, or the two numbers `between`, which clip values beyond them. Between -x and x the scale is diverging.
    """

    label: str
    cells: Mapping[str, Heatmap]
    log: bool = False
    shared: bool = True
    between: Sequence[float] | None = None


@dataclass(frozen=True)
class MapsLayout:
    """Sizes in inches: `foot` of the column names, `room` for panels in a row of 7 inches, `wide` and `tall` of a panel.

    `across` panels are in a row. `is_upright`: whether column names are rotated.
    """

    foot: float
    room: float
    wide: float
    tall: float
    across: int
    is_upright: bool

    def size(self, num_rows: int, legend: float) -> tuple[float, float]:
        """Return the width and height of the figure."""
        height = num_rows * self.tall + (self.foot if self.is_upright else COLUMN_NAMES) + TITLES + legend
        return max(WIDTH, WIDTH - self.room + self.across * self.wide), height


def maps(groups: Sequence[Heatmaps], columns: Sequence[str], rows: Factor, cols: Factor, note: str = "") -> Figure:
    """Draw a map per column and group. The figure is as wide as its cells need, and at least 7 inches."""
    down, along = ([textwrap.fill(value, NAME_WIDTH) for value in values] for values in (rows[1], cols[1]))
    layout = _layout(groups, len(columns), down, along)
    panels = panel_grid(columns, [{} for _ in groups], layout.across)
    marks: dict[str, dict[str, Any]] = {}
    for group, line in zip(groups, panels, strict=True):
        marks |= _group(group, line, columns, (len(down), len(along)))
        for panel in line:
            panel.ax.set_yticks(range(len(down)), down)
            panel.ax.set_xticks(range(len(along)), along, rotation=90 if layout.is_upright else 0)
            panel.ax.tick_params(length=0)
            panel.ax.set_ylabel(rows[0] if panel.first else "")
            panel.ax.set_xlabel(cols[0] if panel.last else "")
    picture = line[0].ax.figure
    assert isinstance(picture, Figure)
    handles = [Patch(label=name, **look) for name, look in marks.items()]
    legend = legend_below(picture, handles, "", note) if handles or note else 0.0
    picture.set_size_inches(*layout.size(sum(num_rows(line) for line in panels), legend))
    return picture


def _layout(groups: Sequence[Heatmaps], num_columns: int, down: Sequence[str], along: Sequence[str]) -> MapsLayout:
    side, foot = (LETTER * max(len(line) for value in names for line in value.split("\n")) for names in (down, along))
    one_scale = all(group.shared for group in groups)  # for all maps, or one next to each
    room = WIDTH - side - Y_LABEL - (SCALE if one_scale else 0)
    would_overlap = len(along) * (foot + NAME_GAP) > WIDTH - side - Y_LABEL - SCALE
    is_upright = foot > CELL - NAME_GAP and would_overlap
    counts = {text for group in groups for board in group.cells.values() for texts in board.counts for text in texts if text}
    reasons = [text.split("\n") for text in counts if "(" in text]
    cell = max([CELL, *(LETTER * len(part) + TEXT_MARGIN for text in reasons for part in text)])
    wide = len(along) * (cell if is_upright else max(cell, foot + NAME_GAP)) + PANEL_GAP + (0 if one_scale else SCALE)
    lines = [TEXT_LINE * (len(text) + 1) + TEXT_PADDING for text in reasons]
    cell_height = max([COUNTED_HEIGHT if counts else CELL_HEIGHT, *lines])
    heights = sum(max(cell_height, NAME_LINE * name.count("\n") + NAME_HEIGHT) for name in down)
    across = max(1, min(num_columns, int(room / wide)))
    return MapsLayout(foot, room, wide, max(LEAST_PANEL, heights) + X_LABEL, across, is_upright)


def _group(group: Heatmaps, line: Sequence[Panel], columns: Sequence[str], shape: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """Draw the maps of a group with their colour scales. Returns the patterns of empty cells by meaning."""
    together = _norm(finite(board.values for board in group.cells.values()), group.log, group.between)
    marks: dict[str, dict[str, Any]] = {}
    for panel, column in zip(line, columns, strict=True):
        board = group.cells.get(column)
        norm = together if group.shared or board is None else _norm(finite([board.values]), group.log)
        marks |= _board(panel.ax, board, norm, shape)
        if not group.shared:
            _bar(norm, [panel.ax], group.label)
    if group.shared:
        _bar(together, [panel.ax for panel in line], group.label)
    return marks


def _bar(norm: Normalize, axes: Sequence[Axes], label: str) -> None:
    """Draw a colour scale next to some panels."""
    beyond = "both" if norm.clip else "neither"
    bar = axes[0].figure.colorbar(ScalarMappable(norm, _heat(norm)), ax=list(axes), aspect=25, pad=0.02, extend=beyond)
    bar.set_label(label)
    if isinstance(norm, LogNorm):
        ticks, names = log_ticks(float(norm.vmin), float(norm.vmax))  # type: ignore[arg-type]
        bar.set_ticks(ticks, labels=names)
    bar.ax.minorticks_off()


def _heat(norm: Normalize) -> Colormap:
    return DIVERGING if norm.clip and norm.vmin is not None and norm.vmin == -(norm.vmax or 0) else SEQUENTIAL


def _norm(values: np.ndarray, log: bool, between: Sequence[float] | None = None) -> Normalize:
    if between:
        return Normalize(between[0], between[1], clip=True)
    if not len(values):
        return Normalize(0, 1)
    low, high = float(values.min()), float(values.max())
    if low == high:  # a scale needs a width
        low, high = min(low, 0.0), max(high, 0.0) if low else 1.0
    return LogNorm(low, high) if log and 0 < 2 * low < high else Normalize(low, high)  # a narrower range needs no logarithm


def _board(ax: Axes, board: Heatmap | None, norm: Normalize, shape: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """Draw one map. Returns the patterns of its cells without a number, by meaning."""
    marks: dict[str, dict[str, Any]] = {}
    ax.set(xlim=(-0.5, shape[1] - 0.5), ylim=(shape[0] - 0.5, -0.5))
    for spine in ax.spines.values():
        spine.set_visible(False)
    for i, j in np.ndindex(shape):
        cell: dict[str, Any] = {"xy": (j - 0.5, i - 0.5), "width": 1, "height": 1}
        if board is None or not board.known[i, j]:
            marks["no such configuration"] = HATCHED
            ax.add_patch(Rectangle(**cell, **HATCHED))
            continue
        value, count = float(board.values[i, j]), board.counts[i][j]
        if math.isfinite(value):
            ax.add_patch(Rectangle(**cell, facecolor=_heat(norm)(float(norm(value))), edgecolor="white", linewidth=0.6))
        else:
            marks["no value: not defined, or none is finite"] = ABSENT
            ax.add_patch(Rectangle(**cell, **ABSENT))
        text = "\n".join(filter(None, [_number(value), count]))
        ax.text(j, i, text, ha="center", va="center", color=_ink(value, norm), linespacing=1.0)
    return marks


def _number(value: float) -> str:
    """Return a number with three digits, with an exponent where tables have one."""
    if not math.isfinite(value):
        return "-"
    return plain(value, 3) if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e")


def _ink(value: float, norm: Normalize) -> str:
    """Return the text colour for a cell of a heat map."""
    if not np.isfinite(value) or (value == 0 and isinstance(norm, LogNorm)):
        return "black"
    red, green, blue, _ = _heat(norm)(float(norm(value)))
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45 else "white"


# ---------------------------------------------------------------------------------------- maps


def arrange_map(
    figure: outputs.Figure, declaration: Declaration, summary: pd.DataFrame, not_run: Mapping[str, int], note: str
) -> Draw | None:
    """Return the function that draws maps over two factors, one per target, or None if no cell has a value.

    Other varying factors are fixed at their most common value, which the figure names. If one factor is `arm` and the other a
    swept field, arms that differ only in it are merged under their common label. `not_run` counts missing runs per configuration.
    """
    entries, held = kept(figure, declaration)
    rows, cols = figure.rows or "", figure.cols or ""
    by_target = "target" not in (rows, cols)
    keys = {way: _keys(way, other, entries) for way, other in ((rows, cols), (cols, rows))}
    values = {way: factors.sorted_values(keys[way]) for way in keys}
    names, groups = expand_metrics(figure, declaration), []
    known = SummaryLookup(summary, {name.partition("/")[0] for name in names}, declaration.seeds_of)
    epoch = epoch_number(figure.epochs[0])
    shown = {entry.config_id for entry in entries}
    sizes = {int(size) for config_id, size in known.probe_examples.items() if config_id in shown}
    targets = targets_of(entries, declaration) if by_target else [""]
    for name in names:
        metric, site = name.split("/")
        boards = {}
        for target in targets:
            cells = {
                (values[rows].index(keys[rows][i]), values[cols].index(keys[cols][i])): _lost(
                    known.cell(entry.config_id, metric, site, epoch), entry.config_id, not_run
                )
                for i, entry in enumerate(entries)
                if not by_target or entry.target == target
            }
            boards[title(target, declaration) if by_target else ""] = _cells_of(cells, (len(values[rows]), len(values[cols])))
        log = figure.log and not is_share(metric)
        shared = declaration.metrics.get(metric, MetricInfo()).high is not None  # losses differ between targets
        groups.append(Heatmaps(_board_label(name, figure, declaration, sizes), boards, log, shared))
    groups = [group for group in groups if any(np.isfinite(board.values).any() for board in group.cells.values())]
    if not groups:
        return None
    fixed = ", ".join(f"{words(name)} {factors.format_value(value)}" for name, value in held.items())
    notes = "\n".join(filter(None, [note, f"held: {fixed}" if fixed else ""]))
    axes = [(factor(way), [factors.format_value(value) for value in values[way]]) for way in (rows, cols)]
    return partial(maps, groups, list(groups[0].cells), axes[0], axes[1], notes)


def _lost(cell: Entry, config_id: str, not_run: Mapping[str, int]) -> Entry:
    """Add the counts of missing and nonfinite runs to a cell. `not_run` lacks configurations without a stored run."""
    return replace(cell, not_run=not_run.get(config_id, cell.n)) if not_run else cell


def kept(figure: outputs.Figure, declaration: Declaration) -> tuple[list[DeclaredConfiguration], dict[str, Any]]:
    """Return the configurations of a map and its fixed factors with their values. Raises UserError for a tie."""
    try:
        return factors.hold_fixed(select_arms(figure, declaration), {figure.rows or "", figure.cols or "", "target"})
    except UserError as error:
        raise UserError(f"figure {figure.name}: {error}" if figure.name else f"{error}") from None


def _keys(way: str, other: str, entries: Sequence[DeclaredConfiguration]) -> list[Any]:
    """Return the value of a factor for each entry."""
    if way != "arm" or other == "experiment":
        return [factors.factor(entry, way) for entry in entries]
    alike: dict[str, list[str]] = {}
    rest = [str({name: value for name, value in entry.spec.items() if name not in (other, "target")}) for entry in entries]
    for text, entry in zip(rest, entries, strict=True):
        alike.setdefault(text, []).append(entry.arm)
    names = {text: _shared(list(dict.fromkeys(arms))) for text, arms in alike.items()}
    twice = {name for name in names.values() if list(names.values()).count(name) > 1}
    return [alike[text][0] if names[text] in twice else names[text] for text in rest]


def _shared(labels: Sequence[str]) -> str:
    """Return the comma-separated parts common to all labels, or the first label if there are none."""
    parts = [label.split(", ") for label in labels]
    same = [part for part in parts[0] if all(part in others for others in parts)]
    return ", ".join(same) or labels[0]


def _cells_of(cells: Mapping[tuple[int, int], Entry], shape: tuple[int, int]) -> Heatmap:
    values, known = np.full(shape, np.nan), np.zeros(shape, bool)
    counts = [["" for _ in range(shape[1])] for _ in range(shape[0])]
    for (i, j), cell in cells.items():
        known[i, j] = True
        # Nine digits, as in the CSVs, so figures from memory and from files are equal.
        values[i, j], counts[i][j] = nine_digits(cell.mean), cell.count.replace(" (", "\n(").replace(", ", ",\n")
    return Heatmap(values, known, counts)


def _board_label(name: str, figure: outputs.Figure, declaration: Declaration, sizes: set[int]) -> str:
    metric, site = name.split("/")
    about = declaration.metrics.get(metric, MetricInfo())
    n = [probe_set(sizes)] if is_share(metric) and sizes else []
    end = WHICH_END[about.direction]
    texts = [at_site(metric, site) + unit(metric, about), at_epoch(figure.epochs[0]), end, *n]
    return "\n".join(texts)
