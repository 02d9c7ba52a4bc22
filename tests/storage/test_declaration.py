"""The typed declaration: invalid entries are named by their path, and the JSON stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from known_results import planted_manifest, planted_study

from relu_study.errors import UserError
from relu_study.storage.declaration import parse_cell_declaration, parse_declaration
from relu_study.storage.quantities import DeclaredMetric
from relu_study.study.outputs import EventTable, Table

CELLS: dict[str, Any] = {
    "title": "Coins",
    "text": "",
    "sections": [],
    "factors": ["p", "throw"],
    "experiments": [{"name": "main", "statistic": "coin", "theory": ""}],
    "numbers": {"coin": {"heads": {"share": True, "along": "throw", "spread": None, "text": "heads"}}},
    "claims": [],
    "tables": [],
    "figures": [],
    "cells": [
        {
            **{"experiment": "main", "label": "fair", "statistic": "coin", "cell_id": "ab", "draws": 7},
            **{"factors": {"p": 0.5}, "along": {"throw": [1, 2, 3]}, "theory": {"heads": {"value": [0.5, 0.5, None]}}},
        }
    ],
}


def planted() -> dict[str, Any]:
    return planted_manifest(planted_study())["declaration"]


def test_parsed_entries_are_typed_and_the_json_stays() -> None:
    plain = planted()
    plain["tables"].append({"name": "ends", "caption": "", "experiments": [], "keys": {}, "events": {"ended": ["collapsed"]}})
    before = copy.deepcopy(plain)
    declaration = parse_declaration(plain)
    assert plain == before
    assert isinstance(declaration.tables[0], Table) and isinstance(declaration.tables[-1], EventTable)
    assert declaration.metrics["val_loss"] == DeclaredMetric("lower", False, "", 0.0, None, "planted")
    assert declaration.seeds_of == {entry["config_id"]: entry["seeds"] for entry in plain["configurations"]}
    runs = [run for config_id in declaration.specs for run in declaration.run_ids(config_id)]
    assert sorted(runs) == sorted(run.run_id for run in planted_study().runs())


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda d: d["claims"][1].update(margin="0.1"), "expected `float`, got `str` at `$.claims[1].margin`"),
        (lambda d: d["tables"][1]["metrics"].insert(0, 3), "expected `str`, got `int` at `$.tables[1].metrics[0]`"),
        (lambda d: d["figures"][0].update(epoch=["last", [1]]), "got `array` at `$.figures[0].epoch[1]`"),
        (lambda d: d.pop("tables"), "expected `array`, got `null` at `$.tables`"),
        (lambda d: d["metrics"]["val_loss"].update(sites=1), "expected `bool`, got `int` at `$.metrics[...].sites`"),
        (lambda d: d.update(seeds=10**9) or [e.pop("seeds") for e in d["configurations"]], "runs are more than 10,000,000"),
        (lambda d: d["configurations"][2].update(config_id="0"), "the spec at `$.configurations[2]` has another id than 0"),
        (lambda d: d["figures"][0].update(kind="maps"), "Did you mean map?"),
    ],
)
def test_invalid_entry_is_named_by_its_path(change: Callable[[dict[str, Any]], object], path: str) -> None:
    plain = planted()
    change(plain)
    with pytest.raises(UserError) as refused:
        parse_declaration(plain)
    assert path in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["cells"].clear(), "length >= 1 at `$.cells`"),
        (lambda d: d["cells"][0].update(draws=0), "expected `int` >= 1 at `$.cells[0].draws`"),
        (lambda d: d["cells"][0]["theory"]["heads"].update(value=[0.5]), "theory of heads of cell fair has 1 of 3 values"),
        (lambda d: d["cells"][0]["along"].clear(), "cell fair has no throw, the factor of heads"),
        (lambda d: d["cells"][0]["factors"].update(q=1), "unknown factor of cell fair 'q'"),
        (lambda d: d["cells"][0].update(statistic="die"), "unknown statistic of cell fair 'die'"),
        (lambda d: d["experiments"][0].update(theory="exact"), "unknown experiment as theory of main 'exact'"),
        (lambda d: d["numbers"]["coin"]["heads"].update(spread=[1, 0]), "the spread of heads is empty"),
        (lambda d: d["cells"][0].update(experiment="other"), "unknown experiment 'other'"),
    ],
)
def test_invalid_cell_is_named(change: Callable[[dict[str, Any]], object], message: str) -> None:
    plain = copy.deepcopy(CELLS)
    assert parse_cell_declaration(plain).cells[0].theory["heads"].value == (0.5, 0.5, None)
    change(plain)
    with pytest.raises(UserError) as refused:
        parse_cell_declaration(plain)
    assert message in str(refused.value)
