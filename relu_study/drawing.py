"""Pictures of plain numbers: a grid of curves with bands, and a forest of effects. Knows no study and no files.

The bytes of a picture depend on its numbers alone: the reader's own Matplotlib settings are set aside while
it is drawn, and no date and no version is written. At 7 inches across, no letter is smaller than 8 pt.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

WIDTH = 7.0  # inches
DPI = 150
# Okabe and Ito's colours, safe for colour-blind readers, without the yellow: too pale for a line on white paper.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7")
DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
CLAIMED, FAINT = "#E3E3E3", "#707070"
ROUND = [1, 2, 5, 10]  # steps between ticks
VERDICTS: dict[str, dict[str, Any]] = {
    "confirmed": {"marker": "o", "color": "#009E73"},
    "refuted": {"marker": "X", "color": "#D55E00"},
    "inconclusive": {"marker": "D", "color": "#0072B2", "markerfacecolor": "white"},
    "not testable": {"marker": "s", "color": FAINT, "markerfacecolor": "white"},
}
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib: the same letters on every machine
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.formatter.useoffset": False,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "lines.markersize": 5,
    "legend.handlelength": 2.6,  # long enough to tell the dashes apart
    "text.parse_math": False,  # a dollar sign in an arm's label is a dollar sign
    "svg.hashsalt": "relu_study",
}


@dataclass(frozen=True)
class Band:
    """A line over E epochs with its 95 % interval, the number of runs behind it and the size of their probe set."""

    epochs: Float[np.ndarray, " E"]
    mean: Float[np.ndarray, " E"]
    lo: Float[np.ndarray, " E"]
    hi: Float[np.ndarray, " E"]
    runs: int
    probe_examples: int


@dataclass(frozen=True)
class Row:
    """One row of panels: for each column the bands by arm. `low` and `high` are the least and greatest possible value."""

    label: str
    cells: Sequence[Mapping[str, Band]]
    log: bool = False
    low: float | None = None
    high: float | None = None
    steps: bool = False


@dataclass(frozen=True)
class Effect:
    """One row of a forest: an effect with its interval, the range that was claimed for it, and the verdict.

    Effects of one `block` share an x axis (labelled `block`) and stand in the panel of their `column`.
    """

    block: str
    label: str
    column: str
    effect: float
    lo: float
    hi: float
    claimed: tuple[float, float]
    verdict: str


def render(draw: Callable[[], Figure]) -> dict[str, bytes]:
    """The picture that `draw` makes, as {"png": ..., "svg": ...}; the same bytes for the same numbers."""
    png, svg = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        picture = draw()
        FigureCanvasAgg(picture).print_png(png, metadata={"Software": None})
        picture.set_layout_engine("none")  # laid out by now
        FigureCanvasSVG(picture).print_svg(svg, metadata={"Date": None, "Creator": None})
    return {"png": png.getvalue(), "svg": svg.getvalue()}


def curves(rows: Sequence[Row], columns: Sequence[str], arms: Sequence[str], title: str) -> Figure:
    """A grid of panels, one line with its band per arm; an arm has the same colour and dashes in every panel."""
    # Seven colours and four kinds of dashes give 28 looks. Solid lines lie lowest: of two that coincide both can be seen.
    looks = {arm: {"color": COLOURS[i % 7], "linestyle": DASHES[i % 4], "zorder": 2 + i % 4 / 4} for i, arm in enumerate(arms)}
    shown = [arm for arm in arms if any(arm in cell for row in rows for cell in row.cells)]
    handles = [Line2D([], [], label=textwrap.fill(arm, 60), **looks[arm]) for arm in shown]
    picture = _canvas(len(columns))
    axes = picture.subplots(len(rows), len(columns), squeeze=False, sharex=True)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row.cells):
            _panel(axes[i, j], row, cell, looks)
        axes[i, 0].set_ylabel(row.label)
        if row.high is not None:
            _share_limits(list(axes[i]), row)
    for ax, name in zip(axes[0], columns, strict=True):
        ax.set_title(name)
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=ROUND))
    legend = _legend(picture, handles, f"{title} {_runs(rows)}")
    picture.set_size_inches(picture.get_figwidth(), 1.6 * len(rows) + 0.5 + legend)
    return picture


def forest(effects: Sequence[Effect]) -> Figure:
    """Effects with their intervals, a panel per block and column; the range claimed of each is shaded.

    Effects with the same label stand in one line across the columns; a second one in the same panel gets a line of its own.
    """
    columns, blocks = list(dict.fromkeys(e.column for e in effects)), list(dict.fromkeys(e.block for e in effects))
    lines: dict[str, dict[tuple[str, int], dict[str, Effect]]] = {block: {} for block in blocks}
    for e in effects:
        turn = sum(e.column in held for (label, _), held in lines[e.block].items() if label == e.label)
        lines[e.block].setdefault((e.label, turn), {})[e.column] = e
    labels = {block: [textwrap.fill(label, 40) for label, _ in lines[block]] for block in blocks}
    # Inches: a line of text takes 0.14, and each row some air.
    heights = {block: [0.08 + 0.14 * (label.count("\n") + 1) for label in labels[block]] for block in blocks}
    picture = _canvas(len(columns))
    ratios = [sum(heights[block]) for block in blocks]
    axes = picture.subplots(len(blocks), len(columns), squeeze=False, height_ratios=ratios)
    for i, block in enumerate(blocks):
        middles = (np.cumsum(heights[block]) - np.array(heights[block]) / 2).tolist()
        for j, column in enumerate(columns):
            _forest_panel(axes[i, j], [held.get(column) for held in lines[block].values()], middles, heights[block])
            axes[i, j].xaxis.set_major_locator(MaxNLocator(6 if len(columns) == 1 else 3, steps=ROUND))
        axes[i, 0].set_yticks(middles, labels[block])
        for ax in axes[i] if len(columns) == 2 else [axes[i, len(columns) // 2]]:
            ax.set_xlabel(block)
    for ax, name in zip(axes[0], columns, strict=True):
        ax.set_title(name)
    drawn = {e.verdict for e in effects if np.isfinite(e.effect)}
    handles: list[Any] = [Line2D([], [], label=v, **VERDICTS[v]) for v in VERDICTS if v in drawn]
    patch = [Patch(color=CLAIMED, label="range that was claimed")] if drawn else []
    legend = _legend(picture, [*handles, *patch], "effect with its 95 % interval (90 % for equivalence)") if drawn else 0.0
    picture.set_size_inches(picture.get_figwidth(), sum(ratios) + 0.5 * len(blocks) + 0.25 + legend)
    return picture


def _canvas(columns: int) -> Figure:
    picture = Figure(figsize=(max(WIDTH, 1.6 * columns + 0.8), 4.0), dpi=DPI, layout="constrained")
    FigureCanvasAgg(picture)
    return picture


def _legend(picture: Figure, handles: Sequence[Any], title: str) -> float:
    """Put the legend below the panels, in as few rows as fit its width; returns its height in inches."""
    for rows in range(-(-len(handles) // 6), len(handles) + 1):
        columns = -(-len(handles) // rows)
        legend = picture.legend(handles=handles, loc="outside lower center", ncols=columns, title=title)
        box = legend.get_window_extent(picture.canvas.get_renderer())  # type: ignore[attr-defined]
        if columns == 1 or box.width < 0.98 * picture.get_figwidth() * picture.dpi:
            break
        legend.remove()
    return float(box.height / picture.dpi)


def _runs(rows: Sequence[Row]) -> str:
    counts = {band.runs for row in rows for cell in row.cells for band in cell.values()}
    span = f"{max(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    return f"{span} run{'s' if max(counts) > 1 else ''}"


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
        _log_scale(ax, cell.values())
    else:
        ax.set_ylim(_limits(cell.values(), row.low, row.high))
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))


def _limits(bands: Collection[Band], low: float | None, high: float | None) -> tuple[float, float]:
    """All of the lines, and of their intervals as much as leaves the lines readable, inside the possible range."""
    least, most = -np.inf if low is None else low, np.inf if high is None else high
    means, edges = _finite(b.mean for b in bands), _finite(x for b in bands for x in (b.mean, b.lo, b.hi))
    spread = 2 * np.ptp(means) or np.inf
    bottom, top = max(edges.min(), means.min() - spread, least), min(edges.max(), means.max() + spread, most)
    if top == bottom:
        bottom, top = max(bottom - 0.05 * max(abs(top), 1), least), min(top + 0.05 * max(abs(top), 1), most)
    return bottom - 0.05 * (top - bottom), top + 0.05 * (top - bottom)


def _log_scale(ax: Axes, bands: Collection[Band]) -> None:
    """A logarithmic axis; where a mean is exactly 0, one that is linear in its lowest decade, so that 0 has a place."""
    means = _finite(b.mean for b in bands)
    positive = means[means > 0]
    if not len(positive) or (means < 0).any():
        return
    bottom, top = positive.min() / 1.5, positive.max() * 1.5
    first, last = math.floor(math.log10(bottom)), math.ceil(math.log10(top))
    digits = (1, 1.5, 2, 3, 4, 6, 8) if top < 10 * bottom else (1, 2, 5) if top < 100 * bottom else (1,)
    ticks = [digit * 10.0**power for power in range(first, last + 1, 1 + (last - first) // 7) for digit in digits]
    if (means > 0).all():
        ax.set_yscale("log")
    else:
        ax.set_yscale("symlog", linthresh=10.0**first)
        bottom, ticks = -0.2 * 10.0**first, [0.0, *ticks]
    ticks = [tick for tick in ticks if bottom <= tick <= top]
    # Written out, as the exponent of a power of ten would be set smaller than 8 pt.
    ax.set_yticks(ticks, [f"{tick:g}".replace("e-0", "e-") for tick in ticks])
    ax.set_yticks([], minor=True)
    ax.set_ylim(bottom, top)


def _finite(columns: Iterable[np.ndarray]) -> np.ndarray:
    values = np.concatenate([np.ravel(column) for column in columns])
    return values[np.isfinite(values)]


def _share_limits(axes: Sequence[Axes], row: Row) -> None:
    used = [ax for ax, cell in zip(axes, row.cells, strict=True) if cell]
    for ax in used:
        ax.set_ylim(_limits([band for cell in row.cells for band in cell.values()], row.low, row.high))
        ax.tick_params(labelleft=ax is used[0])


def _forest_panel(ax: Axes, effects: Sequence[Effect | None], middles: Sequence[float], heights: Sequence[float]) -> None:
    left, right = _reach([e for e in effects if e])
    ax.set(yticks=[], xlim=(left, right), ylim=(sum(heights), 0))
    ax.axvline(0, color="black", linewidth=0.6, zorder=1)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    for e, y, height in zip(effects, middles, heights, strict=True):
        if e is None:
            continue
        if not np.isfinite(e.effect):
            ax.text(0.5, y, e.verdict, transform=ax.get_yaxis_transform(), ha="center", va="center", color=FAINT)
            continue
        low, high = np.clip(e.claimed, left, right)
        ax.barh(y, high - low, left=low, height=0.86 * height, color=CLAIMED, zorder=0)
        ax.plot([e.lo, e.hi], [y, y], color=VERDICTS[e.verdict]["color"], zorder=2)
        ax.plot([e.effect], [y], zorder=3, **(VERDICTS[e.verdict] | {"linestyle": "none"}))


def _reach(effects: Sequence[Effect]) -> tuple[float, float]:
    """The x range: zero, every margin and every effect, and of the intervals as much as leaves those readable."""
    points = _finite(np.array([0.0, e.effect, *e.claimed]) for e in effects)
    edges = _finite(np.array([0.0, e.lo, e.hi, *points]) for e in effects)
    spread = np.ptp(points) or 1.0
    left, right = max(edges.min(), points.min() - spread), min(edges.max(), points.max() + spread)
    return left - 0.06 * (right - left), right + 0.06 * (right - left)
