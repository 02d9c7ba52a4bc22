"""Flax networks in the engine: seeds, bits, state, training against a plain loop, and both ways of measuring."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax_networks import FEW, IMAGES, registered
from tiers import tiered

from relu_study.components import random_streams
from relu_study.components.flax_models import FlaxModel
from relu_study.components.networks import network_of
from relu_study.components.registry import metrics, tasks
from relu_study.engine import check_flax_networks, cohorts, measure_step, train_tile
from relu_study.engine.forward import Forward, flax_model, forward_of, network_spec
from relu_study.engine.state import MeasureConfig
from relu_study.engine.train_step import steps_per_epoch
from relu_study.study.run_spec import RunSpec

CNN = IMAGES.replace(network="cnn")


@pytest.fixture(scope="module", autouse=True)
def entries() -> Iterator[None]:
    with registered():
        yield


def trained(specs: list[RunSpec], width: int | None = None, measure_config: MeasureConfig = FEW) -> dict[str, np.ndarray]:
    """Train runs as one tile. Return its arrays with the final parameters."""
    tile = train_tile.start_tile(specs, width or len(specs), jax.devices()[0], measure_config)
    assert tile is not None
    return train_tile.fetch(tile, keep_params=True)


@cache
def initial(spec: RunSpec, *seeds: int) -> Any:
    """The parameters of runs before training, with the seeds on the first axis."""
    return train_tile.init_tile([spec.replace(seed=seed) for seed in seeds], jax.devices()[0], FEW).state


@pytest.mark.parametrize("name", ["cnn", "test_dropout", "test_linen"])
@pytest.mark.parametrize("initializer", ["default", "own", "he_normal"])
def test_no_two_seeds_share_a_kernel_and_a_seed_has_one(name: str, initializer: str) -> None:
    spec = IMAGES.replace(network=name, initializer=initializer)
    params = initial(spec, 0, 1, 0).params
    kernels = [leaf for leaf in map(np.asarray, jax.tree.leaves(params)) if leaf.ndim > 2]
    assert len(kernels) >= 2
    for kernel in kernels:
        assert np.array_equal(kernel[0], kernel[2]) and not (kernel[0] == kernel[1]).any()


@pytest.mark.parametrize("name", ["cnn", "test_dropout", "test_linen"])
def test_bits_do_not_depend_on_neighbours_or_position(name: str) -> None:
    spec = IMAGES.replace(network=name)
    alone, first = trained([spec], width=2), trained([spec, spec.replace(seed=1, learning_rate=0.1)])
    second = trained([spec.replace(seed=2), spec])
    for array in (key for key in alone if key.startswith(("metric:", "param"))):
        assert np.array_equal(alone[array][0], first[array][0], equal_nan=True), array
        assert np.array_equal(alone[array][0], second[array][1], equal_nan=True), array


@pytest.mark.parametrize("norm", tiered(["none", "layer_norm", "batch_norm"], "batch_norm"))
def test_cnn_agrees_with_a_plain_nnx_training_loop(norm: str) -> None:
    spec = CNN.replace(epochs=200 / 4, norm=norm, width=8)
    task, seeds = tasks[spec.task](spec), (0,)
    n = task.signature.train_rows
    assert steps_per_epoch(n, spec.batch_size) == 4
    begun = train_tile.init_tile([spec], jax.devices()[0], FEW)
    network = network_of(spec)
    model = network(network_spec(spec), task.signature.inputs, task.signature.outputs, nnx.Rngs(0))
    nnx.update(model, jax.tree.map(lambda leaf: leaf[0], begun.state.params))
    model.train()
    optimizer = nnx.Optimizer(model, optax.adam(spec.learning_rate), wrt=nnx.Param)
    x, y = map(np.asarray, task.sample(random_streams.stream(seeds[0], "data", 0), 0))

    @nnx.jit
    def step(model: Any, optimizer: Any, x: Any, y: Any) -> None:
        def loss(model: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        optimizer.update(model, nnx.grad(loss)(model))

    places = jnp.arange(n, dtype=jnp.uint32)
    shuffled = jax.jit(lambda epoch: random_streams.shuffled(random_streams.order_key(0, epoch), places, n))
    for epoch in range(1, 51):
        order = np.asarray(shuffled(epoch))
        for at in range(0, n, spec.batch_size):
            rows = order[at : at + spec.batch_size]
            step(model, optimizer, x[rows], y[rows])
    model.eval()
    loss = nnx.jit(lambda model: optax.softmax_cross_entropy_with_integer_labels(model(jnp.asarray(x[:16])), y[:16]).mean())(
        model
    )
    ours = trained([spec])["metric:train_loss/all"][0]
    assert ours[-1] < 0.5 * ours[0]
    assert ours[-1] == pytest.approx(float(loss), abs=1e-4)


@pytest.mark.parametrize("norm", ["none", "batch_norm"])
def test_both_ways_of_measuring_agree_on_mlp(norm: str) -> None:
    spec = RunSpec(rows=60, width=6, depth=2, norm=norm, batch_size=8, epochs=2, learning_rate=0.3, initializer="he_normal")
    config = MeasureConfig(30, 18, metrics=tuple(metrics))
    step, signature = cohorts.cohort(spec, tasks[spec.task](spec).signature)
    begun = train_tile.init_tile([spec], jax.devices()[0], config)
    state, data = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in (begun.state, begun.data))
    previous = jax.tree.map(lambda leaf: leaf * 1.01, state.params)
    hparams = {name: jnp.float32(value) for name, value in cohorts.traced_numbers(spec).items()}
    logged = jax.jit(measure_step.make_measure(step, signature, config, boxed=False))
    by_log = logged(state, previous, data, hparams, jnp.zeros(2))

    forward = forward_of(step, signature)
    context = measure_step.Context(hparams)
    like_flax = Forward(
        lambda params, stats, x, _: forward.apply(params, stats, x, context),
        forward.params,
        False,
        FlaxModel(unused, unused, forward.params, jax.eval_shape(lambda: state.stats), ()),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_step, "forward_of", lambda *_: like_flax)
        tapped = jax.jit(measure_step.make_measure(step, signature, config, boxed=False))
        by_tap = tapped(state, previous, data, hparams, jnp.zeros(2))
    assert set(by_log) == set(by_tap)
    assert float(by_log["metric:dead_fraction/all"]) >= 0 and float(by_log["metric:grad_norm/site_2"]) > 0
    for name, value in by_log.items():
        np.testing.assert_allclose(by_tap[name], value, rtol=2e-5, atol=1e-6, err_msg=name)


def test_dropout_differs_by_seed_and_step_and_is_off_in_evaluation() -> None:
    spec = IMAGES.replace(network="test_dropout")
    model = flax_model(network_of(spec), network_spec(spec), *signature_of(spec))
    params, rest = model.init(jnp.uint32(0), {})
    other = model.init(jnp.uint32(1), {})[1]
    x = jax.random.normal(jax.random.key(0), (5, 4, 4, 1))
    first, after = model.apply(params, rest, x, True)
    second, _ = model.apply(params, after, x, True)
    assert not np.array_equal(first, second) and not np.array_equal(first, model.apply(params, other, x, True)[0])
    assert np.array_equal(*(model.apply(params, rest, x, False)[0] for _ in range(2)))


def unused(*args: Any) -> Any:
    raise AssertionError("no other form of the network is read")


def signature_of(spec: RunSpec) -> tuple[Any, Any]:
    signature = tasks[spec.task](spec).signature
    return signature.inputs, signature.outputs


@pytest.mark.parametrize("name", ("cnn", "resnet", "vit"))
def test_networks_of_the_package_keep_the_contract_of_own_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study does not check their calls and weights again."""
    monkeypatch.setattr(check_flax_networks, "ours", lambda entry: False)
    spec = RunSpec(network=name, task="digits_image", depth=2, width=4, norm="layer_norm")
    notes = check_flax_networks.check_flax_network(spec, tasks[spec.task](spec).signature)
    assert all("attention" in note and ".bias as the modules draw them" in note for note in notes)
