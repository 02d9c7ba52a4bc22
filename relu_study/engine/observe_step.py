"""Programs that look at one step of one run: units on the probe set, and gradient and step of a unit's incoming weights.

`advance` trains the run. These programs read its states before and after a step and change no bit of the training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt32

from relu_study.components import random_streams
from relu_study.components.layers import Context
from relu_study.components.metrics.norms import norm
from relu_study.components.metrics.snapshot import SiteView, Snapshot
from relu_study.components.metrics.unit_fractions import dead
from relu_study.components.tasks.task import Signature
from relu_study.engine.measure_step import (
    MeasureProgram,
    layer_weights,
    measure_program,
    site_feeds,
    take_snapshot,
)
from relu_study.engine.state import Data, MeasureConfig, State, TracedNumbers, packed, parameter_names, unpack
from relu_study.engine.tapped_sites import TappedNetwork
from relu_study.engine.train_step import StepConfig, batch_loss, step_config
from relu_study.study.run_spec import RunSpec


class UnitStats(NamedTuple):
    """The U units of a site over the probe set: their dead mask, pre-activations and share of active examples."""

    dead: Bool[Any, " U"]
    low: Float[Any, " U"]  # minimum of pre
    mean: Float[Any, " U"]
    high: Float[Any, " U"]  # maximum of pre
    active: Float[Any, " U"]  # share of examples with phi'(pre) != 0


class Observation(NamedTuple):
    """One step of a run. The sites and `train_loss` are measured after the step, in evaluation mode, on the probe set.

    `loss` and its gradient are of the batch, in training mode, before the step. P parameters have the names of
    `parameter_names`.
    """

    sites: dict[str, UnitStats]
    train_loss: Float[Any, ""]
    loss: Float[Any, ""]
    grad_norm: Float[Any, ""]
    step_norm: Float[Any, ""]  # of the parameters after the step minus those before
    bad_params: Bool[Any, " P"]  # parameters with a nonfinite number after the step
    bad_grads: Bool[Any, " P"]


class UnitStep(NamedTuple):
    """One step of one unit. `weights` are all K incoming weights before the step, with a bias last.

    `gradient` is that of the batch loss in training mode; `step` is the weights after the step minus those before. The
    pre-activations are those in evaluation mode, on N entries of the probe set and b entries of the batch. `probe_own` are those
    on the probe set if only `weights` had taken the step, and no other parameter. Weights, gradient and step are None where the
    network has no matrix of the unit's weights.
    """

    probe_before: Float[Any, " N"]
    probe_after: Float[Any, " N"]
    batch_before: Float[Any, " b"]
    batch_after: Float[Any, " b"]
    probe_own: Float[Any, " N"]
    weights: Float[Any, " K"] | None
    gradient: Float[Any, " K"] | None
    step: Float[Any, " K"] | None


class StepInputs(NamedTuple):
    """The inputs of a step of one run, and its data."""

    data: Data
    hparams: TracedNumbers
    seed: UInt32[Array, ""]
    rows: Int[Array, " b"]  # of the batch
    number: Int[Array, ""]  # steps before this one, over all epochs


@dataclass(frozen=True)
class StepPrograms:
    """Functions of one run: `observe(before, after, inputs)` and `explain(before, after, inputs, site, unit)`."""

    observe: Callable[..., Observation]
    explain: Callable[..., dict[str, UnitStep]]


@dataclass(frozen=True)
class _Programs:
    """The constants of both functions. `batches` and `trained` are by the size of a batch."""

    config: StepConfig
    probe: MeasureProgram
    batches: Mapping[int, MeasureProgram]
    trained: Mapping[int, TappedNetwork]  # of a Flax network, in training mode

    @classmethod
    def of(cls, spec: RunSpec, signature: Signature, measure_config: MeasureConfig) -> _Programs:
        config = step_config(spec, signature)
        probe = measure_program(spec, signature, measure_config, boxed=False)
        sizes = [size for size in (config.batch, config.rest) if size]
        batches = {n: measure_program(spec, signature, measure_config._replace(probe_examples=n), boxed=False) for n in sizes}
        flax = probe.tapped is not None
        trained = {n: TappedNetwork.of(probe.forward, signature, n, train=True) for n in sizes if flax}
        return cls(config, probe, batches, trained)

    def probe_snapshot(self, state: State, inputs: StepInputs) -> Snapshot:
        """Return the snapshot of a state on the probe set."""
        return self._snapshot(self.probe, state, inputs, jax.tree.map(lambda leaf: leaf[: self.num_probe], inputs.data.train))

    def batch_snapshot(self, state: State, inputs: StepInputs) -> Snapshot:
        """Return the snapshot of a state on the batch, in evaluation mode."""
        return self._snapshot(self.batches[len(inputs.rows)], state, inputs, _taken(inputs))

    def _snapshot(self, program: MeasureProgram, state: State, inputs: StepInputs, rows: Any) -> Snapshot:
        examples, box = unpack(program.signature, inputs.data.rows(rows)), jnp.zeros(2)
        hparams = {**program.options, **inputs.hparams}
        # XLA computes nothing for the parts of the snapshot that are not read.
        return take_snapshot(program, state, state.params, examples, examples, hparams, box)[0]

    def gradient(self, state: State, inputs: StepInputs) -> tuple[Array, Any]:
        """Return the loss of the batch in training mode, and its gradient."""
        batch = inputs.data.rows(_taken(inputs))
        xy, key = batch.T if packed(self.config.signature) else batch, _dropout_key(inputs)
        hparams = {**self.config.options, **inputs.hparams}

        def loss(params: Any) -> Array:
            return batch_loss(self.config, params, state.stats, xy, Context(hparams, train=True, key=key))[0]

        return jax.value_and_grad(loss)(state.params)

    def incoming(self, before: State, after: State, inputs: StepInputs) -> list[tuple[Array, Array, Array] | None]:
        """Return weights, gradient and step of each site, K x U with a bias last; None where there is no such matrix."""
        if not self.trained:
            return self._dense(before, after, inputs)
        x, y = unpack(self.config.signature, inputs.data.rows(_taken(inputs)))
        tapped, key = self.trained[len(inputs.rows)], _dropout_key(inputs)
        loss = functools.partial(self._loss, y)
        views = tapped.measure(before.params, before.stats, after.params, x, loss, key).sites
        sites = self._tapped.traced.sites.places
        # Another number of sites in training mode than in evaluation mode cannot be matched.
        return [_matrices(view) for view in views] if len(views) == len(sites) else [None] * len(sites)

    def own_pre(
        self, before: State, after: State, inputs: StepInputs, site: Int[Array, ""], unit: Int[Array, ""]
    ) -> list[Float[Array, "N U"]]:
        """Return pre of every site on the probe set if only the incoming weights of one unit had taken the step."""
        if self.trained:
            rows = jax.tree.map(lambda leaf: leaf[: self.num_probe], inputs.data.train)
            x, _ = unpack(self.probe.signature, inputs.data.rows(rows))
            return self._tapped.own_pre(before.params, after.params, before.stats, x, site, unit)
        names, (leaves, tree) = parameter_names(before.params), jax.tree.flatten(before.params)
        new = jax.tree.leaves(after.params)
        for i, path in enumerate(self._dense_paths(before, inputs)):
            for name in ("kernel", "bias"):
                at = names.index(".".join(map(str, (*path, name))))
                own = (site == i) & (jnp.arange(leaves[at].shape[-1]) == unit)
                leaves[at] = jnp.where(own, new[at], leaves[at])
        moved = before._replace(params=jax.tree.unflatten(tree, leaves))
        return [view.pre for view in self.probe_snapshot(moved, inputs).sites]

    @property
    def num_probe(self) -> int:
        """N, the number of probe examples."""
        return self.probe.measure_config.probe_set(self.probe.signature)

    @property
    def _tapped(self) -> TappedNetwork:
        assert self.probe.tapped is not None
        return self.probe.tapped

    def _loss(self, y: Any, outputs: Any) -> Array:
        return self.config.loss(outputs, y)

    def _dense_paths(self, state: State, inputs: StepInputs) -> list[tuple[Any, ...]]:
        """Return the path of the Dense before each site."""
        model = nnx.merge(self.probe.forward.graph, state.params, state.stats, copy=True)
        x, _ = unpack(self.config.signature, inputs.data.rows(_taken(inputs)))
        return [path for path, _ in site_feeds(model, {**self.probe.options, **inputs.hparams}, x)]

    def _dense(self, before: State, after: State, inputs: StepInputs) -> list[tuple[Array, Array, Array] | None]:
        _, grads = self.gradient(before, inputs)
        steps = jax.tree.map(jnp.subtract, after.params, before.params)

        def matrix(tree: Any, path: tuple[Any, ...]) -> Array:
            kernel, bias = layer_weights(tree, path)
            return jnp.concatenate([kernel.reshape(-1, kernel.shape[-1]), bias[None]])

        paths = self._dense_paths(before, inputs)
        return [(matrix(before.params, path), matrix(grads, path), matrix(steps, path)) for path in paths]


def _matrices(view: SiteView) -> tuple[Array, Array, Array] | None:
    """Return weights, gradient and step of a site whose `kernel_step` is the weights before the step minus those after it."""
    if view.kernel is None or view.kernel_grad is None or view.kernel_step is None:
        return None
    return view.kernel, view.kernel_grad, -view.kernel_step


def _taken(inputs: StepInputs) -> Any:
    return jax.tree.map(lambda leaf: leaf.at[inputs.rows].get(mode="promise_in_bounds"), inputs.data.train)


def _dropout_key(inputs: StepInputs) -> Array:
    return jax.random.fold_in(random_streams.stream(inputs.seed, "dropout"), inputs.number)


def unit_stats(site: SiteView) -> UnitStats:
    """Return the dead mask, pre-activations and share of active examples of the units of a site."""
    pre = site.pre
    return UnitStats(dead(site), pre.min(axis=0), pre.mean(axis=0), pre.max(axis=0), jnp.mean(site.slope != 0, axis=0))


def make_step_programs(spec: RunSpec, signature: Signature, measure_config: MeasureConfig) -> StepPrograms:
    """Return the functions that look at one step of one run of a cohort. They are pure and can be jitted."""
    programs = _Programs.of(spec, signature, measure_config)

    def observe(before: State, after: State, inputs: StepInputs) -> Observation:
        snapshot = programs.probe_snapshot(after, inputs)
        loss, grads = programs.gradient(before, inputs)
        return Observation(
            sites={name: unit_stats(site) for name, site in snapshot.named().items()},
            train_loss=snapshot.train_loss,
            loss=loss,
            grad_norm=norm(grads),
            step_norm=norm(jax.tree.map(jnp.subtract, after.params, before.params)),
            bad_params=_nonfinite(after.params),
            bad_grads=_nonfinite(grads),
        )

    def explain(
        before: State, after: State, inputs: StepInputs, site: Int[Array, ""], unit: Int[Array, ""]
    ) -> dict[str, UnitStep]:
        """Return unit `unit` of every site. `probe_own` is valid for the site of index `site`."""
        on_probe = [programs.probe_snapshot(state, inputs).named() for state in (before, after)]
        on_batch = [programs.batch_snapshot(state, inputs).named() for state in (before, after)]
        incoming, own = programs.incoming(before, after, inputs), programs.own_pre(before, after, inputs, site, unit)
        unit_steps = {}
        for i, name in enumerate(on_probe[0]):
            pre = [array[:, unit] for array in (*(views[name].pre for views in (*on_probe, *on_batch)), own[i])]
            matrices = incoming[i]
            weights = (None,) * 3 if matrices is None else tuple(matrix[:, unit] for matrix in matrices)
            unit_steps[name] = UnitStep(*pre, *weights)
        return unit_steps

    return StepPrograms(observe, explain)


def _nonfinite(tree: Any) -> Bool[Array, " P"]:
    return jnp.stack([~jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])
