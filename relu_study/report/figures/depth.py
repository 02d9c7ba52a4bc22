"""Quantile fans: the distribution of a metric over runs at each site, from input to output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from relu_study.report.figures.canvas import FAINT, ROUND, finite, legend_below, log_scale, num_rows, panel_grid, runs
from relu_study.report.figures.inputs import Draw, expand_metrics, finite_runs, layout, title
from relu_study.report.labels import at_epoch, count, is_share, probe_set, stacked, unit, words
from relu_study.storage.configurations import Configuration
from relu_study.storage.declaration import Declaration, MetricInfo
from relu_study.study import outputs

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SHADES = ("#B5D3E7", "#5FA3CF")  # between the outer quantiles and between the inner ones
LINE = "#00304D"
NARROW = 0.25  # half the width of a fan over a single site


@dataclass(frozen=True)
class QuantileFan:
    """The `QUANTILES` over runs at each of L sites. `count` is "n=31/32" if a run has no value."""

    quantiles: Float[np.ndarray, "5 L"]
    runs: int
    count: str = ""


@dataclass(frozen=True)
class QuantileFans:
    """A group of panels: one fan per arm with values. Groups of the same `scale` share their range."""

    label: str
    scale: str
    cells: Mapping[str, QuantileFan]
    log: bool = False


def fans(groups: Sequence[QuantileFans], arms: Sequence[str], note: str = "") -> Figure:
    """Draw a panel per arm and group: the median over runs and two shades around it, against the number of the site."""
    panels = panel_grid(arms, [{arm: fan.count for arm, fan in group.cells.items()} for group in groups])
    depth = max(fan.quantiles.shape[1] for group in groups for fan in group.cells.values())
    for group, line in zip(groups, panels, strict=True):
        values = finite(f.quantiles for other in groups if other.scale == group.scale for f in other.cells.values())
        for panel, arm in zip(line, arms, strict=True):
            _panel(panel.ax, group.cells.get(arm))
            _scale(panel.ax, group, values)
            panel.ax.set_xlim(0.6, depth + 0.4)
            panel.ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=ROUND))
            panel.ax.set_xlabel("site" if panel.last else "")
        line[0].ax.set_ylabel(group.label)
    handles = [
        Line2D([], [], color=LINE, marker="o", markersize=3, label="median"),
        *(Patch(color=SHADES[i], label=f"{QUANTILES[i]:.0%} to {QUANTILES[-1 - i]:.0%}".replace("%", " %")) for i in (1, 0)),
    ]
    counts = {fan.runs for group in groups for fan in group.cells.values()}
    picture = line[0].ax.figure
    assert isinstance(picture, Figure)
    legend = legend_below(picture, handles, f"quantiles over {runs(counts)}; site 1 is nearest the input", note)
    picture.set_size_inches(picture.get_figwidth(), 1.5 * sum(num_rows(line) for line in panels) + 0.6 + legend)
    return picture


def _panel(ax: Axes, fan: QuantileFan | None) -> None:
    if fan is None or not np.isfinite(fan.quantiles).any():
        ax.text(0.5, 0.5, "no values", transform=ax.transAxes, ha="center", va="center", color=FAINT)
        return
    sites, quantiles = np.arange(1.0, fan.quantiles.shape[1] + 1), fan.quantiles
    ax.plot(sites, quantiles[len(QUANTILES) // 2], color=LINE, marker="o", markersize=3)
    if len(sites) == 1:  # a band needs a width
        sites, quantiles = np.array([1 - NARROW, 1 + NARROW]), np.repeat(quantiles, 2, axis=1)
    for i, shade in enumerate(SHADES):
        ax.fill_between(sites, quantiles[i], quantiles[-1 - i], color=shade, linewidth=0)


def _scale(ax: Axes, group: QuantileFans, values: np.ndarray) -> None:
    shown = ax.yaxis.get_tick_params()["labelleft"]
    bottom, top = values.min(), values.max()
    air = 0.05 * (top - bottom) or 0.05 * max(abs(top), 1)
    ax.set_ylim(bottom - air, top + air)
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    if group.log:
        log_scale(ax, values)
    ax.tick_params(labelleft=shown)


# ------------------------------------------------------------------------------- fans, histograms


def arrange_depth(
    figure: outputs.Figure, declaration: Declaration, stored: Mapping[str, Configuration], note: str
) -> Draw | None:
    """Return the function that draws fans over the sites, or None if no run has a value at the epochs."""
    arms, columns = layout(figure, declaration)
    groups, seeds = [], declaration.seeds_of
    sites: dict[str, list[str]] = {}
    for name in expand_metrics(figure, declaration):
        sites.setdefault(name.partition("/")[0], []).append(name)
    for metric, names in sites.items():
        about = declaration.metrics.get(metric, MetricInfo())
        is_size = about.low == 0 and about.high is None  # a norm spans orders of magnitude
        for target, ids in columns.items():
            for epoch in figure.epochs:
                cells = {arm: _fan(stored.get(ids[arm]), seeds[ids[arm]], names, epoch) for arm in arms if arm in ids}
                found = {arm: fan for arm, fan in cells.items() if fan is not None}
                where = ", ".join(filter(None, [title(target, declaration), at_epoch(epoch)]))
                label = f"{stacked(words(metric) + unit(metric, about))}\n{stacked(where)}"
                sizes = {stored[ids[arm]].probe_examples for arm in found if ids[arm] in stored}
                if is_share(metric) and sizes:
                    label += f"\n{stacked(probe_set(sizes))}"
                log = (is_size or figure.log) and not is_share(metric)
                scale = metric if about.high is not None else f"{metric} on {target}"  # norms differ between targets
                groups.append(QuantileFans(label, scale, found, log))
    if not any(np.isfinite(fan.quantiles).any() for group in groups for fan in group.cells.values()):
        return None
    return partial(fans, groups, arms, note)


def _fan(c: Configuration | None, seeds: int, names: Sequence[str], epoch: Any) -> QuantileFan | None:
    nothing = np.full((len(QUANTILES), 1), np.nan)
    if c is None:
        return QuantileFan(nothing, 0, count(0, seeds, seeds))
    at = len(c.epochs) - 1 if epoch == "last" else int(np.argmin(np.abs(c.epochs - float(epoch))))
    if epoch != "last" and c.epochs[at] != float(epoch):
        return None
    has = [name for name in names if name in c.values and np.isfinite(c.values[name]).any()]
    if not has:
        return (
            QuantileFan(nothing, 0, count(0, c.num_requested, c.num_requested - len(c.run_ids))) if not finite_runs(c) else None
        )
    values = np.stack([c.values[name][:, at].astype(float) for name in has], axis=1)
    values = values[np.isfinite(values).all(axis=1)]
    quantiles = np.quantile(values, QUANTILES, axis=0) if len(values) else nothing
    unmeasured = max(int((~(c.first_bad_epoch <= c.epochs[at])).sum()) - len(values), 0)
    return QuantileFan(quantiles, len(values), count(len(values), c.num_requested, c.num_requested - len(c.run_ids), unmeasured))
