"""Units off on m inputs: D(m, c) against closed forms and integrals, draws against both, and the range of validity."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from sampling import drawn, scores
from scipy import integrate, stats

from relu_study.components.registry import statistics
from relu_study.components.untrained.exchangeable import _off_on, all_off, all_off_in
from relu_study.errors import UserError

COUNTS = [1, 2, 10, 100, 1000, 2000]


def test_all_off_has_its_closed_forms():
    np.testing.assert_allclose(all_off(COUNTS, 0.5), 1 / (np.array(COUNTS) + 1), rtol=1e-10)
    np.testing.assert_allclose(all_off([1, 5, 30], 0.0), 0.5 ** np.array([1, 5, 30]), rtol=1e-12)
    for c in (0.1, 0.75, 0.99):  # the orthants of two and three normal numbers
        np.testing.assert_allclose(all_off([2], c), 1 / 4 + np.arcsin(c) / (2 * np.pi), rtol=1e-10)
        np.testing.assert_allclose(all_off([3], c), 1 / 8 + 3 * np.arcsin(c) / (4 * np.pi), rtol=1e-10)


@pytest.mark.parametrize(("m", "c"), [(7, 0.3), (200, 0.75), (2000, 0.9)])
def test_all_off_against_adaptive_quadrature(m, c):
    wanted, _ = integrate.quad(
        lambda t: stats.norm.pdf(t) * stats.norm.cdf(-t * (c / (1 - c)) ** 0.5) ** m, -12, 12, points=[-4, -2, 0], limit=200
    )
    assert all_off([m], c) == pytest.approx(wanted, rel=1e-6)


def test_normal_inputs_of_few_and_of_many_coordinates():
    np.testing.assert_allclose(all_off_in(COUNTS, 1.3, 10**6), all_off(COUNTS, 1.69 / 2.69), rtol=1e-4)
    np.testing.assert_allclose(all_off_in([1], 5.0, 3), 0.5, rtol=1e-9)
    wanted, _ = integrate.quad(lambda y: stats.norm.cdf(-2 * 3**0.5 * y) ** 9 / 2, -1, 1)  # d = 3: the cosine is uniform
    assert all_off_in([9], 2.0, 3) == pytest.approx(wanted, rel=1e-6)


def test_where_correlation_predicts():
    """The exact law over D: within 10 % at d >= 256, m <= 2,000 for g >= 1, and not for a weaker mean or few coordinates."""
    for d, g, good in ((256, 1.0, True), (256, 3**0.5, True), (1024, 4.0, True), (256, 0.5, False), (4, 3**0.5, False)):
        ratio = all_off_in(COUNTS, g, d) / all_off(COUNTS, g**2 / (1 + g**2))
        assert np.all(np.abs(ratio - 1) < 0.1) == good, (d, g, ratio)


def test_first_row_on_which_a_unit_is_on():
    pre = np.random.default_rng(1).normal(size=(30, 5)) - 1.5
    pre[:, 0], pre[3, 1] = -1.0, 0.0
    wanted = [[all(value <= 0 for value in column[:m]) for column in pre.T] for m in (1, 4, 30)]
    assert np.array_equal(_off_on(jnp.array(pre), [1, 4, 30]), wanted)


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("exchangeable", {"examples": 50}),
        ("exchangeable", {"c": 0.0, "examples": 5}),
        ("off_on_inputs", {"law": "normal", "g": 1.0, "d": 3, "examples": 50}),
        ("off_on_inputs", {"d": 256, "examples": 10}),
    ],
)
def test_draws_agree_with_theory(name, factors):
    z = scores(name, 1000 if name == "off_on_inputs" else 20_000, **factors)["off"]
    assert np.all(np.abs(z) < 4.5)


def test_article_box_gives_a_bound_but_no_prediction():
    entry = statistics["off_on_inputs"]
    known = entry.theory(entry.cell(examples=1000))["off"]
    assert np.all(np.isnan(known.value)) and known.lower == 2**-4
    found = drawn("off_on_inputs", 256, examples=1000)["off"].mean(axis=0)
    assert np.all(np.diff(found) <= 0) and found[-1] > 2**-4
    assert found[-1] > 2 * all_off([1000], 0.75)
    assert entry.theory(entry.cell(examples=1000, g=1.0))["off"].lower == 0


def test_prediction_is_offered_only_where_it_holds():
    entry = statistics["off_on_inputs"]
    cell = entry.cell(d=256, examples=5000)
    known = np.isfinite(entry.theory(cell)["off"].value)
    assert known.tolist() == [m <= 2000 for m in entry.along(cell)["m"]]
    assert np.all(np.isnan(entry.theory(entry.cell(d=256, g=0.5))["off"].value))


@pytest.mark.parametrize(
    ("name", "factors", "said"),
    [
        ("exchangeable", {"c": 1.0}, r"\[0, 1\)"),
        ("exchangeable", {"c": -0.1}, r"\[0, 1\)"),
        ("exchangeable", {"examples": 0}, "examples must be"),
        ("off_on_inputs", {"law": "unifrom"}, "uniform"),
        ("off_on_inputs", {"d": 1}, "d must be"),
    ],
)
def test_invalid_cell_is_refused(name, factors, said):
    with pytest.raises(UserError, match=said):
        statistics[name].cell(**factors)
