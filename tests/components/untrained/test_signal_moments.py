"""Moments of a signal's length: closed forms against integrals and NumPy networks, draws against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from sampling import drawn, scores
from scipy import integrate, stats

from relu_study.components.registry import statistics
from relu_study.components.untrained.signal_moments import log_factor
from relu_study.errors import UserError


def test_log_factor_of_one_unit():
    """log (2 g^2) of a normal g > 0: Euler's constant and pi^2 / 2."""
    mean, variance = log_factor(1, 2.0)
    assert mean == pytest.approx(np.log(2) - np.euler_gamma - np.log(2))
    assert variance == pytest.approx(np.pi**2 / 2)


@pytest.mark.parametrize("gain", [1.0, 2.0])
def test_log_factor_of_two_units_by_integration(gain):
    def moment(k):  # of the logarithm, given that one of the two is on (two cases in three) or both are
        def integrand(log):
            total = np.exp(log) * 2 / gain
            return log**k * (2 / 3 * stats.chi2.pdf(total, 1) + 1 / 3 * stats.chi2.pdf(total, 2)) * total

        return integrate.quad(integrand, -60, 5, limit=200)[0]

    whole, mean, square = moment(0), moment(1), moment(2)
    assert whole == pytest.approx(1)
    assert log_factor(2, gain) == pytest.approx((mean, square - mean**2))


def test_log_factor_of_many_units_is_nearly_normal():
    """By the delta method: variance 5 / n, mean -5 / (2 n)."""
    mean, variance = log_factor(2000, 2.0)
    assert variance == pytest.approx(5 / 2000, rel=0.01) and mean == pytest.approx(-5 / 4000, rel=0.01)


def test_fourth_moment_of_one_layer_in_numpy():
    square = np.maximum(np.random.default_rng(3).normal(size=(200_000, 8)), 0) ** 2
    found = (square.sum(axis=1) * 2 / 8) ** 2
    assert abs(found.mean() - (1 + 5 / 8)) < 4.5 * found.std() / 200_000**0.5


@pytest.mark.parametrize(
    ("initializer", "width", "depth"), [("he_normal", 16, 3), ("lecun_normal", 2, 4), ("glorot_uniform", 32, 4)]
)
def test_draws_agree_with_theory(initializer, width, depth):
    """At width 2 many a signal dies: the logarithms are of those that live."""
    for number, z in scores("signal_moments", 20_000, initializer=initializer, width=width, depth=depth).items():
        assert np.all(np.abs(z[np.isfinite(z)]) < 4.5), number
        assert number in ("second", "fourth") or np.all(np.isfinite(z))


def test_theory_applies_up_to_a_growth_of_two():
    entry = statistics["signal_moments"]
    known = entry.theory(entry.cell(width=16, depth=4))
    np.testing.assert_allclose(known["fourth"].value, [1.3125, 1.3125**2, np.nan, np.nan])  # up to a growth of 2
    np.testing.assert_array_equal(known["second"].value, [1, 1, np.nan, np.nan])
    assert list(entry.theory(entry.cell(initializer="glorot_uniform"))) == ["second"]
    np.testing.assert_allclose(
        entry.theory(entry.cell(initializer="glorot_uniform", depth=3))["second"].value, [1 / 2, 1 / 4, 1 / 8]
    )


def test_dead_signal_has_no_logarithm():
    found = drawn("signal_moments", 500, width=1, depth=3)
    assert np.array_equal(np.isnan(found["log"]), found["second"] == 0)
    assert 0.8 < np.isnan(found["log"][:, 2]).mean() < 0.95  # 7/8


@pytest.mark.parametrize(
    ("factors", "said"),
    [({"initializer": "he_norml"}, "he_normal"), ({"initializer": "rai"}, "symmetric"), ({"depth": 0}, "depth")],
)
def test_invalid_cell_is_refused(factors, said):
    with pytest.raises(UserError, match=said):
        statistics["signal_moments"].cell(**factors)
