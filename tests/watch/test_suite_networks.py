"""The suite's networks measured through `tap` give the numbers of the suite's own measurement."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiers import tiered
from watched_models import put

from relu_study.components.layers import Context, Site
from relu_study.components.metrics.snapshot import SiteView
from relu_study.components.metrics.unit_fractions import always_on, dead, dormant, nearly_dead, saturated, zero_gradient
from relu_study.components.registry import activations
from relu_study.engine import state, train_step
from relu_study.study.run_spec import TRACED_FIELDS, RunSpec
from relu_study.watch.inspection import inspect
from relu_study.watch.tap import tap

X = jnp.asarray(np.random.default_rng(4).uniform(-1, 1, size=(300, 4)).astype(np.float32))
Y = jnp.asarray(np.sin(np.asarray(X) @ np.ones((4, 2), np.float32)))
FLAGS = ("dead", "nearly_dead", "always_on", "saturated", "dormant", "zero_gradient")
ELEMENTWISE = ["relu", "leaky_relu", "relu6", "hard_tanh", "tanh", "sigmoid", "elu", "selu", "gelu", "silu"]


def network(**fields: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Return a network as `(fn, params)`, with the numbers that its activations take."""
    spec = RunSpec(depth=2, width=6, initializer="he_normal_random_bias", rows=600, batch_size=32, epochs=2, **fields)
    knobs = {name: jnp.float32(getattr(spec, name)) for name in TRACED_FIELDS}
    weights = jax.jit(train_step.make_init(spec, 4, 2))(jnp.uint32(7), knobs, X)
    graph = nnx.split(state.build(spec, 4, 2), nnx.Param, nnx.BatchStat)[0]
    params = weights.params
    bias = params["hidden"][0]["dense"]["bias"]
    bias.set_value(put(bias[...], [1, 2], [-30, 30]))  # dead or saturated, and always on

    def fn(params: Any, x: Any, ctx: Context | None = None) -> Any:
        return nnx.merge(graph, params, weights.stats, copy=True)(x, ctx or Context(knobs))

    return fn, params, knobs


def measured(fn: Any, params: Any, knobs: Any) -> list[SiteView]:
    """Return the suite's own view of every site."""

    names: list[str] = []

    def loss(params: Any) -> Any:
        ctx = Context(knobs)
        out = fn(params, X, ctx)
        found = [entry for entry in ctx.activations_log if isinstance(entry[0], Site)]
        names[:] = [site.activation for site, *_ in found]
        slopes = [activations[name].slope(pre, knobs) for name, (_, pre, _) in zip(names, found, strict=True)]
        return jnp.mean((out - Y) ** 2), [(pre, post, slope) for (_, pre, post), slope in zip(found, slopes, strict=True)]

    grads, passes = jax.jit(jax.grad(loss, has_aux=True))(params)
    views = []
    for index, (name, (pre, post, slope)) in enumerate(zip(names, passes, strict=True)):
        layer, gradient = (tree["hidden"][index]["dense"] if index < 2 else tree["output"] for tree in (params, grads))
        weights = (layer["kernel"][...], layer["bias"][...], gradient["kernel"][...], gradient["bias"][...])
        phi = activations[name]
        views.append(SiteView(phi, pre, post, slope, *weights, None, None, None, phi.max_slope(knobs)))
    return views


def compared(fields: dict[str, Any]) -> None:
    fn, params, knobs = network(**fields)
    views = measured(fn, params, knobs)
    taps = jax.jit(tap(lambda params, x: fn(params, x)))(params, X)[1]
    assert len(taps) == len(views)
    for found, view in zip(taps.values(), views, strict=True):
        np.testing.assert_allclose(found.pre, view.pre, 1e-5, 1e-6)
        np.testing.assert_allclose(found.post, view.post, 1e-5, 1e-6)
        np.testing.assert_allclose(found.slope, view.slope, 1e-5, 1e-6)
        np.testing.assert_array_equal(np.asarray(found.slope) == 0, np.asarray(view.slope) == 0)

    units = inspect((lambda params, x: fn(params, x), params), X, y=Y, loss=lambda out, y: jnp.mean((out - y) ** 2)).units
    metrics = (dead, nearly_dead, always_on, saturated, dormant, zero_gradient)
    for (_, rows), view in zip(units.groupby("site", sort=False), views, strict=True):
        flags = jax.jit(lambda view=view: [metric(view) for metric in metrics])()
        for name, expected in zip(FLAGS, flags, strict=True):
            if expected is None:
                assert rows[name].isna().all(), name
            else:
                np.testing.assert_array_equal(rows[name].to_numpy(bool), expected, name)


NETWORKS = [(name, norm) for name in ("mlp", "skip") for norm in ("none", "batch_norm", "layer_norm")]


@pytest.mark.parametrize(("name", "norm"), tiered(NETWORKS, ("mlp", "batch_norm"), ("skip", "layer_norm")))
def test_networks_give_the_same_numbers(name: str, norm: str) -> None:
    compared({"network": name, "norm": norm, "activation": "relu"})


@pytest.mark.parametrize("activation", tiered(ELEMENTWISE[1:], "hard_tanh", "tanh"))
def test_activations_give_the_same_numbers(activation: str) -> None:
    compared({"network": "mlp", "activation": activation})


def test_an_output_activation_gives_the_same_numbers() -> None:
    compared({"network": "mlp", "activation": "relu", "output": "relu"})


def test_all_activations_with_one_output_are_compared() -> None:
    assert {name for name in activations if activations[name].fanout == 1} == {"linear", *ELEMENTWISE}


def test_a_unit_of_crelu_is_two_sites() -> None:
    fn, params, knobs = network(network="mlp", activation="crelu")
    taps = jax.jit(tap(lambda params, x: fn(params, x)))(params, X)[1]
    views = measured(fn, params, knobs)
    assert list(taps) == [f"hidden.{index}.dense{end}" for index in range(2) for end in ("", ".2")]
    for index, view in enumerate(views):
        halves = [taps[f"hidden.{index}.dense{end}"] for end in ("", ".2")]
        np.testing.assert_allclose(np.concatenate([half.post for half in halves], -1), view.post, 1e-5, 1e-6)
        np.testing.assert_allclose(np.maximum(*[half.slope for half in halves]), view.slope, 1e-5)
