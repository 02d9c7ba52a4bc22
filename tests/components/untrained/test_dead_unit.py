"""One unit on a ball or a box: closed forms against integrals, decisions against the extreme points."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from sampling import drawn, key_of, scores
from scipy import integrate, stats

from relu_study.components.registry import statistics
from relu_study.errors import UserError


def theory(**factors):
    entry = statistics["dead_unit"]
    return float(entry.theory(entry.cell(**factors))["dead"].value)


@pytest.mark.parametrize(("d", "r"), [(1, 3**0.5), (1, 0.2), (3, 1.0), (20, 0.4)])
def test_normal_units_against_the_integral_over_their_length(d, r):
    wanted, _ = integrate.quad(lambda length: stats.chi.pdf(length, d) * stats.norm.cdf(-r * length), 0, np.inf)
    assert theory(d=d, r=r) == pytest.approx(wanted, rel=1e-6)


def test_sixth_on_the_papers_interval():
    assert theory() == pytest.approx(1 / 6, rel=1e-12)


@pytest.mark.parametrize("r", [0.25, 1.0, 3**0.5, 10.0])
def test_uniform_units_against_the_area_where_they_are_dead(r):
    grid = (np.arange(2000) + 0.5) / 1000 - 1
    dead = grid[:, None] + r * np.abs(grid) <= 0
    assert theory(law="uniform", r=r) == pytest.approx(dead.mean(), abs=1e-3)
    if r >= 1:
        assert theory(law="uniform", r=r) == pytest.approx(1 / (4 * r))


def test_no_theorem_for_uniform_units_of_several_inputs():
    assert np.isnan(theory(law="uniform", d=2))


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("dead_unit", {}),
        ("dead_unit", {"d": 6, "r": 0.3}),
        ("dead_unit", {"law": "uniform", "r": 1.5}),
        ("box_unit", {}),
    ],
)
def test_draws_agree_with_theory(name, factors):
    assert abs(scores(name, 50_000, **factors)["dead"]) < 4.5


def test_unit_is_decided_where_it_is_largest():
    d, r = 3, 0.5
    weights = np.array([jax.random.normal(key_of("dead_unit", i, d=d, r=r), (d + 1,)) for i in range(40)], np.float64)
    direction = np.random.default_rng(0).normal(size=(4000, d))
    ball = np.vstack([weights[:, :-1], direction])
    ball *= r / np.linalg.norm(ball, axis=1, keepdims=True)  # each unit's own direction is among them
    assert np.array_equal(drawn("dead_unit", 40, d=d, r=r)["dead"], (ball @ weights[:, :-1].T + weights[:, -1]).max(axis=0) <= 0)


@pytest.mark.parametrize(
    ("name", "factors", "said"),
    [
        ("dead_unit", {"law": "norml"}, "normal"),
        ("dead_unit", {"d": 0}, "d must be a whole number"),
        ("dead_unit", {"d": 1.5}, "d must be a whole number"),
        ("dead_unit", {"r": 0.0}, "radius"),
        ("box_unit", {"d": 0}, "d must be a whole number"),
    ],
)
def test_invalid_unit_is_refused(name, factors, said):
    with pytest.raises(UserError, match=said):
        statistics[name].cell(**factors)
