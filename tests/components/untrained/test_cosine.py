"""Two signals in a wide net: the cosine map against an integral over their plane, and sampled nets."""

from __future__ import annotations

import numpy as np
import pytest
from sampling import drawn
from scipy import integrate

from relu_study.components.registry import statistics
from relu_study.components.untrained.cosine import next_cosine
from relu_study.errors import UserError


@pytest.mark.parametrize("cosine", [-1.0, -0.4, 0.0, 0.7, 0.999, 1.0])
def test_map_against_the_integral_over_directions(cosine):
    angle = np.arccos(cosine)
    both, _ = integrate.quad(lambda t: max(np.cos(t), 0) * max(np.cos(t - angle), 0), angle - np.pi / 2, np.pi / 2)
    one, _ = integrate.quad(lambda t: np.cos(t) ** 2, -np.pi / 2, np.pi / 2)
    assert next_cosine(cosine) == pytest.approx(both / one, abs=1e-9)


def test_angles_close_as_one_over_the_depth():
    cosine = 0.0
    for _ in range(4000):
        cosine = next_cosine(cosine)
    assert (1 - cosine) * 2 * 4000**2 / (9 * np.pi**2) == pytest.approx(1, rel=0.02)


def test_wide_nets_follow_the_map():
    entry = statistics["cosine"]
    factors = {"width": 256, "depth": 4, "cosine": -0.3}
    found = drawn("cosine", 100, **factors)["cosine_after"]
    wanted = np.array(entry.theory(entry.cell(**factors))["cosine_after"].value)
    error = found.std(axis=0, ddof=1) / 10
    assert np.all(np.abs(found.mean(axis=0) - wanted) < 4.5 * error + 2 / 256)  # of a finite width
    assert wanted[0] == pytest.approx(next_cosine(-0.3)) and wanted[3] > 0.5


def test_equal_and_opposite_inputs():
    for cosine, wanted in ((1.0, 1.0), (-1.0, 0.0)):
        assert drawn("cosine", 4, width=8, depth=1, cosine=cosine)["cosine_after"] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(("factors", "said"), [({"cosine": 1.5}, r"\[-1, 1\]"), ({"depth": 0}, "depth"), ({"width": 1}, "width")])
def test_invalid_cell_is_refused(factors, said):
    with pytest.raises(UserError, match=said):
        statistics["cosine"].cell(**factors)
