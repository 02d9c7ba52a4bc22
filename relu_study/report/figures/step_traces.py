"""Figure of a replay: dead units and norms by step, and the largest pre-activation of each unit near its death."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from relu_study.report.figures.canvas import COLOURS, DASHES, FAINT, ROUND, WIDTH, finite, legend_below, log_scale, new_figure

UNITS, ACROSS = 6, 3  # panels of single units, and panels per line
NEAR = 12  # steps shown before and after a unit's event
LONGEST = 30  # characters in a line of a title
NORMS = {"batch_loss": "batch loss", "grad_norm": "gradient norm", "step_norm": "step norm"}
MARKS: dict[str, dict[str, Any]] = {
    "died": {"marker": "v", "color": COLOURS[2]},
    "revived": {"marker": "^", "color": COLOURS[3]},
    "nonfinite": {"marker": "X", "color": COLOURS[6]},
}


def step_traces(about: Mapping[str, Any], steps: pd.DataFrame, events: pd.DataFrame, arrays: Mapping[str, np.ndarray]) -> Figure:
    """Draw dead units by site, the norms of each step, and up to six units with an event, the first deaths first.

    Args:
      about: entries of replay.json.
      steps, events, arrays: those of `relu_study.replay`.
    """
    units = _shown_units(events)
    lines = -(-len(units) // ACROSS)
    picture = new_figure(1)
    grid = GridSpec(2 + lines, ACROSS, figure=picture, height_ratios=[1.5, 1.0, *[1.1] * lines])
    top = picture.add_subplot(grid[0, :])
    middle = picture.add_subplot(grid[1, :], sharex=top)
    handles = _draw_dead(top, steps, events)
    _draw_norms(middle, steps)
    for ax in (top, middle):
        _mark_epochs(ax, about, named=ax is top)
    top.tick_params(labelbottom=False)
    middle.set_xlabel("step")
    for i, event in enumerate(units):
        _draw_unit(picture.add_subplot(grid[2 + i // ACROSS, i % ACROSS]), event, arrays, first=i % ACROSS == 0)
    top.set_title(_title(about))
    legend = legend_below(picture, handles, "", _note(about, events, units))
    picture.set_size_inches(WIDTH, 1.8 + 1.2 + 1.6 * lines + legend)
    return picture


def _title(about: Mapping[str, Any]) -> str:
    first, last, per_epoch = about["first_step"], about["last_step"], about["steps_per_epoch"]
    epochs = f"epochs {first / per_epoch:.4g} to {last / per_epoch:.4g}"
    return f"run {about['run_id']} of {about['study']}: steps {first:,} to {last:,}, {epochs}"


def _note(about: Mapping[str, Any], events: pd.DataFrame, shown: list[dict[str, Any]]) -> str:
    """Return the text below the panels: counts of events, and the probe set."""
    counts = {kind: int((events["event"] == kind).sum()) for kind in ("died", "revived")}
    parts = [f"{count:,} {_plural(kind, count)}" for kind, count in counts.items() if count] or ["no unit died or revived"]
    hidden = len(events[events["unit"].notna()].drop_duplicates(["site", "unit"])) - len(shown)
    if hidden > 0:
        parts.append(
            f"{hidden:,} more units with events are not shown" if hidden > 1 else "1 more unit with an event is not shown"
        )
    probe = f"largest pre on N = {about['probe_examples']:,} probe examples; hollow: the unit is dead"
    return "; ".join(parts) + (f"\n{probe}" if shown else "")


def _plural(kind: str, count: int) -> str:
    noun = "death" if kind == "died" else "revival"
    return noun if count == 1 else f"{noun}s"


def _shown_units(events: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the first event of up to six units, deaths before revivals, in order of time."""
    of_units = events[events["unit"].notna()]
    ranked = of_units.assign(rank=(of_units["event"] != "died").astype(int)).sort_values(["rank", "total_step"], kind="stable")
    chosen = ranked.drop_duplicates(["site", "unit"]).head(UNITS).sort_values("total_step", kind="stable")
    return [{str(name): value for name, value in row.items()} for row in chosen.to_dict("records")]


# ------------------------------------------------------------------------------------- the window


def _draw_dead(ax: Axes, steps: pd.DataFrame, events: pd.DataFrame) -> list[Line2D]:
    """Draw the dead units of each site, with a mark at each event. Returns the legend entries."""
    handles = []
    most = 1
    for i, (site, rows) in enumerate(steps.groupby("site", sort=False)):
        look: dict[str, Any] = {"color": COLOURS[i % 7], "linestyle": DASHES[i % 4]}
        at, dead = rows["total_step"].to_numpy(), rows["dead"].to_numpy(float, na_value=np.nan)
        ax.plot(at, dead, drawstyle="steps-post", **look)
        most = max(most, int(np.nanmax(dead, initial=0)))
        handles.append(Line2D([], [], label=f"{site} ({rows['units'].iloc[0]:,} units)", **look))
        for kind in ("died", "revived"):
            marked = np.unique(events[(events["site"] == site) & (events["event"] == kind)]["total_step"].to_numpy(float))
            if len(marked):
                heights = [dead[np.flatnonzero(at == step)[-1]] for step in marked]
                ax.plot(marked, heights, linestyle="none", markersize=5, **MARKS[kind], zorder=5)
    bad = events[events["event"] == "nonfinite"]
    if len(bad):
        ax.plot(bad["total_step"], [0], linestyle="none", markersize=7, clip_on=False, **MARKS["nonfinite"], zorder=6)
    present = [kind for kind in MARKS if (events["event"] == kind).any()]
    ax.set_ylabel("dead units")
    ax.set_ylim(-0.06 * most, 1.3 * most)
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True, steps=ROUND))
    return handles + [Line2D([], [], linestyle="none", label=kind, **MARKS[kind]) for kind in present]


def _draw_norms(ax: Axes, steps: pd.DataFrame) -> None:
    """Draw batch loss, gradient norm and step norm on a logarithmic axis, with their legend above it."""
    rows = steps.drop_duplicates(["total_step", "batch_loss"])
    rows = rows[rows["batch_loss"].notna() | rows["grad_norm"].notna()]
    handles = []
    for i, (name, label) in enumerate(NORMS.items()):
        look: dict[str, Any] = {"color": COLOURS[(4, 6, 3)[i]], "linestyle": DASHES[i], "linewidth": 1.0}
        values = rows[name].to_numpy(float)
        ax.plot(rows["total_step"], np.where(np.isfinite(values), values, np.nan), **look)
        handles.append(Line2D([], [], label=label, **look))
    values = finite(rows[name].to_numpy(float) for name in NORMS)
    if len(values):
        log_scale(ax, values)
    ax.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.97), ncols=len(handles), borderaxespad=0)
    ax.set_ylabel("at each step")
    ax.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=ROUND))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _mark_epochs(ax: Axes, about: Mapping[str, Any], named: bool) -> None:
    """Draw a faint line at the start of each epoch in the window, if they are few, with its name."""
    first, last, per_epoch = (int(about[name]) for name in ("first_step", "last_step", "steps_per_epoch"))
    starts = [epoch * per_epoch for epoch in range(math.ceil(first / per_epoch), last // per_epoch + 1)]
    for start in starts if len(starts) <= 9 else ():
        ax.axvline(start, color=FAINT, linewidth=0.6, linestyle=(0, (2, 2)), zorder=0)
        if named and start < last:
            text = f" epoch {start // per_epoch + 1}"
            ax.text(start, 1.0, text, transform=ax.get_xaxis_transform(), va="top", color=FAINT)
    margin = 0.02 * (last - first)
    ax.set_xlim(first - margin, last + margin)


# -------------------------------------------------------------------------------------- single units


def _draw_unit(ax: Axes, event: Mapping[str, Any], arrays: Mapping[str, np.ndarray], first: bool) -> None:
    """Draw the largest pre-activation of a unit on the probe set, some steps before and after its event."""
    at, site, unit = int(event["total_step"]), event["site"], int(event["unit"])
    steps = arrays["total_step"]
    near = np.abs(steps - at) <= NEAR
    high = arrays[f"pre_max:{site}"][near, unit].astype(float)
    dead = arrays[f"dead:{site}"][near, unit]
    ax.axhline(0, color=FAINT, linewidth=0.6)
    ax.axvline(at, color=MARKS[event["event"]]["color"], linewidth=0.6, linestyle=(0, (2, 2)))
    ax.plot(steps[near], high, color=COLOURS[1], linewidth=1.0, zorder=2)
    for flag, face in ((False, COLOURS[1]), (True, "white")):
        chosen = dead == flag
        ax.plot(steps[near][chosen], high[chosen], "o", markersize=3.5, color=COLOURS[1], markerfacecolor=face, zorder=3)
    mark = steps[near] == at
    ax.plot(steps[near][mark][-1:], high[mark][-1:], linestyle="none", markersize=6, zorder=4, **MARKS[event["event"]])
    ax.set_title(f"{site}, unit {unit}: step {at:,}\n{_rows(event)}")
    ax.set_xlabel("step")
    ax.set_ylabel("largest pre" if first else "")
    ax.xaxis.set_major_locator(MaxNLocator(3, integer=True, steps=ROUND))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if np.nanmax(np.abs(high), initial=0) > 1e3 * np.nanmax(np.abs(high[np.abs(steps[near] - at) <= 1]), initial=0) > 0:
        ax.set_yscale("symlog", linthresh=float(np.nanmax(np.abs(high[np.abs(steps[near] - at) <= 1]))))  # it explodes later
    else:
        ax.yaxis.set_major_locator(MaxNLocator(4, steps=ROUND))
    ax.margins(y=0.12)


def _rows(event: Mapping[str, Any]) -> str:
    """Return the first rows of an event's batch that fit in a line: "rows 3, 17, 52, … (128)"."""
    rows = [str(row) for row in event["batch_rows"]]
    if not rows:
        return "at a change of the data"
    whole = f"rows {', '.join(rows)}"
    if len(whole) <= LONGEST:
        return whole
    texts = (f"rows {', '.join(rows[:count])}, … ({len(rows)})" for count in range(len(rows) - 1, 0, -1))
    return next((text for text in texts if len(text) <= LONGEST), f"{len(rows)} rows")
