"""The measurement program of a run: a snapshot of its network, and every metric of the snapshot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from relu_study.components.interval_bounds import Interval
from relu_study.components.layers import Context, Dense, Site
from relu_study.components.metrics import certified, histograms, metric
from relu_study.components.metrics.snapshot import SiteView, Snapshot
from relu_study.components.options import values
from relu_study.components.registry import activations, networks, ours
from relu_study.components.tasks.best_constant import constant_loss
from relu_study.components.tasks.task import LABELLED, LOSSES, METRICS, Signature
from relu_study.engine.forward import Forward, forward_of
from relu_study.engine.state import Data, MeasureConfig, State, TracedNumbers, unpack
from relu_study.engine.tapped_sites import TappedNetwork
from relu_study.study.run_spec import RunSpec


class MeasureProgram(NamedTuple):
    """The constants of a cohort's measurement program."""

    forward: Forward
    tapped: TappedNetwork | None  # of a Flax network
    bounded: bool  # whether pre-activations get bounds over the task's box
    has_user_entries: bool  # whether the network or an activation is a user's
    loss: Callable[..., Array]
    signature: Signature
    measure_config: MeasureConfig
    options: Mapping[str, Any]  # of the activations, as constants


class ProbePass(NamedTuple):
    """One forward and backward pass of a run over its probe set."""

    train_loss: Float[Array, ""]
    prediction: Float[Array, "N *O"]
    sites: list[tuple[Array, Array]]  # pre and post of each site
    grads: Any


def make_measure(
    spec: RunSpec, signature: Signature, measure_config: MeasureConfig, boxed: bool
) -> Callable[..., dict[str, Array]]:
    """Return `measure(state, previous, data, hparams, box)`, which gives every metric, unit mask and histogram of one run.

    The network is in evaluation mode. `previous` contains the parameters one epoch earlier. `box` contains the bounds of the
    inputs, and is used only if `boxed`.
    """
    program, n = measure_program(spec, signature, measure_config, boxed), measure_config.probe_set(signature)

    def measure(state: State, previous: Any, data: Data, hparams: TracedNumbers, box: Float[Array, "2"]) -> dict[str, Array]:
        train = jax.tree.map(lambda leaf: leaf[:n], data.train)
        probe, val = (unpack(signature, data.rows(part)) for part in (train, data.val))
        hparams = {**program.options, **hparams}
        snapshot, val_outputs = take_snapshot(program, state, previous, probe, val, hparams, box)
        return measurements(program, snapshot, probe[1], val_outputs, val[1])

    return measure


def measure_program(spec: RunSpec, signature: Signature, measure_config: MeasureConfig, boxed: bool) -> MeasureProgram:
    """Return the constants of the measurement program of a spec."""
    forward = forward_of(spec, signature)
    entries = networks[spec.network], activations[spec.activation], activations[spec.output]
    return MeasureProgram(
        forward=forward,
        tapped=TappedNetwork.of(forward, signature, measure_config.probe_set(signature)) if forward.flax else None,
        bounded=boxed and forward.feature_major,
        has_user_entries=not all(map(ours, entries)),
        loss=LOSSES[signature.loss],
        signature=signature,
        measure_config=measure_config,
        options=values(spec, "activation"),
    )


def take_snapshot(
    program: MeasureProgram,
    state: State,
    previous: Any,
    probe_set: tuple[Any, Any],
    validation: tuple[Any, Any],
    hparams: TracedNumbers,
    box: Float[Array, "2"],
) -> tuple[Snapshot, Float[Array, "v *O"]]:
    """Return the snapshot of a run, and its outputs on the validation rows. Metrics read only the snapshot.

    `probe_set` and `validation` are inputs and targets.
    """
    x, y = probe_set
    steps = jax.tree.map(jnp.subtract, state.params, previous)
    if program.tapped is not None:
        tapped = program.tapped.measure(state.params, state.stats, previous, x, lambda outputs: program.loss(outputs, y))
        probe, sites = ProbePass(tapped.loss, tapped.outputs, [], tapped.grads), tapped.sites
    else:
        probe = probe_pass(program, state, x, y, hparams)
        model = nnx.merge(program.forward.graph, state.params, state.stats, copy=True)
        bounds = _bounds(model, hparams, box, program.signature.d_in) if program.bounded else None
        sites = site_views(site_feeds(model, hparams, x), probe, state.params, steps, bounds, hparams)
    val, _ = program.forward.apply(state.params, state.stats, validation[0], Context(hparams))
    snapshot = Snapshot(
        sites=sites,
        prediction=probe.prediction.reshape(len(x), -1),
        target_variance=jnp.sum(jnp.var(numeric(y, program.signature), axis=0)),
        train_loss=probe.train_loss,
        val_loss=program.loss(val, validation[1]),
        params=state.params,
        grads=probe.grads,
        steps=steps,
    )
    return snapshot, val


def numeric(y: Any, signature: Signature) -> Float[Array, "N O"]:
    """Return targets as one row of numbers per example, labels as one-hot."""
    if jnp.issubdtype(y.dtype, jnp.integer) and signature.loss in LABELLED:
        y = jax.nn.one_hot(y, signature.outputs.shape[-1])
    return y.reshape(len(y), -1)


def probe_pass(program: MeasureProgram, state: State, x: Any, y: Any, hparams: TracedNumbers) -> ProbePass:
    """Return the loss of a run on its probe set, the gradient of the loss, and the arrays of each site."""

    def loss(params: Any) -> tuple[Array, Any]:
        ctx = Context(hparams)
        prediction, _ = program.forward.apply(params, state.stats, x, ctx)
        sites = [(entry[1], entry[2]) for entry in ctx.activations_log if isinstance(entry[0], Site)]
        return program.loss(prediction, y), (prediction, sites)

    (train_loss, (prediction, sites)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    return ProbePass(train_loss, prediction, sites, grads)


def site_views(
    feeds: list[tuple[tuple[Any, ...], Any]],
    probe: ProbePass,
    params: Any,
    steps: Any,
    bounds: list[Interval] | None,
    hparams: TracedNumbers,
) -> tuple[SiteView, ...]:
    """Return one view per site, from input to output. `feeds` contains the path of each site's Dense, and its activation."""
    views = []
    for i, (dense_path, phi) in enumerate(feeds):
        pre, post = probe.sites[i]
        weights, gradient, step = (layer_weights(tree, dense_path) for tree in (params, probe.grads, steps))
        views.append(
            SiteView(
                activation=phi,
                pre=pre,
                post=post,
                slope=phi.slope(pre, hparams),
                kernel=weights[0],
                bias=weights[1],
                kernel_grad=gradient[0],
                bias_grad=gradient[1],
                kernel_step=step[0],
                bias_step=step[1],
                bound=bounds[i] if bounds is not None else None,
                max_slope=phi.max_slope(hparams),
                # For the package's activations, a test checks that these slopes are 0.
                end_slopes=None if ours(phi) else phi.end_slopes(hparams),
            )
        )
    return tuple(views)


def measurements(
    program: MeasureProgram, snapshot: Snapshot, y: Any, val_outputs: Float[Array, "v *O"], val_y: Any
) -> dict[str, Array]:
    """Return the arrays of one measurement by name: metrics, histograms, packed unit masks, `unsound` counts and `finite`.

    `constant_loss` is the loss of the best constant prediction on the probe set. The metrics of the task are measured on the
    probe set, and as `val_...` on the validation rows.
    """
    measure_config, signature = program.measure_config, program.signature
    metrics, masks = metric.measure(snapshot, measure_config.metrics)
    prediction = snapshot.prediction.reshape(-1, *signature.outputs.shape)
    task_metrics = {f"{name}/all": METRICS[name].function(prediction, y) for name in signature.metrics}
    task_metrics |= {f"val_{name}/all": METRICS[name].function(val_outputs, val_y) for name in signature.metrics}
    finite = _all_finite(snapshot)
    packed = {name: jnp.packbits(mask, axis=-1) for name, mask in masks.items()}
    counts = histograms.counts(snapshot, measure_config.linear_bins) if measure_config.histograms else {}
    unsound = certified.unsound(snapshot) if program.has_user_entries and program.bounded else {}
    return {
        **{f"unsound:{name}": count for name, count in unsound.items()},
        **{f"metric:{name}": value for name, value in {**metrics, **task_metrics}.items()},
        **{f"histogram:{name}": count for name, count in counts.items()},
        **packed,
        "finite": finite,
        "constant_loss": constant_loss(signature, y),
    }


def _all_finite(snapshot: Snapshot) -> Bool[Array, ""]:
    """Whether the training loss and every parameter are finite."""
    finite = jnp.isfinite(snapshot.train_loss)
    for leaf in jax.tree.leaves(snapshot.params):
        finite &= jnp.all(jnp.isfinite(leaf))
    return finite


def _bounds(model: nnx.Module, hparams: TracedNumbers, box: Float[Array, "2"], d_in: int) -> list[Interval]:
    """Return bounds of the pre-activations of each site for all inputs in the box."""
    ctx = Context(hparams)
    model(Interval(jnp.broadcast_to(box[0], d_in), jnp.broadcast_to(box[1], d_in)), ctx)
    return [entry[1] for entry in ctx.activations_log if isinstance(entry[0], Site)]


def site_feeds(model: nnx.Module, hparams: TracedNumbers, x: Float[Array, "N D"]) -> list[tuple[tuple[Any, ...], Any]]:
    """Return, for each site in call order, the path of the last Dense before it, and its activation."""
    ctx = Context(hparams)
    model(x, ctx)
    paths = {id(module): path for path, module in nnx.iter_modules(model)}
    feeds, dense = [], None
    for module, *_ in ctx.activations_log:
        if isinstance(module, Dense):
            dense = module
        else:
            feeds.append((paths[id(dense)], activations[module.activation]))
    return feeds


def layer_weights(tree: Any, path: tuple[Any, ...]) -> tuple[Array, Array]:
    """Return the kernel and bias at a path of a tree of parameters, or of a tree with its structure."""
    for key in path:
        tree = tree[key]
    return tree["kernel"][...], tree["bias"][...]
