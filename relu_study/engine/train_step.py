"""The programs `sample`, `init` and `advance`, as pure functions of arrays.

`sample` draws the data of a run, `init` its initial weights. `advance` trains all runs of a tile over steps of an epoch.
The engine maps `sample` and `init` over runs and compiles all three.
Nothing here prints, calls back, or reads a clock or a file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt32

from relu_study.components import random_streams
from relu_study.components.initializers import Layer
from relu_study.components.layers import Context, Dense, FeatureMajorBatch
from relu_study.components.optimizers import Optimizer, check_optimizer
from relu_study.components.registry import activations, initializers, optimizers, ours
from relu_study.components.tasks.task import LOSSES, Signature, Task, targets
from relu_study.engine.state import Data, MeasureConfig, State, TracedNumbers, Weights, build, components_of, sites_of
from relu_study.errors import UserError
from relu_study.stats import histogram_bins
from relu_study.study.run_spec import RunSpec

BLOCK = 32  # steps whose examples are shuffled and gathered together


def steps_per_epoch(train_rows: int, batch_size: int) -> int:
    """Steps per epoch: floor(n / B) full batches, and one batch of the n mod B remaining examples."""
    return -(-train_rows // batch_size)


def ranges(spec: RunSpec, signature: Signature, probing: MeasureConfig) -> dict[str, histogram_bins.Range]:
    """The ranges of the linear histograms by name ("post:site_1"), for the sites with bounded activations."""
    if not (probing.histograms and probing.linear_bins):
        return {}
    found = [histogram_bins.bounded(activations[name].values) for name, _ in sites_of(spec, signature)]
    return {f"post:site_{i}": span for i, span in enumerate(found, 1) if span is not None}


def compiled_rates(spec: RunSpec, signature: Signature) -> dict[str, float]:
    """Learning rate and weight decay as program constants, if the optimiser does not accept traced values; else empty."""
    if ours(optimizers[spec.optimizer]):
        return {}
    step, rates = RunSpec(**dict(spec.marked("program"))), (spec.learning_rate, spec.weight_decay)
    traced = _traced(optimizers[spec.optimizer], step, signature.d_in, signature.d_out, *rates)
    return {} if traced else dict(zip(("learning_rate", "weight_decay"), rates, strict=True))


@functools.cache
def _traced(optimizer: Optimizer, step: RunSpec, d_in: int, d_out: int, *rates: float) -> bool:
    return check_optimizer(optimizer, components_of(step, Signature(1, 1, d_in, d_out))[2], *rates)


# --------------------------------------------------------------------------------------- training


def make_advance(spec: RunSpec, signature: Signature) -> Callable[..., State]:
    """Build `advance(state, train, seed, knobs, epoch, start, stop, source)`: train W runs over steps start..stop-1 of an epoch.

    Epochs count from 1. Steps 0..floor(n / B)-1 take full batches. If B does not divide n, the last step of an epoch
    takes the n mod B remaining examples, in a separate step body.
    Run i reads dataset source[i] of the S datasets in `train`. Runs of the same data and seed visit the same examples in
    the same order, so these are fetched once. Without `source`, each run has its own dataset.
    """
    graph, columns, _ = components_of(spec, signature)
    optimizer, constants = optimizers[spec.optimizer], compiled_rates(spec, signature)
    loss_of = LOSSES[signature.loss]
    rows, batch, d_in = signature.train_rows, min(spec.batch_size, signature.train_rows), signature.d_in
    full, rest = divmod(rows, batch)
    block = min(BLOCK, full)

    def update(state: State, xy: Float[Array, "DO B"], key: Array, knobs: TracedNumbers, seed: UInt32[Array, ""]) -> State:
        def loss(params: Any) -> tuple[Array, Any]:
            model, ctx = nnx.merge(graph, params, state.stats, copy=True), Context(knobs, train=True, key=key)
            output = model(FeatureMajorBatch(xy[:d_in]) if columns else xy[:d_in].T, ctx)
            if columns and not isinstance(output, FeatureMajorBatch):
                raise UserError(
                    f"network {spec.network!r} is declared bounded but does not return a FeatureMajorBatch. Omit `bounded`."
                )
            return loss_of(output.values.T if columns else output, xy[d_in:].T), nnx.state(model, nnx.BatchStat)

        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        rates = {**knobs, **constants}
        updates, opt = optimizer.updates(
            grads,
            state.opt,
            state.params,
            rates["learning_rate"],
            rates["weight_decay"],
            seed,
            value,
            lambda params: loss(params)[0],
        )
        return State(optax.apply_updates(state.params, updates), stats, opt)

    def advance(
        state: State,
        train: Float[Array, "S n DO"],
        seed: UInt32[Array, " W"],
        knobs: Mapping[str, Float[Array, " W"]],
        epoch: Int[Array, ""],
        start: Int[Array, ""],
        stop: Int[Array, ""],
        source: Int[Array, " W"] | None = None,
    ) -> State:
        # All readers of a dataset have the same seed, so the order of writes does not matter. Unused datasets get seed 0.
        dataset_seeds = seed if source is None else jnp.zeros(train.shape[0], jnp.uint32).at[source].set(seed)
        order = jax.vmap(lambda s: random_streams.order_key(s, epoch))(dataset_seeds)
        dropout = jax.vmap(lambda s: random_streams.stream(s, "dropout"))(seed)

        def gather(first: Int[Array, ""], steps: int, size: int) -> Float[Array, "S K DO b"]:
            # Positions beyond the last block are gathered but never used.
            inside = jnp.minimum(first + jnp.arange(steps * size), rows - 1).astype(jnp.uint32)

            def gather_dataset(key: Array, dataset: Float[Array, "n DO"]) -> Float[Array, "K DO b"]:
                index = random_streams.shuffled(key, inside, rows).astype(jnp.int32)
                xy = dataset.at[index].get(mode="promise_in_bounds")
                return xy.reshape(steps, size, -1).swapaxes(1, 2)

            return jax.vmap(gather_dataset)(order, train)

        def step(state: State, xy: Float[Array, "S DO b"], k: Int[Array, ""]) -> State:
            number = (epoch - 1) * (full + (rest > 0)) + k
            keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(dropout)
            batches = xy if source is None else xy.at[source].get(mode="promise_in_bounds")
            return jax.vmap(update)(state, batches, keys, knobs, seed)

        def run_block(j: Int[Array, ""], state: State) -> State:
            xy = gather(j * block * batch, block, batch)

            def one(k: Int[Array, ""], state: State) -> State:
                return step(state, jax.lax.dynamic_index_in_dim(xy, k, axis=1, keepdims=False), j * block + k)

            first, last = jnp.maximum(start - j * block, 0), jnp.minimum(jnp.minimum(stop, full) - j * block, block)
            return jax.lax.fori_loop(first, last, one, state)

        state = jax.lax.fori_loop(start // block, (jnp.minimum(stop, full) + block - 1) // block, run_block, state)
        if rest == 0:
            return state

        def remainder(state: State) -> State:
            return step(state, gather(jnp.asarray(full * batch), 1, rest)[:, 0], jnp.asarray(full))

        return jax.lax.cond((stop > full) & (start <= full), remainder, lambda s: s, state)

    return advance


# ----------------------------------------------------------------------------------- initial state


def make_init(spec: RunSpec, d_in: int, d_out: int) -> Callable[..., Weights]:
    """Build `init(seed, knobs, x)`: the initial weights of one run, from the inputs `x` of its probe set.

    One forward pass of the probe set initialises each Dense when it is called, so an initialiser sees its actual inputs.
    """
    scheme, of_output = initializers[spec.initializer], initializers["glorot_uniform"]

    def init(seed: UInt32[Array, ""], knobs: TracedNumbers, x: Float[Array, "N D"]) -> Weights:
        model = build(spec, d_in, d_out)
        depth = sum(isinstance(module, Dense) for _, module in nnx.iter_modules(model))
        done: list[Dense] = []

        def prepare(dense: Dense, inputs: Float[Array, "N D"]) -> None:
            fan_in, fan_out = dense.kernel.shape
            layer = Layer(len(done), depth, fan_in, fan_out, last=len(done) == depth - 1)
            done.append(dense)
            key = random_streams.stream(seed, "init", layer.index)
            if layer.last and not scheme.output:
                kernel, bias = of_output(key, layer, inputs)
            else:
                kernel, bias = scheme(key, layer, inputs)
            if not layer.last:
                kernel, bias = kernel * knobs["gain"], bias + knobs["bias_shift"]
            dense.kernel[...], dense.bias[...] = kernel, bias

        model(x, Context(knobs, init_hook=prepare))
        _, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
        return Weights(params, stats)

    return init


def make_sample(task: Task, phase: int, probing: MeasureConfig) -> Callable[..., Data]:
    """Build `sample(seed)`: the data of one run, with only the validation examples that `val_loss` reads."""
    n, keep = task.signature.train_rows, probing.validation(task.signature)

    def sample(seed: UInt32[Array, ""]) -> Data:
        x, y = task.sample(random_streams.stream(seed, "data", phase), phase)
        xy = jnp.concatenate([jnp.asarray(x, jnp.result_type(float)), targets(task.signature, y)], axis=1)
        return Data(xy[:n], xy[n : n + keep])

    return sample
