"""Activations are recognised by their values and slopes, in every spelling; slopes equal `jax.grad`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from watched_activations import ACTIVATIONS, NAMES

from relu_study.watch.find import find_sites
from relu_study.watch.tap import tap

KINKS = [-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 6.0, -1e3, 1e3]
POINTS = jnp.asarray(np.concatenate([KINKS, np.random.default_rng(0).normal(size=990) * 3]).astype(np.float32)[:, None])
ONE = jnp.asarray(np.ones((1, 1), np.float32))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_equal_the_derivative_at_1000_points(name: str) -> None:
    phi = ACTIVATIONS[name]
    (site,) = find_sites(lambda w, x: phi(x @ w), ONE, POINTS)
    assert site.activation == NAMES.get(name, "elementwise")
    _, taps = tap(lambda w, x: phi(x @ w))(ONE, POINTS)
    (found,) = taps.values()
    expected = np.asarray(jax.vmap(jax.vmap(jax.grad(phi)))(POINTS))  # operations of this shape are compiled
    slope = np.asarray(found.slope)
    np.testing.assert_array_equal(found.pre, POINTS)
    np.testing.assert_allclose(slope, np.abs(expected), 2e-6, 2e-6)
    np.testing.assert_array_equal(slope == 0, expected == 0)  # a unit is dead by exact zeros


def test_the_slope_of_relu_at_zero_is_zero() -> None:
    found = tap(lambda w, x: jax.nn.relu(x @ w))(ONE, 0 * POINTS)[1]["w"]
    assert not found.slope.any()


def named(phi: Callable[..., Any], *parameters: Any) -> list[str]:
    return [site.activation for site in find_sites(lambda w, x, *p: phi(x @ w, *p), ONE, POINTS, *parameters)]


def test_the_names_of_other_shapes_and_leaks_compile_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def sites(width: int, leak: float) -> list[str]:
        def net(w: Any, x: Any) -> Any:
            return jax.nn.tanh(jax.nn.leaky_relu(x @ w, leak) @ w)

        shapes = [jax.ShapeDtypeStruct((rows, width), jnp.float32) for rows in (width, 9)]
        return [site.activation for site in find_sites(net, *shapes)]

    assert sites(5, 0.2) == ["leaky_relu(0.2)", "tanh"]
    with jax.log_compiles(True):
        assert sites(7, 0.3) == ["leaky_relu(0.3)", "tanh"]
    assert "Finished tracing" in caplog.text and "XLA compilation" not in caplog.text


@pytest.mark.parametrize(
    ("phi", "expected"),
    [
        (lambda z: jax.nn.leaky_relu(z, 0.01), "leaky_relu(0.01)"),
        (lambda z: jax.nn.elu(z, 0.5), "elu(0.5)"),
        (lambda z: jnp.where(z > 0, z, jnp.expm1(z)), "elu"),
        (lambda z: z * jax.nn.sigmoid(1.702 * z), "quick_gelu"),
        (lambda z: 0.5 * z * (1 + jax.lax.erf(z / jnp.sqrt(2.0))), "gelu"),
        (lambda z: z * jnp.tanh(jax.nn.softplus(z)), "mish"),
        (lambda z: jnp.logaddexp(z, 0.0), "softplus"),
        (lambda z: jax.nn.relu(z) + jnp.minimum(0.0, 0.2 * z), "leaky_relu(0.2)"),
        (lambda z: jnp.maximum(z, 0.001), "elementwise"),
        (lambda z: jax.nn.gelu(1.01 * z), "elementwise"),
        (lambda z: jax.nn.gelu(z) * 1.01, "gelu"),
    ],
)
def test_spellings_of_one_activation_share_a_name(phi: Callable[[Any], Any], expected: str) -> None:
    assert named(phi) == [expected]


def test_a_learned_slope_has_no_known_name() -> None:
    assert named(lambda z, a: jnp.where(z > 0, z, a * z), jnp.full(1, 0.25)) == ["elementwise"]


def test_activations_of_half_precision_are_recognised() -> None:
    w, x = jnp.ones((3, 4), jnp.bfloat16), jnp.ones((2, 3), jnp.bfloat16)
    assert [site.activation for site in find_sites(lambda w, x: jax.nn.relu(x @ w), w, x)] == ["relu"]
