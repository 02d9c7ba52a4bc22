"""Training programs of a cohort: `sample`, `init` and `advance`, as pure functions of arrays.

`sample` draws the data of a run, and `init` its initial weights. `advance` trains all runs of a tile over steps of an epoch.
The engine maps `sample` and `init` over runs, and compiles all three. No program prints, calls back, or reads a clock or a
file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key, Shaped, UInt32

from relu_study.components import random_streams
from relu_study.components.initializers import Layer
from relu_study.components.layers import Context, Dense, FeatureMajorBatch
from relu_study.components.networks import initializer_of
from relu_study.components.optimizers import Optimizer, check_optimizer
from relu_study.components.options import program_options, values
from relu_study.components.registry import initializers, optimizers, ours
from relu_study.components.tasks.task import LOSSES, Signature, Task
from relu_study.engine.forward import Forward, forward_of, sites_of
from relu_study.engine.state import Data, MeasureConfig, State, TracedNumbers, Weights, build, pack, packed, unpack
from relu_study.errors import UserError
from relu_study.stats import histogram_bins
from relu_study.study.run_spec import RunSpec

BLOCK = 32  # maximum number of steps whose examples are shuffled and gathered together


def steps_per_epoch(train_rows: int, batch_size: int) -> int:
    """Return the steps per epoch: floor(n / B) full batches, and one batch of the n mod B remaining examples."""
    return -(-train_rows // batch_size)


def ranges(spec: RunSpec, signature: Signature, measure_config: MeasureConfig) -> dict[str, histogram_bins.Range]:
    """Return the ranges of linear histograms by name ("post:site_1"). Only bounded activations have one."""
    if not (measure_config.histograms and measure_config.linear_bins):
        return {}
    spans = [histogram_bins.bounded(activation.values) for activation, _ in sites_of(spec, signature)]
    return {f"post:site_{i}": span for i, span in enumerate(spans, 1) if span is not None}


def compiled_rates(spec: RunSpec, signature: Signature) -> dict[str, float]:
    """Return learning rate and weight decay as constants of the program. Empty if the optimiser accepts traced values."""
    if ours(optimizers[spec.optimizer]):
        return {}
    # Only the fields of the program enter the cache, so specs that differ in other fields share one check.
    program = RunSpec(**dict(spec.marked("program")), options=program_options(spec, "network", "activation", "optimizer"))
    rates = {"learning_rate": spec.learning_rate, "weight_decay": spec.weight_decay}
    shapes = signature._replace(train_rows=1, val_rows=1, loss="squared_error", metrics=())
    return {} if _accepts_traced(optimizers[spec.optimizer], program, shapes, *rates.values()) else rates


@functools.cache
def _accepts_traced(optimizer: Optimizer, program: RunSpec, signature: Signature, *rates: float) -> bool:
    return check_optimizer(optimizer, forward_of(program, signature).params, *rates)


# --------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class StepConfig:
    """The constants of a cohort's training program."""

    network: str
    forward: Forward
    options: Mapping[str, Any]  # of the activations, as constants
    signature: Signature
    optimizer: Optimizer
    optimizer_options: Mapping[str, Any]
    rates: Mapping[str, float]  # learning rate and weight decay, if they are compiled into the program
    loss: Callable[..., Array]
    rows: int  # training examples, n
    batch: int  # examples of a full batch, B

    @property
    def full(self) -> int:
        """Number of full batches per epoch."""
        return self.rows // self.batch

    @property
    def rest(self) -> int:
        """Number of examples in the last batch of an epoch, if it is not full; else 0."""
        return self.rows % self.batch

    @property
    def block(self) -> int:
        """Number of full batches per block. The examples of a block are gathered together."""
        return min(BLOCK, self.full)


class EpochInputs(NamedTuple):
    """The inputs of an epoch's steps, for W runs and S datasets."""

    data: Data  # training rows; the validation rows are not used
    order: UInt32[Array, "S 12"]  # keys of the shuffled order of examples
    dropout: Key[Array, " W"]  # keys of the dropout streams
    seed: UInt32[Array, " W"]
    hparams: Mapping[str, Float[Array, " W"]]
    epoch: Int[Array, ""]
    source: Int[Array, " W"] | None  # dataset of each run; None: one dataset per run


def make_advance(spec: RunSpec, signature: Signature) -> Callable[..., State]:
    """Build `advance(state, train, seed, hparams, epoch, start, stop, source, table)`: train W runs over steps start..stop-1.

    The steps belong to one epoch; epochs count from 1. Steps 0..floor(n / B)-1 take full batches. If B does not divide n,
    the last step of an epoch takes the n mod B remaining examples, in a separate step body.
    Run i reads dataset source[i] of the S datasets in `train`, which are rows, or indices of a `table` of rows. Runs of the
    same data and seed visit the same examples in the same order, so each batch is gathered once for all of them. Without
    `source`, each run has its own dataset.
    """
    config = step_config(spec, signature)
    full, block = config.full, config.block

    def advance(
        state: State,
        train: Any,
        seed: UInt32[Array, " W"],
        hparams: Mapping[str, Float[Array, " W"]],
        epoch: Int[Array, ""],
        start: Int[Array, ""],
        stop: Int[Array, ""],
        source: Int[Array, " W"] | None = None,
        table: Any = None,
    ) -> State:
        inputs = epoch_inputs(Data(train, None, table), seed, hparams, epoch, source)

        def one_block(j: Int[Array, ""], state: State) -> State:
            return run_block(config, inputs, j, state, start, stop)

        stop_block = (jnp.minimum(stop, full) + block - 1) // block
        state = jax.lax.fori_loop(start // block, stop_block, one_block, state)
        if config.rest == 0:
            return state
        remainder = functools.partial(run_remainder, config, inputs)
        return jax.lax.cond((stop > full) & (start <= full), remainder, lambda s: s, state)

    return advance


def step_config(spec: RunSpec, signature: Signature) -> StepConfig:
    """Return the constants of the training program of a spec."""
    return StepConfig(
        network=spec.network,
        forward=forward_of(spec, signature),
        options=values(spec, "activation"),
        signature=signature,
        optimizer=optimizers[spec.optimizer],
        optimizer_options=values(spec, "optimizer"),
        rates=compiled_rates(spec, signature),
        loss=LOSSES[signature.loss],
        rows=signature.train_rows,
        batch=min(spec.batch_size, signature.train_rows),
    )


def epoch_inputs(
    data: Data,
    seed: UInt32[Array, " W"],
    hparams: Mapping[str, Float[Array, " W"]],
    epoch: Int[Array, ""],
    source: Int[Array, " W"] | None,
) -> EpochInputs:
    """Return the inputs of an epoch, with the keys of its shuffled order and of its dropout."""
    # All runs of a dataset have the same seed, so the order of the writes does not matter. Unused datasets get seed 0.
    datasets = jax.tree.leaves(data.train)[0].shape[0]
    dataset_seeds = seed if source is None else jnp.zeros(datasets, jnp.uint32).at[source].set(seed)
    order = jax.vmap(lambda s: random_streams.order_key(s, epoch))(dataset_seeds)
    dropout = jax.vmap(lambda s: random_streams.stream(s, "dropout"))(seed)
    return EpochInputs(data, order, dropout, seed, hparams, epoch, source)


def run_block(
    config: StepConfig, inputs: EpochInputs, j: Int[Array, ""], state: State, start: Int[Array, ""], stop: Int[Array, ""]
) -> State:
    """Train over the steps of block j within start..stop-1. The examples of the block are gathered together."""
    block = config.block
    xy = gather(config, inputs, j * block * config.batch, block, config.batch)

    def one_step(k: Int[Array, ""], state: State) -> State:
        batch = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, k, axis=1, keepdims=False), xy)
        return step(config, inputs, state, batch, j * block + k)

    first, end = jnp.maximum(start - j * block, 0), jnp.minimum(jnp.minimum(stop, config.full) - j * block, block)
    return jax.lax.fori_loop(first, end, one_step, state)


def run_remainder(config: StepConfig, inputs: EpochInputs, state: State) -> State:
    """Train over the last step of an epoch, with the n mod B remaining examples."""
    xy = gather(config, inputs, jnp.asarray(config.full * config.batch), 1, config.rest)
    return step(config, inputs, state, jax.tree.map(lambda leaf: leaf[:, 0], xy), jnp.asarray(config.full))


def gather(config: StepConfig, inputs: EpochInputs, first: Int[Array, ""], steps: int, size: int) -> Any:
    """Return the K = `steps` batches of b = `size` rows from position `first` of the shuffled order, for each of S datasets.

    The leaves are S x K x b x ..., of packed rows S x K x DO x b.
    """
    rows = config.rows
    # The last block may exceed the dataset. Its clipped positions are gathered, but no step uses them.
    positions = jnp.minimum(first + jnp.arange(steps * size), rows - 1).astype(jnp.uint32)

    def in_batches(leaf: Shaped[Array, "Kb ..."]) -> Shaped[Array, "K ..."]:
        batches = leaf.reshape(steps, size, *leaf.shape[1:])
        return batches.swapaxes(1, 2) if packed(config.signature) else batches

    def gather_dataset(key: Array, dataset: Any) -> Any:
        # If XLA fuses the rounds of the order with a gather of few rows, LLVM of JAX 0.12 compiles for over ten minutes.
        index = jax.lax.optimization_barrier(random_streams.shuffled(key, positions, rows).astype(jnp.int32))
        chosen = jax.tree.map(lambda leaf: leaf.at[index].get(mode="promise_in_bounds"), dataset)
        return jax.tree.map(in_batches, inputs.data.rows(chosen))

    return jax.vmap(gather_dataset)(inputs.order, inputs.data.train)


def step(config: StepConfig, inputs: EpochInputs, state: State, xy: Any, k: Int[Array, ""]) -> State:
    """Train W runs over step k of an epoch, on one batch of each dataset. Step numbers are unique over all epochs."""
    number = (inputs.epoch - 1) * (config.full + (config.rest > 0)) + k
    keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(inputs.dropout)
    batches = xy if inputs.source is None else jax.tree.map(lambda x: x.at[inputs.source].get(mode="promise_in_bounds"), xy)
    return jax.vmap(functools.partial(update, config))(state, batches, keys, inputs.hparams, inputs.seed)


def update(config: StepConfig, state: State, xy: Any, key: Array, hparams: TracedNumbers, seed: UInt32[Array, ""]) -> State:
    """Update one run on one batch: compute the gradient of the loss, then take a step of the optimiser."""

    def loss(params: Any) -> tuple[Array, Any]:
        return batch_loss(config, params, state.stats, xy, Context({**config.options, **hparams}, train=True, key=key))

    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    rates: dict[str, float | Array] = {**hparams, **config.rates}
    updates, opt = config.optimizer.updates(
        grads,
        state.opt,
        state.params,
        rates["learning_rate"],
        rates["weight_decay"],
        seed,
        value,
        lambda params: loss(params)[0],
        {**config.optimizer_options, **hparams},
    )
    return State(optax.apply_updates(state.params, updates), stats, opt)


def batch_loss(config: StepConfig, params: Any, stats: Any, xy: Any, ctx: Context) -> tuple[Array, Any]:
    """Return the loss of a batch and the other variables after it."""
    forward, d_in = config.forward, config.signature.d_in
    if not packed(config.signature):
        x, y = unpack(config.signature, xy)
    else:  # columns are examples
        x, y = FeatureMajorBatch(xy[:d_in]) if forward.feature_major else xy[:d_in].T, xy[d_in:].T
    output, stats = forward.apply(params, stats, x, ctx)
    if forward.feature_major and not isinstance(output, FeatureMajorBatch):
        raise UserError(
            f"network {config.network!r} is declared bounded but does not return a FeatureMajorBatch. Omit `bounded`."
        )
    return config.loss(output.values.T if forward.feature_major else output, y), stats


# ----------------------------------------------------------------------------------- initial state


def make_init(spec: RunSpec, d_in: int, d_out: int) -> Callable[..., Weights]:
    """Build `init(seed, hparams, x)`: the initial weights of one run, from the inputs `x` of its probe set.

    One forward pass of the probe set initialises each Dense before its call, so an initialiser receives the layer's actual
    inputs. `gain` and `bias_shift` change all layers except the last.
    """
    scheme, output_scheme = initializers[initializer_of(spec)], initializers["glorot_uniform"]

    def init(seed: UInt32[Array, ""], hparams: TracedNumbers, x: Float[Array, "N D"]) -> Weights:
        model = build(spec, d_in, d_out)
        depth = sum(isinstance(module, Dense) for _, module in nnx.iter_modules(model))
        initialised: list[Dense] = []

        def initialise(dense: Dense, inputs: Float[Array, "N D"]) -> None:
            fan_in, fan_out = dense.kernel.shape
            layer = Layer(len(initialised), depth, fan_in, fan_out, last=len(initialised) == depth - 1)
            initialised.append(dense)
            key = random_streams.stream(seed, "init", layer.index)
            if layer.last and not scheme.output:  # the scheme is for hidden layers only
                kernel, bias = output_scheme(key, layer, inputs)
            else:
                kernel, bias = scheme(key, layer, inputs)
            if not layer.last:
                kernel, bias = kernel * hparams["gain"], bias + hparams["bias_shift"]
            dense.kernel[...], dense.bias[...] = kernel, bias

        model(x, Context(hparams, init_hook=initialise))
        _, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
        return Weights(params, stats)

    return init


def make_sample(task: Task, phase: int, val_rows: int | None = None) -> Callable[..., Data]:
    """Build `sample(seed)`: the data of one run, with the first `val_rows` validation rows (None: all), which are measured.

    Traced options of the task are further arguments by name.
    """
    signature = task.signature

    def sample(seed: UInt32[Array, ""], **options: Any) -> Data:
        rows = pack(signature, *task.sample(random_streams.stream(seed, "data", phase), phase, **options))
        return parts(signature, rows, val_rows)

    return sample


def make_split(task: Task, phase: int, val_rows: int | None = None) -> Callable[..., Data]:
    """Build `split(seed)`: the data of one run of a task with a table, as indices into its rows."""
    assert task.split is not None
    split = task.split

    def indices(seed: UInt32[Array, ""]) -> Data:
        chosen = split(random_streams.stream(seed, "data", phase), phase).astype(jnp.int32)
        return parts(task.signature, chosen, val_rows)

    return indices


def parts(signature: Signature, rows: Any, val_rows: int | None) -> Data:
    """Return the training rows, and the validation rows that are measured."""
    n = signature.train_rows
    end = n + (signature.val_rows if val_rows is None else val_rows)
    return Data(jax.tree.map(lambda leaf: leaf[:n], rows), jax.tree.map(lambda leaf: leaf[n:end], rows))
