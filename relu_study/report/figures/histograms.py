"""Histograms of a site's values over epochs: heat maps over powers of two, with exact zero separate.

Outputs of a bounded activation have a linear axis over their range.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from relu_study.report.figures.canvas import (
    FAINT,
    HATCHED,
    ROUND,
    SEQUENTIAL,
    Panel,
    epoch_ticks,
    legend_below,
    num_rows,
    panel_grid,
    plain,
    runs,
)
from relu_study.report.figures.inputs import Draw, expand_metrics, finite_runs, layout, title
from relu_study.report.labels import HISTOGRAMS, count, stacked
from relu_study.stats.histogram_bins import BINS_PER_SIDE, MIN_EXPONENT, Range
from relu_study.storage.configurations import Configuration
from relu_study.storage.declaration import Declaration
from relu_study.study import outputs

PLATE: dict[str, Any] = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.5}  # keeps text legible on any background
BINS_ARE = {
    True: "the bins next to 0 hold all that is smaller than 6e-8",
    False: "bounded outputs: 64 equal bins over the whole range",
}
ONE_SIGN, BOTH_SIGNS = 1.3, 1.8  # inches: the height of a panel
ROW_GAP, BELOW = 0.25, 0.9  # inches: between panels, and below all for the scale of colours
FAINTEST = 1e-4  # share of an epoch's values that has the palest colour; rarer values have it too


@dataclass(frozen=True)
class ValueHistogram:
    """Shares of a site's values in the 65 bins of `histogram_bins`, for each of E epochs. NaN without counts."""

    epochs: Float[np.ndarray, " E"]
    shares: Float[np.ndarray, "E 65"]
    runs: int
    count: str = ""
    span: Range | None = None  # of linear bins; None: powers of two


@dataclass(frozen=True)
class ValueHistograms:
    """A group of panels with one y axis: one histogram per arm with values. Groups of the same `metric` share their range."""

    label: str
    metric: str
    cells: Mapping[str, ValueHistogram]


def histograms(groups: Sequence[ValueHistograms], arms: Sequence[str], note: str = "") -> Figure:
    """Draw a heat map per arm and group: epochs across, sizes of values up, exact zero as a separate strip."""
    panels = panel_grid(arms, [{arm: cell.count for arm, cell in group.cells.items()} for group in groups])
    norm, has_empty, heights = LogNorm(FAINTEST, 1), False, []
    for group, line in zip(groups, panels, strict=True):
        scales = _scales([c for other in groups if other.metric == group.metric for c in other.cells.values()])
        has_empty |= _group(group, line, arms, scales, norm)
        one_sign = all(s.below == 0 or s.above == 0 for s in scales.values())
        heights += [ONE_SIGN if one_sign else BOTH_SIGNS] * num_rows(line)
    picture = line[0].ax.figure
    assert isinstance(picture, Figure)
    picture.axes[0].get_gridspec().set_height_ratios(heights)  # type: ignore[union-attr]
    if len({tuple(cell.epochs) for group in groups for cell in group.cells.values()}) > 1:
        for ax in picture.axes:
            ax.tick_params(labelbottom=True)
    handles = [Patch(label="no finite run", **HATCHED)] if has_empty else []
    legend = legend_below(picture, handles, "", note) if handles or note else 0.0
    _colour_bar(picture, groups, norm)
    picture.set_size_inches(picture.get_figwidth(), sum(heights) + ROW_GAP * len(heights) + BELOW + legend)
    return picture


def _group(
    group: ValueHistograms, line: Sequence[Panel], arms: Sequence[str], scales: Mapping[Range | None, AnyScale], norm: Normalize
) -> bool:
    """Draw the panels of a group. Returns whether one has an epoch without counts."""
    has_empty = False
    shown: AnyScale | None = None  # on the axis of the last panel
    for panel, arm in zip(line, arms, strict=True):
        if (cell := group.cells.get(arm)) is None:
            panel.ax.text(0.5, 0.5, "no values", transform=panel.ax.transAxes, ha="center", va="center", color=FAINT)
            scale = shown or next(iter(scales.values()))
        else:
            scale = scales[cell.span]
            has_empty |= _spread(panel.ax, cell, scale, norm)
        _values_axis(panel.ax, scale, panel.first or scale != shown)
        shown = scale
        panel.ax.set_xlabel("epoch" if panel.last else "")
    line[0].ax.set_ylabel(group.label)
    return has_empty


def _colour_bar(picture: Figure, groups: Sequence[ValueHistograms], norm: Normalize) -> None:
    """Draw the scale of shares below the panels, with the meaning of the bins."""
    counts = {cell.runs for group in groups for cell in group.cells.values()}
    bar = picture.colorbar(
        ScalarMappable(norm, SEQUENTIAL), ax=picture.axes, location="bottom", aspect=40, shrink=0.6, pad=0.02, extend="min"
    )
    kinds = {span is None for group in groups for span in spans(group.cells.values())}
    bar.set_label(
        f"share of the values of an epoch, pooled over {runs(counts)} (white: next to none);\n"
        + ";\n".join(words for powers, words in BINS_ARE.items() if powers in kinds)
    )
    _percent(bar.ax)


def _scales(cells: Sequence[ValueHistogram]) -> dict[Range | None, AnyScale]:
    """Return the scale of each range. Cells with powers of two share one scale."""
    shares = [cell.shares for cell in cells if cell.span is None]
    return {span: LinearScale(*span) if span else Scale.of(shares) for span in spans(cells)}


def spans(cells: Iterable[ValueHistogram]) -> list[Range | None]:
    """Return the distinct scales of some panels: a range if linear, None for powers of two."""
    return list(dict.fromkeys(cell.span for cell in cells))


@dataclass(frozen=True)
class Scale:
    """Position of values on the y axis, in bins: the strip of exact zero at 0, and the shown sizes on both sides.

    `least` is the exponent of the smallest size shown. `below` and `above` are the numbers of bins shown on each side.
    """

    least: int
    below: int
    above: int

    @classmethod
    def of(cls, shares: Sequence[Float[np.ndarray, "E 65"]]) -> Scale:
        """Return the scale of all bins with counts, with the same smallest size on both sides."""
        used = np.flatnonzero((np.nan_to_num(np.concatenate(shares)) > 0).any(axis=0)) - BINS_PER_SIDE
        sizes = np.abs(used[used != 0]) - 1
        least = int(sizes.min()) if len(sizes) else 0
        return cls(MIN_EXPONENT + least, max(0, -int(used.min(initial=0)) - least), max(0, int(used.max(initial=0)) - least))

    @property
    def strip(self) -> float:
        """Half the height of the strip of exact zero."""
        return max(1.0, 0.08 * (self.below + self.above))

    @property
    def inner(self) -> float:
        """The height of the smallest sizes, with a gap to the strip."""
        return 1.4 * self.strip

    def at(self, value: float) -> float:
        """Return the height of a nonzero value."""
        return math.copysign(self.inner + math.log2(abs(value)) - self.least, value)

    def sides(self, shares: Any) -> tuple[Any, Any]:
        """Return the shares of the bins shown below and above zero, in rising order."""
        skipped = self.least - MIN_EXPONENT
        above = shares[:, BINS_PER_SIDE + 1 + skipped : BINS_PER_SIDE + 1 + skipped + self.above]
        return shares[:, BINS_PER_SIDE - skipped - self.below : BINS_PER_SIDE - skipped], above

    def ticks(self) -> list[float]:
        """Return powers of ten with both signs, the largest first."""
        first = math.ceil(self.least * math.log10(2))
        last = math.floor((self.least + max(self.above, self.below)) * math.log10(2))
        sizes = [10.0**power for power in range(last, first - 1, -1 - (last - first) // 3)]
        return [value for size in sizes for value in (size, -size)]


@dataclass(frozen=True)
class LinearScale:
    """Position of values on the y axis, in equal bins over [low, high], split at 0 by the strip of exact zero.

    A bin that contains 0 is drawn on the side of its larger part.
    """

    low: float
    high: float

    @property
    def below(self) -> int:
        """The number of bins below zero."""
        return round(min(max(-self.low * 2 * BINS_PER_SIDE / (self.high - self.low), 0), 2 * BINS_PER_SIDE))

    @property
    def above(self) -> int:
        """The number of bins above zero."""
        return 2 * BINS_PER_SIDE - self.below

    @property
    def strip(self) -> float:
        """Half the height of the strip of exact zero."""
        return 0.08 * 2 * BINS_PER_SIDE

    @property
    def inner(self) -> float:
        """The height at which the bins begin, with a gap to the strip."""
        return 1.4 * self.strip

    def at(self, value: float) -> float:
        """Return the height of a nonzero value."""
        bins = (value - self.low) * 2 * BINS_PER_SIDE / (self.high - self.low) - self.below
        return bins + math.copysign(self.inner, bins or value)

    def sides(self, shares: Any) -> tuple[Any, Any]:
        """Return the shares of the bins below and above zero, in rising order."""
        both = np.ma.concatenate([shares[:, :BINS_PER_SIDE], shares[:, BINS_PER_SIDE + 1 :]], axis=1)
        return both[:, : self.below], both[:, self.below :]

    def ticks(self) -> list[float]:
        """Return round values in the range, without 0."""
        round_values = [float(value) for value in MaxNLocator(4, steps=ROUND).tick_values(self.low, self.high)]
        nearest = 1e-9 * (self.high - self.low)
        return [value for value in round_values if abs(value) > nearest and self.low - nearest <= value <= self.high + nearest]


AnyScale = Scale | LinearScale


def _spread(ax: Axes, cell: ValueHistogram, scale: AnyScale, norm: Normalize) -> bool:
    """Draw one panel. Returns whether an epoch has no counts."""
    epochs, shares = cell.epochs, np.ma.masked_equal(np.nan_to_num(cell.shares), 0)
    middles = (epochs[1:] + epochs[:-1]) / 2
    steps = np.diff(epochs, prepend=epochs[0] - 1, append=epochs[-1] + 1)
    edges = np.concatenate([[epochs[0] - steps[1] / 2], middles, [epochs[-1] + steps[-2] / 2]])
    below, above = scale.sides(shares)
    parts = [
        (scale.inner + np.arange(scale.above + 1), above),
        (-scale.inner - np.arange(scale.below, -1, -1), below),
        (np.array([-scale.strip, scale.strip]), shares[:, BINS_PER_SIDE : BINS_PER_SIDE + 1]),
    ]
    for heights, values in parts:
        if values.shape[1]:
            # Rasterised: many viewers show white hairlines between vector cells.
            ax.pcolormesh(edges, heights, values.T, cmap=SEQUENTIAL, norm=norm, rasterized=True)
    ax.add_patch(Rectangle((edges[0], -scale.strip), edges[-1] - edges[0], 2 * scale.strip, fill=False, linewidth=0.6))
    counted = np.flatnonzero(np.isfinite(cell.shares).any(axis=1))
    for i in sorted({int(counted[0]), int(counted[-1])}) if len(counted) else ():
        share = float(cell.shares[i, BINS_PER_SIDE])
        side: dict[str, Any] = {"ha": "left" if i == counted[0] else "right", "va": "center"}
        x = edges[i] if i == counted[0] else edges[i + 1]
        ax.text(x, 0, f"\N{NO-BREAK SPACE}{_percentage(share)}\N{NO-BREAK SPACE}", bbox=PLATE, **side)
    for i in set(range(len(epochs))) - set(counted.tolist()):
        bottom, top = _span(scale)
        ax.add_patch(Rectangle((edges[i], bottom), edges[i + 1] - edges[i], top - bottom, **HATCHED))
    ax.set_xlim(edges[0], edges[-1])
    ax.xaxis.set_major_locator(epoch_ticks(5, [epochs]))
    return len(counted) < len(epochs)


def _span(scale: AnyScale) -> tuple[float, float]:
    bottom = -scale.inner - scale.below if scale.below else -scale.strip
    return bottom, scale.inner + scale.above if scale.above else scale.strip


def _values_axis(ax: Axes, scale: AnyScale, labelled: bool) -> None:
    bottom, top = _span(scale)
    ax.set_ylim(bottom, top)
    ticks = [value for value in scale.ticks() if bottom - 1e-6 <= scale.at(value) <= top + 1e-6]
    ax.set_yticks([0.0, *map(scale.at, ticks)], ["exactly 0", *(plain(v).replace("-", "\N{MINUS SIGN}", v < 0) for v in ticks)])
    ax.tick_params(labelleft=labelled)


def _percentage(share: float) -> str:
    if 0 < share < FAINTEST:
        return f"<{100 * FAINTEST:g} %"
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %" if share == 1 else ">99 %"


def _percent(ax: Axes) -> None:
    ticks = [10.0**power for power in range(round(math.log10(FAINTEST)), 1)]
    ax.set_xticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
    ax.set_xticks([], minor=True)


def arrange_histograms(
    figure: outputs.Figure, declaration: Declaration, stored: Mapping[str, Configuration], note: str
) -> Draw | None:
    """Return the function that draws heat maps over the epochs, or None without counts."""
    arms, columns = layout(figure, declaration)
    groups = []
    for name in expand_metrics(figure, declaration):
        kind, site = name.split("/")
        for target, ids in columns.items():
            having = [arm for arm in arms if f"{kind}:{site}" in getattr(stored.get(ids.get(arm, "")), "histograms", {})]
            cells = {arm: _shares(stored[ids[arm]], f"{kind}:{site}") for arm in having}
            label = "\n".join(stacked(part) for part in (HISTOGRAMS[kind].format(site), title(target, declaration)) if part)
            groups.append(ValueHistograms(label, name, cells))
    groups = [group for group in groups if group.cells]
    if not any(np.isfinite(cell.shares).any() for group in groups for cell in group.cells.values()):
        return None
    return partial(histograms, groups, arms, note)


def _shares(c: Configuration, name: str) -> ValueHistogram:
    counts = c.histograms[name].astype(float)
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    return ValueHistogram(
        c.epochs.astype(float),
        shares,
        len(c.run_ids),
        count(finite_runs(c), c.num_requested, c.num_requested - len(c.run_ids)),
        c.bins.get(name),
    )
