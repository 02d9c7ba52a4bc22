"""The four programs, as pure functions of plain arrays.

`sample` draws a run's data, `init` its first state, and `measure` looks at its state without touching it; `advance` trains
all runs of a tile from one step of an epoch to another. The engine maps the others over the runs and compiles them; nothing in
here prints, calls back, or reads a clock or a file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt32

from relu_study import bins, prng, probes
from relu_study.bounds import Interval
from relu_study.initializers import Layer
from relu_study.optimizers import Optimizer, check_optimizer
from relu_study.probes import certified, histograms
from relu_study.registry import UserError, activations, initializers, networks, optimizers, ours
from relu_study.sites import Columns, Context, Dense, Site
from relu_study.spec import KNOBS, RunSpec
from relu_study.tasks import LOSSES, METRICS, Signature, Task, targets

DEFAULT_EXAMPLES = 8192  # of the probe set, or all where there are fewer
BLOCK = 32  # steps whose rows are ordered and gathered at once

Knobs = Mapping[str, Float[Array, ""]]


class State(NamedTuple):
    """All that training changes of a run."""

    params: Any
    stats: Any
    opt: Any


class Weights(NamedTuple):
    """What a run begins with, before its optimiser has seen it."""

    params: Any
    stats: Any


class Data(NamedTuple):
    """What one run trains on and is judged by: inputs and targets side by side."""

    train: Float[Array, "n DO"]
    val: Float[Array, "v DO"]


class Probing(NamedTuple):
    """How a run is looked at. What is not asked for is not computed; a study asks for all of it."""

    examples: int | None = None  # None: DEFAULT_EXAMPLES, or all where there are fewer
    val_examples: int | None = 8192  # the most validation rows; None: all
    histograms: bool = True
    metrics: tuple[str, ...] | None = None  # None: every registered one
    every: int = 1  # epochs from one measurement to the next; the last epoch is measured whatever its number
    linear_bins: bool = True  # of the outputs of bounded activations; False: powers of two for them too

    def probe_set(self, signature: Signature) -> int:
        """N: the first N training examples are the probe set."""
        return min(self.examples or DEFAULT_EXAMPLES, signature.train_rows)

    def validation(self, signature: Signature) -> int:
        """The first of the validation rows, as many as `val_loss` reads."""
        return signature.val_rows if self.val_examples is None else min(signature.val_rows, self.val_examples)


def steps_per_epoch(train_rows: int, batch_size: int) -> int:
    """floor(n / B) full batches, and one of the n mod B remaining rows."""
    return -(-train_rows // batch_size)


def build(spec: RunSpec, d_in: int, d_out: int) -> nnx.Module:
    """The network of a spec with its weights still blank."""
    return networks[spec.network](spec, d_in, d_out, rngs=nnx.Rngs(0))


def site_units(spec: RunSpec, signature: Signature) -> dict[str, int]:
    """Units at each site, from shapes alone."""
    return {f"site_{i}": units for i, (_, units) in enumerate(_sites(spec, signature), 1)}


def ranges(spec: RunSpec, signature: Signature, probing: Probing) -> dict[str, bins.Range]:
    """The ranges of the linear histograms, by name ("post:site_1"): those of the sites with bounded activations."""
    if not (probing.histograms and probing.linear_bins):
        return {}
    found = [bins.bounded(activations[name].values) for name, _ in _sites(spec, signature)]
    return {f"post:site_{i}": span for i, span in enumerate(found, 1) if span is not None}


def _sites(spec: RunSpec, signature: Signature) -> list[tuple[str, int]]:
    """The activation and the units of each site, in the order of the calls."""
    found: list[tuple[str, int]] = []

    def look(x: Float[Array, "1 D"]) -> None:
        ctx = Context({name: jnp.zeros(()) for name in KNOBS})
        build(spec, signature.d_in, signature.d_out)(x, ctx)
        found.extend((entry[0].activation, entry[1].shape[-1]) for entry in ctx.tape if isinstance(entry[0], Site))

    jax.eval_shape(look, jax.ShapeDtypeStruct((1, signature.d_in), jnp.result_type(float)))
    return found


def _parts(spec: RunSpec, signature: Signature) -> tuple[Any, bool, Any]:
    """A network without its weights, whether it takes Columns and Intervals, and the shapes of its parameters."""
    model = nnx.eval_shape(lambda: build(spec, signature.d_in, signature.d_out))  # blank weights would compile a program a shape
    graph, params, _ = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, getattr(model, "bounded", False), params


def compiled_rates(spec: RunSpec, signature: Signature) -> dict[str, float]:
    """The rate and decay of a run as constants of its program, where its optimiser cannot be built from traced ones."""
    if ours(optimizers[spec.optimizer]):
        return {}
    step, rates = RunSpec(**dict(spec.marked("step"))), (spec.learning_rate, spec.weight_decay)
    traced = _traced(optimizers[spec.optimizer], step, signature.d_in, signature.d_out, *rates)
    return {} if traced else dict(zip(("learning_rate", "weight_decay"), rates, strict=True))


@functools.cache
def _traced(optimizer: Optimizer, step: RunSpec, d_in: int, d_out: int, *rates: float) -> bool:
    return check_optimizer(optimizer, _parts(step, Signature(1, 1, d_in, d_out))[2], *rates)


# --------------------------------------------------------------------------------------- training


def make_advance(spec: RunSpec, signature: Signature) -> Callable[..., State]:
    """`advance(state, train, seed, knobs, epoch, start, stop, source)`: train W runs over steps start..stop-1 of an epoch.

    Epochs count from 1. Steps 0..floor(n / B)-1 take full batches; the last step of an epoch, where B does not divide n,
    takes the n mod B rows left over, in a step body of its own. Run i reads set source[i] of the S sets of rows in `train`:
    runs of the same data and seed visit the same rows in the same order, which are then fetched once. Without `source` each
    run has a set of its own.
    """
    graph, columns, _ = _parts(spec, signature)
    optimizer, constants = optimizers[spec.optimizer], compiled_rates(spec, signature)
    loss_of = LOSSES[signature.loss]
    rows, batch, d_in = signature.train_rows, min(spec.batch_size, signature.train_rows), signature.d_in
    full, rest = divmod(rows, batch)
    block = min(BLOCK, full)

    def update(state: State, xy: Float[Array, "DO B"], key: Array, knobs: Knobs, seed: UInt32[Array, ""]) -> State:
        def loss(params: Any) -> tuple[Array, Any]:
            model, ctx = nnx.merge(graph, params, state.stats, copy=True), Context(knobs, train=True, key=key)
            said = model(Columns(xy[:d_in]) if columns else xy[:d_in].T, ctx)
            if columns and not isinstance(said, Columns):
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
        order = jax.vmap(lambda s: prng.order_key(s, epoch))(of_set)
        dropout = jax.vmap(lambda s: prng.stream(s, "dropout"))(seed)

        def gather(first: Int[Array, ""], steps: int, size: int) -> Float[Array, "S K DO b"]:
            # Positions past the end of the last block are gathered but never trained on.
            inside = jnp.minimum(first + jnp.arange(steps * size), rows - 1).astype(jnp.uint32)

            def of(key: Array, own: Float[Array, "n DO"]) -> Float[Array, "K DO b"]:
                index = prng.shuffled(key, inside, rows).astype(jnp.int32)
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


# -------------------------------------------------------------------------------------- measuring


def make_measure(spec: RunSpec, signature: Signature, probing: Probing, boxed: bool) -> Callable[..., dict[str, Array]]:
    """`measure(state, previous, data, knobs, box)`: every metric, unit mask and histogram of one run, in evaluation mode.

    `previous` holds the parameters of one epoch before; `box` the bounds of the inputs, used where `boxed`.
    """
    graph, bounded, _ = _parts(spec, signature)
    loss_of = LOSSES[signature.loss]
    d_in, n = signature.d_in, probing.probe_set(signature)
    own = not all(map(ours, (networks[spec.network], activations[spec.activation], activations[spec.output])))

    def measure(state: State, previous: Any, data: Data, knobs: Knobs, box: Float[Array, "2"]) -> dict[str, Array]:
        x, y = data.train[:n, :d_in], data.train[:n, d_in:]

        def loss(params: Any) -> tuple[Array, Any]:
            ctx = Context(knobs)
            prediction = nnx.merge(graph, params, state.stats, copy=True)(x, ctx)
            passes = [(entry[1], entry[2]) for entry in ctx.tape if isinstance(entry[0], Site)]
            return loss_of(prediction, y), (prediction, passes)

        (train_loss, (prediction, passes)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        model = nnx.merge(graph, state.params, state.stats, copy=True)
        bounds = _bounds(model, knobs, box, d_in) if boxed and bounded else None
        steps = jax.tree.map(jnp.subtract, state.params, previous)
        val = nnx.merge(graph, state.params, state.stats, copy=True)(data.val[:, :d_in], Context(knobs))
        views = []
        for i, (dense_path, phi) in enumerate(_feeds(model, knobs, x)):
            pre, post = passes[i]
            weights, gradient, step = (_weights(tree, dense_path) for tree in (state.params, grads, steps))
            views.append(
                probes.SiteView(
                    activation=phi,
                    pre=pre,
                    post=post,
                    slope=phi.slope(pre, knobs),
                    kernel=weights[0],
                    bias=weights[1],
                    kernel_grad=gradient[0],
                    bias_grad=gradient[1],
                    kernel_step=step[0],
                    bias_step=step[1],
                    bound=bounds[i] if bounds is not None else None,
                    max_slope=phi.max_slope(knobs),
                    end_slopes=None if ours(phi) else phi.end_slopes(knobs),  # a test holds the package's own to slope 0
                )
            )
        snapshot = probes.Snapshot(
            sites=tuple(views),
            prediction=prediction,
            target_variance=jnp.sum(jnp.var(y, axis=0)),
            train_loss=train_loss,
            val_loss=loss_of(val, data.val[:, d_in:]),
            params=state.params,
            grads=grads,
            steps=steps,
        )
        metrics, masks = probes.measure(snapshot, probing.metrics)
        extra = {f"{name}/all": METRICS[name].function(prediction, y) for name in signature.metrics}
        finite = jnp.isfinite(train_loss)
        for leaf in jax.tree.leaves(state.params):
            finite &= jnp.all(jnp.isfinite(leaf))
        packed = {name: jnp.packbits(mask, axis=-1) for name, mask in masks.items()}
        counts = histograms.counts(snapshot, probing.linear_bins) if probing.histograms else {}
        proofs = certified.unsound(snapshot) if own and bounds is not None else {}
        return {
            **{f"unsound:{name}": count for name, count in proofs.items()},
            **{f"metric:{name}": value for name, value in {**metrics, **extra}.items()},
            **{f"histogram:{name}": count for name, count in counts.items()},
            **packed,
            "finite": finite,
        }

    return measure


def _bounds(model: nnx.Module, knobs: Knobs, box: Float[Array, "2"], d_in: int) -> list[Interval]:
    ctx = Context(knobs)
    model(Interval(jnp.broadcast_to(box[0], d_in), jnp.broadcast_to(box[1], d_in)), ctx)
    return [entry[1] for entry in ctx.tape if isinstance(entry[0], Site)]


def _feeds(model: nnx.Module, knobs: Knobs, x: Float[Array, "N D"]) -> list[tuple[tuple[Any, ...], Any]]:
    """For each site, in the order of the calls: the path of the Dense last applied before it, and its activation."""
    ctx = Context(knobs)
    model(x, ctx)
    paths = {id(module): path for path, module in nnx.iter_modules(model)}
    feeds, dense = [], None
    for module, *_ in ctx.tape:
        if isinstance(module, Dense):
            dense = module
        else:
            feeds.append((paths[id(dense)], activations[module.activation]))
    return feeds


def _weights(tree: Any, path: tuple[Any, ...]) -> tuple[Array, Array]:
    for key in path:
        tree = tree[key]
    return tree["kernel"][...], tree["bias"][...]


# ----------------------------------------------------------------------------------- the beginning


def make_init(spec: RunSpec, d_in: int, d_out: int) -> Callable[..., Weights]:
    """`init(seed, knobs, x)`: the weights of one run before its first step, given the inputs of its probe set.

    One forward pass of the probe set: each Dense is set when the pass reaches it, so an initialiser sees the inputs as
    they arrive there.
    """
    scheme, of_output = initializers[spec.initializer], initializers["glorot_uniform"]

    def init(seed: UInt32[Array, ""], knobs: Knobs, x: Float[Array, "N D"]) -> Weights:
        model = build(spec, d_in, d_out)
        depth = sum(isinstance(module, Dense) for _, module in nnx.iter_modules(model))
        done: list[Dense] = []

        def prepare(dense: Dense, inputs: Float[Array, "N D"]) -> None:
            fan_in, fan_out = dense.kernel.shape
            layer = Layer(len(done), depth, fan_in, fan_out, last=len(done) == depth - 1)
            done.append(dense)
            key = prng.stream(seed, "init", layer.index)
            if layer.last and not scheme.output:
                kernel, bias = of_output(key, layer, inputs)
            else:
                kernel, bias = scheme(key, layer, inputs)
            if not layer.last:
                kernel, bias = kernel * knobs["gain"], bias + knobs["bias_shift"]
            dense.kernel[...], dense.bias[...] = kernel, bias

        model(x, Context(knobs, prepare=prepare))
        _, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
        return Weights(params, stats)

    return init


def make_sample(task: Task, phase: int, probing: Probing) -> Callable[..., Data]:
    """`sample(seed)`: the data of one run; of the validation rows only those that `val_loss` reads."""
    n, keep = task.signature.train_rows, probing.validation(task.signature)

    def sample(seed: UInt32[Array, ""]) -> Data:
        x, y = task.sample(prng.stream(seed, "data", phase), phase)
        xy = jnp.concatenate([jnp.asarray(x, jnp.result_type(float)), targets(task.signature, y)], axis=1)
        return Data(xy[:n], xy[n : n + keep])

    return sample
