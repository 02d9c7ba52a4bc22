"""The chain of two rays against independent values, closed forms and plain networks."""

from __future__ import annotations

import numpy as np
import pytest
from sampling import summed
from tiers import tiered

from relu_study.components.registry import statistics
from relu_study.components.untrained.chain import lower_bound, upper_bound
from relu_study.errors import UserError

# born_dead_sample.csv: he_normal_zero_bias_din1, (N, L) -> probability, its standard error, lower bound.
KNOWN = {
    (2, 3): (0.15625000, 1.00e-09, 0.15625000),
    (2, 5): (0.49775657, 1.42e-05, 0.47668457),
    (2, 10): (0.87984623, 3.98e-06, 0.87025588),
    (2, 20): (0.99323342, 2.24e-07, 0.99267108),
    (3, 3): (0.04296875, 1.00e-09, 0.04296875),
    (3, 5): (0.20626744, 2.89e-05, 0.17330551),
    (3, 10): (0.57858318, 2.49e-05, 0.51338870),
    (3, 20): (0.88891034, 6.66e-06, 0.86352327),
    (5, 3): (0.00286865, 1.00e-08, 0.00286865),
    (5, 5): (0.02378946, 8.64e-06, 0.01380987),
    (5, 10): (0.12837632, 2.86e-05, 0.06398541),
    (5, 20): (0.35548260, 3.41e-05, 0.21379314),
}
DRAWS = 4096


def drawn(width: int, max_layers: int = 20, draws: int = DRAWS) -> tuple[np.ndarray, np.ndarray]:
    """The mean over some draws and its standard error, by layers from 2 on."""
    sums = summed("chain", draws, 1024, width=width, max_layers=max_layers)
    return sums["sum:born_dead"] / draws, np.sqrt(sums["m2:born_dead"] / draws / (draws - 1))


@pytest.mark.parametrize("width", tiered([2, 3, 5], 2, 3))
def test_independent_values(width):
    mean, error = drawn(width)
    for (n, layers), (value, se, lower) in KNOWN.items():
        if n == width:
            # float32 holds a probability to 1e-7
            assert abs(mean[layers - 2] - value) < 4 * np.hypot(error[layers - 2], se) + 2e-7
            assert lower_bound(n, np.array(layers)) == pytest.approx(lower, abs=1e-8)


def test_bounds_hold_and_the_first_layers_are_exact():
    layers = np.arange(2, 21)
    for width in (2, 3):  # programs of other tests
        mean, error = drawn(width)
        assert mean[0] == 0
        assert (mean + 4 * error >= lower_bound(width, layers) - 1e-6).all()
        assert (mean - 4 * error <= upper_bound(width, layers, spared=2) + 1e-6).all()


@pytest.mark.parametrize("width", tiered([2, 3, 9, 16], 3, 16))
def test_rare_events_keep_their_digits(width):
    exact = (1 - 2.0 ** (1 - width)) * 4.0**-width + 2.0 ** (1 - width) * 2.0**-width
    assert drawn(width, 3, 4)[0][1] == pytest.approx(exact, rel=1e-6)


def test_upper_bounds():
    assert upper_bound(3, np.array(10)) == pytest.approx(1 - (7 / 8) ** 9)
    assert upper_bound(2, np.array([3, 20]), spared=2) == pytest.approx([0.25, 1 - 0.75**18])


def test_plain_networks_match_the_chain():
    rng, width, n = np.random.default_rng(5), 3, 40_000
    mean, error = drawn(width)
    first = rng.normal(size=(n, width))
    rays = np.maximum(np.stack([first, -first], axis=1), 0)
    for layers in range(3, 21):
        rays = np.maximum(rays @ (rng.normal(size=(n, width, width)) * np.sqrt(2 / width)), 0)
        share = (rays == 0).all(axis=(1, 2)).mean()
        se = np.hypot(np.sqrt(share * (1 - share) / n), error[layers - 2])
        assert abs(share - mean[layers - 2]) < 4 * se


def test_long_chain_reports_a_subset_of_depths():
    entry = statistics["chain"]
    told = entry.along(entry.cell(width=3, max_layers=300))["layers"]
    assert list(told[:39]) == list(range(2, 41)) and told[-1] == 300 and max(np.diff(told)) <= 15
    long, short = drawn(3, 300, 256)[0], drawn(3, 20, 256)[0]
    assert abs(long[:19] - short).max() < 0.05
    assert (np.diff(long) >= -1e-6).all()


@pytest.mark.parametrize(
    "changes, said", [({"width": 0}, "width must be"), ({"max_layers": 1}, "max_layers must be"), ({"width": 2.5}, "whole")]
)
def test_invalid_cell_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        statistics["chain"].cell(**changes)
