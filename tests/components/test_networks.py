"""The skip network matches its formula in every layout, and refuses activations that it cannot add."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relu_study.components.interval_bounds import Interval
from relu_study.components.layers import Context, Dense, FeatureMajorBatch, Site
from relu_study.engine import cohorts, state, train_step, train_tile
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.study.run_spec import TRACED_FIELDS, RunSpec

SPEC = RunSpec(network="skip", depth=4, width=6, initializer="he_normal_random_bias", rows=600, batch_size=32, epochs=2)
KNOB = {name: jnp.float32(getattr(SPEC, name)) for name in TRACED_FIELDS}
X = jax.random.uniform(jax.random.key(4), (50, 4), minval=-1.0, maxval=0.0)


@cache
def begun(spec: RunSpec = SPEC) -> Any:
    """The network of a spec with its first weights."""
    weights = jax.jit(train_step.make_init(spec, 4, 2))(jnp.uint32(7), KNOB, X)
    graph = train_step.nnx.split(state.build(spec, 4, 2), train_step.nnx.Param, train_step.nnx.BatchStat)[0]
    return train_step.nnx.merge(graph, weights.params, weights.stats)


def layers(model: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    dense = [*(block.dense for block in model.hidden), model.output]
    return [(np.asarray(layer.kernel[...], np.float64), np.asarray(layer.bias[...], np.float64)) for layer in dense]


def by_hand(weights: list[tuple[np.ndarray, np.ndarray]], x: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The pre-activations of each layer and the prediction: x1 = relu(W1 x), x_(i+1) = x_i + relu(W_(i+1) x_i)."""
    pres, h = [], np.asarray(x, np.float64)
    for i, (kernel, bias) in enumerate(weights[:-1]):
        pres.append(h @ kernel + bias)
        h = np.maximum(pres[-1], 0) + (h if i else 0)
    return pres, h @ weights[-1][0] + weights[-1][1]


def test_skip_adds_input_from_second_block_on() -> None:
    model, ctx = begun(), Context(KNOB)
    said = model(X, ctx)
    pres, prediction = by_hand(layers(model), X)
    np.testing.assert_allclose(said, prediction, rtol=1e-4, atol=1e-5)
    sites = [entry for entry in ctx.activations_log if isinstance(entry[0], Site)]
    assert len(sites) == 4 and sum(isinstance(entry[0], Dense) for entry in ctx.activations_log) == 5
    for (_, pre, post), wanted in zip(sites, pres):
        np.testing.assert_allclose(pre, wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(post, np.maximum(wanted, 0), rtol=1e-4, atol=1e-5)  # the site's own, without what is added


def test_feature_major_equals_rows() -> None:
    graph, weights = train_step.nnx.split(begun(SPEC.replace(norm="layer_norm", activation="tanh")))

    @jax.jit
    def both(x: Any) -> tuple[Any, Any]:
        model = train_step.nnx.merge(graph, weights)
        columns = model(FeatureMajorBatch(x.T), Context(KNOB))
        assert isinstance(columns, FeatureMajorBatch)
        return columns.values.T, model(x, Context(KNOB))

    np.testing.assert_allclose(*both(X), rtol=1e-5, atol=1e-6)


def test_without_skips_it_is_the_mlp() -> None:
    """With one hidden layer there is nothing to add, and with more the mlp's weights are the same."""
    one = SPEC.replace(depth=1)
    assert np.array_equal(begun(one)(X, Context(KNOB)), begun(one.replace(network="mlp"))(X, Context(KNOB)))
    for ours, theirs in zip(layers(begun()), layers(begun(SPEC.replace(network="mlp")))):
        assert np.array_equal(ours[0], theirs[0])


def test_no_input_of_the_box_leaves_the_bounds() -> None:
    model = begun()

    @jax.jit
    def through(box: Interval) -> list[Interval]:
        ctx = Context(KNOB)
        said = model(box, ctx)
        return [*(entry[1] for entry in ctx.activations_log if isinstance(entry[0], Site)), said]

    bounds = through(Interval(jnp.full(4, -1.0), jnp.zeros(4)))
    corners = np.array(np.meshgrid(*[[-1.0, 0.0]] * 4)).reshape(4, -1).T
    pres, prediction = by_hand(layers(model), np.concatenate([corners, np.asarray(X)]))
    for bound, values in zip(bounds, [*pres, prediction], strict=True):
        assert np.all(values >= np.asarray(bound.lo)) and np.all(values <= np.asarray(bound.hi))


@pytest.mark.slow
def test_it_trains_and_its_units_are_certified() -> None:
    few = MeasureConfig(200, 100, histograms=False, metrics=("train_loss", "dead_fraction", "certified_dead_fraction"))
    tile = train_tile.train_tile([SPEC.replace(seed=seed, initializer="he_normal") for seed in range(2)], 2, measure_config=few)
    loss = tile["metric:train_loss/all"]
    assert (loss[:, -1] < loss[:, 0]).all()
    certified, dead = tile["metric:certified_dead_fraction/all"], tile["metric:dead_fraction/all"]
    assert np.isfinite(certified).all() and (certified <= dead).all()


def test_skip_refuses_crelu_before_compiling() -> None:
    spec = SPEC.replace(activation="crelu")
    with pytest.raises(UserError, match=r"network 'skip' adds .* 'crelu' has several outputs .* network='mlp'"):
        cohorts.sites(spec)
    assert cohorts.sites(spec.replace(network="mlp")) == cohorts.sites(SPEC) == ["site_1", "site_2", "site_3", "site_4"]
