"""Sites of a Flax network, found and tapped in its function, as the views that metrics read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from relu_study.components import random_streams
from relu_study.components.layers import Context
from relu_study.components.metrics.snapshot import SiteView
from relu_study.components.tasks.task import Signature
from relu_study.engine.forward import Forward, probe_function, site_activation
from relu_study.errors import UserError
from relu_study.watch.facts import Weight
from relu_study.watch.region_function import has_identity_piece, max_slope
from relu_study.watch.sites import Place
from relu_study.watch.tap import Tap, Tapping, Traced, trace
from relu_study.watch.unit_counts import by_unit


class TappedPass(NamedTuple):
    """One forward and backward pass of a run: loss, outputs, gradients, and the arrays of every site."""

    loss: Float[Array, ""]
    outputs: Any
    grads: Any
    sites: tuple[SiteView, ...]


def _train_function(forward: Forward) -> Callable[[Any, Any, Any, Any], Any]:
    """Return the network in training mode: a function of parameters, other variables, inputs and the key of the dropout."""
    return lambda params, stats, x, key: forward.apply(params, stats, x, Context({}, train=True, key=key))[0]


@dataclass(frozen=True)
class TappedNetwork:
    """A network with its sites, for batches of one size."""

    traced: Traced
    places: tuple[Place, ...]  # of its sites
    tapping: Tapping
    weights: tuple[Weight, ...]  # of all sites
    unit_axis: Mapping[str, int]  # of the sites whose units are not on the last axis

    @classmethod
    def of(cls, forward: Forward, signature: Signature, examples: int, train: bool = False) -> TappedNetwork:
        """Find the sites of a network in evaluation or training mode, from shapes only.

        In training mode the network also takes the key of its dropout.
        """
        assert forward.flax is not None
        x = jax.ShapeDtypeStruct((examples, *signature.inputs.shape), signature.inputs.dtype)
        arguments = (forward.params, forward.flax.rest, x)
        if train:
            key = jax.eval_shape(lambda: random_streams.stream(0, "dropout"))
            traced = trace(_train_function(forward), (*arguments, key), {})
        else:
            traced = trace(probe_function(forward), arguments, {})
        for place in traced.sites.places:
            if place.conditional:
                raise UserError(f"site {place.name!r} is inside a branch of lax.cond, which a run may not take. Use jnp.where.")
        return cls.of_traced(traced, traced.sites.places)

    @classmethod
    def of_traced(cls, traced: Traced, places: Sequence[Place], unit_axis: Mapping[str, int] | None = None) -> TappedNetwork:
        """Return a traced call of `function(params, stats, x)` with some of its sites."""
        weights = tuple(dict.fromkeys(weight for place in places for weight in traced.sites.weights(place)))
        tapping = Tapping(traced.sites, [(weight.program, weight.value) for weight in weights])
        return cls(traced, tuple(places), tapping, weights, unit_axis or {})

    def measure(
        self, params: Any, stats: Any, previous: Any, x: Any, loss: Callable[[Any], Float[Array, ""]], *key: Array
    ) -> TappedPass:
        """Return the loss, its gradients and all sites. `previous` contains the parameters before the steps of an epoch.

        `key` is the key of the dropout in training mode.
        """

        def run(params: Any, shifts: dict[Any, Any]) -> tuple[Any, dict[Any, Any]]:
            outs, taps = self.tapping.run(self.traced.program, jax.tree.leaves((params, stats, x, *key)), shifts)
            return jax.tree.unflatten(self.traced.out_tree, outs), taps

        def of(params: Any, shifts: dict[Any, Any]) -> tuple[Any, Any]:
            outputs, taps = run(params, shifts)
            return loss(outputs), (outputs, taps)

        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), self._kept(jax.eval_shape(run, params, {})[1]))
        (value, (outputs, taps)), (grads, weight_grads) = jax.value_and_grad(of, argnums=(0, 1), has_aux=True)(params, zeros)
        now, before = self._kept(taps), self._kept(run(previous, {})[1])  # XLA computes nothing but the weights of `previous`
        steps = jax.tree.map(jnp.subtract, now, before)
        named = self.tapping.named(taps, {})
        views = [self._view(place, named[place.name], (now, weight_grads, steps)) for place in self.places]
        return TappedPass(value, outputs, grads, tuple(views))

    def own_pre(
        self, params: Any, after: Any, stats: Any, x: Any, site: Int[Array, ""], unit: Int[Array, ""]
    ) -> list[Float[Array, "N U"]]:
        """Return pre of every site if only the incoming weights of one unit of a site had their values in `after`."""

        def run(params: Any, shifts: dict[Any, Any]) -> dict[Any, Any]:
            return self.tapping.run(self.traced.program, jax.tree.leaves((params, stats, x)), shifts)[1]

        steps = jax.tree.map(jnp.subtract, self._kept(run(after, {})), self._kept(run(params, {})))
        shifts = jax.tree.map(jnp.zeros_like, steps)
        for index, place in enumerate(self.traced.sites.places):
            for weight in self.traced.sites.weights(place):
                key = weight.program, weight.value
                loops = place.steps[: len(self.traced.sites.loops[weight.program])]
                step = steps[key][loops]
                own = (site == index) & (jnp.arange(step.shape[weight.axis]) == unit)
                moved = jnp.where(jnp.expand_dims(own, [i for i in range(step.ndim) if i != weight.axis % step.ndim]), step, 0)
                shifts[key] = shifts[key].at[loops].add(moved)
        named = self.tapping.named(run(params, shifts), {})
        places = self.traced.sites.places
        return [by_unit(named[place.name].pre, self.traced.sites.unit_axis(place)) for place in places]

    def _kept(self, taps: dict[Any, Any]) -> dict[Any, Any]:
        return {(weight.program, weight.value): taps[weight.program, weight.value] for weight in self.weights}

    def _view(self, place: Place, tap: Tap, trees: Sequence[dict[Any, Any]]) -> SiteView:
        axis = self.unit_axis.get(place.name, self.traced.sites.unit_axis(place))
        pre, post, slope = (by_unit(array, axis) for array in tap[:3])
        kernel, kernel_grad, kernel_step = (self._incoming(place, tree, pre.shape[-1]) for tree in trees)
        phi, largest, linear = site_activation(place), None, None
        if not phi.smooth and phi.identity is None and has_identity_piece(place.program, place.region):
            linear = jnp.all(post == pre, axis=0)
        if phi.smooth and (slope_bound := max_slope(place.program, place.region)) is not None:
            largest = jnp.asarray(slope_bound, pre.dtype)
        return SiteView(phi, pre, post, slope, kernel, None, kernel_grad, None, kernel_step, None, None, largest, None, linear)

    def _incoming(self, place: Place, tree: dict[Any, Any], units: int) -> Float[Array, "K U"] | None:
        """Return all weights of each unit in one matrix, the bias as a row; None if a weight has no axis of the units."""
        rows = []
        for weight in self.traced.sites.weights(place):
            array = tree[weight.program, weight.value]
            for step in place.steps[: len(self.traced.sites.loops[weight.program])]:
                array = array[step]
            if array.shape[weight.axis] != units or self.unit_axis.get(place.name, -1) != -1:
                return None
            rows.append(jnp.moveaxis(array, weight.axis, -1).reshape(-1, units))
        return jnp.concatenate(rows) if rows else None
