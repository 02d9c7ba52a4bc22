"""The engine trains as a plain NumPy loop does: same rows, same masks, same weights after 200 steps.

One network of many branches, each an `mlp` of its own, trains every activation in one program: the loss is the mean over the
branches' outputs, so that no branch feels another.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

from relu_study import engine, prng, programs
from relu_study.programs import Data, Probing, State
from relu_study.registry import activations, initializers, networks, optimizers, tasks
from relu_study.sites import Context
from relu_study.spec import KNOBS, RunSpec
from relu_study.tasks import Signature, Task

D_IN, WIDTH, TRAIN, VAL, BATCH = 3, 6, 70, 29, 16  # epochs of 4 full batches and one of 6 rows
STEPS, EPOCHS = 5, 40
RATES = {"adam": 0.01, "sgd": 0.1, "momentum": 0.01, "rmsprop": 0.003}
DROPS = {"dropout": 0.25, "alpha_dropout": 0.25}  # a multiple of 2^-16: met exactly

EACH_ACTIVATION = tuple({"activation": name} for name in activations)
EACH_PART = (
    {"activation": "relu", "dropout": "dropout"},
    {"activation": "selu", "dropout": "alpha_dropout"},
    {"activation": "relu", "norm": "batch_norm"},
    {"activation": "leaky_relu", "norm": "layer_norm"},
    {"activation": "tanh", "norm": "batch_norm", "dropout": "dropout"},
    {"activation": "tanh", "output": "leaky_relu"},
)
BRANCHES = {"test_activations": EACH_ACTIVATION, "test_parts": EACH_PART}


class Bundle(nnx.Module):
    """One mlp a branch, side by side."""

    def __init__(self, spec: RunSpec, d_in: int, d_out: int, rngs: nnx.Rngs):
        branches = BRANCHES[spec.network]
        assert d_out == len(branches)
        self.branches = nnx.List([networks["mlp"](spec.but(**changes), d_in, 1, rngs=rngs) for changes in branches])

    def __call__(self, x: Any, ctx: Context) -> Any:
        return jnp.concatenate([branch(x, ctx) for branch in self.branches], axis=1)


def examples(rows: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and noisy smooth targets, all exact in float32."""
    rng = np.random.default_rng(20)
    x = rng.normal(size=(rows, D_IN))
    y = np.sin(x @ rng.normal(size=(D_IN, outputs))) + 0.3 * rng.normal(size=(rows, outputs)) + 0.5
    return x.astype(np.float32), y.astype(np.float32)


def table(spec: RunSpec) -> Task:
    """The task: `spec.rows` fixed examples, all but VAL of them for training."""
    x, y = examples(spec.rows, 2)

    def sample(key: Any, phase: int) -> tuple[Any, Any]:
        dtype = jnp.result_type(float)
        return jnp.asarray(x, dtype), jnp.asarray(y, dtype)

    return Task(Signature(spec.rows - VAL, VAL, D_IN, 2), sample)


def one_far_below(key: Any, layer: Any, inputs: Any) -> tuple[Any, Any]:
    """He normal, but unit 0 of each layer is off on every example."""
    kernel, bias = initializers["he_normal"](key, layer, inputs)
    return kernel, bias.at[0].set(-100.0)


@pytest.fixture(scope="module", autouse=True)
def entries() -> Iterator[None]:
    """The test's own entries, gone again for the tests that read the registries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks._entries, "test_table", table)
        patch.setitem(initializers._entries, "test_one_dead", initializers_entry(one_far_below))
        for name in BRANCHES:
            patch.setitem(networks._entries, name, Bundle)
        yield


def initializers_entry(function: Any) -> Any:
    return type(initializers["he_normal"])(function)


# ------------------------------------------------------------------------- the order, outside the engine


@lru_cache(maxsize=None)
def orders(seed: int, rows: int, epochs: int) -> np.ndarray:
    """The rows in the order of each epoch from the first on."""
    position = jnp.arange(rows, dtype=jnp.uint32)
    order = jax.jit(jax.vmap(lambda epoch: prng.shuffled(prng.order_key(jnp.uint32(seed), epoch), position, rows)))
    return np.asarray(order(jnp.arange(1, epochs + 1)))


def batches(seed: int, rows: int, batch: int, epochs: float) -> list[np.ndarray]:
    """The rows of every step: full batches, then what is left; a fraction of an epoch is its first steps."""
    steps = []
    for done, order in enumerate(orders(seed, rows, int(np.ceil(epochs)))):
        cut = [order[at : at + batch] for at in range(0, rows, batch)]
        steps += cut[: round(min(1.0, epochs - done) * len(cut))]
    return steps


@lru_cache(maxsize=None)
def mask(seed: int, step: int, site: int, rows: int, rate: float) -> np.ndarray:
    key = prng.stream(jnp.uint32(seed), "dropout", step, site)
    return np.asarray(jax.random.bits(key, (rows, WIDTH), jnp.uint16)) >= rate * 65536


# ------------------------------------------------------------------------------ both trainings of a bundle


def bundle_runs(network: str, optimizer: str) -> list[RunSpec]:
    """Three runs of one tile that differ in every knob the training sees."""
    base = RunSpec(network=network, depth=2, width=WIDTH, batch_size=BATCH, optimizer=optimizer, task="test_table")
    knobs = ((3, 1.0, 0.0, 0.01), (1, 0.5, 0.1, 0.2), (2**32 - 1, 0.7, 0.01, 0.4))
    rate = RATES[optimizer]
    return [base.but(seed=s, learning_rate=rate * r, weight_decay=w, leak=k) for s, r, w, k in knobs]


def names_and_leaves(tree: Any) -> dict[str, np.ndarray]:
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        parts = [str(getattr(k, "key", getattr(k, "name", k))) for k in path]
        found[".".join(p for p in parts if p != "value")] = np.asarray(leaf)
    return found


def first_weights(params: Any, runs: int) -> Any:
    """Normal weights and biases of one spread for every layer, about 1 for scales, exact in float32."""
    rng = np.random.default_rng(4)

    def draw(path: Any, leaf: Any) -> Any:
        middle = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(middle + rng.normal(0, 0.5, (runs, *leaf.shape)).astype(np.float32), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, params)


def trained_by_engine(network: str, optimizer: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """First and last parameters with the running averages, by name, and the predictions on all rows, runs first."""
    runs, dtype = bundle_runs(network, optimizer), jnp.result_type(float)
    outputs = len(BRANCHES[network])
    x, y = examples(TRAIN + VAL, outputs)
    step, signature = engine.cohort(runs[0], Signature(TRAIN, VAL, D_IN, outputs))
    graph, params, stats = nnx.split(programs.build(step, D_IN, outputs), nnx.Param, nnx.BatchStat)
    first = first_weights(params, len(runs))
    stats = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(runs)), stats)
    state = State(first, stats, jax.vmap(optimizers[optimizer](0.0, 0.0).init)(first))
    knobs = {name: np.array([getattr(run, name) for run in runs], dtype) for name in KNOBS}
    knobs["dropout_rate"] = np.full(len(runs), 0.25, dtype)
    train = np.stack([np.concatenate([x, y], axis=1)[:TRAIN].astype(dtype)] * len(runs))
    seeds = np.array([run.seed for run in runs], np.uint32)
    advance = engine.programs(step, signature, Probing(), False).advance
    for epoch in range(1, EPOCHS + 1):
        state = advance(state, train, seeds, knobs, np.int32(epoch), np.int32(0), np.int32(STEPS))

    def predict(params: Any, stats: Any, knobs: Any) -> Any:
        return nnx.merge(graph, params, stats)(jnp.asarray(x, dtype), Context(knobs))

    predicted = jax.vmap(predict)(state.params, state.stats, knobs)
    assert predicted.dtype == dtype and all(leaf.dtype == dtype for leaf in jax.tree.leaves((state.params, state.stats)))
    return names_and_leaves(first), names_and_leaves((state.params, state.stats)), np.asarray(predicted)


@lru_cache(maxsize=None)
def trained_by_reference(network: str, optimizer: str, branch: int, run: int) -> tuple[reference.Network, np.ndarray]:
    changes, spec = BRANCHES[network][branch], bundle_runs(network, optimizer)[run]
    outputs = len(BRANCHES[network])
    x, y = (a.astype(np.float64) for a in examples(TRAIN + VAL, outputs))
    step, _ = engine.cohort(spec, Signature(TRAIN, VAL, D_IN, outputs))
    _, params, _ = nnx.split(programs.build(step, D_IN, outputs), nnx.Param, ...)
    prefix = f"branches.{branch}."
    every = names_and_leaves(first_weights(params, 3))
    first = {name.removeprefix(prefix): leaf[run] for name, leaf in every.items() if name.startswith(prefix)}
    rate = 0.25 if "dropout" in changes else 0.0
    net = reference.Network(first, depth=2, leak=spec.leak, rate=rate, **changes)
    keep = (lambda t, rows: [mask(spec.seed, t, i, rows, rate) for i in range(2)]) if rate else None
    steps = batches(spec.seed, TRAIN, BATCH, EPOCHS)
    assert len(steps) == 200
    reference.train(net, x, y[:, [branch]], steps, optimizer, spec.learning_rate, spec.weight_decay, keep, outputs=outputs)
    return net, reference.forward(net, x)[0][:, 0]


CASES = [("test_activations", name) for name in optimizers] + [("test_parts", "adam"), ("test_parts", "sgd")]


def test_the_reference_knows_every_activation_and_optimiser():
    missing = sorted({*activations} - {*reference.ACTIVATIONS}), sorted({*optimizers} - {*reference.OPTIMIZERS} | {*optimizers} - {*RATES})
    assert missing == ([], []), "write them into tests/reference.py (an optimiser into RATES too), so that they are tested here"


@pytest.mark.parametrize(("network", "optimizer"), CASES)
def test_losses_and_outputs_after_200_steps_in_float32(network, optimizer):
    _, y = examples(TRAIN + VAL, len(BRANCHES[network]))
    _, _, predicted = trained_by_engine(network, optimizer)
    for branch, changes in enumerate(BRANCHES[network]):
        for run in range(3):
            _, wanted = trained_by_reference(network, optimizer, branch, run)
            got = predicted[run, :, branch].astype(np.float64)
            assert np.max(np.abs(got - wanted)) <= 1e-4 * np.max(np.abs(wanted)), (changes, run)
            for rows in (slice(0, TRAIN), slice(TRAIN, None)):
                target = y[rows, branch]
                np.testing.assert_allclose(np.mean((got[rows] - target) ** 2), np.mean((wanted[rows] - target) ** 2), rtol=1e-4)


@pytest.mark.parametrize(("network", "optimizer"), CASES)
def test_parameters_after_200_steps_in_float64(network, optimizer):
    with jax.enable_x64(True):
        first, last, predicted = trained_by_engine(network, optimizer)
    for branch, changes in enumerate(BRANCHES[network]):
        for run in range(3):
            net, wanted = trained_by_reference(network, optimizer, branch, run)
            for name, value in {**net.params, **net.averages}.items():
                got = last[next(full for full in last if full.endswith(f"branches.{branch}.{name}"))][run]
                np.testing.assert_allclose(got, value, rtol=0, atol=1e-8, err_msg=f"{changes}, run {run}, {name}")
            np.testing.assert_allclose(predicted[run, :, branch], wanted, rtol=0, atol=1e-7, err_msg=f"{changes}, run {run}")
