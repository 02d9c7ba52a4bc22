"""Schema of a results folder: the declaration in the manifest, and the columns of the CSV files."""

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

CELL_COLUMNS = (  # of cells.csv, without the factors, which follow `cell_id`
    *("experiment", "cell", "statistic", "cell_id"),
    *("number", "draws", "n", "estimate", "ci_lo", "ci_hi", "std", "q05", "q25", "median", "q75", "q95"),
    *("theory", "theory_se", "lower", "upper", "z"),
)

COLUMNS: dict[str, tuple[str, ...]] = {  # of each CSV file, without the metric columns
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
KINDS: dict[str, Any] = {  # required entries of a declaration; Any: checked in detail below
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
ABOUT = {"direction": "none", "sites": False, "unit": "", "low": None, "high": None}  # defaults of a metric
METRIC: dict[str, Any] = {"direction": str, "sites": bool, "unit": str, "low": float | None, "high": float | None}
Values = float | None | list[float | None]
CELL: dict[str, Any] = {
    **dict.fromkeys(("experiment", "label", "statistic", "cell_id"), str),
    **{"factors": dict[str, str | float | None], "draws": int, "along": dict[str, list[float]]},
    "theory": dict[str, dict[str, Values]],
}
NUMBER: dict[str, Any] = {"share": bool, "along": str, "spread": list[float] | None}
MOST_RUNS, MOST_DRAWS = 10**7, 2**32  # limits of a study and of a cell: a larger declaration would exhaust memory


class SchemaError(Exception):
    """An invalid declaration, with the problem as a clause ("declares no runs")."""


def read_whole_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a training study, with defaults for entries that earlier versions lack.

    Raises:
        UserError: an entry without a default is missing, a RunSpec field is unknown, or it is a draw study.
    """
    manifest = read_manifest(folder)
    if is_of_draws(manifest):
        raise UserError(f"{folder} is a draw study and has no runs. Read its cells.csv with relu_study.load_cells.")
    return _checked(folder, manifest, _whole)


def read_cells_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a draw study. Raises UserError like `read_whole_manifest`."""
    manifest = read_manifest(folder)
    if not is_of_draws(manifest):
        raise UserError(f"{folder} is a training study and has no draws. Read it with relu_study.load.")
    return _checked(folder, manifest, _whole_cells)


def is_of_draws(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest is of a draw study."""
    return "cells" in (manifest["declaration"] or {})


def check_names(declaration: Mapping[str, Any]) -> None:
    """Raise UserError for a table or figure whose name is not a valid file name, or is declared twice."""
    for kind in ("tables", "figures"):
        names = [item["name"] for item in declaration[kind]]
        for name in names:
            if not re.fullmatch(r"[\w+=-][\w+=.-]{,99}", name):
                raise UserError(f"{name!r} of {kind} cannot be a file name. Use letters, digits and - _ + = .")
            if names.count(name) > 1:
                raise UserError(f"{kind}: {name!r} is declared twice. Choose another name.")


def check_sections(declaration: Mapping[str, Any]) -> None:
    """Raise UserError for a section with an undeclared claim, table or figure."""
    names = {kind: [item["name"] for item in declaration[kind]] for kind in ("tables", "figures")}
    names["claims"] = [claim["claim"] for claim in declaration["claims"]]
    for section in declaration["sections"]:
        for kind, declared in names.items():
            for name in section[kind]:
                if name not in declared:
                    raise nearest(name, declared, f"name among the {kind} of {section['title']!r}")


def _checked(folder: Path, manifest: dict[str, Any], whole: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    try:
        declaration = whole(manifest["declaration"])
        check_names(declaration)
    except (SchemaError, UserError) as error:
        problem = error if isinstance(error, SchemaError) else f"has an invalid declaration ({str(error).rstrip('.')})"
        raise UserError(
            f"{folder / 'manifest.json'} {one_line(problem)}: it is corrupt or of another relu-study version. "
            "Restore it, or run the study into a new folder."
        ) from None
    return {"command": "", "preset": "default", **manifest, "declaration": declaration}


def _whole(declaration: Any) -> dict[str, Any]:
    _needs(declaration, KINDS)
    if not declaration["configurations"] or declaration["seeds"] < 1:
        raise SchemaError("declares no runs")
    found = {name: [_item(name, item, kind) for item in declaration[name]] for name, kind in ITEMS.items()}
    found["configurations"] = [_entry(entry, declaration["seeds"]) for entry in declaration["configurations"]]
    if (runs := sum(entry["seeds"] for entry in found["configurations"])) > MOST_RUNS:
        raise SchemaError(f"declares {runs:,} runs")
    if not _fits(declaration.get("notes", []), list[str]):
        raise SchemaError("declares invalid notes")
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
            raise SchemaError(f"declares the experiment {experiment['name']} with a theory or statistic that is not declared")
    for numbers in declaration["numbers"].values():
        for name, number in numbers.items():
            _needs(number, NUMBER, f"the number {name}, ")
            if number["spread"] is not None and (len(number["spread"]) != 2 or number["spread"][0] >= number["spread"][1]):
                raise SchemaError(f"declares the number {name} with an invalid spread")
    if not declaration["cells"]:
        raise SchemaError("declares no cells")
    for cell in declaration["cells"]:
        _needs(cell, CELL, "a cell, ")
        _cell(cell, declaration)
    used = [*(claim["experiment"] for claim in found["claims"]), *(cell["experiment"] for cell in declaration["cells"])]
    used += [name for item in (*found["tables"], *found["figures"]) for name in item["experiments"]]
    if unknown := [name for name in used if name not in names]:
        raise SchemaError(f"uses the experiment {unknown[0]!r}, which is not declared")
    return {**declaration, **found}


def _cell(cell: Mapping[str, Any], declaration: Mapping[str, Any]) -> None:
    prefix = f"declares the cell {cell['label']} with"
    if not 1 <= cell["draws"] <= MOST_DRAWS:
        raise SchemaError(f"{prefix} {cell['draws']:,} draws")
    if unknown := {*cell["factors"], *cell["along"]} - {*declaration["factors"]}:
        raise SchemaError(f"{prefix} the factor {min(unknown)}, which is not declared")
    if cell["statistic"] not in declaration["numbers"]:
        raise SchemaError(f"{prefix} the statistic {cell['statistic']}, which is not declared")
    for name, number in declaration["numbers"][cell["statistic"]].items():
        if number["along"] and not cell["along"].get(number["along"]):
            raise SchemaError(f"{prefix} no {number['along']}, the factor of {name}")
        size = len(cell["along"][number["along"]]) if number["along"] else 1
        for values in cell["theory"].get(name, {}).values():
            if isinstance(values, list) and len(values) != size:
                raise SchemaError(f"{prefix} theory of {name} at {len(values)} of {size} values")


def _needs(declared: Any, kinds: Mapping[str, Any], of: str = "") -> None:
    if not isinstance(declared, dict):
        raise SchemaError("has no declaration")
    for name, kind in kinds.items():
        if name not in declared:
            raise SchemaError(f"declares {of}no {name}" if not of else f"declares {of}without {name}")
        if not _fits(declared[name], kind):
            raise SchemaError(f"declares {of}invalid {name}")


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
    values = {f.name: item.get(f.name, f.default) for f in fields(kind)}
    for key, value in values.items():
        if not _fits(_tuples(value), kinds[key]):
            raise SchemaError(f"declares one of its {name} with an invalid {key}")
    kind(**values)  # its own checks apply here too
    return {**{f.name: f.default for f in fields(kind) if f.default is not MISSING}, **item}


def _tuples(value: Any) -> Any:
    """Return a JSON value with lists turned back into the declared tuples."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    return {name: _tuples(item) for name, item in value.items()} if isinstance(value, dict) else value


def _entry(entry: dict[str, Any], seeds: int) -> dict[str, Any]:
    entry = {"seeds": seeds, **entry}
    for name, kind in ENTRY.items():
        if not _fits(entry.get(name), kind):
            raise SchemaError(f"declares a configuration without {name}")
    if entry["seeds"] < 1:
        raise SchemaError("declares a configuration without runs")
    defaults = RunSpec().as_dict()
    if unknown := [name for name in entry["spec"] if name not in defaults]:
        raise SchemaError(f"declares a configuration with {unknown[0]}, which this version does not know")
    try:
        spec = RunSpec(**entry["spec"])
    except UserError as error:
        raise SchemaError(f"declares an invalid configuration ({str(error).rstrip('.')})") from None
    if entry["config_id"] != spec.config_id:
        raise SchemaError(f"declares a configuration {entry['config_id']} whose spec has another id")
    return {**entry, "spec": {name: value for name, value in spec.as_dict().items() if name != "seed"}}
