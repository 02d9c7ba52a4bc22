"""Forest plots: effects with their intervals, the claimed ranges, and the verdicts."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from relu_study.report.figures import inputs
from relu_study.report.figures.canvas import FAINT, ROUND, finite, legend_below, new_figure
from relu_study.report.figures.inputs import nine_digits
from relu_study.report.labels import count, unit, words
from relu_study.storage.configurations import Configuration
from relu_study.storage.declaration import Declaration
from relu_study.storage.quantities import MetricInfo
from relu_study.study.claims import Claim

CLAIMED = "#E3E3E3"
ROW_GAP, TEXT_LINE, X_AXIS, TITLES = 0.08, 0.14, 0.5, 0.25  # inches
LABEL_WIDTH = 40  # characters
COUNT_SHARE = 0.12  # of a panel's width, per column: space for "n=31/32"
MARGIN = 0.06  # of the x range, on each side
VERDICTS: dict[str, dict[str, Any]] = {
    "confirmed": {"marker": "o", "color": "#009E73"},
    "refuted": {"marker": "X", "color": "#D55E00"},
    "inconclusive": {"marker": "D", "color": "#0072B2", "markerfacecolor": "white"},
    "not testable": {"marker": "s", "color": FAINT, "markerfacecolor": "white"},
}


@dataclass(frozen=True)
class Effect:
    """One row of a forest: an effect with its interval, the claimed range, and the verdict.

    Effects of one `block` share an x axis (labelled `block`) and are shown in the panel of their `column`.
    """

    block: str
    label: str
    column: str
    effect: float
    lo: float
    hi: float
    claimed: tuple[float, float]
    verdict: str
    count: str = ""  # "n=31/32" unless all seeds are compared


@dataclass(frozen=True)
class Block:
    """The lines of the panels with one x axis: their labels, and their effects by column."""

    name: str
    labels: Sequence[str]
    lines: Sequence[Mapping[str, Effect]]

    @property
    def heights(self) -> list[float]:
        """The height of each line in inches."""
        return [ROW_GAP + TEXT_LINE * (label.count("\n") + 1) for label in self.labels]

    @property
    def middles(self) -> list[float]:
        """The middle of each line, in inches from the top."""
        return (np.cumsum(self.heights) - np.array(self.heights) / 2).tolist()


def forest(effects: Sequence[Effect], note: str = "") -> Figure:
    """Draw effects with their intervals, one panel per block and column. Claimed ranges are shaded.

    Effects with equal labels share a line across columns. A second one in the same panel has a separate line.
    """
    columns = list(dict.fromkeys(e.column for e in effects))
    blocks = [_block_of(name, effects) for name in dict.fromkeys(e.block for e in effects)]
    has_counts = any(e.count and np.isfinite(e.effect) for e in effects)
    picture = new_figure(len(columns))
    ratios = [sum(block.heights) for block in blocks]
    axes = picture.subplots(len(blocks), len(columns), squeeze=False, height_ratios=ratios)
    for block, row in zip(blocks, axes, strict=True):
        for ax, column in zip(row, columns, strict=True):
            shown = [line.get(column) for line in block.lines]
            _forest_panel(ax, shown, block.middles, block.heights, room=COUNT_SHARE * len(columns) if has_counts else 0.0)
            ax.xaxis.set_major_locator(MaxNLocator(6 if len(columns) == 1 else 3, steps=ROUND))
        row[0].set_yticks(block.middles, block.labels)
        for ax in row if len(columns) == 2 else [row[len(columns) // 2]]:
            ax.set_xlabel(block.name)
    for ax, name in zip(axes[0], columns, strict=True):
        ax.set_title(name)
    legend = _legend(picture, effects, has_counts, note)
    picture.set_size_inches(picture.get_figwidth(), sum(ratios) + X_AXIS * len(blocks) + TITLES + legend)
    return picture


def _block_of(name: str, effects: Sequence[Effect]) -> Block:
    lines: dict[tuple[str, int], dict[str, Effect]] = {}
    for e in effects:
        if e.block == name:
            turn = sum(e.column in line for (label, _), line in lines.items() if label == e.label)
            lines.setdefault((e.label, turn), {})[e.column] = e
    return Block(name, [textwrap.fill(label, LABEL_WIDTH) for label, _ in lines], list(lines.values()))


def _legend(picture: Figure, effects: Sequence[Effect], has_counts: bool, note: str) -> float:
    """Draw the legend of the verdicts with the note. Returns its height in inches."""
    verdicts = {e.verdict for e in effects if np.isfinite(e.effect)}
    if not verdicts and not note:
        return 0.0
    handles: list[Any] = [Line2D([], [], label=v, **VERDICTS[v]) for v in VERDICTS if v in verdicts]
    patch = [Patch(color=CLAIMED, label="range that was claimed")] if verdicts else []
    title = "effect with its 95 % interval (90 % for equivalence)" if verdicts else ""
    return legend_below(
        picture, [*handles, *patch], title + ("; n: the seeds compared, where not all" if has_counts else ""), note
    )


def _forest_panel(
    ax: Axes, effects: Sequence[Effect | None], middles: Sequence[float], heights: Sequence[float], room: float
) -> None:
    left, right = _reach([e for e in effects if e])
    right += room / (1 - room) * (right - left)  # space for the counts
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
    """Return an x range with zero, every margin and every effect, cutting intervals that would hide these."""
    points = finite(np.array([0.0, e.effect, *e.claimed]) for e in effects)
    edges = finite(np.array([0.0, e.lo, e.hi, *points]) for e in effects)
    spread = np.ptp(points) or 1.0
    left, right = max(edges.min(), points.min() - spread), min(edges.max(), points.max() + spread)
    return left - MARGIN * (right - left), right + MARGIN * (right - left)


# ---------------------------------------------------------------------------------------- effects


def arrange_effects(
    rows: Sequence[Mapping[str, Any]], declaration: Declaration, stored: Mapping[str, Configuration]
) -> list[Effect]:
    """Return the effects of a forest from rows of verdicts.csv."""
    rows = [row for row in rows if row["contrast"] != "overall"]
    several = len({row["claim"] for row in rows}) > 1
    return [
        Effect(
            block=_block(row, declaration.metrics),
            label=f"{row['claim']}  {_contrast(row)}" if several else _contrast(row),
            column=inputs.title(row["target"], declaration),
            effect=nine_digits(row["effect"]),
            lo=nine_digits(row["ci_lo"]),
            hi=nine_digits(row["ci_hi"]),
            claimed=_claimed(row["direction"], nine_digits(row["margin"])),
            verdict=row["verdict"],
            count=_pairs(row, declaration, stored),
        )
        for row in rows
    ]


def _pairs(row: Mapping[str, Any], declaration: Declaration, stored: Mapping[str, Configuration]) -> str:
    """Return the number of compared seeds if it is below the possible one: the seeds of the arm with the fewest.

    A seed counts as not run if an arm lacks its run, and as nonfinite without `stored`. The contrast names the arms.
    """
    of = {(entry.arm, entry.target): entry.config_id for entry in declaration.configurations}
    arms_of_claims = [_arms(claim) for claim in declaration.claims if claim.claim == row["claim"]]
    named = [
        arms for arms in arms_of_claims if all(arm in row["contrast"] for arm in arms)
    ]  # of "relu" and "relu, wide" the longer one
    arms = max(named, key=lambda arms: sum(map(len, arms)), default=[])
    ids = [of[arm, row["target"]] for arm in arms if (arm, row["target"]) in of]
    requested, n = min((declaration.seeds_of[config_id] for config_id in ids), default=declaration.seeds), int(row["n"])
    run = set(range(requested)).intersection(*(stored[i].seeds.tolist() if i in stored else () for i in ids))
    return count(n, requested, min(requested - len(run), requested - n) if stored else 0)


def _arms(claim: Claim) -> list[str]:
    sides = [claim.arm, claim.against]
    return [arm for side in sides if not isinstance(side, float | int) for arm in ([side] if isinstance(side, str) else side)]


def _block(row: Mapping[str, Any], metrics: Mapping[str, MetricInfo]) -> str:
    if " over " in row["site"]:  # a ratio of two sites has no unit
        return f"difference in {words(row['metric'])}, {row['site']}"
    return f"difference in {words(row['metric'])}" + unit(row["metric"], metrics.get(row["metric"], MetricInfo()))


def _contrast(row: Mapping[str, Any]) -> str:
    """Return the contrast with its site and epoch, unless they are the default ones or in its text."""
    epoch = str(row["epoch"])
    when = {"last": "", "min": "least over the epochs", "max": "greatest over the epochs"}.get(
        epoch, f"epoch\N{NO-BREAK SPACE}{epoch}"
    )
    where = "" if row["site"] == "all" or " over " in row["site"] else row["site"]
    return ", ".join(filter(None, [row["contrast"], where, "" if "at epoch" in row["contrast"] else when]))


def _claimed(direction: str, margin: float) -> tuple[float, float]:
    """Return the claimed range of effects. An interval wholly inside it confirms the claim."""
    return {"less": (-math.inf, -margin), "greater": (margin, math.inf), "equivalent": (-margin, margin)}[direction]
