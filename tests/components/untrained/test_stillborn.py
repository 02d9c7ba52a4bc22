"""Stillborn networks against independent values, and each network against a slow float64 walk over its linear pieces."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling import summed
from tiers import tiered

from relu_study.components import random_streams
from relu_study.components.registry import statistics
from relu_study.components.untrained import linear_pieces
from relu_study.components.untrained.dense_layers import weights
from relu_study.errors import UserError
from relu_study.study.draw_study import cell_id

# born_dead_sample.csv at 10 layers of 3 units: probability and its standard error; draws here.
KNOWN = {
    ("he_normal", "interval"): (0.57858318, 2.49e-05, 8192),
    ("he_uniform", "interval"): (0.578657, 9.02e-04, 8192),
    ("he_normal_random_bias", "interval"): (0.474117, 9.12e-04, 4096),
    ("pytorch_default", "interval"): (0.589187, 8.98e-04, 4096),
    ("rai", "interval"): (0.054667, 4.15e-04, 4096),
    ("he_normal", "plane"): (0.497347, 9.13e-04, 2048),
}
D_IN = {"interval": 1, "plane": 2, "digits": 64}


def cell_of(scheme: str, domain: str, **more: int) -> dict[str, Any]:
    return statistics["stillborn"].cell(scheme=scheme, domain=domain, d_in=D_IN[domain], **more)


def share(cell: dict[str, Any], draws: int) -> tuple[np.ndarray, np.ndarray]:
    """The share that is stillborn by L = 2, 3, ..., and of how many draws."""
    sums = summed("stillborn", draws, 256, **cell)
    return sums["sum:born_dead"] / sums["n:born_dead"], sums["n:born_dead"]


@pytest.mark.parametrize("scheme, domain", tiered(KNOWN, ("he_normal", "plane")))
def test_independent_values(scheme, domain):
    value, se, draws = KNOWN[scheme, domain]
    found, n = share(cell_of(scheme, domain, width=3, max_layers=10), draws)
    assert (n == draws).all()  # none is given up
    assert abs(found[8] - value) < 4 * np.sqrt(value * (1 - value) / draws + se**2)
    assert (np.diff(found) >= 0).all()


@cache
def layers_of(scheme: str, domain: str, width: int, hidden: int) -> Any:
    """A program: the index of a draw -> (kernel, bias) of each hidden layer."""
    name, inputs = cell_id("stillborn", cell_of(scheme, domain, width=width, max_layers=hidden + 1)), jnp.zeros((1, width))

    def layers(index: Any) -> list[Any]:
        key = random_streams.draw_key(name, index)
        first = weights(scheme, key, 0, jnp.zeros((1, D_IN[domain])), width, hidden)
        return [first, *(weights(scheme, key, jnp.asarray(place), inputs, width, hidden) for place in range(1, hidden))]

    return jax.jit(layers)


def off_at(scheme: str, domain: str, width: int, hidden: int, index: int) -> int:
    """The first hidden layer that is off on the whole domain, in float64 and by lists of points; `hidden` if none is."""
    drawn = layers_of(scheme, domain, width, hidden)(np.uint32(index))
    square = [(-1, -1), (-1, 1), (1, 1), (1, -1), (-1, -1)]
    points = np.array(square if domain == "plane" else [[-(3**0.5)], [3**0.5]], np.float64)
    for place, (kernel, bias) in enumerate(drawn):
        pre = points @ np.asarray(kernel, np.float64) + np.asarray(bias, np.float64)
        if (pre <= 0).all():
            return place
        path = [pre[:1]]
        for near, far in itertools.pairwise(pre):
            crossing = near * far < 0
            parts = np.sort(near[crossing] / (near - far)[crossing])
            path += [near + parts[:, None] * (far - near), far[None]]
        points = np.maximum(np.concatenate(path), 0)
        if domain == "plane":
            points /= points.max()
    return hidden


def decided(cell: dict[str, Any], draws: int, at_once: int) -> np.ndarray:
    """Which layers of each draw are stillborn, so many draws at a time."""
    name = cell_id("stillborn", cell)
    draw = jax.jit(jax.vmap(lambda i: statistics["stillborn"].draw(cell, random_streams.draw_key(name, i))["born_dead"]))
    blocks = np.arange(draws, dtype=np.uint32).reshape(-1, at_once)
    return np.concatenate([np.asarray(draw(block)) for block in blocks])


@pytest.mark.parametrize(
    "scheme, domain",
    [("he_normal_random_bias", "interval"), pytest.param("rai", "interval", marks=pytest.mark.slow), ("he_uniform", "plane")],
)
def test_every_network_matches_slow_walk(scheme, domain):
    width, hidden, draws = 3, 7, 48
    cell = cell_of(scheme, domain, width=width, max_layers=hidden + 1)
    dead = decided(cell, draws, draws)
    slow = [off_at(scheme, domain, width, hidden, index) for index in range(draws)]
    np.testing.assert_array_equal(hidden - dead.sum(axis=1), slow)
    assert 0 < sum(place < hidden for place in slow) < draws


@pytest.mark.parametrize(
    "scheme, domain", [("he_normal_random_bias", "interval"), pytest.param("orthogonal", "plane", marks=pytest.mark.slow)]
)
def test_network_result_is_independent_of_batch(scheme, domain, monkeypatch):
    cell = cell_of(scheme, domain, width=4, max_layers=12)
    together = decided(cell, 256, 256)
    assert 0 < together[:, -1].sum() < 256
    np.testing.assert_array_equal(decided(cell, 32, 1), together[:32])
    for few, part in ((1, 10**6), (1, 2)):  # one stretch at a time, half of all
        monkeypatch.setattr(linear_pieces, "MIN_BATCH", few)
        monkeypatch.setattr(linear_pieces, "BATCH_FRACTION", part)
        np.testing.assert_array_equal(decided(cell, 32, 32), together[:32])


@pytest.mark.slow
def test_path_that_is_given_up_is_not_defined(monkeypatch):
    cell = cell_of("he_normal", "plane", width=4, max_layers=12)
    full = decided(cell, 128, 128)
    monkeypatch.setattr(linear_pieces, "MAX_PIECES", 2)
    cut = decided(cell, 128, 128)
    unknown = np.isnan(cut)
    assert unknown.any() and not unknown.all() and not np.isnan(full).any()
    np.testing.assert_array_equal(cut[~unknown], full[~unknown])


@pytest.mark.parametrize("domain", tiered(D_IN, "interval", "digits"))
def test_two_layers(domain):
    dead = decided(cell_of("he_normal", domain, width=2, max_layers=2), 64, 64)
    assert dead.shape == (64, 1) and (domain == "digits" or not dead.any())  # zero biases: a ray or its opposite is on


def test_digits_are_off_less_often_than_a_signal_of_one_image():
    cell = cell_of("he_normal", "digits", width=2, max_layers=8)
    found, n = share(cell, 128)
    theory = statistics["stillborn"].theory(cell)["born_dead"]
    assert (found <= np.asarray(theory.upper) + 4 * np.sqrt(0.25 / n)).all() and found[-1] > 0.2


def test_bounds_exist_where_a_theorem_applies():
    def theory(scheme, domain):
        return statistics["stillborn"].theory(cell_of(scheme, domain, width=3, max_layers=10))

    assert theory("rai", "interval") == {}
    assert theory("he_normal", "interval")["born_dead"].lower[8] == pytest.approx(0.51338870)
    for scheme, domain, spared in (("xavier", "interval", 2), ("pytorch_default", "interval", 1), ("he_normal", "plane", 1)):
        found = theory(scheme, domain)["born_dead"]
        assert np.isnan(found.lower).all()
        assert found.upper[8] == pytest.approx(1 - (7 / 8) ** (10 - spared))


@pytest.mark.parametrize(
    "factors, said",
    [
        ({"scheme": "he_norml"}, "unknown scheme 'he_norml'. Did you mean he_normal"),
        ({"domain": "square"}, "unknown domain 'square'"),
        ({"domain": "plane"}, "the domain 'plane' has d_in = 2, not 1"),
        ({"domain": "plane", "d_in": 2, "scheme": "rai"}, "the plane needs zero biases"),
        ({"width": 0}, "width must be a whole number of at least 1"),
        ({"max_layers": 1}, "max_layers must be a whole number of at least 2"),
    ],
)
def test_invalid_cell_is_refused(factors, said):
    with pytest.raises(UserError, match=said):
        statistics["stillborn"].cell(**factors)
