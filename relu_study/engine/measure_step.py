"""The measurement program of a run: a snapshot of its sites, and every metric of the snapshot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from relu_study.components.interval_bounds import Interval
from relu_study.components.layers import Context, Dense, Site
from relu_study.components.metrics import certified, histograms, metric
from relu_study.components.metrics.snapshot import SiteView, Snapshot
from relu_study.components.registry import activations, networks, ours
from relu_study.components.tasks.task import LOSSES, METRICS, Signature
from relu_study.engine.state import Data, MeasureConfig, State, TracedNumbers, components_of
from relu_study.study.run_spec import RunSpec


def make_measure(spec: RunSpec, signature: Signature, probing: MeasureConfig, boxed: bool) -> Callable[..., dict[str, Array]]:
    """Build `measure(state, previous, data, knobs, box)`: every metric, unit mask and histogram of one run.

    The network is in evaluation mode. `previous` holds the parameters one epoch earlier.
    `box` holds the bounds of the inputs, used if `boxed`.
    """
    graph, bounded, _ = components_of(spec, signature)
    loss_of = LOSSES[signature.loss]
    d_in, n = signature.d_in, probing.probe_set(signature)
    has_user_entries = not all(map(ours, (networks[spec.network], activations[spec.activation], activations[spec.output])))

    def measure(state: State, previous: Any, data: Data, knobs: TracedNumbers, box: Float[Array, "2"]) -> dict[str, Array]:
        x, y = data.train[:n, :d_in], data.train[:n, d_in:]

        def loss(params: Any) -> tuple[Array, Any]:
            ctx = Context(knobs)
            prediction = nnx.merge(graph, params, state.stats, copy=True)(x, ctx)
            passes = [(entry[1], entry[2]) for entry in ctx.activations_log if isinstance(entry[0], Site)]
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
                SiteView(
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
                    end_slopes=None
                    if ours(phi)
                    else phi.end_slopes(knobs),  # a test checks slope 0 for the package's activations
                )
            )
        snapshot = Snapshot(
            sites=tuple(views),
            prediction=prediction,
            target_variance=jnp.sum(jnp.var(y, axis=0)),
            train_loss=train_loss,
            val_loss=loss_of(val, data.val[:, d_in:]),
            params=state.params,
            grads=grads,
            steps=steps,
        )
        metrics, masks = metric.measure(snapshot, probing.metrics)
        extra = {f"{name}/all": METRICS[name].function(prediction, y) for name in signature.metrics}
        finite = jnp.isfinite(train_loss)
        for leaf in jax.tree.leaves(state.params):
            finite &= jnp.all(jnp.isfinite(leaf))
        packed = {name: jnp.packbits(mask, axis=-1) for name, mask in masks.items()}
        counts = histograms.counts(snapshot, probing.linear_bins) if probing.histograms else {}
        proofs = certified.unsound(snapshot) if has_user_entries and bounds is not None else {}
        return {
            **{f"unsound:{name}": count for name, count in proofs.items()},
            **{f"metric:{name}": value for name, value in {**metrics, **extra}.items()},
            **{f"histogram:{name}": count for name, count in counts.items()},
            **packed,
            "finite": finite,
        }

    return measure


def _bounds(model: nnx.Module, knobs: TracedNumbers, box: Float[Array, "2"], d_in: int) -> list[Interval]:
    ctx = Context(knobs)
    model(Interval(jnp.broadcast_to(box[0], d_in), jnp.broadcast_to(box[1], d_in)), ctx)
    return [entry[1] for entry in ctx.activations_log if isinstance(entry[0], Site)]


def _feeds(model: nnx.Module, knobs: TracedNumbers, x: Float[Array, "N D"]) -> list[tuple[tuple[Any, ...], Any]]:
    """For each site, in call order: the path of the last Dense before it, and its activation."""
    ctx = Context(knobs)
    model(x, ctx)
    paths = {id(module): path for path, module in nnx.iter_modules(model)}
    feeds, dense = [], None
    for module, *_ in ctx.activations_log:
        if isinstance(module, Dense):
            dense = module
        else:
            feeds.append((paths[id(dense)], activations[module.activation]))
    return feeds


def _weights(tree: Any, path: tuple[Any, ...]) -> tuple[Array, Array]:
    for key in path:
        tree = tree[key]
    return tree["kernel"][...], tree["bias"][...]
