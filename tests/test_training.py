"""The engine trains as a plain NumPy loop does: same rows, same masks, same weights after 200 steps.

Each optimiser trains one network of many branches, each branch an `mlp` of its own kind: the loss is the mean over the
branches' outputs, so that no branch feels another, and one program tests them all.
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
from relu_study.initializers import Initializer, he_normal
from relu_study.programs import Probing, State
from relu_study.registry import activations, initializers, networks, optimizers, tasks
from relu_study.sites import Context
from relu_study.spec import KNOBS, RunSpec
from relu_study.tasks import Signature, Task

D_IN, WIDTH, DEPTH = 3, 6, 2
TRAIN, VAL, BATCH = 70, 29, 16  # epochs of 4 full batches and one of 6 rows
STEPS, EPOCHS = 5, 40
DROP = 0.25  # a multiple of 2^-16: met exactly
RATES = {"adam": 0.01, "sgd": 0.1, "momentum": 0.01, "rmsprop": 0.003}
# Batch normalisation under adam is left to float64: the bias before it has gradient 0, and adam makes steps of the rounding noise.
PARTS: dict[str, tuple[dict[str, Any], ...]] = {
    "adam": ({"activation": "relu", "dropout": "dropout"}, {"activation": "tanh", "output": "leaky_relu"}),
    "sgd": ({"activation": "relu", "norm": "batch_norm"}, {"activation": "tanh", "norm": "batch_norm", "dropout": "dropout"}),
    "momentum": ({"activation": "selu", "dropout": "alpha_dropout"},),
    "rmsprop": ({"activation": "leaky_relu", "norm": "layer_norm"},),
}


def branches(optimizer: str) -> list[dict[str, Any]]:
    """What this optimiser trains: its share of all activations, and the parts of a network given to it."""
    names, every = list(optimizers), list(activations)
    share = [{"activation": name, "depth": 1} for name in every[names.index(optimizer) :: len(names)]]
    return share + [{"depth": DEPTH, **parts} for parts in PARTS.get(optimizer, ())]


class Bundle(nnx.Module):
    """The branches of an optimiser, side by side."""

    def __init__(self, spec: RunSpec, d_in: int, d_out: int, rngs: nnx.Rngs):
        kinds = branches(spec.optimizer)
        assert d_out == len(kinds)
        self.branches = nnx.List([networks["mlp"](spec.but(**kind), d_in, 1, rngs=rngs) for kind in kinds])

    def __call__(self, x: Any, ctx: Context) -> Any:
        return jnp.concatenate([branch(x, ctx) for branch in self.branches], axis=1)


def examples(rows: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and noisy smooth targets, exact in float32."""
    rng = np.random.default_rng(20)
    x = rng.normal(size=(rows, D_IN))
    y = np.sin(x @ rng.normal(size=(D_IN, outputs))) + 0.3 * rng.normal(size=(rows, outputs)) + 0.5
    return x.astype(np.float32).astype(np.float64), y.astype(np.float32).astype(np.float64)


def table(spec: RunSpec) -> Task:
    """A task of `spec.rows` fixed examples with two targets, all but VAL of them for training."""
    x, y = examples(spec.rows, 2)
    return Task(Signature(spec.rows - VAL, VAL, D_IN, 2), lambda key, phase: (jnp.asarray(x), jnp.asarray(y)))


def one_far_below(key: Any, layer: Any, inputs: Any) -> tuple[Any, Any]:
    """He normal, but unit 0 of each hidden layer is off on every example."""
    kernel, bias = he_normal(key, layer, inputs)
    return kernel, bias.at[0].set(-100.0)


@pytest.fixture(scope="module", autouse=True)
def entries() -> Iterator[None]:
    """The entries of these tests, gone again for tests that read the registries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks._entries, "test_table", table)
        patch.setitem(initializers._entries, "test_one_far_below", Initializer(one_far_below))
        patch.setitem(networks._entries, "test_bundle", Bundle)
        yield


# ------------------------------------------------------------------------- what is drawn, outside the engine


@lru_cache(maxsize=None)
def visits(rows: int) -> Any:
    """(seed, epoch) -> the rows in the order in which that epoch visits them."""
    return jax.jit(lambda seed, epoch: prng.shuffled(prng.order_key(seed, epoch), jnp.arange(rows, dtype=jnp.uint32), rows))


def batches(seed: int, rows: int, batch: int, epochs: float) -> list[np.ndarray]:
    """The rows of every step: full batches, then what is left; a fraction of an epoch is its first steps."""
    steps = []
    for done in range(int(np.ceil(epochs))):
        order = np.asarray(visits(rows)(np.uint32(seed), np.int32(done + 1)))
        cut = [order[at : at + batch] for at in range(0, rows, batch)]
        steps += cut[: round(min(1.0, epochs - done) * len(cut))]
    return steps


@lru_cache(maxsize=None)
def words(rows: int) -> Any:
    """(seed, step, site) -> the random words of one dropout mask."""

    def draw(seed: Any, step: Any, site: Any) -> Any:
        return jax.random.bits(prng.stream(seed, "dropout", step, site), (rows, WIDTH), jnp.uint16)

    return jax.jit(draw)


@lru_cache(maxsize=None)
def masks(seed: int, step: int, rows: int) -> list[np.ndarray]:
    """What dropout keeps at each site in one step."""
    return [np.asarray(words(rows)(np.uint32(seed), np.int32(step), np.int32(site))) >= DROP * 65536 for site in range(DEPTH)]


# ------------------------------------------------------------------------------ both trainings of a bundle


def bundle_runs(optimizer: str) -> list[RunSpec]:
    """The runs of one tile; they differ in every knob that training feels."""
    base = RunSpec(network="test_bundle", depth=DEPTH, width=WIDTH, batch_size=BATCH, optimizer=optimizer)
    knobs = ((3, 1.0, 0.0, 0.01), (2**32 - 1, 0.6, 0.05, 0.4))
    return [base.but(seed=s, learning_rate=RATES[optimizer] * r, weight_decay=w, leak=k) for s, r, w, k in knobs]


def by_name(tree: Any) -> dict[str, np.ndarray]:
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        parts = [str(getattr(k, "key", getattr(k, "name", k))) for k in path]
        named[".".join(part for part in parts if part != "value")] = np.asarray(leaf)
    return named


def blank(optimizer: str) -> tuple[Any, Any, Any]:
    outputs = len(branches(optimizer))
    step, _ = engine.cohort(bundle_runs(optimizer)[0], Signature(TRAIN, VAL, D_IN, outputs))
    return nnx.split(programs.build(step, D_IN, outputs), nnx.Param, nnx.BatchStat)


def first_weights(params: Any) -> Any:
    """For both runs: kernels and biases about 0, scales about 1, exact in float32."""
    rng = np.random.default_rng(4)

    def draw(path: Any, leaf: Any) -> Any:
        middle = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(middle + rng.normal(0, 0.5, (2, *leaf.shape)).astype(np.float32), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, params)


def trained_by_engine(optimizer: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The last parameters and running averages by name, and the predictions on all rows, runs first."""
    runs, dtype, outputs = bundle_runs(optimizer), jnp.result_type(float), len(branches(optimizer))
    x, y = examples(TRAIN + VAL, outputs)
    graph, params, stats = blank(optimizer)
    params, stats = first_weights(params), jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), stats)
    state = State(params, stats, jax.vmap(optimizers[optimizer](0.0, 0.0).init)(params))
    knobs = {name: np.array([getattr(run, name) for run in runs], dtype) for name in KNOBS}
    knobs["dropout_rate"] = np.full(2, DROP, dtype)
    train = np.stack([np.concatenate([x, y], axis=1)[:TRAIN].astype(dtype)] * 2)
    seeds = np.array([run.seed for run in runs], np.uint32)
    advance = engine.programs(*engine.cohort(runs[0], Signature(TRAIN, VAL, D_IN, outputs)), Probing(), False).advance
    for epoch in range(1, EPOCHS + 1):
        state = advance(state, train, seeds, knobs, np.int32(epoch), np.int32(0), np.int32(STEPS))
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.stats))} == {np.dtype(dtype)}

    def predict(params: Any, stats: Any, knobs: Any) -> Any:
        return nnx.merge(graph, params, stats)(jnp.asarray(x, dtype), Context(knobs))

    predicted = jax.jit(jax.vmap(predict))(state.params, state.stats, knobs)
    return by_name((state.params, state.stats)), np.asarray(predicted, np.float64)


@lru_cache(maxsize=None)
def trained_by_reference(optimizer: str, branch: int, run: int) -> tuple[reference.Network, np.ndarray]:
    kinds, spec = branches(optimizer), bundle_runs(optimizer)[run]
    x, y = examples(TRAIN + VAL, len(kinds))
    prefix = f"branches.{branch}."
    every = by_name(first_weights(blank(optimizer)[1]))
    first = {name.removeprefix(prefix): leaf[run] for name, leaf in every.items() if name.startswith(prefix)}
    net = reference.Network(first, leak=spec.leak, rate=DROP, **kinds[branch])
    steps = batches(spec.seed, TRAIN, BATCH, EPOCHS)
    assert len(steps) == 200
    reference.train(
        net,
        x,
        y[:, [branch]],
        steps,
        optimizer,
        spec.learning_rate,
        spec.weight_decay,
        keep=(lambda step, rows: masks(spec.seed, step, rows)) if net.dropout != "none" else None,
        outputs=len(kinds),
    )
    return net, reference.forward(net, x)[0][:, 0]


def test_the_reference_knows_every_activation_and_optimiser():
    assert set(activations) <= set(reference.ACTIVATIONS), "tests/reference.py lacks an activation: write its formula and slope there"
    assert set(optimizers) <= set(reference.OPTIMIZERS) & set(RATES), "tests/reference.py (and RATES here) lacks an optimiser"


@pytest.mark.parametrize("optimizer", optimizers)
def test_losses_and_outputs_after_200_steps_in_float32(optimizer):
    kinds = branches(optimizer)
    _, y = examples(TRAIN + VAL, len(kinds))
    _, predicted = trained_by_engine(optimizer)
    for branch, kind in enumerate(kinds):
        for run in range(2):
            _, wanted = trained_by_reference(optimizer, branch, run)
            got = predicted[run, :, branch]
            assert np.max(np.abs(got - wanted)) <= 1e-4 * np.max(np.abs(wanted)), f"outputs of {kind}, run {run}"
            for rows in (slice(0, TRAIN), slice(TRAIN, None)):
                loss, wanted_loss = (np.mean((z[rows] - y[rows, branch]) ** 2) for z in (got, wanted))
                assert abs(loss - wanted_loss) <= 1e-4 * wanted_loss, f"loss of {kind}, run {run}"


@pytest.mark.parametrize("optimizer", optimizers)
def test_parameters_after_200_steps_in_float64(optimizer):
    with jax.enable_x64(True):
        last, predicted = trained_by_engine(optimizer)
    for branch, kind in enumerate(branches(optimizer)):
        for run in range(2):
            net, wanted = trained_by_reference(optimizer, branch, run)
            np.testing.assert_allclose(predicted[run, :, branch], wanted, rtol=0, atol=1e-7, err_msg=f"outputs of {kind}, run {run}")
            for name, value in {**net.params, **net.averages}.items():
                (got,) = (leaf for full, leaf in last.items() if full.endswith(f"branches.{branch}.{name}"))
                np.testing.assert_allclose(got[run], value, rtol=0, atol=1e-8, err_msg=f"{name} of {kind}, run {run}")


# --------------------------------------------------------------------------------------- tiles of the engine

# An epoch is 35 full batches, more than are gathered at once, and one row; 5.5 epochs are 198 steps.
CURVE = RunSpec(task="test_table", rows=71 + VAL, batch_size=2, depth=3, width=6, initializer="he_normal", epochs=5.5)
PAIR = [CURVE.but(seed=8, learning_rate=3e-3), CURVE.but(seed=5, bias_shift=0.1, weight_decay=0.1)]


def tile_params(tile: dict[str, np.ndarray], run: int) -> dict[str, np.ndarray]:
    return {name.removeprefix("param:"): value[run] for name, value in tile.items() if name.startswith("param:")}


def trained(runs: list[RunSpec], **changes: Any) -> dict[str, np.ndarray]:
    return engine.train_tile([run.but(**changes) for run in runs], 2, keep_params=True)


@pytest.fixture(scope="module")
def curves(entries: None) -> dict[str, np.ndarray]:
    return trained(PAIR)


def test_losses_of_every_epoch(curves):
    x, y = examples(CURVE.rows, 2)
    beginning = trained(PAIR, epochs=0)
    np.testing.assert_array_equal(curves["epoch"], [0, 1, 2, 3, 4, 5, 5.5])
    for run, spec in enumerate(PAIR):
        net, memory, done = reference.Network(tile_params(beginning, run), depth=3, activation="relu"), {}, 0
        steps = batches(spec.seed, 71, 2, spec.epochs)
        assert len(steps) == 198
        for epoch, number in enumerate(curves["epoch"]):
            until = round(number * 36)
            reference.train(net, x, y, steps[done:until], "adam", spec.learning_rate, spec.weight_decay, memory=memory)
            done = until
            for name, rows in (("train_loss", slice(0, 71)), ("val_loss", slice(71, None))):
                wanted = reference.loss(net, x[rows], y[rows])
                np.testing.assert_allclose(curves[f"metric:{name}/all"][run, epoch], wanted, rtol=1e-4, err_msg=f"{name}, epoch {number}")
        assert reference.loss(net, x[:71], y[:71]) < 0.8 * curves["metric:train_loss/all"][run, 0]


def by_hand(runs: list[RunSpec], beginning: dict[str, np.ndarray], *parts: list[tuple[int, int, int]]) -> list[dict[str, np.ndarray]]:
    """The parameters after each part of a training that is dispatched here, as (epoch, first step, last step + 1)."""
    signature = table(runs[0]).signature
    step, _ = engine.cohort(runs[0], signature)
    _, params, stats = nnx.split(programs.build(step, D_IN, 2), nnx.Param, nnx.BatchStat)
    named = iter(tile_params(beginning, slice(None)).values())
    params = jax.tree.map(lambda _: jnp.asarray(next(named)), params)
    state = State(params, stats, jax.vmap(optimizers[step.optimizer](0.0, 0.0).init)(params))
    knobs = {name: np.array([getattr(run, name) for run in runs], np.float32) for name in KNOBS}
    train = np.stack([np.concatenate(examples(CURVE.rows, 2), axis=1)[:71].astype(np.float32)] * len(runs))
    seeds, after = np.array([run.seed for run in runs], np.uint32), []
    for part in parts:
        for at in part:
            advance = engine.programs(step, signature, Probing(), False).advance
            state = advance(state, train, seeds, knobs, *map(np.int32, at))
        after.append({f"param:{name}": value for name, value in by_name(state.params).items()})
    return after


def test_a_fraction_of_an_epoch_is_the_beginning_of_it(curves):
    part, whole, beginning = (trained(PAIR, epochs=epochs) for epochs in (1.5, 3, 0))
    np.testing.assert_array_equal(part["epoch"], [0, 1, 1.5])
    for name in part:
        if name.startswith(("metric:", "dead:")):
            assert part[name][:, :2].tobytes() == whole[name][:, :2].tobytes() == curves[name][:, :2].tobytes(), name
    # The longer run passes through the end of the shorter one.
    passed, ended = by_hand(PAIR, beginning, [(1, 0, 36), (2, 0, 18)], [(2, 18, 36), (3, 0, 36)])
    for tile, mine in ((part, passed), (whole, ended)):
        for name, value in mine.items():
            assert value.tobytes() == tile[name].tobytes(), name


@pytest.mark.parametrize("whole", [0, 1])
def test_a_fraction_of_less_than_a_step_trains_nothing(whole):
    more, less = trained(PAIR, epochs=whole + 0.001), trained(PAIR, epochs=whole)
    for name, value in less.items():
        if name.startswith("param:"):
            assert more[name].tobytes() == value.tobytes()
    np.testing.assert_array_equal(more["metric:update_norm/all"][:, -1], 0)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_dead_unit_gets_no_gradient(optimizer):
    runs = [run.but(initializer="test_one_far_below", weight_decay=0) for run in PAIR]
    before = trained(runs, epochs=0)
    (after,) = by_hand([run.but(optimizer=optimizer, learning_rate=0.01) for run in runs], before, [(1, 0, 36), (2, 0, 36)])
    for layer in range(3):
        kernel, bias = f"param:hidden.{layer}.dense.kernel", f"param:hidden.{layer}.dense.bias"
        assert np.all(before[bias][:, 0] == np.float32(-100) + np.float32([0, 0.1]))
        assert np.all(before[kernel][..., 0] != 0)
        assert before[kernel][..., 0].tobytes() == after[kernel][..., 0].tobytes()
        assert before[bias][:, 0].tobytes() == after[bias][:, 0].tobytes()
        alive = np.any(before[kernel] != after[kernel], axis=1)[:, 1:] & (before[bias] != after[bias])[:, 1:]
        assert alive.mean() >= 0.5, "units beside the dead one learn"
