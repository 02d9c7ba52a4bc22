"""The figures a study declares: curves over the epochs, survival of units, and forests of the claims' effects.

The numbers come as the frames behind summary.csv, survival.csv and verdicts.csv; here they are arranged
as the declaration says, and `drawing` draws them.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from relu_study import drawing
from relu_study.drawing import Band, Effect, Row
from relu_study.frames import PROPORTIONS, summary_frame, survival_frame
from relu_study.store import Configuration, write_atomically

ALONG = 25  # characters on a line along the height of a panel
Bands = Mapping[tuple[str, str], Band]  # (config_id, "metric/site" or "survival/site")


def draw(
    manifest: dict[str, Any], configurations: dict[str, Configuration], verdicts: list[dict[str, Any]], folder: Path
) -> list[Path]:
    """Draw each declared figure from the stored runs, to `folder`/figures/NAME.png and NAME.svg.

    A figure without any data (its experiments were left out, its claims have no row) is not drawn.
    Returns the paths written, in declared order.
    """
    summary = summary_frame(configurations, manifest, epochs=None)
    return draw_tabulated(manifest, summary, survival_frame(configurations), verdicts, folder)


def draw_tabulated(
    manifest: dict[str, Any], summary: pd.DataFrame, survival: pd.DataFrame, verdicts: list[dict[str, Any]], folder: Path
) -> list[Path]:
    """`draw` from the frames of summary.csv, survival.csv and verdicts.csv: the same bytes, if `summary` has every epoch."""
    figures, paths = manifest["declaration"]["figures"], []
    bands = _metric_bands(summary, {m for f in figures for m in f["metrics"]}) | _survival_bands(survival)
    for figure in figures:
        if (picture := _picture(figure, manifest["declaration"], bands, verdicts)) is None:
            continue
        for kind, content in drawing.render(picture).items():
            paths.append(folder / "figures" / f"{figure['name']}.{kind}")
            write_atomically(paths[-1], content)
    return paths


def _metric_bands(summary: pd.DataFrame, drawn: set[str]) -> dict[tuple[str, str], Band]:
    rows = summary[summary["metric"].isin({name.split("/")[0] for name in drawn})]
    cells = rows.groupby(["config_id", "metric", "site"], sort=False)
    return {(str(c), f"{m}/{s}"): _band(cell, ("mean", "ci_lo", "ci_hi"), "n_finite") for (c, m, s), cell in cells}


def _survival_bands(survival: pd.DataFrame) -> dict[tuple[str, str], Band]:
    cells = survival.groupby(["config_id", "site"], sort=False)
    return {(str(c), f"survival/{s}"): _band(cell, ("survival", "lo", "hi"), "runs") for (c, s), cell in cells}


def _band(rows: pd.DataFrame, columns: Sequence[str], runs: str) -> Band:
    # Nine digits, as in the CSVs: the same picture comes from memory and from the files.
    mean, lo, hi = (np.array([_number(x) for x in rows[column].to_numpy(float)]) for column in columns)
    return Band(rows["epoch"].to_numpy(float), mean, lo, hi, int(rows[runs].max()), int(rows["probe_examples"].iloc[0]))


def _picture(
    figure: dict[str, Any], declaration: dict[str, Any], bands: Bands, verdicts: list[dict[str, Any]]
) -> Callable[[], drawing.Figure] | None:
    if figure["kind"] == "forest":
        effects = _effects([row for row in verdicts if row["claim"] in figure["claims"]], declaration)
        return partial(drawing.forest, effects) if effects else None
    arms, columns = _layout(figure, declaration)
    survival = figure["kind"] == "survival"
    names = _survival_names(columns, bands) if survival else [m if "/" in m else f"{m}/all" for m in figure["metrics"]]
    rows = []
    for name in names:
        found = [{arm: bands[ids[arm], name] for arm in arms if (ids.get(arm), name) in bands} for ids in columns.values()]
        cells = [{arm: band for arm, band in cell.items() if np.isfinite(band.mean).any()} for cell in found]
        if any(cells):
            rows.append(_row(name, cells, figure["log"], declaration["metrics"]))
    titles = [f"target: {target}" if declaration["targets"] else "" for target in columns]
    kind = "share and 95 % bootstrap band over" if survival else "mean and 95 % interval over"
    return partial(drawing.curves, rows, titles, arms, kind) if rows else None


def _layout(figure: dict[str, Any], declaration: dict[str, Any]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The arms of a figure, and target -> arm -> config_id, both in declared order."""
    entries = [
        entry
        for entry in declaration["configurations"]
        if (not figure["experiments"] or entry["experiment"] in figure["experiments"])
        and (not figure["arms"] or entry["arm"] in figure["arms"])
    ]
    present = {entry["spec"]["target"] for entry in entries}
    targets = [t["name"] for t in declaration["targets"] if t["name"] in present] or sorted(present)
    columns: dict[str, dict[str, str]] = {target: {} for target in targets}
    for entry in entries:
        columns[entry["spec"]["target"]][entry["arm"]] = entry["config_id"]
    found = dict.fromkeys(entry["arm"] for entry in entries)
    return [arm for arm in figure["arms"] or found if arm in found], columns


def _survival_names(columns: dict[str, dict[str, str]], bands: Bands) -> list[str]:
    drawn = {config_id for column in columns.values() for config_id in column.values()}
    return sorted({name for c, name in bands if c in drawn and name.startswith("survival/")}, key=lambda name: (len(name), name))


def _row(name: str, cells: list[dict[str, Band]], log: bool, metrics: dict[str, dict[str, Any]]) -> Row:
    metric, site = name.split("/")
    if metric == "survival":
        label = f"units not yet dead, {site}\n(share of those born alive)\n{_probe_set(cells)}"
        return Row(label, cells, low=0, high=1, steps=True)
    about = metrics.get(metric, {})
    share = metric.endswith("_fraction") or metric in PROPORTIONS
    where = site if site != "all" else "all sites" if metric.endswith("_fraction") else ""
    words = _stacked(", ".join(filter(None, [_words(metric), where]))) + _unit(metric, about, "\n")
    label = f"{words}\n{_probe_set(cells)}" if share else words
    return Row(label, cells, log and not share, about.get("low"), about.get("high"))


def _stacked(words: str) -> str:
    """Words along a panel's height, on as many lines as they need there."""
    if len(words) <= ALONG:
        return words
    return "\n".join(textwrap.fill(part, ALONG) for part in words.replace(", ", ",\n").split("\n"))


def _unit(metric: str, about: dict[str, Any], before: str = " ") -> str:
    """The unit in brackets, unless the metric's own name says it (a loss is in units of loss)."""
    unit = "share of runs" if metric in PROPORTIONS else about.get("unit")
    return f"{before}({unit})" if unit and unit not in metric else ""


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _probe_set(cells: list[dict[str, Band]]) -> str:
    sizes = [band.probe_examples for cell in cells for band in cell.values()]
    span = f"{min(sizes):,}" if len(set(sizes)) == 1 else f"{min(sizes):,} to {max(sizes):,}"
    return _stacked(f"N = {span} probe examples")


def _effects(rows: list[dict[str, Any]], declaration: dict[str, Any]) -> list[Effect]:
    rows = [row for row in rows if row["contrast"] != "overall"]
    several = len({row["claim"] for row in rows}) > 1
    return [
        Effect(
            block=_block(row, declaration["metrics"]),
            label=f"{row['claim']}  {_asked(row)}" if several else _asked(row),
            column=f"target: {row['target']}" if declaration["targets"] else "",
            effect=_number(row["effect"]),
            lo=_number(row["ci_lo"]),
            hi=_number(row["ci_hi"]),
            claimed=_claimed(row["direction"], _number(row["margin"])),
            verdict=row["verdict"],
        )
        for row in rows
    ]


def _block(row: dict[str, Any], metrics: dict[str, dict[str, Any]]) -> str:
    if " over " in row["site"]:  # a ratio of two sites has no unit
        return f"difference in {_words(row['metric'])}, {row['site']}"
    return f"difference in {_words(row['metric'])}" + _unit(row["metric"], metrics.get(row["metric"], {}))


def _asked(row: dict[str, Any]) -> str:
    """The contrast with its site and epoch, where they are not the usual ones and not said already."""
    epoch = str(row["epoch"])
    when = {"last": "", "min": "least over the epochs", "max": "greatest over the epochs"}.get(
        epoch, f"epoch\N{NO-BREAK SPACE}{epoch}"
    )
    where = "" if row["site"] == "all" or " over " in row["site"] else row["site"]
    return ", ".join(filter(None, [row["contrast"], where, "" if "at epoch" in row["contrast"] else when]))


def _claimed(direction: str, margin: float) -> tuple[float, float]:
    """The effects that the claim is about: confirmed is an interval that lies in there whole."""
    return {"less": (-math.inf, -margin), "greater": (margin, math.inf), "equivalent": (-margin, margin)}[direction]


def _number(value: Any) -> float:
    return float(f"{float(value):.9g}") if value != "" and not pd.isna(value) else math.nan
