"""Factors that a table holds fixed."""

from __future__ import annotations

import pytest

from relu_study.errors import UserError
from relu_study.report.factors import hold_fixed
from relu_study.storage.declaration import DeclaredConfiguration
from relu_study.study.run_spec import RunSpec


def entry(arm: str, unset: tuple[str, ...] = (), **fields: object) -> DeclaredConfiguration:
    spec = RunSpec().as_dict() | {"initializer": "glorot_uniform"} | fields
    return DeclaredConfiguration("main", arm, arm, {name: value for name, value in spec.items() if name != "seed"}, 1, unset)


def test_defaults_of_networks_and_tasks_are_no_factors_besides() -> None:
    mlp, own = entry("mlp"), entry("own", ("initializer",), network="own", initializer="own")
    assert hold_fixed([mlp, own], ("network",)) == ([mlp, own], {})
    tasks = [entry(name, ("rows",), task=name, rows=rows) for name, rows in (("digits", 1797), ("mine", 300))]
    assert hold_fixed(tasks, ("task",)) == (tasks, {})


def test_set_values_are_factors() -> None:
    arms = [entry("a"), entry("b", network="own", initializer="he_normal")]
    with pytest.raises(UserError, match="initializer varies too"):
        hold_fixed(arms, ("network",))
    kept, fixed = hold_fixed([*arms, entry("c", network="third", initializer="he_normal")], ("network",))
    assert [one.arm for one in kept] == ["b", "c"] and fixed == {"initializer": "he_normal"}
