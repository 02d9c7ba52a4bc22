"""Pictures of plain numbers: a grid of curves with bands, and a forest of effects. Knows no study and no files.

The bytes of a picture depend on its numbers alone: the reader's own Matplotlib settings are set aside while
it is drawn, and no date and no version is written. At 7 inches across, no letter is smaller than 8 pt.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
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
VERDICTS: dict[str, dict[str, Any]] = {
    "confirmed": {"marker": "o", "color": "#009E73"},
    "refuted": {"marker": "X", "color": "#D55E00"},
    "inconclusive": {"marker": "D", "color": "#0072B2", "markerfacecolor": "white"},
    "not testable": {"marker": "s", "color": FAINT, "markerfacecolor": "white"},
}
STYLE: dict[str, Any] = {
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
    "legend.handlelength": 2.6,  # long enough to tell the dashes apart
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
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        picture, files = draw(), {}
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            buffer = io.BytesIO()
            picture.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
            files[kind] = buffer.getvalue()
    return files


def curves(rows: Sequence[Row], columns: Sequence[str], arms: Sequence[str], title: str) -> Figure:
    """A grid of panels, one line with its band per arm; an arm has the same colour and dashes in every panel."""
    looks = {arm: {"color": COLOURS[i % 7], "linestyle": DASHES[i // 7 % 4]} for i, arm in enumerate(arms)}
    shown = [arm for arm in arms if any(arm in cell for row in rows for cell in row.cells)]
    handles = [Line2D([], [], label=textwrap.fill(arm, 60), **looks[arm]) for arm in shown]
    picture = _canvas(len(columns))
    axes = picture.subplots(len(rows), len(columns), squeeze=False)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row.cells):
            _panel(axes[i, j], row, cell, looks)
        axes[i, 0].set_ylabel(row.label)
        if row.high is not None:
            _share_limits(axes[i])
    for ax, name in zip(axes[0], columns, strict=True):
        ax.set_title(name)
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    legend = _legend(picture, handles, f"{title} {_runs(rows)}")
    picture.set_size_inches(picture.get_figwidth(), 1.75 * len(rows) + 0.45 + legend)
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
    picture = _canvas(len(columns))
    heights = [len(lines[block]) + 0.6 for block in blocks]
    axes = picture.subplots(len(blocks), len(columns), squeeze=False, height_ratios=heights)
    for i, block in enumerate(blocks):
        for j, column in enumerate(columns):
            _forest_panel(axes[i, j], [held.get(column) for held in lines[block].values()])
        axes[i, 0].set_yticks(range(len(lines[block])), [textwrap.fill(label, 40) for label, _ in lines[block]])
        axes[i, len(columns) // 2].set_xlabel(block)
    for ax, name in zip(axes[0], columns, strict=True):
        ax.set_title(name)
    present = [verdict for verdict in VERDICTS if any(e.verdict == verdict for e in effects)]
    handles: list[Any] = [Line2D([], [], linestyle="solid", label=verdict, **VERDICTS[verdict]) for verdict in present]
    legend = _legend(picture, [*handles, Patch(color=CLAIMED, label="the claim")], "effect with its interval")
    picture.set_size_inches(picture.get_figwidth(), 0.3 * sum(heights) + 0.45 * len(blocks) + 0.2 + legend)
    return picture


def _canvas(columns: int) -> Figure:
    picture = Figure(figsize=(max(WIDTH, 1.6 * columns + 0.8), 4.0), layout="constrained")
    FigureCanvasAgg(picture)
    return picture


def _legend(picture: Figure, handles: Sequence[Any], title: str) -> float:
    """Put the legend below the panels, in as many columns as fit side by side; returns its height in inches."""
    for columns in range(min(6, len(handles)), 0, -1):
        legend = picture.legend(handles=handles, loc="outside lower center", ncols=columns, title=title)
        box = legend.get_window_extent(picture.canvas.get_renderer())  # type: ignore[attr-defined]
        if columns == 1 or box.width < 0.98 * picture.get_figwidth() * picture.dpi:
            break
        legend.remove()
    return float(box.height / picture.dpi)


def _runs(rows: Sequence[Row]) -> str:
    counts = {band.runs for row in rows for cell in row.cells for band in cell.values()}
    return f"{min(counts)} runs" if len(counts) == 1 else f"{min(counts)} to {max(counts)} runs"


def _panel(ax: Axes, row: Row, cell: Mapping[str, Band], looks: Mapping[str, dict[str, Any]]) -> None:
    if not cell:
        ax.text(0.5, 0.5, "no values", transform=ax.transAxes, ha="center", va="center", color=FAINT)
        ax.set(xticks=[], yticks=[])
        return
    for arm, band in cell.items():
        marks: dict[str, Any] = {"marker": ".", "markersize": 4} if len(band.epochs) < 10 else {}
        ax.plot(band.epochs, band.mean, drawstyle="steps-post" if row.steps else "default", **looks[arm], **marks)
        shade: dict[str, Any] = {"color": looks[arm]["color"], "alpha": 0.13, "linewidth": 0}
        ax.fill_between(band.epochs, band.lo, band.hi, step="post" if row.steps else None, **shade)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if row.log:
        _log_scale(ax, cell.values())
    else:
        ax.set_ylim(_limits(cell.values(), row.low, row.high))
        ax.yaxis.set_major_locator(MaxNLocator(5))


def _limits(bands: Iterable[Band], low: float | None, high: float | None) -> tuple[float, float]:
    """All of the lines, and of their intervals as much as leaves the lines readable, inside the possible range."""
    means, edges = _finite(b.mean for b in bands), _finite(x for b in bands for x in (b.mean, b.lo, b.hi))
    spread = means.max() - means.min() or np.inf
    bottom, top = max(edges.min(), means.min() - spread), min(edges.max(), means.max() + spread)
    bottom, top = max(bottom, -np.inf if low is None else low), min(top, np.inf if high is None else high)
    pad = 0.05 * (top - bottom) or 0.05 * max(abs(top), 0.2)
    return bottom - pad, top + pad


def _log_scale(ax: Axes, bands: Iterable[Band]) -> None:
    """A logarithmic axis; where a mean is exactly 0, one that is linear below the smallest mean, so that 0 has a place."""
    means = _finite(b.mean for b in bands)
    positive = means[means > 0]
    if not len(positive):
        return
    if (means > 0).all():
        ax.set_yscale("log")
        ax.set_ylim(positive.min() / 2, positive.max() * 2)
    else:
        ax.set_yscale("symlog", linthresh=positive.min() / 2, linscale=0.5)
        ax.set_ylim(-positive.min() / 10, positive.max() * 2)


def _finite(columns: Iterable[np.ndarray]) -> np.ndarray:
    values = np.concatenate([np.ravel(column) for column in columns])
    return values[np.isfinite(values)]


def _share_limits(row: Sequence[Axes]) -> None:
    used = [ax for ax in row if ax.lines]
    low, high = min(ax.get_ylim()[0] for ax in used), max(ax.get_ylim()[1] for ax in used)
    for ax in used:
        ax.set_ylim(low, high)
        ax.tick_params(labelleft=ax is used[0])


def _forest_panel(ax: Axes, effects: Sequence[Effect | None]) -> None:
    ax.set(yticks=[], ylim=(len(effects) - 0.4, -0.6))
    left, right = _reach([e for e in effects if e])
    ax.axvline(0, color="black", linewidth=0.6, zorder=1)
    for y, e in enumerate(effects):
        if e is None or not np.isfinite(e.effect):
            text = {"transform": ax.get_yaxis_transform(), "ha": "center", "va": "center", "color": FAINT}
            ax.text(0.5, y, "not testable" if e else "", **text)
            continue
        low, high = np.clip(e.claimed, left, right)
        ax.barh(y, high - low, left=low, height=0.86, color=CLAIMED, zorder=0)
        ax.plot([e.lo, e.hi], [y, y], color=VERDICTS[e.verdict]["color"], zorder=2)
        ax.plot([e.effect], [y], linestyle="none", markersize=5, zorder=3, **VERDICTS[e.verdict])
    ax.set_xlim(left, right)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)


def _reach(effects: Sequence[Effect]) -> tuple[float, float]:
    """The x range: zero, every margin and every effect, and of the intervals as much as leaves those readable."""
    points = _finite(np.array([0.0, e.effect, *e.claimed]) for e in effects)
    edges = _finite(np.array([0.0, e.lo, e.hi, *points]) for e in effects)
    spread = np.ptp(points) or 1.0
    left, right = max(edges.min(), points.min() - spread), min(edges.max(), points.max() + spread)
    return left - 0.06 * (right - left), right + 0.06 * (right - left)
