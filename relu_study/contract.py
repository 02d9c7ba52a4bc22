"""What tables, figures and the page may count on in a results folder: a whole manifest, and the columns of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from relu_study.questions import Claim, Counts, Figure, Section, Table, Target
from relu_study.registry import UserError
from relu_study.spec import FIELDS, RunSpec
from relu_study.stats import MOMENTS
from relu_study.store import read_manifest

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
KINDS: dict[str, type] = {
    **dict.fromkeys(("configurations", "targets", "claims", "tables", "figures", "sections"), list),
    **dict.fromkeys(("columns", "factors", "report_epochs"), list),
    **{"seeds": int, "metrics": dict, "title": str, "text": str},
}
ITEMS: dict[str, type] = {"targets": Target, "claims": Claim, "tables": Table, "figures": Figure, "sections": Section}
ENTRY: dict[str, type] = {"experiment": str, "arm": str, "config_id": str, "seeds": int, "spec": dict}
ABOUT = {"direction": "none", "sites": False, "unit": "", "low": None, "high": None}  # a metric, as far as it is not said


class _Lacks(Exception):
    """What a declaration does not have."""


def read_whole_manifest(folder: Path) -> dict[str, Any]:
    """The manifest with all that this version declares: what an earlier one did not know has its default.

    A declaration that lacks something without a default, or has a RunSpec field that this version does not know, is refused.
    """
    manifest = read_manifest(folder)
    if "cells" in (manifest["declaration"] or ()):
        raise UserError(f"{folder} holds a draw study: its numbers are in cells.csv (relu_study.load_cells), and it has no runs")
    try:
        return {"command": "", "preset": "default", **manifest, "declaration": _whole(manifest["declaration"])}
    except _Lacks as what:
        raise UserError(
            f"{folder / 'manifest.json'} {what}: it is damaged, or another version of relu-study wrote it; restore it, "
            f"or run the study into a new folder"
        ) from None


def _whole(declaration: Any) -> dict[str, Any]:
    if not isinstance(declaration, dict):
        raise _Lacks("has no declaration")
    for name, kind in KINDS.items():
        if name not in declaration:
            raise _Lacks(f"declares no {name}")
        if not isinstance(declaration[name], kind):
            raise _Lacks(f"declares {name} that cannot be read")
    if not declaration["configurations"] or declaration["seeds"] < 1:
        raise _Lacks("declares no runs")
    found = {name: [_item(name, item, kind) for item in declaration[name]] for name, kind in ITEMS.items()}
    found["configurations"] = [_entry(entry, declaration["seeds"]) for entry in declaration["configurations"]]
    metrics = {name: {**ABOUT, **_mapping(about, f"the metric {name}")} for name, about in declaration["metrics"].items()}
    return {"skip": [], **declaration, **found, "metrics": metrics}


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _Lacks(f"declares {what} in a way that cannot be read")
    return value


def _item(name: str, item: Any, kind: Any) -> dict[str, Any]:
    item = _mapping(item, f"one of its {name}")
    kind = Counts if kind is Table and "events" in item else kind
    for field in fields(kind):
        if field.name not in item and field.default is MISSING:
            raise _Lacks(f"declares one of its {name} without {field.name}")
    return {**{f.name: f.default for f in fields(kind) if f.default is not MISSING}, **item}


def _entry(entry: Any, seeds: int) -> dict[str, Any]:
    entry = {"seeds": seeds, **_mapping(entry, "one of its configurations")}
    for name, kind in ENTRY.items():
        if not isinstance(entry.get(name), kind):
            raise _Lacks(f"declares a configuration without {name}")
    if entry["seeds"] < 1:
        raise _Lacks("declares a configuration without runs")
    known = RunSpec().as_dict()
    if unknown := [name for name in entry["spec"] if name not in known]:
        raise _Lacks(f"declares a configuration with {unknown[0]}, which this version does not know")
    try:
        spec = RunSpec(**entry["spec"])
    except UserError as error:
        raise _Lacks(f"declares a configuration that cannot be: {error}") from None
    return {**entry, "spec": {name: value for name, value in spec.as_dict().items() if name != "seed"}}
