"""The engine trains as a plain NumPy loop does: same rows, same masks, same weights after 200 steps.

One program tests all activations and optimisers: its network has many branches, each an `mlp` of its own kind under an
optimiser of its own. The loss is the mean over the branches' outputs, so that no branch feels another.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from itertools import cycle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from flax import nnx
from tiers import tiered

from relu_study.components import random_streams
from relu_study.components.initializers import Initializer, he_normal
from relu_study.components.layers import Context, FeatureMajorBatch
from relu_study.components.optimizers import Optimizer
from relu_study.components.registry import activations, initializers, networks, optimizers, tasks
from relu_study.components.tasks.task import Signature, Task
from relu_study.engine import cohorts, compilation, train_tile
from relu_study.engine.state import MeasureConfig, State, build
from relu_study.study.run_spec import TRACED_FIELDS, RunSpec

D_IN, WIDTH, DEPTH = 3, 6, 2
TRAIN, VAL, BATCH = 80, 29, 16
STEPS, EPOCHS = 5, 40
DROP = 0.25  # a multiple of 2^-16: met exactly
RATES = {"adam": 0.01, "sgd": 0.1, "momentum": 0.01, "rmsprop": 0.003}
# Batch normalisation is under sgd: the bias before it has gradient 0, and in float32 adam makes steps of the rounding noise.
PARTS: tuple[dict[str, Any], ...] = (
    {"optimizer": "adam", "activation": "tanh", "output": "leaky_relu", "depth": 1},
    {"optimizer": "sgd", "activation": "relu", "norm": "batch_norm"},
    {"optimizer": "momentum", "activation": "selu", "dropout": "alpha_dropout", "depth": 1},
    {"optimizer": "rmsprop", "activation": "leaky_relu", "norm": "layer_norm"},
)
# Every activation, the optimisers taking turns, and the parts of a network.
TURNS = list(zip(activations, cycle(optimizers)))
BRANCHES = [{"optimizer": turn, "activation": name, "depth": 1} for name, turn in TURNS]
BRANCHES += [{"depth": DEPTH} | part for part in PARTS]
NAMES = ["-".join(str(value) for value in branch.values()) for branch in BRANCHES]


class Bundle(nnx.Module):
    """The branches, side by side."""

    bounded = True

    def __init__(self, spec: RunSpec, d_in: int, d_out: int, rngs: nnx.Rngs):
        assert d_out == len(BRANCHES)
        self.branches = nnx.List([networks["mlp"](spec.replace(**branch), d_in, 1, rngs=rngs) for branch in BRANCHES])

    def __call__(self, x: Any, ctx: Context) -> Any:
        beside = [branch(x, ctx) for branch in self.branches]
        if isinstance(x, FeatureMajorBatch):
            return FeatureMajorBatch(jnp.concatenate([columns.values for columns in beside]))
        return jnp.concatenate(beside, axis=1)


def each_its_own(learning_rate: Any, weight_decay: Any) -> optax.GradientTransformation:
    """The optimiser of a bundle: every branch has its own, the rate in units of RATES."""

    def label(path: Any, leaf: Any) -> str:
        return BRANCHES[path[1].key]["optimizer"]

    each = {name: optimizers[name](learning_rate * rate, weight_decay) for name, rate in RATES.items()}
    return optax.partition(each, lambda params: jax.tree_util.tree_map_with_path(label, params))


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
        patch.setitem(optimizers._entries, "test_each_its_own", Optimizer("test_each_its_own", each_its_own))
        yield


# ------------------------------------------------------------------------- what is drawn, outside the engine


@partial(jax.jit, static_argnums=2)
def visited(seed: Any, epoch: Any, rows: int) -> Any:
    return random_streams.shuffled(random_streams.order_key(seed, epoch), jnp.arange(rows, dtype=jnp.uint32), rows)


@cache
def batches(seed: int, rows: int, batch: int, epochs: float) -> list[np.ndarray]:
    """The rows of every step: full batches, then what is left; a fraction of an epoch is its first steps."""
    steps = []
    for done in range(int(np.ceil(epochs))):
        order = np.asarray(visited(np.uint32(seed), np.int32(done + 1), rows))
        cut = [order[at : at + batch] for at in range(0, rows, batch)]
        steps += cut[: round(min(1.0, epochs - done) * len(cut))]
    return steps


@partial(jax.jit, static_argnums=3)
def words(seed: Any, step: Any, site: Any, rows: int) -> Any:
    return random_streams.words(random_streams.stream(seed, "dropout", step, site), (rows, WIDTH)) >> 16


@cache
def masks(seed: int, depth: int, step: int, rows: int) -> list[np.ndarray]:
    """What dropout keeps at each site in one step."""
    return [np.asarray(words(np.uint32(seed), np.int32(step), np.int32(i), rows)) >= DROP * 65536 for i in range(depth)]


# ------------------------------------------------------------------------------ both trainings of a bundle

# The runs of one tile: they differ in every field that training feels.
BASE = RunSpec(network="test_bundle", optimizer="test_each_its_own", depth=DEPTH, width=WIDTH, batch_size=BATCH)
RUNS = [
    BASE.replace(seed=3, learning_rate=1.0, weight_decay=0.0, leak=0.01),
    BASE.replace(seed=2**32 - 1, learning_rate=0.6, weight_decay=0.05, leak=0.4),
]
SIGNATURE = Signature(TRAIN, VAL, D_IN, len(BRANCHES))


def by_name(tree: Any) -> dict[str, np.ndarray]:
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        parts = [str(getattr(k, "key", getattr(k, "name", k))) for k in path]
        named[".".join(part for part in parts if part != "value")] = np.asarray(leaf)
    return named


def blank() -> tuple[Any, Any, Any]:
    return nnx.split(build(cohorts.cohort(BASE, SIGNATURE)[0], D_IN, len(BRANCHES)), nnx.Param, nnx.BatchStat)


def first_weights(params: Any) -> Any:
    """For both runs: kernels and biases about 0, scales about 1, exact in float32."""
    rng = np.random.default_rng(6)

    def draw(path: Any, leaf: Any) -> Any:
        middle = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(middle + rng.normal(0, 0.5, (2, *leaf.shape)).astype(np.float32), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, params)


def trained_by_engine() -> State:
    """The state of both runs after 200 steps."""
    dtype = jnp.result_type(float)
    _, params, stats = blank()
    params, stats = first_weights(params), jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), stats)
    state = State(params, stats, jax.vmap(optimizers[BASE.optimizer](0.0, 0.0).init)(params))
    train = np.stack([np.concatenate(examples(TRAIN + VAL, len(BRANCHES)), axis=1)[:TRAIN].astype(dtype)] * 2)
    seeds = np.array([run.seed for run in RUNS], np.uint32)
    advance = compilation.advance_program(*cohorts.cohort(BASE, SIGNATURE))
    for epoch in range(1, EPOCHS + 1):
        state = advance(state, train, seeds, hparams_of_runs(), np.int32(epoch), np.int32(0), np.int32(STEPS))
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.stats))} == {np.dtype(dtype)}
    return state


def hparams_of_runs() -> dict[str, np.ndarray]:
    hparams = {name: np.array([getattr(run, name) for run in RUNS], jnp.result_type(float)) for name in TRACED_FIELDS}
    return {**hparams, "dropout_rate": np.full_like(hparams["dropout_rate"], DROP)}


@pytest.fixture(scope="module")
def predicted(entries: None) -> np.ndarray:
    """What the trained networks say of all rows, in float32: (run, row, branch)."""
    graph, _, _ = blank()
    x, state = jnp.asarray(examples(TRAIN + VAL, len(BRANCHES))[0]), trained_by_engine()

    def predict(params: Any, stats: Any, hparams: Any) -> Any:
        return nnx.merge(graph, params, stats)(x, Context(hparams))

    return np.asarray(jax.jit(jax.vmap(predict))(state.params, state.stats, hparams_of_runs()), np.float64)


@pytest.fixture(scope="module")
def in_float64(entries: None) -> dict[str, np.ndarray]:
    """The parameters and running averages after the training in float64."""
    with jax.enable_x64(True):
        state = trained_by_engine()
        return by_name(state.params) | by_name(state.stats)


def trained_by_reference(branch: int, run: int) -> tuple[reference.Network, np.ndarray]:
    """The last network, and its predictions on all rows."""
    spec, kind = RUNS[run], dict(BRANCHES[branch])
    optimizer, prefix = kind.pop("optimizer"), f"branches.{branch}."
    x, y = examples(TRAIN + VAL, len(BRANCHES))
    every = by_name(first_weights(blank()[1]))
    first = {name.removeprefix(prefix): leaf[run] for name, leaf in every.items() if name.startswith(prefix)}
    net = reference.Network(first, leak=spec.leak, rate=DROP, **kind)
    keep = partial(masks, spec.seed, net.depth) if net.dropout != "none" else None
    steps, rate = batches(spec.seed, TRAIN, BATCH, EPOCHS), spec.learning_rate * RATES[optimizer]
    assert len(steps) == 200
    reference.train(net, x, y[:, [branch]], steps, optimizer, rate, spec.weight_decay, keep, outputs=len(BRANCHES))
    return net, reference.forward(net, x)[0][:, 0]


def test_reference_covers_every_activation_and_optimiser():
    names, turns = ({*column} for column in zip(*TURNS))
    assert names <= {*reference.ACTIVATIONS}, "tests/support/reference.py lacks an activation: add its formula and slope"
    assert turns <= {*reference.OPTIMIZERS} & {*RATES}, "tests/support/reference.py (or RATES here) lacks an optimiser"


@pytest.mark.parametrize("run", [0, 1])
@pytest.mark.parametrize("branch", range(len(BRANCHES)), ids=NAMES)
def test_200_steps(branch, run, predicted, in_float64):
    """Losses and outputs to 1e-4 in float32, parameters and running averages to 1e-8 in float64."""
    net, wanted = trained_by_reference(branch, run)
    got, y = predicted[run, :, branch], examples(TRAIN + VAL, len(BRANCHES))[1][:, branch]
    assert np.max(np.abs(got - wanted)) <= 1e-4 * np.max(np.abs(wanted))
    for rows in (slice(0, TRAIN), slice(TRAIN, None)):
        loss, wanted_loss = (np.mean((z[rows] - y[rows]) ** 2) for z in (got, wanted))
        assert abs(loss - wanted_loss) <= 1e-4 * wanted_loss
    for name, value in {**net.params, **net.averages}.items():
        last = in_float64[f"branches.{branch}.{name}"][run]
        assert last.dtype == np.float64
        np.testing.assert_allclose(last, value, rtol=0, atol=1e-8, err_msg=name)


# --------------------------------------------------------------------------------------- tiles of the engine

# An epoch is 33 full batches, more than are gathered at once, and one of 2 rows; 5.5 epochs are 187 steps.
RELU = RunSpec(task="test_table", rows=101 + VAL, batch_size=3, depth=2, width=WIDTH, initializer="he_normal", epochs=5.5)
CURVE = RELU.replace(dropout="dropout", dropout_rate=DROP)
FEW = MeasureConfig(histograms=False, metrics=("train_loss", "val_loss", "dead_fraction", "update_norm"))
PAIR = [CURVE.replace(seed=8, learning_rate=3e-3), CURVE.replace(seed=5, bias_shift=0.1, weight_decay=0.1)]


Tile = dict[str, np.ndarray]


def tile_params(tile: Tile, run: Any) -> dict[str, np.ndarray]:
    return {name.removeprefix("param:"): value[run] for name, value in tile.items() if name.startswith("param:")}


def trained(runs: list[RunSpec], **changes: Any) -> dict[str, np.ndarray]:
    return train_tile.train_tile([run.replace(**changes) for run in runs], 2, measure_config=FEW, keep_params=True)


@pytest.fixture(scope="module")
def curves(entries: None) -> dict[str, np.ndarray]:
    return trained(PAIR)


def test_losses_of_every_epoch(curves):
    x, y = examples(CURVE.rows, 2)
    beginning = trained(PAIR, epochs=0)
    np.testing.assert_array_equal(curves["epoch"], [0, 1, 2, 3, 4, 5, 5.5])
    for run, spec in enumerate(PAIR):
        net = reference.Network(tile_params(beginning, run), depth=2, activation="relu", dropout="dropout", rate=DROP)
        memory, done = {}, 0
        steps = batches(spec.seed, 101, 3, spec.epochs)
        assert len(steps) == 187
        for epoch, number in enumerate(curves["epoch"]):
            until = round(number * 34)
            keep, rate, decay = partial(masks, spec.seed, spec.depth), spec.learning_rate, spec.weight_decay
            reference.train(net, x, y, steps[done:until], "adam", rate, decay, keep, memory, done)
            done = until
            for name, rows in (("train_loss", slice(0, 101)), ("val_loss", slice(101, None))):
                got, wanted = curves[f"metric:{name}/all"][run, epoch], reference.loss(net, x[rows], y[rows])
                assert abs(got - wanted) <= 1e-4 * wanted, f"{name}, epoch {number}, run {run}"
        assert reference.loss(net, x[:101], y[:101]) < 0.8 * curves["metric:train_loss/all"][run, 0]


def by_hand(runs: list[RunSpec], beginning: Tile, *parts: list[tuple[int, int, int]]) -> list[Tile]:
    """The parameters after each part of a training that is dispatched here, as (epoch, first step, last step + 1)."""
    signature = table(runs[0]).signature
    step, _ = cohorts.cohort(runs[0], signature)
    _, params, stats = nnx.split(build(step, D_IN, 2), nnx.Param, nnx.BatchStat)
    named = iter(tile_params(beginning, slice(None)).values())
    params = jax.tree.map(lambda _: jnp.asarray(next(named)), params)
    state = State(params, stats, jax.vmap(optimizers[step.optimizer](0.0, 0.0).init)(params))
    hparams = {name: np.array([getattr(run, name) for run in runs], np.float32) for name in TRACED_FIELDS}
    train = np.stack([np.concatenate(examples(CURVE.rows, 2), axis=1)[:101].astype(np.float32)] * len(runs))
    seeds, after = np.array([run.seed for run in runs], np.uint32), []
    for part in parts:
        for at in part:
            advance = compilation.advance_program(step, signature)
            state = advance(state, train, seeds, hparams, *map(np.int32, at))
        after.append({f"param:{name}": value for name, value in by_name(state.params).items()})
    return after


def test_fractional_epoch_is_a_prefix_of_the_epoch(curves):
    part, whole, beginning = (trained(PAIR, epochs=epochs) for epochs in (1.5, 3, 0))
    np.testing.assert_array_equal(part["epoch"], [0, 1, 1.5])
    for name in part:
        if name.startswith(("metric:", "dead:")):
            assert part[name][:, :2].tobytes() == whole[name][:, :2].tobytes() == curves[name][:, :2].tobytes(), name
    # The longer run passes through the end of the shorter one.
    passed, ended = by_hand(PAIR, beginning, [(1, 0, 34), (2, 0, 17)], [(2, 17, 34), (3, 0, 34)])
    for tile, mine in ((part, passed), (whole, ended)):
        for name, value in mine.items():
            assert value.tobytes() == tile[name].tobytes(), name


@pytest.mark.parametrize("whole", [0, 1])
def test_fraction_below_one_step_trains_nothing(whole):
    more, less = trained(PAIR, epochs=whole + 0.001), trained(PAIR, epochs=whole)
    for name, value in less.items():
        if name.startswith("param:"):
            assert more[name].tobytes() == value.tobytes()
    np.testing.assert_array_equal(more["metric:update_norm/all"][:, -1], 0)


@pytest.mark.parametrize("optimizer", tiered(["adam", "sgd"], "adam"))
def test_dead_unit_has_zero_gradient(optimizer):
    runs = [run.replace(initializer="test_one_far_below", weight_decay=0) for run in PAIR]
    before = trained(runs, epochs=0)
    (after,) = by_hand([run.replace(optimizer=optimizer, learning_rate=0.01) for run in runs], before, [(1, 0, 34), (2, 0, 34)])
    for layer in range(2):
        kernel, bias = f"param:hidden.{layer}.dense.kernel", f"param:hidden.{layer}.dense.bias"
        assert np.all(before[bias][:, 0] == np.float32(-100) + np.float32([0, 0.1]))
        assert np.all(before[kernel][..., 0] != 0)
        assert before[kernel][..., 0].tobytes() == after[kernel][..., 0].tobytes()
        assert before[bias][:, 0].tobytes() == after[bias][:, 0].tobytes()
        alive = np.any(before[kernel] != after[kernel], axis=1)[:, 1:] & (before[bias] != after[bias])[:, 1:]
        assert alive.mean() >= 0.5, "units beside the dead one learn"
