"""What tables, figures and the page may count on in a results folder: a whole manifest, and the columns of its files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from relu_study.errors import UserError, nearest
from relu_study.stats.intervals import MOMENTS
from relu_study.storage.checksums import one_line
from relu_study.storage.manifest import read_manifest
from relu_study.study.claims import CellClaim, Claim, Target
from relu_study.study.outputs import CellFigure, CellTable, EventTable, Figure, Section, Table
from relu_study.study.run_spec import FIELDS, RunSpec

CELL_COLUMNS = (  # of cells.csv besides the factors, which stand after `cell_id`
    *("experiment", "cell", "statistic", "cell_id"),
    *("number", "draws", "n", "estimate", "ci_lo", "ci_hi", "std", "q05", "q25", "median", "q75", "q95"),
    *("theory", "theory_se", "lower", "upper", "z"),
)

COLUMNS: dict[str, tuple[str, ...]] = {  # of the files of a results folder, those of metrics apart
    "runs": ("run_id", "config_id", *FIELDS, "status", "first_bad_epoch", "probe_examples"),
    "experiments": ("experiment", "config_id"),
    "summary": (
        "config_id",
        *(name for name in FIELDS if name != "seed"),
        "metric",
        "site",
        "epoch",
        "probe_examples",
        "n",
        "n_finite",
        *MOMENTS,
    ),
    "units": (
        *("config_id", "site", "probe_examples", "runs", "units", "born_dead", "died", "revived"),
        *("dead_at_end", "dead_at_end_fraction", "ci_lo", "ci_hi", "certified_revived"),
    ),
    "survival": (
        *("config_id", "site", "epoch", "probe_examples", "runs", "at_risk", "died", "censored", "survival", "lo", "hi"),
    ),
    "verdicts": (
        *("claim", "statement", "contrast", "target", "metric", "site", "epoch", "direction", "margin"),
        *("effect", "ci_lo", "ci_hi", "n", "p", "p_corrected", "verdict", "reason"),
    ),
}
SECTIONS: dict[str, Any] = {
    "title": str,
    "text": str,
    **dict.fromkeys(("claims", "tables", "figures", "sections"), list[dict[str, Any]]),
}
KINDS: dict[str, Any] = {  # what a declaration must have; Any where it is looked at more closely below
    **dict.fromkeys(("configurations", "targets"), list[dict[str, Any]]),
    **SECTIONS,
    **{"columns": list[str], "factors": list[str], "report_epochs": list[float]},
    **{"seeds": int, "metrics": dict[str, dict[str, Any]]},
}
CELL_KINDS: dict[str, Any] = {
    **SECTIONS,
    **{"experiments": list[dict[str, str | int]], "cells": list[dict[str, Any]], "factors": list[str]},
    "numbers": dict[str, dict[str, dict[str, Any]]],
}
ITEMS: dict[str, type] = {"targets": Target, "claims": Claim, "tables": Table, "figures": Figure, "sections": Section}
CELL_ITEMS: dict[str, type] = {"claims": CellClaim, "tables": CellTable, "figures": CellFigure, "sections": Section}
ENTRY: dict[str, Any] = {"experiment": str, "arm": str, "config_id": str, "seeds": int, "spec": dict[str, Any]}
ABOUT = {"direction": "none", "sites": False, "unit": "", "low": None, "high": None}  # a metric, as far as it is not said
METRIC: dict[str, Any] = {"direction": str, "sites": bool, "unit": str, "low": float | None, "high": float | None}
Values = float | None | list[float | None]
CELL: dict[str, Any] = {
    **dict.fromkeys(("experiment", "label", "statistic", "cell_id"), str),
    **{"factors": dict[str, str | float | None], "draws": int, "along": dict[str, list[float]]},
    "theory": dict[str, dict[str, Values]],
}
NUMBER: dict[str, Any] = {"share": bool, "along": str, "spread": list[float] | None}
MOST_RUNS, MOST_DRAWS = 10**7, 2**32  # of a study, and of one of its cells: more would only be unpacked to fill the memory


class SchemaError(Exception):
    """What a declaration does not have."""


def read_whole_manifest(folder: Path) -> dict[str, Any]:
    """The manifest with all that this version declares: what an earlier one did not know has its default.

    A declaration that lacks something without a default, or has a RunSpec field that this version does not know, is refused.
    """
    manifest = read_manifest(folder)
    if is_of_draws(manifest):
        raise UserError(f"{folder} holds a draw study: its numbers are in cells.csv (relu_study.load_cells), and it has no runs")
    return _checked(folder, manifest, _whole)


def read_cells_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a draw study, refused as that of a study that trains is."""
    manifest = read_manifest(folder)
    if not is_of_draws(manifest):
        raise UserError(f"{folder} holds runs that were trained, and no draws; read it with relu_study.load")
    return _checked(folder, manifest, _whole_cells)


def is_of_draws(manifest: Mapping[str, Any]) -> bool:
    """Does a manifest declare cells of draws, and not runs?"""
    return "cells" in (manifest["declaration"] or {})


def check_names(declaration: Mapping[str, Any]) -> None:
    """Refuse a table or figure whose name is not that of a file in its folder, or that is there twice."""
    for kind in ("tables", "figures"):
        names = [item["name"] for item in declaration[kind]]
        for name in names:
            if not re.fullmatch(r"[\w+=-][\w+=.-]{,99}", name):
                raise UserError(f"{name!r} of {kind} cannot be the name of a file; use letters, digits and - _ + = .")
            if names.count(name) > 1:
                raise UserError(f"{kind}: {name!r} is declared twice; choose another name")


def check_sections(declaration: Mapping[str, Any]) -> None:
    """Refuse a section that shows a claim, table or figure which the study does not declare."""
    names = {kind: [item["name"] for item in declaration[kind]] for kind in ("tables", "figures")}
    names["claims"] = [claim["claim"] for claim in declaration["claims"]]
    for section in declaration["sections"]:
        for kind, known in names.items():
            for name in section[kind]:
                if name not in known:
                    raise nearest(name, known, f"name among the {kind} of {section['title']!r}")


def _checked(folder: Path, manifest: dict[str, Any], whole: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    try:
        found = whole(manifest["declaration"])
        check_names(found)
    except (SchemaError, UserError) as what:
        said = what if isinstance(what, SchemaError) else f"declares what cannot be: {what}"
        raise UserError(
            f"{folder / 'manifest.json'} {one_line(said)}: it is damaged, or another version of relu-study wrote it; restore it, "
            f"or run the study into a new folder"
        ) from None
    return {"command": "", "preset": "default", **manifest, "declaration": found}


def _whole(declaration: Any) -> dict[str, Any]:
    _needs(declaration, KINDS)
    if not declaration["configurations"] or declaration["seeds"] < 1:
        raise SchemaError("declares no runs")
    found = {name: [_item(name, item, kind) for item in declaration[name]] for name, kind in ITEMS.items()}
    found["configurations"] = [_entry(entry, declaration["seeds"]) for entry in declaration["configurations"]]
    if (runs := sum(entry["seeds"] for entry in found["configurations"])) > MOST_RUNS:
        raise SchemaError(f"declares {runs:,} runs")
    if not _fits(declaration.get("notes", []), list[str]):
        raise SchemaError("declares notes that cannot be read")
    metrics = {name: {**ABOUT, **about} for name, about in declaration["metrics"].items()}
    for name, about in metrics.items():
        _needs(about, METRIC, f"the metric {name}, ")
    return {"skip": [], **declaration, **found, "metrics": metrics}


def _whole_cells(declaration: Any) -> dict[str, Any]:
    _needs(declaration, CELL_KINDS)
    found = {name: [_item(name, item, kind) for item in declaration[name]] for name, kind in CELL_ITEMS.items()}
    names = {experiment.get("name") for experiment in declaration["experiments"]}
    for experiment in declaration["experiments"]:
        _needs(experiment, {"name": str, "statistic": str, "theory": str}, "an experiment, ")
        if {experiment["theory"], ""} - {*names, ""} or experiment["statistic"] not in declaration["numbers"]:
            raise SchemaError(
                f"declares the experiment {experiment['name']} with a theory or statistic that is none of the study's"
            )
    for numbers in declaration["numbers"].values():
        for name, number in numbers.items():
            _needs(number, NUMBER, f"the number {name}, ")
            if number["spread"] is not None and (len(number["spread"]) != 2 or number["spread"][0] >= number["spread"][1]):
                raise SchemaError(f"declares the number {name} with a spread that is none")
    if not declaration["cells"]:
        raise SchemaError("declares no cells")
    for cell in declaration["cells"]:
        _needs(cell, CELL, "a cell, ")
        _cell(cell, declaration)
    asked = [*(claim["experiment"] for claim in found["claims"]), *(cell["experiment"] for cell in declaration["cells"])]
    asked += [name for item in (*found["tables"], *found["figures"]) for name in item["experiments"]]
    if unknown := [name for name in asked if name not in names]:
        raise SchemaError(f"declares what it asks of {unknown[0]!r}, which is none of its experiments")
    return {**declaration, **found}


def _cell(cell: Mapping[str, Any], declaration: Mapping[str, Any]) -> None:
    what = f"declares the cell {cell['label']} with"
    if not 1 <= cell["draws"] <= MOST_DRAWS:
        raise SchemaError(f"{what} {cell['draws']:,} draws")
    if unknown := {*cell["factors"], *cell["along"]} - {*declaration["factors"]}:
        raise SchemaError(f"{what} the factor {min(unknown)}, which is none of the study's")
    if cell["statistic"] not in declaration["numbers"]:
        raise SchemaError(f"{what} the statistic {cell['statistic']}, which is none of the study's")
    for name, number in declaration["numbers"][cell["statistic"]].items():
        if number["along"] and not cell["along"].get(number["along"]):
            raise SchemaError(f"{what} no {number['along']}, along which {name} runs")
        size = len(cell["along"][number["along"]]) if number["along"] else 1
        for values in cell["theory"].get(name, {}).values():
            if isinstance(values, list) and len(values) != size:
                raise SchemaError(f"{what} theory of {name} at {len(values)} places of {size}")


def _needs(declared: Any, kinds: Mapping[str, Any], of: str = "") -> None:
    if not isinstance(declared, dict):
        raise SchemaError("has no declaration")
    for name, kind in kinds.items():
        if name not in declared:
            raise SchemaError(f"declares {of}no {name}" if not of else f"declares {of}without {name}")
        if not _fits(declared[name], kind):
            raise SchemaError(f"declares {of}{name} that cannot be read")


def _fits(value: Any, kind: Any) -> bool:
    try:
        check_type(value, kind, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError:
        return False
    return True


def _item(name: str, item: dict[str, Any], kind: Any) -> dict[str, Any]:
    kind = EventTable if kind is Table and "events" in item else kind
    for field in fields(kind):
        if field.name not in item and field.default is MISSING:
            raise SchemaError(f"declares one of its {name} without {field.name}")
    kinds = get_type_hints(kind)
    known = {f.name: item.get(f.name, f.default) for f in fields(kind)}
    for word, value in known.items():
        if not _fits(_tuples(value), kinds[word]):
            raise SchemaError(f"declares one of its {name} with a {word} that cannot be read")
    kind(**known)  # what cannot be is refused as where it is declared
    return {**{f.name: f.default for f in fields(kind) if f.default is not MISSING}, **item}


def _tuples(value: Any) -> Any:
    """A value of JSON as it was declared: lists were tuples."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    return {name: _tuples(one) for name, one in value.items()} if isinstance(value, dict) else value


def _entry(entry: dict[str, Any], seeds: int) -> dict[str, Any]:
    entry = {"seeds": seeds, **entry}
    for name, kind in ENTRY.items():
        if not _fits(entry.get(name), kind):
            raise SchemaError(f"declares a configuration without {name}")
    if entry["seeds"] < 1:
        raise SchemaError("declares a configuration without runs")
    known = RunSpec().as_dict()
    if unknown := [name for name in entry["spec"] if name not in known]:
        raise SchemaError(f"declares a configuration with {unknown[0]}, which this version does not know")
    try:
        spec = RunSpec(**entry["spec"])
    except UserError as error:
        raise SchemaError(f"declares a configuration that cannot be: {error}") from None
    if entry["config_id"] != spec.config_id:
        raise SchemaError(f"declares a configuration {entry['config_id']} that is not that of its spec")
    return {**entry, "spec": {name: value for name, value in spec.as_dict().items() if name != "seed"}}
