"""SELU's moment map against quadrature, its fixed point and slope, and sampled networks."""

from __future__ import annotations

import numpy as np
import pytest
from sampling import drawn
from scipy import integrate, stats

from relu_study.components.registry import statistics
from relu_study.components.untrained.selu_moments import ALPHA, SCALE, moment_map
from relu_study.errors import UserError


def selu(z):
    return SCALE * (z if z > 0 else ALPHA * np.expm1(z))


@pytest.mark.parametrize("q", [0.3, 1.0, 4.0])
def test_map_against_quadrature(q):
    def moment(k, q):
        return integrate.quad(lambda z: selu(z) ** k * stats.norm.pdf(z, scale=q**0.5), -40, 40, points=[0], limit=200)[0]

    mean, variance, slope = moment_map(q)
    assert mean == pytest.approx(moment(1, q), abs=1e-9)
    assert variance == pytest.approx(moment(2, q) - moment(1, q) ** 2)
    assert slope == pytest.approx((moment(2, q + 1e-4) - moment(2, q - 1e-4)) / 2e-4, rel=1e-5)


def test_fixed_point_and_the_slope_there():
    mean, variance, slope = moment_map(1.0)
    assert mean == pytest.approx(0, abs=1e-12) and variance == pytest.approx(1, abs=1e-12)
    assert slope == pytest.approx(0.7826479, abs=5e-8)
    assert (moment_map(1 + 1e-5)[1] - moment_map(1 - 1e-5)[1]) / 2e-5 == pytest.approx(slope, abs=1e-6)  # of the variance too


def test_map_leads_to_the_fixed_point():
    entry = statistics["selu_moments"]
    for start in (0.2, 5.0):
        known = entry.theory(entry.cell(variance=start, depth=80))
        assert abs(known["mean"].value[-1]) < 1e-6 and abs(known["variance"].value[-1] - 1) < 1e-6


@pytest.mark.parametrize("variance", [1.0, 2.5])
def test_first_layer_is_exact_and_the_next_nearly(variance):
    entry = statistics["selu_moments"]
    factors = {"variance": variance, "width": 64, "depth": 2}
    known, found = entry.theory(entry.cell(**factors)), drawn("selu_moments", 4000, **factors)
    for number, values in found.items():
        z = (values.mean(axis=0) - known[number].value) / (values.std(axis=0) / 4000**0.5)
        assert abs(z[0]) < 4.5, number
        assert abs(values[:, 1].mean() - known[number].value[1]) < 0.02, number


@pytest.mark.parametrize(("factors", "said"), [({"variance": 0.0}, "variance"), ({"width": 1}, "width"), ({"depth": 0}, "depth")])
def test_non_network_is_refused(factors, said):
    with pytest.raises(UserError, match=said):
        statistics["selu_moments"].cell(**factors)
