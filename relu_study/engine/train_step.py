"""The four programs, as pure functions of plain arrays.

`sample` draws a run's data, `init` its first state, and `measure` looks at its state without touching it; `advance` trains
all runs of a tile from one step of an epoch to another. The engine maps the others over the runs and compiles them; nothing in
here prints, calls back, or reads a clock or a file.
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

BLOCK = 32  # steps whose rows are ordered and gathered at once


def steps_per_epoch(train_rows: int, batch_size: int) -> int:
    """floor(n / B) full batches, and one of the n mod B remaining rows."""
    return -(-train_rows // batch_size)


def ranges(spec: RunSpec, signature: Signature, probing: MeasureConfig) -> dict[str, histogram_bins.Range]:
    """The ranges of the linear histograms, by name ("post:site_1"): those of the sites with bounded activations."""
    if not (probing.histograms and probing.linear_bins):
        return {}
    found = [histogram_bins.bounded(activations[name].values) for name, _ in sites_of(spec, signature)]
    return {f"post:site_{i}": span for i, span in enumerate(found, 1) if span is not None}


def compiled_rates(spec: RunSpec, signature: Signature) -> dict[str, float]:
    """The rate and decay of a run as constants of its program, where its optimiser cannot be built from traced ones."""
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
    """`advance(state, train, seed, knobs, epoch, start, stop, source)`: train W runs over steps start..stop-1 of an epoch.

    Epochs count from 1. Steps 0..floor(n / B)-1 take full batches; the last step of an epoch, where B does not divide n,
    takes the n mod B rows left over, in a step body of its own. Run i reads set source[i] of the S sets of rows in `train`:
    runs of the same data and seed visit the same rows in the same order, which are then fetched once. Without `source` each
    run has a set of its own.
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
            said = model(FeatureMajorBatch(xy[:d_in]) if columns else xy[:d_in].T, ctx)
            if columns and not isinstance(said, FeatureMajorBatch):
                raise UserError(f"network {spec.network!r} is declared bounded but does not pass Columns on; leave `bounded` out")
            return loss_of(said.values.T if columns else said, xy[d_in:].T), nnx.state(model, nnx.BatchStat)

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
        # The runs that read a set have the same seed, so whichever is written last is right; a set that nobody reads has seed 0.
        of_set = seed if source is None else jnp.zeros(train.shape[0], jnp.uint32).at[source].set(seed)
        order = jax.vmap(lambda s: random_streams.order_key(s, epoch))(of_set)
        dropout = jax.vmap(lambda s: random_streams.stream(s, "dropout"))(seed)

        def gather(first: Int[Array, ""], steps: int, size: int) -> Float[Array, "S K DO b"]:
            # Positions past the end of the last block are gathered but never trained on.
            inside = jnp.minimum(first + jnp.arange(steps * size), rows - 1).astype(jnp.uint32)

            def of(key: Array, own: Float[Array, "n DO"]) -> Float[Array, "K DO b"]:
                index = random_streams.shuffled(key, inside, rows).astype(jnp.int32)
                xy = own.at[index].get(mode="promise_in_bounds")
                return xy.reshape(steps, size, -1).swapaxes(1, 2)

            return jax.vmap(of)(order, train)

        def step(state: State, xy: Float[Array, "S DO b"], k: Int[Array, ""]) -> State:
            number = (epoch - 1) * (full + (rest > 0)) + k
            keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(dropout)
            mine = xy if source is None else xy.at[source].get(mode="promise_in_bounds")
            return jax.vmap(update)(state, mine, keys, knobs, seed)

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


# ----------------------------------------------------------------------------------- the beginning


def make_init(spec: RunSpec, d_in: int, d_out: int) -> Callable[..., Weights]:
    """`init(seed, knobs, x)`: the weights of one run before its first step, given the inputs of its probe set.

    One forward pass of the probe set: each Dense is set when the pass reaches it, so an initialiser sees the inputs as
    they arrive there.
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
    """`sample(seed)`: the data of one run; of the validation rows only those that `val_loss` reads."""
    n, keep = task.signature.train_rows, probing.validation(task.signature)

    def sample(seed: UInt32[Array, ""]) -> Data:
        x, y = task.sample(random_streams.stream(seed, "data", phase), phase)
        xy = jnp.concatenate([jnp.asarray(x, jnp.result_type(float)), targets(task.signature, y)], axis=1)
        return Data(xy[:n], xy[n : n + keep])

    return sample
