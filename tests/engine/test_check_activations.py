"""Checks of a user's activations."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import tiered
from user_entries import FEW, SPEC, inf, refused

from relu_study.components.activations import activation
from relu_study.components.initializers import Layer, initializer
from relu_study.engine import cohorts, train_tile
from relu_study.errors import UserError
from relu_study.study.run_spec import TRACED_FIELDS

pytestmark = pytest.mark.usefixtures("restored_registries")


class Leaky:
    def __init__(self, k: float):
        self.k = k

    def __call__(self, pre: Any) -> Any:
        return jnp.maximum(pre, self.k * pre)


def leaky(k: float, pre: Any) -> Any:
    return jnp.maximum(pre, k * pre)


LEAKY = {
    "partial": functools.partial(leaky, 0.3),
    "keyword partial": functools.partial(lambda pre, leak: jnp.maximum(pre, leak * pre), leak=0.3),
    "object": Leaky(0.3),
    "method": Leaky(0.3).__call__,
    "jitted": jax.jit(lambda pre: jnp.maximum(pre, 0.3 * pre)),
    "default": lambda pre, slope=0.3: jnp.maximum(pre, slope * pre),
    "jitted partial": jax.jit(functools.partial(leaky, 0.3)),
    "jax.nn": functools.partial(jax.nn.leaky_relu, negative_slope=0.3),
}


@pytest.mark.parametrize("name", LEAKY)
def test_callables_of_every_kind_are_activations(name: str) -> None:
    phi = activation("mine")(LEAKY[name])
    cohorts.check(SPEC.replace(activation="mine"), FEW)
    z = jnp.asarray(np.float32([[-2.0, 0.5]]))
    hparams = {field: np.float32(getattr(SPEC, field)) for field in TRACED_FIELDS}
    np.testing.assert_allclose(phi(z, hparams), [[-0.6, 0.5]], rtol=1e-6)
    activation("mine")(LEAKY[name])  # registered again, as in a notebook


OTHERS = (jax.lax.erf, jax.nn.mish, jnp.negative, jax.nn.softplus, jax.nn.gelu)
FUNCTIONS = [jax.nn.celu, jnp.sin, jnp.abs, *tiered(OTHERS)]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: getattr(f, "__name__", str(f)))
def test_functions_of_jax_are_activations(function: Any) -> None:
    phi = activation("mine")(function)
    cohorts.check(SPEC.replace(activation="mine"), FEW)
    z = jnp.asarray(np.float32([[-2.0, 0.5]]))
    np.testing.assert_array_equal(phi(z, {}), function(z))
    if function is not jax.nn.celu:  # one suffices for the engine
        return
    tile = train_tile.train_tile([SPEC.replace(activation="mine")], 2, measure_config=FEW)
    assert tile["status"].tolist() == ["ok"]


def test_traced_field_reaches_a_parameter_with_a_default() -> None:
    phi = activation("mine")(lambda pre, leak=0.9: jnp.maximum(pre, leak * pre))
    assert phi.hparams == ("leak",) and float(phi(jnp.array([[-1.0]]), {"leak": 0.25})[0, 0]) == -0.25


@pytest.mark.parametrize("function", [0.3, "relu", None])
def test_non_function_is_refused(function: Any) -> None:
    with pytest.raises(UserError, match=r"activation 'mine' must be a function"):
        activation("mine")(function)
    with pytest.raises(UserError, match=r"initializer 'mine' must be a function \(key, layer, inputs\) -> \(kernel, bias\)"):
        initializer("mine")(function)


@pytest.mark.parametrize(
    ("function", "pieces", "words"),
    [
        (lambda z: jnp.where(z > 0, z, 0.2 * z), {"flat": ((-inf, 0.0),)}, ["flat=(-inf, 0.0)", "slope", "0.2"]),
        (lambda z: jnp.tanh(z), {"identity": (-1.0, 1.0)}, ["identity=(-1.0, 1.0)", "value"]),
        (lambda z: 2 * jnp.clip(z, -1.0, 1.0), {"values": (-1.0, 1.0)}, ["values=(-1.0, 1.0)", "value", "2"]),
        (lambda z: jax.nn.relu(z)[:, :1], {}, ["shape (5, 1)", "(5, 3)", "fanout=1"]),
        (lambda z: jax.nn.relu(z), {"fanout": 2}, ["fanout=2", "(5, 6)"]),
        (lambda z: z > 0, {}, ["bool", "float32"]),
        (lambda z: jax.nn.softmax(z), {}, ["mixes units"]),
        (lambda z: z - z.mean(axis=0), {}, ["mixes units or examples"]),
        (lambda z: z + np.random.normal(), {}, ["other values at each call"]),
        (jax.jit(lambda z: z + np.random.normal()), {}, ["other values at each call"]),
        (lambda z: jnp.where(jnp.abs(z) < 1, 1 - jnp.abs(z), 0.0), {"flat": ((1.0, inf),)}, ["turns back", "turning_points"]),
        (lambda z: 1 / 0, {}, ["activation 'mine' raises ZeroDivisionError"]),
        (jnp.maximum, {}, ["activation 'mine' raises"]),
    ],
)
def test_activation_must_match_its_declaration(function: Any, pieces: Any, words: list[str]) -> None:
    activation("mine", **pieces)(function)
    refused(SPEC.replace(activation="mine"), "activation 'mine'", *words)


@pytest.mark.parametrize(
    "pieces", [{"flat": (-inf, 0.0)}, {"flat": ((0.0, -1.0),)}, {"identity": 3}, {"values": (1,)}, {"fanout": 0}]
)
def test_malformed_pieces_are_refused_at_registration(pieces: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"activation 'mine' has {next(iter(pieces))}=.*\. Give a "):
        activation("mine", **pieces)(jax.nn.relu)


def test_kink_with_a_nonzero_slope_is_not_certified() -> None:
    """jnp.maximum has slope 1/2 at 0: a layer behind a dead one is there, at zero, and not dead."""
    activation("mine", flat=((-inf, 0.0),), identity=(0.0, inf), values=(0.0, inf))(lambda z: jnp.maximum(z, 0.0))
    spec = SPEC.replace(activation="mine", depth=2, epochs=0, rows=60)

    def off(key: Any, layer: Layer, inputs: Any) -> Any:
        return jnp.ones((layer.fan_in, layer.fan_out)), jnp.full(layer.fan_out, 0.0 if layer.index else -1.0)

    initializer("off", needs_inputs=False)(off)
    tile = train_tile.train_tile([spec.replace(initializer="off")], 2, measure_config=FEW)
    assert tile["metric:certified_dead_fraction/site_1"].tolist() == tile["metric:dead_fraction/site_1"].tolist() == [[1.0]]
    assert tile["metric:certified_dead_fraction/site_2"].tolist() == tile["metric:dead_fraction/site_2"].tolist() == [[0.0]]
