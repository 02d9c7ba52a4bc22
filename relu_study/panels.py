"""Which numbers stand in which panel: fans over the sites, histograms over the epochs, maps over two factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Picture

from relu_study import fans, maps, selection, spreads
from relu_study.bins import KINDS
from relu_study.cells import Cell, Summary
from relu_study.registry import UserError, nearest
from relu_study.store import Configuration, seeds_of
from relu_study.wording import HISTOGRAMS, WHICH_END, at_epoch, at_site, count, factor, is_share, probe_set, stacked, unit, words

Draw = Callable[[], Picture]
Entry = dict[str, Any]  # of the declaration's configurations


# ------------------------------------------------------------------------------- what is asked for


def chosen(figure: Mapping[str, Any], declaration: Mapping[str, Any]) -> list[Entry]:
    """The configurations that a figure shows, in declared order."""
    return [
        entry
        for entry in declaration["configurations"]
        if (not figure["experiments"] or entry["experiment"] in figure["experiments"])
        and (not figure["arms"] or entry["arm"] in figure["arms"])
    ]


def layout(figure: Mapping[str, Any], declaration: Mapping[str, Any]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The arms of a figure, and target -> arm -> config_id, both in declared order."""
    entries = chosen(figure, declaration)
    columns: dict[str, dict[str, str]] = {target: {} for target in _targets(entries, declaration)}
    for entry in entries:
        columns[entry["spec"]["target"]][entry["arm"]] = entry["config_id"]
    found = dict.fromkeys(entry["arm"] for entry in entries)
    return [arm for arm in dict.fromkeys(figure["arms"] or found) if arm in found], columns


def title(target: str, declaration: Mapping[str, Any]) -> str:
    """What stands above the panels of a target; nothing where the study declares none."""
    return f"target: {target}" if declaration["targets"] else ""


def _targets(entries: Sequence[Entry], declaration: Mapping[str, Any]) -> list[str]:
    present = {entry["spec"]["target"] for entry in entries}
    return [t["name"] for t in declaration["targets"] if t["name"] in present] or sorted(present)


def expanded(figure: Mapping[str, Any], declaration: Mapping[str, Any]) -> list[str]:
    """The "metric/site" names that a figure's metrics stand for: "metric/*" is each site; an unknown one is refused."""
    known = declaration["columns"]
    if figure["kind"] == "histograms":
        sites = dict.fromkeys(name.partition("/")[2] for name in known if not name.endswith("/all"))
        known = [f"{kind}/{site}" for kind in KINDS for site in sites]
    return list(dict.fromkeys(name for asked in figure["metrics"] for name in _expanded(asked, figure, known)))


def _expanded(asked: str, figure: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    metric, _, site = asked.partition("/")
    where = f"of figure {figure['name']}" if figure["name"] else "of the figure"
    of_metric = [name for name in known if name.startswith(f"{metric}/")]
    if not of_metric:
        raise nearest(metric, {name.partition("/")[0] for name in known}, f"metric {where}")
    with_site = [name for name in of_metric if not name.endswith("/all")]
    every = figure["kind"] == "depth"
    if (site == "*" or every) and not with_site:
        have = dict.fromkeys(name.partition("/")[0] for name in known if not name.endswith("/all"))
        raise UserError(
            f"{asked} {where}: {metric} is measured for the whole network only; at each site there are {', '.join(have)}"
        )
    if every and site not in ("", "*"):
        raise UserError(f"{asked} {where}: kind depth shows every site of a metric; write {metric} alone")
    if site == "*" or every:
        return with_site
    if f"{metric}/{site or 'all'}" not in of_metric:
        raise nearest(site or "all", ["*", *(name.partition("/")[2] for name in of_metric)], f"site of {metric} {where}")
    return [f"{metric}/{site or 'all'}"]


# ------------------------------------------------------------------------------- fans, histograms


def depth(
    figure: Mapping[str, Any], declaration: Mapping[str, Any], stored: Mapping[str, Configuration], note: str
) -> Draw | None:
    """Fans over the sites; None where no run has a value at the epochs asked for."""
    arms, columns = layout(figure, declaration)
    groups, seeds = [], seeds_of(declaration)
    sites: dict[str, list[str]] = {}
    for name in expanded(figure, declaration):
        sites.setdefault(name.partition("/")[0], []).append(name)
    for metric, names in sites.items():
        about = declaration["metrics"].get(metric, {})
        is_size = about.get("low") == 0 and about.get("high") is None  # a norm, which spans orders of magnitude
        for target, ids in columns.items():
            for epoch in figure["epoch"] if isinstance(figure["epoch"], (list, tuple)) else [figure["epoch"]]:
                cells = {arm: _fan(stored.get(ids[arm]), seeds[ids[arm]], names, epoch) for arm in arms if arm in ids}
                found = {arm: fan for arm, fan in cells.items() if fan is not None}
                where = ", ".join(filter(None, [title(target, declaration), at_epoch(epoch)]))
                label = f"{stacked(words(metric) + unit(metric, about))}\n{stacked(where)}"
                sizes = {stored[ids[arm]].probe_examples for arm in found if ids[arm] in stored}
                if is_share(metric) and sizes:
                    label += f"\n{stacked(probe_set(sizes))}"
                log = (is_size or figure["log"]) and not is_share(metric)
                scale = metric if about.get("high") is not None else f"{metric} on {target}"  # a norm is that of its own target
                groups.append(fans.Fans(label, scale, found, log))
    if not any(np.isfinite(fan.quantiles).any() for group in groups for fan in group.cells.values()):
        return None
    return partial(fans.fans, groups, arms, note)


def _fan(c: Configuration | None, seeds: int, names: Sequence[str], epoch: Any) -> fans.Fan | None:
    nothing = np.full((len(fans.QUANTILES), 1), np.nan)
    if c is None:
        return fans.Fan(nothing, 0, count(0, seeds, seeds))
    at = len(c.epochs) - 1 if epoch == "last" else int(np.argmin(np.abs(c.epochs - float(epoch))))
    if epoch != "last" and c.epochs[at] != float(epoch):
        return None
    has = [name for name in names if name in c.values and np.isfinite(c.values[name]).any()]
    if not has:
        return fans.Fan(nothing, 0, count(0, c.wanted, c.wanted - len(c.run_ids))) if not _alive(c) else None
    values = np.stack([c.values[name][:, at].astype(float) for name in has], axis=1)
    values = values[np.isfinite(values).all(axis=1)]
    quantiles = np.quantile(values, fans.QUANTILES, axis=0) if len(values) else nothing
    unmeasured = max(int((~(c.first_bad_epoch <= c.epochs[at])).sum()) - len(values), 0)
    return fans.Fan(quantiles, len(values), count(len(values), c.wanted, c.wanted - len(c.run_ids), unmeasured))


def _alive(c: Configuration) -> int:
    """How many runs are finite to their end."""
    return int((c.status == "ok").sum())


def histograms(
    figure: Mapping[str, Any], declaration: Mapping[str, Any], stored: Mapping[str, Configuration], note: str
) -> Draw | None:
    """Heat maps over the epochs; None where nothing was counted."""
    arms, columns = layout(figure, declaration)
    groups = []
    for name in expanded(figure, declaration):
        kind, site = name.split("/")
        for target, ids in columns.items():
            having = [arm for arm in arms if f"{kind}:{site}" in getattr(stored.get(ids.get(arm, "")), "histograms", {})]
            cells = {arm: _spread(stored[ids[arm]], f"{kind}:{site}") for arm in having}
            label = "\n".join(stacked(part) for part in (HISTOGRAMS[kind].format(site), title(target, declaration)) if part)
            groups.append(spreads.Spreads(label, name, cells))
    groups = [group for group in groups if group.cells]
    if not any(np.isfinite(cell.shares).any() for group in groups for cell in group.cells.values()):
        return None
    return partial(spreads.histograms, groups, arms, note)


def _spread(c: Configuration, name: str) -> spreads.Spread:
    counts = c.histograms[name].astype(float)
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    return spreads.Spread(
        c.epochs.astype(float), shares, len(c.run_ids), count(_alive(c), c.wanted, c.wanted - len(c.run_ids)), c.bins.get(name)
    )


# ---------------------------------------------------------------------------------------- maps


def map_over(
    figure: Mapping[str, Any], declaration: Mapping[str, Any], summary: pd.DataFrame, not_run: Mapping[str, int], note: str
) -> Draw | None:
    """Maps over two factors, one for each target; every other factor is held at its most common value, and it is said at which.

    Where `arm` is one factor and a swept field the other, arms that differ in that field alone are one, named by the words
    that their labels share. `not_run` counts the runs of each configuration that are not stored. None where no cell has a value.
    """
    entries, held = kept(figure, declaration)
    rows, cols = figure["rows"], figure["cols"]
    by_target = "target" not in (rows, cols)
    keys = {way: _keys(way, other, entries) for way, other in ((rows, cols), (cols, rows))}
    values = {way: selection.in_order(keys[way]) for way in keys}
    names, groups = expanded(figure, declaration), []
    known = Summary(summary, {name.partition("/")[0] for name in names}, seeds_of(declaration))
    epoch = None if figure["epoch"] == "last" else float(figure["epoch"])
    shown = {entry["config_id"] for entry in entries}
    sizes = {int(size) for config_id, size in known.probe_examples.items() if config_id in shown}
    targets = _targets(entries, declaration) if by_target else [""]
    for name in names:
        metric, site = name.split("/")
        boards = {}
        for target in targets:
            cells = {
                (values[rows].index(keys[rows][i]), values[cols].index(keys[cols][i])): _lost(
                    known.cell(entry["config_id"], metric, site, epoch), entry["config_id"], not_run
                )
                for i, entry in enumerate(entries)
                if not by_target or entry["spec"]["target"] == target
            }
            boards[title(target, declaration) if by_target else ""] = _board(cells, (len(values[rows]), len(values[cols])))
        log = figure["log"] and not is_share(metric)
        shared = declaration["metrics"].get(metric, {}).get("high") is not None  # a loss is that of its own target
        groups.append(maps.Boards(_board_label(name, figure, declaration, sizes), boards, log, shared))
    groups = [group for group in groups if any(np.isfinite(board.values).any() for board in group.cells.values())]
    if not groups:
        return None
    at = ", ".join(f"{words(name)} {selection.shown(value)}" for name, value in held.items())
    notes = "\n".join(filter(None, [note, f"held: {at}" if at else ""]))
    axes = [(factor(way), [selection.shown(value) for value in values[way]]) for way in (rows, cols)]
    return partial(maps.maps, groups, list(groups[0].cells), axes[0], axes[1], notes)


def _lost(cell: Cell, config_id: str, not_run: Mapping[str, int]) -> Cell:
    """A cell that tells runs that are not run from nonfinite ones; `not_run` lacks configurations without a stored run."""
    return replace(cell, not_run=not_run.get(config_id, cell.n)) if not_run else cell


def kept(figure: Mapping[str, Any], declaration: Mapping[str, Any]) -> tuple[list[Entry], dict[str, Any]]:
    """The configurations of a map, and the factors that are held with their values; a tie is refused."""
    try:
        return selection.held(chosen(figure, declaration), {figure["rows"], figure["cols"], "target"})
    except UserError as error:
        raise UserError(f"figure {figure['name']}: {error}" if figure["name"] else f"{error}") from None


def _keys(way: str, other: str, entries: Sequence[Entry]) -> list[Any]:
    """The value of a factor for each entry."""
    if way != "arm" or other == "experiment":
        return [selection.factor(entry, way) for entry in entries]
    alike: dict[str, list[str]] = {}
    rest = [str({**entry["spec"], other: None, "target": None}) for entry in entries]
    for text, entry in zip(rest, entries, strict=True):
        alike.setdefault(text, []).append(entry["arm"])
    names = {text: _shared(list(dict.fromkeys(arms))) for text, arms in alike.items()}
    twice = {name for name in names.values() if list(names.values()).count(name) > 1}
    return [alike[text][0] if names[text] in twice else names[text] for text in rest]


def _shared(labels: Sequence[str]) -> str:
    """The words, between commas, that all labels have; the first label where they have none."""
    parts = [label.split(", ") for label in labels]
    same = [part for part in parts[0] if all(part in others for others in parts)]
    return ", ".join(same) or labels[0]


def _board(cells: Mapping[tuple[int, int], Cell], shape: tuple[int, int]) -> maps.Board:
    values, known = np.full(shape, np.nan), np.zeros(shape, bool)
    counts = [["" for _ in range(shape[1])] for _ in range(shape[0])]
    for (i, j), cell in cells.items():
        known[i, j] = True
        # Nine digits, as in the CSVs: the same picture comes from memory and from the files.
        values[i, j], counts[i][j] = float(f"{cell.mean:.9g}"), cell.count.replace(" (", "\n(").replace(", ", ",\n")
    return maps.Board(values, known, counts)


def _board_label(name: str, figure: Mapping[str, Any], declaration: Mapping[str, Any], sizes: set[int]) -> str:
    metric, site = name.split("/")
    about = declaration["metrics"].get(metric, {})
    n = [probe_set(sizes)] if is_share(metric) and sizes else []
    end = WHICH_END[about.get("direction", "none")]
    texts = [at_site(metric, site) + unit(metric, about), at_epoch(figure["epoch"]), end, *n]
    return "\n".join(texts)
