"""Gradients by layer against a plain chain rule in float64, and in cases with a known answer."""

from __future__ import annotations

from itertools import product

import jax
import numpy as np
import pytest
from sampling import drawn, key_of
from scipy import special
from tiers import tiered

from relu_study.components.registry import activations, initializers, statistics
from relu_study.components.untrained.dense_layers import weights
from relu_study.components.untrained.gradients import EXAMPLES
from relu_study.engine.draw_block import check
from relu_study.errors import UserError
from relu_study.study.loading import find_study, load_study

PHI = {  # phi, phi'
    "relu": (lambda z: np.maximum(z, 0), lambda z: 1.0 * (z > 0)),
    "tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2),
    "gelu": (lambda z: z * special.ndtr(z), lambda z: special.ndtr(z) + z * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)),
}


def by_the_chain_rule(activation: str, initializer: str, width: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """log10 norms of the gradients by pre and kernel in draw 0, beside the last layer's; all in float64."""
    key = key_of("gradients", 0, activation=activation, initializer=initializer, width=width, depth=depth)
    phi, slope = PHI[activation]
    h = np.asarray(jax.random.normal(jax.random.fold_in(key, depth), (EXAMPLES, width)), np.float64)
    gradient = np.asarray(jax.random.normal(jax.random.fold_in(key, depth + 1), (EXAMPLES, width)), np.float64)
    passed = []
    layer = jax.jit(lambda place, h: weights(initializer, key, place, h, width, depth))
    first = jax.jit(lambda h: weights(initializer, key, 0, h, width, depth))
    for place in range(depth):
        drawn_ = layer(np.int32(place), h.astype(np.float32)) if place else first(h.astype(np.float32))
        kernel, bias = (np.asarray(leaf, np.float64) for leaf in drawn_)
        pre = h @ kernel + bias
        passed.append((h, kernel, pre))
        h = phi(pre)
    found = []
    for h, kernel, pre in reversed(passed):
        gradient = gradient * slope(pre)
        found.append((np.linalg.norm(gradient), np.linalg.norm(h.T @ gradient)))
        gradient = gradient @ kernel.T
    logs = np.log10(found[::-1])
    return tuple((logs - logs[-1]).T)


CHAINS = [
    ("relu", "random_uniform", 16, 45),  # signals of 1e-50: out of float32's range
    ("tanh", "pytorch_default", 6, 4),
    ("gelu", "rai", 6, 4),
    ("relu", "sign_flip", 5, 3),
]


@pytest.mark.parametrize(("activation", "initializer", "width", "depth"), tiered(CHAINS, *CHAINS[:2]))
def test_against_the_chain_rule(activation, initializer, width, depth):
    factors = {"activation": activation, "initializer": initializer, "width": width, "depth": depth}
    found = drawn("gradients", 1, **factors)
    by_pre, by_kernel = by_the_chain_rule(**factors)
    np.testing.assert_allclose(found["signal"][0], by_pre, atol=2e-4)
    np.testing.assert_allclose(found["kernel"][0], by_kernel, atol=2e-4)
    assert not np.any(found["zero"])


@pytest.mark.slow
def test_rotations_keep_every_gradient():
    found = drawn("gradients", 5, activation="linear", initializer="orthogonal", width=7, depth=20)
    np.testing.assert_allclose(found["signal"], 0, atol=1e-4)
    np.testing.assert_allclose(found["kernel"], 0, atol=1e-4)


def test_growth_beyond_float32():
    """Weights of U(-1, 0) grow by width / 2 a layer: 16^49 > 3e38."""
    found = drawn("gradients", 5, activation="linear", initializer="negative_uniform", width=32, depth=50)
    step = -np.diff(found["signal"], axis=1)[:, 3:-3]
    assert np.all(np.abs(step.mean(axis=1) - np.log10(16)) < 0.02) and np.all(np.isfinite(found["kernel"]))


def test_below_a_dead_layer_there_is_no_gradient():
    found = drawn("gradients", 20, initializer="negative_uniform", width=4, depth=4)
    assert np.all(found["zero"] == 1) and np.all(np.isnan(found["signal"])) and np.all(np.isnan(found["kernel"]))


@pytest.mark.slow
def test_crelu_halves_orthonormal_gradients():
    """Each unit has one of its two outputs open, so the gradient loses half of its square a layer."""
    found = drawn("gradients", 50, activation="crelu", initializer="orthogonal", width=8, depth=6)
    assert found["signal"].shape == (50, 6) and np.all(found["signal"][:, -1] == 0)
    assert abs(found["signal"][:, 0].mean() + 5 * np.log10(2) / 2) < 0.1


@pytest.mark.parametrize("activation", list(activations))
def test_every_activation_has_gradients(activation):
    check("gradients", statistics["gradients"].cell(activation=activation, width=3, depth=3))


@pytest.mark.parametrize("initializer", list(initializers))
def test_every_initialiser_has_gradients(initializer):
    check("gradients", statistics["gradients"].cell(initializer=initializer, width=3, depth=3))


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ({"activation": "rleu"}, "relu"),
        ({"initializer": "he_norml"}, "he_normal"),
        ({"depth": 1}, "depth"),
        ({"width": 0}, "width"),
    ],
)
def test_non_network_is_refused(factors, said):
    with pytest.raises(UserError, match=said):
        statistics["gradients"].cell(**factors)


def test_study_takes_every_pair():
    """Of what the package brings: the study of every activation with every initialiser forgets none."""
    study = load_study(find_study("moments"))
    (pairs,) = (experiment.cells.values() for experiment in study.experiments if experiment.name == "gradients")
    names = {
        kind: {name for name in known if known[name].function.__module__.startswith("relu_study.")}
        for kind, known in (("activation", activations), ("initializer", initializers))
    }
    assert {(cell["activation"], cell["initializer"]) for cell in pairs} == {*product(*names.values())}
