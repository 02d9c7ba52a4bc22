"""Maps: a number over two factors, written into each cell."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from relu_study.drawing import BOTH_WAYS, HATCHED, HEAT, WIDTH, Panel, finite, legend_below, lines, log_ticks, plain, sheet

ABSENT: dict[str, Any] = {"facecolor": "#ECECEC", "edgecolor": "#ECECEC", "linewidth": 0}
CELL, SCALE, LETTER = 0.56, 1.1, 0.07  # inches: a number in a cell, the scale of colours with its label, a letter
Factor = tuple[str, Sequence[str]]  # its name with its unit, and its values


@dataclass(frozen=True)
class Board:
    """A number over two factors: `values[i, j]` at `rows[i]`, `cols[j]`, and `counts`, "n=31/32" where runs are lost.

    A count with reasons in brackets has several lines.

    `known` says where there is such a configuration; a value that is NaN there is not defined, or no run has one.
    """

    values: Float[np.ndarray, "A B"]
    known: Bool[np.ndarray, "A B"]
    counts: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Boards:
    """A group of maps, one by column (target) that has one; their colours mean the same in all if `shared`, else in each.

    Colours run over the values, or `between` two numbers, what lies beyond having the last of them; between -x and x they
    run from one hue to another.
    """

    label: str
    cells: Mapping[str, Board]
    log: bool = False
    shared: bool = True
    between: Sequence[float] | None = None


def maps(groups: Sequence[Boards], columns: Sequence[str], rows: Factor, cols: Factor, note: str = "") -> Figure:
    """A map for each column in each group; a picture is as wide as its cells need, and 7 inches at least."""
    down, along = ([textwrap.fill(value, 24) for value in values] for values in (rows[1], cols[1]))
    side, foot = (LETTER * max(len(line) for value in names for line in value.split("\n")) for names in (down, along))
    one = all(group.shared for group in groups)  # a scale of colours for them all, or one beside each map
    room = WIDTH - side - 0.5 - (SCALE if one else 0)
    upright = foot > CELL - 0.1 and len(along) * (foot + 0.1) > WIDTH - side - 0.5 - SCALE  # long names would meet
    counts = {text for group in groups for board in group.cells.values() for texts in board.counts for text in texts if text}
    reasons = [text.split("\n") for text in counts if "(" in text]
    least = max([CELL, *(LETTER * len(part) + 0.05 for text in reasons for part in text)])
    wide = len(along) * (least if upright else max(least, foot + 0.1)) + 0.15 + (0 if one else SCALE)
    across = max(1, min(len(columns), int(room / wide)))
    panels = sheet(columns, [{} for _ in groups], across)
    marks: dict[str, dict[str, Any]] = {}
    for group, line in zip(groups, panels, strict=True):
        marks |= _group(group, line, columns, (len(down), len(along)))
        for panel in line:
            panel.ax.set_yticks(range(len(down)), down)
            panel.ax.set_xticks(range(len(along)), along, rotation=90 if upright else 0)
            panel.ax.tick_params(length=0)
            panel.ax.set_ylabel(rows[0] if panel.first else "")
            panel.ax.set_xlabel(cols[0] if panel.last else "")
    picture = line[0].ax.figure
    assert isinstance(picture, Figure)
    handles = [Patch(label=name, **look) for name, look in marks.items()]
    legend = legend_below(picture, handles, "", note) if handles or note else 0.0
    room_for = max([0.4 if counts else 0.3, *(0.13 * (len(text) + 1) + 0.1 for text in reasons)])
    tall = max(1.4, sum(max(room_for, 0.14 * name.count("\n") + 0.2) for name in down)) + 0.3
    height = sum(lines(line) for line in panels) * tall + (foot if upright else 0.15) + 0.25 + legend
    picture.set_size_inches(max(WIDTH, WIDTH - room + across * wide), height)
    return picture


def _group(group: Boards, line: Sequence[Panel], columns: Sequence[str], shape: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """Draw the maps of a group with their scales of colours; returns the looks of cells without a number, by what they mean."""
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
    """A scale of colours beside some panels."""
    beyond = "both" if norm.clip else "neither"
    bar = axes[0].figure.colorbar(ScalarMappable(norm, _heat(norm)), ax=list(axes), aspect=25, pad=0.02, extend=beyond)
    bar.set_label(label)
    if isinstance(norm, LogNorm):
        ticks, names = log_ticks(float(norm.vmin), float(norm.vmax))  # type: ignore[arg-type]
        bar.set_ticks(ticks, labels=names)
    bar.ax.minorticks_off()


def _heat(norm: Normalize) -> Colormap:
    return BOTH_WAYS if norm.clip and norm.vmin is not None and norm.vmin == -(norm.vmax or 0) else HEAT


def _norm(values: np.ndarray, log: bool, between: Sequence[float] | None = None) -> Normalize:
    if between:
        return Normalize(between[0], between[1], clip=True)
    if not len(values):
        return Normalize(0, 1)
    low, high = float(values.min()), float(values.max())
    if low == high:  # a scale must have a width
        low, high = min(low, 0.0), max(high, 0.0) if low else 1.0
    return LogNorm(low, high) if log and 0 < 2 * low < high else Normalize(low, high)  # nearer together a logarithm shows nothing


def _board(ax: Axes, board: Board | None, norm: Normalize, shape: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """Draw one map; returns the looks of cells without a number that it has, by what they mean."""
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
    """Three digits, with an exponent where tables have one."""
    if not math.isfinite(value):
        return "-"
    return plain(value, 3) if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e")


def _ink(value: float, norm: Normalize) -> str:
    """The colour in which to write on a cell of a heat map."""
    if not np.isfinite(value) or (value == 0 and isinstance(norm, LogNorm)):
        return "black"
    red, green, blue, _ = _heat(norm)(float(norm(value)))
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45 else "white"
