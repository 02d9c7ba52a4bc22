"""Figures of quantile fans: the distribution of a metric over runs at each site, from input to output."""

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
from relu_study.storage.declaration import Declaration
from relu_study.storage.quantities import MetricInfo
from relu_study.study import outputs

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SHADES = ("#B5D3E7", "#5FA3CF")  # between the outer quantiles and between the inner ones
LINE = "#00304D"
HALF_WIDTH = 0.25  # of a fan over a single site, in site numbers


@dataclass(frozen=True)
class QuantileFan:
    """The `QUANTILES` of `runs` runs at each of L sites. `count` is "n=31/32" if one of 32 runs has no value, else empty."""

    quantiles: Float[np.ndarray, "5 L"]
    runs: int
    count: str = ""


@dataclass(frozen=True)
class FanGroup:
    """A group of panels with one label: the fan of each arm with values. Groups with the same `scale` share a y range."""

    label: str
    scale: str
    fans: Mapping[str, QuantileFan]
    log: bool = False


def fans(groups: Sequence[FanGroup], arms: Sequence[str], note: str = "") -> Figure:
    """Draw a panel per arm and group: the median over runs and two shades around it, against the site number."""
    panels = panel_grid(arms, [{arm: fan.count for arm, fan in group.fans.items()} for group in groups])
    depth = max(fan.quantiles.shape[1] for group in groups for fan in group.fans.values())
    for group, group_panels in zip(groups, panels, strict=True):
        values = finite(fan.quantiles for other in groups if other.scale == group.scale for fan in other.fans.values())
        for panel, arm in zip(group_panels, arms, strict=True):
            _draw_fan(panel.ax, group.fans.get(arm))
            _set_y_scale(panel.ax, group, values)
            panel.ax.set_xlim(0.6, depth + 0.4)
            panel.ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=ROUND))
            panel.ax.set_xlabel("site" if panel.last else "")
        group_panels[0].ax.set_ylabel(group.label)
    picture = panels[0][0].ax.figure
    assert isinstance(picture, Figure)
    counts = {fan.runs for group in groups for fan in group.fans.values()}
    legend = legend_below(picture, _handles(), f"quantiles over {runs(counts)}; site 1 is nearest the input", note)
    picture.set_size_inches(picture.get_figwidth(), 1.5 * sum(map(num_rows, panels)) + 0.6 + legend)
    return picture


def _handles() -> list[Line2D | Patch]:
    """Return the legend entries of the median and of both shades."""
    median = Line2D([], [], color=LINE, marker="o", markersize=3, label="median")
    names = [f"{QUANTILES[i]:.0%} to {QUANTILES[-1 - i]:.0%}".replace("%", " %") for i in range(len(SHADES))]
    inner, outer = (Patch(color=SHADES[i], label=names[i]) for i in (1, 0))
    return [median, inner, outer]


def _draw_fan(ax: Axes, fan: QuantileFan | None) -> None:
    """Draw a fan into a panel, or "no values"."""
    if fan is None or not np.isfinite(fan.quantiles).any():
        ax.text(0.5, 0.5, "no values", transform=ax.transAxes, ha="center", va="center", color=FAINT)
        return
    sites, quantiles = np.arange(1.0, fan.quantiles.shape[1] + 1), fan.quantiles
    ax.plot(sites, quantiles[len(QUANTILES) // 2], color=LINE, marker="o", markersize=3)
    if len(sites) == 1:  # a band over one point would have no width
        sites, quantiles = np.array([1 - HALF_WIDTH, 1 + HALF_WIDTH]), np.repeat(quantiles, 2, axis=1)
    for i, shade in enumerate(SHADES):
        ax.fill_between(sites, quantiles[i], quantiles[-1 - i], color=shade, linewidth=0)


def _set_y_scale(ax: Axes, group: FanGroup, values: np.ndarray) -> None:
    """Set the y axis of a panel to the range of all values on its scale."""
    has_labels = ax.yaxis.get_tick_params()["labelleft"]
    bottom, top = values.min(), values.max()
    margin = 0.05 * (top - bottom) or 0.05 * max(abs(top), 1)
    ax.set_ylim(bottom - margin, top + margin)
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    if group.log:
        log_scale(ax, values)
    ax.tick_params(labelleft=has_labels)  # a new scale resets the tick labels that `panel_grid` hides


# ------------------------------------------------------------------------------- declared figures


def arrange_depth(
    figure: outputs.Figure, declaration: Declaration, stored: Mapping[str, Configuration], note: str
) -> Draw | None:
    """Return the function that draws fans over the sites, or None if no run has a value at the epochs."""
    arms, columns = layout(figure, declaration)
    groups, seeds = [], declaration.seeds_of
    names_of: dict[str, list[str]] = {}  # metric -> "metric/site" from input to output
    for name in expand_metrics(figure, declaration):
        names_of.setdefault(name.partition("/")[0], []).append(name)
    for metric, names in names_of.items():
        about = declaration.metrics.get(metric, MetricInfo())
        is_norm = about.low == 0 and about.high is None  # a norm spans orders of magnitude
        log = (is_norm or figure.log) and not is_share(metric)
        for target, ids in columns.items():
            scale = metric if about.high is not None else f"{metric} on {target}"  # norms differ between targets
            for epoch in figure.epochs:
                fan_of = {arm: _fan(stored.get(ids[arm]), seeds[ids[arm]], names, epoch) for arm in arms if arm in ids}
                drawn = {arm: fan for arm, fan in fan_of.items() if fan is not None}
                label = f"{stacked(words(metric) + unit(metric, about))}\n"
                label += stacked(", ".join(filter(None, [title(target, declaration), at_epoch(epoch)])))
                sizes = {stored[ids[arm]].probe_examples for arm in drawn if ids[arm] in stored}
                if is_share(metric) and sizes:
                    label += "\n" + probe_set(sizes).replace(" probe", "\nprobe")  # in one line it reaches the next panel
                groups.append(FanGroup(label, scale, drawn, log))
    if not any(np.isfinite(fan.quantiles).any() for group in groups for fan in group.fans.values()):
        return None
    return partial(fans, groups, arms, note)


def _fan(stored: Configuration | None, seeds: int, names: Sequence[str], epoch: Any) -> QuantileFan | None:
    """Return the fan of a configuration, or None if it does not measure the metric or the epoch.

    Without stored or finite runs the fan has only its count, so its panel says why it is empty.
    """
    no_values = np.full((len(QUANTILES), 1), np.nan)
    if stored is None:
        return QuantileFan(no_values, 0, count(0, seeds, seeds))
    row = len(stored.epochs) - 1 if epoch == "last" else int(np.argmin(np.abs(stored.epochs - float(epoch))))
    if epoch != "last" and stored.epochs[row] != float(epoch):
        return None
    requested, not_run = stored.num_requested, stored.num_requested - len(stored.run_ids)
    measured = [name for name in names if name in stored.values and np.isfinite(stored.values[name]).any()]
    if not measured:
        return None if finite_runs(stored) else QuantileFan(no_values, 0, count(0, requested, not_run))
    values = np.stack([stored.values[name][:, row].astype(float) for name in measured], axis=1)
    values = values[np.isfinite(values).all(axis=1)]
    quantiles = np.quantile(values, QUANTILES, axis=0) if len(values) else no_values
    still_finite = ~(stored.first_bad_epoch <= stored.epochs[row])  # also True for NaN: the run never goes nonfinite
    unmeasured = max(int(still_finite.sum()) - len(values), 0)
    return QuantileFan(quantiles, len(values), count(len(values), requested, not_run, unmeasured))
