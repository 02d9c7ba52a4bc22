"""The figures of a study: arranged as the declaration says, from the numbers of a results folder, and written.

Here are curves over the epochs, survival of units, and forests of the claims' effects; `panels` arranges the other kinds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from relu_study import drawing, forests, panels
from relu_study.drawing import Band, Row
from relu_study.forests import Effect
from relu_study.frames import summary_frame, survival_frame
from relu_study.identity import LOSSES
from relu_study.registry import nearest
from relu_study.store import Configuration, seeds_of
from relu_study.wording import at_site, count, is_share, probe_set, stacked, unit, words
from relu_study.writes import write_atomically

NEEDED = {  # the CSV files that each kind is made of; histograms are in raw/ alone
    "curves": ("summary", "survival"),
    "survival": ("summary", "survival"),
    "forest": ("verdicts",),
    "depth": ("runs",),
    "histograms": (),
    "map": ("summary",),
}
Bands = Mapping[tuple[str, str], Band]  # (config_id, "metric/site" or "survival/site")


@dataclass(frozen=True)
class Numbers:
    """What figures are made of: the frames of summary.csv and survival.csv, the rows of verdicts.csv, the runs themselves.

    Curves need every epoch in `summary`; `depth` needs the values of `configurations` at the epoch shown, and histograms need
    their histograms. Without `configurations` a count cannot tell runs that are not run from nonfinite ones.
    """

    summary: pd.DataFrame
    survival: pd.DataFrame
    verdicts: Sequence[Mapping[str, Any]] = ()
    configurations: Mapping[str, Configuration] = field(default_factory=dict)


def check(declaration: Mapping[str, Any]) -> None:
    """Refuse a figure whose metrics, claims or factors cannot be shown. Nothing has to have run: this is for before it."""
    claims = {claim["claim"] for claim in declaration["claims"]}
    for figure in declaration["figures"]:
        panels.expanded(figure, declaration)
        for claim in figure["claims"]:
            if claim not in claims:
                raise nearest(claim, claims, f"name among the claims of {figure['name']!r}")
        if figure["kind"] == "map":
            panels.kept(figure, declaration)


def lacking(figure: Mapping[str, Any], found: Mapping[str, pd.DataFrame], folder: Path) -> str:
    """What a figure needs besides the CSV files `found` ("summary" and so on), or nothing: a clone has no raw/."""
    raw = folder / "raw"
    missing = [f"{name}.csv" for name in NEEDED[figure["kind"]] if name not in found]
    if missing:
        return missing[0]
    if figure["kind"] == "histograms":
        return f"{raw} (no CSV file holds histograms)"
    if figure["kind"] == "curves":
        at = [set(zip(found[name]["config_id"], found[name]["epoch"], strict=True)) for name in NEEDED["curves"]]
        return "" if at[0] >= at[1] else f"{raw} (summary.csv has the report epochs only)"
    if figure["kind"] == "depth":
        epochs = figure["epoch"] if isinstance(figure["epoch"], (list, tuple)) else [figure["epoch"]]
        return "" if all(epoch == "last" for epoch in epochs) else f"{raw} (runs.csv has the last epoch only)"
    if figure["kind"] == "map" and figure["epoch"] != "last" and float(figure["epoch"]) not in set(found["summary"]["epoch"]):
        return f"{raw} (summary.csv has no epoch {float(figure['epoch']):g})"
    return ""


def draw(
    manifest: dict[str, Any], configurations: dict[str, Configuration], verdicts: list[dict[str, Any]], folder: Path
) -> list[Path]:
    """Draw each declared figure from the stored runs, to `folder`/figures/NAME.png and NAME.svg.

    A figure without any data (its experiments were left out, its claims have no row) is not drawn.
    Returns the paths written, in declared order.
    """
    summary = summary_frame(configurations, manifest, epochs=None)
    return draw_from(manifest, Numbers(summary, survival_frame(configurations), verdicts, configurations), folder)


def draw_from(manifest: dict[str, Any], numbers: Numbers, folder: Path) -> list[Path]:
    """`draw` from numbers that are at hand: the same bytes from the CSVs, where these suffice."""
    paths = []
    for figure in manifest["declaration"]["figures"]:
        if (picture := arranged(figure, manifest["declaration"], numbers)) is None:
            continue
        for kind, content in drawing.render(picture).items():
            paths.append(folder / "figures" / f"{figure['name']}.{kind}")
            write_atomically(paths[-1], content)
    return paths


def arranged(
    figure: Mapping[str, Any], declaration: Mapping[str, Any], numbers: Numbers, note: str = ""
) -> Callable[[], drawing.Figure] | None:
    """What draws a figure, with `note` below it; None where there is nothing to draw."""
    if figure["kind"] == "forest":
        asked = [row for row in numbers.verdicts if row["claim"] in figure["claims"]]
        effects = _effects(asked, declaration, numbers.configurations)
        return partial(forests.forest, effects, note) if effects else None
    if figure["kind"] == "map":
        return panels.map_over(figure, declaration, numbers.summary, _not_run(numbers), note)
    if figure["kind"] in ("depth", "histograms"):
        arrange = panels.depth if figure["kind"] == "depth" else panels.histograms
        return arrange(figure, declaration, numbers.configurations, note)
    return _lines(figure, declaration, numbers, note)


# ------------------------------------------------------------------------------ curves, survival


def _lines(
    figure: Mapping[str, Any], declaration: Mapping[str, Any], numbers: Numbers, note: str
) -> Callable[[], drawing.Figure] | None:
    arms, columns = panels.layout(figure, declaration)
    shown = {config_id for ids in columns.values() for config_id in ids.values()}
    survival = figure["kind"] == "survival"
    if survival:
        bands = _survival_bands(numbers, shown)
        names = sorted({name for _, name in bands}, key=lambda name: (len(name), name))
    else:
        names = panels.expanded(figure, declaration)
        bands = _metric_bands(numbers, shown, {name.partition("/")[0] for name in names})
    rows, empty = [], []
    for name in names:
        found = [{arm: bands[ids[arm], name] for arm in arms if (ids.get(arm), name) in bands} for ids in columns.values()]
        cells = [{arm: band for arm, band in cell.items() if np.isfinite(band.mean).any()} for cell in found]
        if any(cells):
            rows.append(_row(name, cells, figure["log"], declaration["metrics"]))
        else:
            empty.append(at_site(*name.split("/")))
    if not rows:
        return None
    absent = [arm for arm in arms if not any(arm in cell for row in rows for cell in row.cells)]
    stored = numbers.configurations
    unrun = {arm for arm in absent if stored and not any(ids.get(arm) in stored for ids in columns.values())}
    empty += [f"{arm} (not run)" if arm in unrun else arm for arm in absent]
    titles = [panels.title(target, declaration) for target in columns]
    kind = "share and its 95 % band over" if survival else "mean and 95 % interval over"
    notes = "\n".join(filter(None, [note, f"no values: {', '.join(empty)}" if empty else ""]))
    return partial(drawing.curves, rows, titles, arms, kind, notes)


def _metric_bands(numbers: Numbers, shown: set[str], metrics: set[str]) -> dict[tuple[str, str], Band]:
    counts, not_run = _counts(numbers), _not_run(numbers)
    rows = numbers.summary[numbers.summary["metric"].isin(metrics) & numbers.summary["config_id"].isin(shown)]
    cells = rows.groupby(["config_id", "metric", "site"], sort=False)
    bands = {(str(c), f"{m}/{s}"): _band(cell, ("mean", "ci_lo", "ci_hi"), "n_finite", counts) for (c, m, s), cell in cells}
    for (config_id, metric, site), cell in cells:
        if metric in LOSSES:  # it may have gone nonfinite in runs that are finite
            finite, wanted = cell.sort_values("epoch")[["n_finite", "n"]].iloc[-1]
            name = str(config_id), f"{metric}/{site}"
            bands[name] = replace(bands[name], count=count(int(finite), int(wanted), not_run.get(name[0], 0)))
    return bands


def _survival_bands(numbers: Numbers, shown: set[str]) -> dict[tuple[str, str], Band]:
    counts = _counts(numbers)
    cells = numbers.survival[numbers.survival["config_id"].isin(shown)].groupby(["config_id", "site"], sort=False)
    return {(str(c), f"survival/{s}"): _band(cell, ("survival", "lo", "hi"), "runs", counts) for (c, s), cell in cells}


def _not_run(numbers: Numbers) -> dict[str, int]:
    """config_id -> runs that are not stored."""
    return {config_id: c.wanted - len(c.run_ids) for config_id, c in numbers.configurations.items()}


def _counts(numbers: Numbers) -> dict[str, str]:
    """config_id -> "n=31/32" where not all runs are finite at the end."""
    summary, not_run = numbers.summary, _not_run(numbers)
    last = summary[summary["epoch"] == summary.groupby("config_id")["epoch"].transform("max")]
    found = last.groupby("config_id")[["n_finite", "n"]].max()
    return {
        str(c): count(int(alive), int(n), not_run.get(str(c), 0))
        for c, (alive, n) in zip(found.index, found.to_numpy(), strict=True)
    }


def _band(rows: pd.DataFrame, columns: Sequence[str], runs: str, counts: Mapping[str, str]) -> Band:
    # Nine digits, as in the CSVs: the same picture comes from memory and from the files.
    mean, lo, hi = (np.array([_number(x) for x in rows[column].to_numpy(float)]) for column in columns)
    first = rows.iloc[0]
    n = counts.get(str(first["config_id"]), "")
    return Band(rows["epoch"].to_numpy(float), mean, lo, hi, int(rows[runs].max()), int(first["probe_examples"]), n)


def _row(name: str, cells: list[dict[str, Band]], log: bool, metrics: Mapping[str, dict[str, Any]]) -> Row:
    metric, site = name.split("/")
    n = stacked(probe_set({band.probe_examples for cell in cells for band in cell.values()}))
    if metric == "survival":
        return Row(f"units not yet dead, {site}\n(share of those born alive)\n{n}", cells, low=0, high=1, steps=True)
    about = metrics.get(metric, {})
    label = stacked(at_site(metric, site)) + unit(metric, about, "\n")
    share = is_share(metric)
    return Row(f"{label}\n{n}" if share else label, cells, log and not share, about.get("low"), about.get("high"))


# ---------------------------------------------------------------------------------------- forests


def _effects(
    rows: Sequence[Mapping[str, Any]], declaration: Mapping[str, Any], stored: Mapping[str, Configuration]
) -> list[Effect]:
    rows = [row for row in rows if row["contrast"] != "overall"]
    several = len({row["claim"] for row in rows}) > 1
    return [
        Effect(
            block=_block(row, declaration["metrics"]),
            label=f"{row['claim']}  {_asked(row)}" if several else _asked(row),
            column=panels.title(row["target"], declaration),
            effect=_number(row["effect"]),
            lo=_number(row["ci_lo"]),
            hi=_number(row["ci_hi"]),
            claimed=_claimed(row["direction"], _number(row["margin"])),
            verdict=row["verdict"],
            count=_pairs(row, declaration, stored),
        )
        for row in rows
    ]


def _pairs(row: Mapping[str, Any], declaration: Mapping[str, Any], stored: Mapping[str, Configuration]) -> str:
    """How many seeds a row compares, where it is not all that it could: those of that of its arms which has fewest.

    A seed counts as not run where an arm lacks its run, and as nonfinite without `stored`. The contrast names the arms.
    """
    seeds = seeds_of(declaration)
    of = {(entry["arm"], entry["spec"]["target"]): entry["config_id"] for entry in declaration["configurations"]}
    asked = [_arms(claim) for claim in declaration["claims"] if claim["claim"] == row["claim"]]
    named = [arms for arms in asked if all(arm in row["contrast"] for arm in arms)]  # of "relu" and "relu, wide" the longer
    arms = max(named, key=lambda arms: sum(map(len, arms)), default=[])
    ids = [of[arm, row["target"]] for arm in arms if (arm, row["target"]) in of]
    wanted, n = min((seeds[config_id] for config_id in ids), default=declaration["seeds"]), int(row["n"])
    run = set(range(wanted)).intersection(*(stored[i].seeds.tolist() if i in stored else () for i in ids))
    return count(n, wanted, min(wanted - len(run), wanted - n) if stored else 0)


def _arms(claim: Mapping[str, Any]) -> list[str]:
    sides = [claim["arm"], claim["against"]]
    return [arm for side in sides if not isinstance(side, float | int) for arm in ([side] if isinstance(side, str) else side)]


def _block(row: Mapping[str, Any], metrics: Mapping[str, dict[str, Any]]) -> str:
    if " over " in row["site"]:  # a ratio of two sites has no unit
        return f"difference in {words(row['metric'])}, {row['site']}"
    return f"difference in {words(row['metric'])}" + unit(row["metric"], metrics.get(row["metric"], {}))


def _asked(row: Mapping[str, Any]) -> str:
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
