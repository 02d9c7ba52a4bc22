"""A changed definition in one process trains and draws new numbers, even if its helper is jitted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from relu_study import Draws, DrawStudy, Experiment, Quantity, RunSpec, Study, activation, run, run_draws, statistic
from relu_study.components import registry

SLOPE = 0.25


@jax.jit
def jitted(x: Any) -> Any:
    return x * SLOPE


def numbers() -> tuple[float, float]:
    base = RunSpec(rows=40, width=4, epochs=1, batch_size=20, activation="stale", optimizer="sgd", initializer="he_normal")
    trained = run(Study("stale", "S", "?", [Experiment("main", {"arm": base})], seeds=1, metrics=("val_loss",)))
    drawn = run_draws(DrawStudy("stale", "S", "?", [Draws("main", "stale", {"all": {}}, 20)]))
    return float(trained.runs["val_loss/all"][0]), float(drawn["estimate"].iloc[0])


def test_changed_global_of_a_jitted_helper_changes_the_next_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for known in (registry.activations, registry.statistics):
        monkeypatch.setattr(known, "_entries", dict(known._entries))
    activation("stale")(lambda pre: jnp.maximum(pre, jitted(pre)))
    statistic("stale", numbers={"value": Quantity("a value")})(
        lambda cell, key: {"value": jitted(0.0 * jax.random.normal(key) + 1)}
    )
    first = numbers()
    monkeypatch.setitem(globals(), "SLOPE", 0.75)
    second = numbers()
    monkeypatch.setitem(globals(), "SLOPE", 0.25)
    assert (first[1], second[1]) == (0.25, 0.75) and first[0] != second[0]
    assert numbers() == first
