"""A forest: effects with their intervals, the range that was claimed of each, and the verdicts."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from relu_study.drawing import FAINT, ROUND, canvas, finite, legend_below

CLAIMED = "#E3E3E3"
VERDICTS: dict[str, dict[str, Any]] = {
    "confirmed": {"marker": "o", "color": "#009E73"},
    "refuted": {"marker": "X", "color": "#D55E00"},
    "inconclusive": {"marker": "D", "color": "#0072B2", "markerfacecolor": "white"},
    "not testable": {"marker": "s", "color": FAINT, "markerfacecolor": "white"},
}


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
    count: str = ""  # "n=31/32" where not all seeds are compared


def forest(effects: Sequence[Effect], note: str = "") -> Figure:
    """Effects with their intervals, a panel per block and column; the range claimed of each is shaded.

    Effects with the same label stand in one line across the columns; a second one in the same panel gets a line of its own.
    """
    columns, blocks = list(dict.fromkeys(e.column for e in effects)), list(dict.fromkeys(e.block for e in effects))
    lines: dict[str, dict[tuple[str, int], dict[str, Effect]]] = {block: {} for block in blocks}
    for e in effects:
        turn = sum(e.column in held for (label, _), held in lines[e.block].items() if label == e.label)
        lines[e.block].setdefault((e.label, turn), {})[e.column] = e
    labels = {block: [textwrap.fill(label, 40) for label, _ in lines[block]] for block in blocks}
    counted = any(e.count and np.isfinite(e.effect) for e in effects)
    # Inches: a line of text takes 0.14, and each row some air.
    heights = {block: [0.08 + 0.14 * (label.count("\n") + 1) for label in labels[block]] for block in blocks}
    picture = canvas(len(columns))
    ratios = [sum(heights[block]) for block in blocks]
    axes = picture.subplots(len(blocks), len(columns), squeeze=False, height_ratios=ratios)
    for i, block in enumerate(blocks):
        middles = (np.cumsum(heights[block]) - np.array(heights[block]) / 2).tolist()
        for j, column in enumerate(columns):
            shown = [held.get(column) for held in lines[block].values()]
            _forest_panel(axes[i, j], shown, middles, heights[block], room=0.12 * len(columns) if counted else 0.0)
            axes[i, j].xaxis.set_major_locator(MaxNLocator(6 if len(columns) == 1 else 3, steps=ROUND))
        axes[i, 0].set_yticks(middles, labels[block])
        for ax in axes[i] if len(columns) == 2 else [axes[i, len(columns) // 2]]:
            ax.set_xlabel(block)
    for ax, name in zip(axes[0], columns, strict=True):
        ax.set_title(name)
    drawn = {e.verdict for e in effects if np.isfinite(e.effect)}
    handles: list[Any] = [Line2D([], [], label=v, **VERDICTS[v]) for v in VERDICTS if v in drawn]
    patch = [Patch(color=CLAIMED, label="range that was claimed")] if drawn else []
    title = "effect with its 95 % interval (90 % for equivalence)" if drawn else ""
    title += "; n: the seeds compared, where not all" if counted else ""
    legend = legend_below(picture, [*handles, *patch], title, note) if drawn or note else 0.0
    picture.set_size_inches(picture.get_figwidth(), sum(ratios) + 0.5 * len(blocks) + 0.25 + legend)
    return picture


def _forest_panel(
    ax: Axes, effects: Sequence[Effect | None], middles: Sequence[float], heights: Sequence[float], room: float
) -> None:
    left, right = _reach([e for e in effects if e])
    right += room / (1 - room) * (right - left)  # this share of the width is for the counts
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
        if e.count:
            ax.text(1, y, e.count, transform=ax.get_yaxis_transform(), ha="right", va="center")


def _reach(effects: Sequence[Effect]) -> tuple[float, float]:
    """The x range: zero, every margin and every effect, and of the intervals as much as leaves those readable."""
    points = finite(np.array([0.0, e.effect, *e.claimed]) for e in effects)
    edges = finite(np.array([0.0, e.lo, e.hi, *points]) for e in effects)
    spread = np.ptp(points) or 1.0
    left, right = max(edges.min(), points.min() - spread), min(edges.max(), points.max() + spread)
    return left - 0.06 * (right - left), right + 0.06 * (right - left)
