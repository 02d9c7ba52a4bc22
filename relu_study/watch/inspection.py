"""The dead units of any Flax or JAX model: one row a unit and one row a site."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from relu_study.components.metrics.norms import norm
from relu_study.components.metrics.unit_fractions import is_dead, is_dormant, is_nearly_dead, is_saturated
from relu_study.diagnosis.finding import Finding
from relu_study.diagnosis.moment import findings_of_moment
from relu_study.errors import UserError
from relu_study.watch.display import NO_SITES, SHARES, as_html, as_text
from relu_study.watch.facts import Weight
from relu_study.watch.find import Site, check_axes, listed
from relu_study.watch.models import Model, as_function
from relu_study.watch.region_function import has_identity_piece, is_piecewise_linear, max_slope
from relu_study.watch.sites import Place, Sites
from relu_study.watch.tap import Tapping, Value, trace
from relu_study.watch.unit_counts import UnitCounts, batch_counts

FLAGS = ("dead", "nearly_dead", "always_on", "saturated", "dormant", "zero_gradient")
UNITS = ("site", "unit", "n", "firing_rate", *FLAGS)
SITES = ("site", "activation", "units", "n", *(f"{flag}_fraction" for flag in FLAGS))
SITES += ("post_mean", "post_std", "grad_norm", "zero_entries")
BATCH = 1024  # examples at a time


@dataclass(frozen=True, repr=False)
class Inspection:
    """The units and sites of a model on its probe examples. `<NA>`: not measurable. Prints as a table."""

    units: pd.DataFrame  # one row a unit in program order: site, unit, n, firing_rate and the flags
    sites: pd.DataFrame  # one row a site: its activation, the fraction of units with each flag, moments of post, grad_norm

    @property
    def findings(self) -> list[Finding]:
        """One finding for each site with too many dead units, in program order. Other problems need a training."""
        units = {str(site): int(count) for site, count in zip(self.sites["site"], self.sites["units"], strict=True)}
        metrics = {
            f"{name}/{site}": float("nan") if pd.isna(value) else float(value)
            for name in SHARES
            for site, value in zip(units, self.sites[name], strict=True)
        }
        return findings_of_moment(units, metrics)

    def __repr__(self) -> str:
        return as_text(self.units, self.sites, self.findings)

    def _repr_html_(self) -> str:
        return as_html(self.units, self.sites, self.findings)


def inspect(
    model: Any,
    x: Any,
    *,
    y: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    unit_axis: Mapping[str, int] | None = None,
    batch_size: int = BATCH,
    **call: Any,
) -> Inspection:
    """Measure every unit of a model on the probe examples x.

    n is the number of examples, on the first axis of x. The entries of a unit are its examples x positions. With
    firing_rate = share of the entries with phi'(pre) != 0, a unit is
      - dead if firing_rate = 0, and nearly dead if 0 < firing_rate < 0.01;
      - always on if post = pre in every entry (piecewise linear phi with an identity piece; else `<NA>`);
      - saturated if abs phi'(pre) < 0.01 max abs phi' in every entry (smooth phi; else `<NA>`);
      - dormant if mean abs post <= 0.025 of its site's average;
      - zero-gradient if the loss gradient of its incoming weights and its bias is 0 (with y and loss; else `<NA>`). Where no
        weight has an axis of units, the gradient of pre counts.
    A unit with a nonfinite entry is `<NA>` in every flag.

    Args:
      model: an `nnx.Module`, `(linen_module, variables)`, a Flax `TrainState`, or `(fn, params)` with `fn(params, *inputs)`. It
        is not changed; an `nnx.Module` is read in evaluation mode.
      x: the model's input, a tuple of its arguments, or an iterable of batches of either.
      y: targets, or an iterable of their batches. With `loss`, gradients are measured too.
      loss: `loss(output, y)`, the mean over examples.
      unit_axis: axis of the units by site, where it is not the last.
      batch_size: examples at a time; arrays with more are cut. Flags do not depend on it.
      call: keyword arguments of the model, for example `train=False`.

    Raises:
      UserError: for an unknown kind of model, y without loss, batches of unequal number or size, a loss that is no scalar, and
        as `find_sites`.

    Source: dead: Maas, Hannun & Ng 2013, ICML workshop, section 2. Saturated: after Glorot & Bengio 2010, AISTATS, section 3.
    Dormant: Sokar et al. 2023, arXiv 2302.12902, definition 3.1.
    """
    if (y is None) != (loss is None):
        missing = "loss" if loss is None else "y"
        raise UserError(f"inspect measures gradients with y and loss, but {missing} is missing. Pass both, or neither.")
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} holds no example. Pass at least 1.")
    probe = _Probe(as_function(model, call), loss, dict(unit_axis or {}))
    for inputs, targets in _batches(x, y, batch_size):
        probe.add(inputs, targets)
    if probe.sites is None:
        raise UserError("x has no examples. Pass at least one.")
    return probe.result()


class _Probe:
    """Counts of every site over the batches so far."""

    def __init__(self, model: Model, loss: Callable[[Any, Any], Any] | None, unit_axis: dict[str, int]):
        self.model = model
        self.loss = loss
        self.unit_axis = unit_axis
        self.sites: Sites | None = None
        self.found: list[Site] = []
        self.counts: dict[str, UnitCounts] = {}
        self.weights: dict[Weight, int] = {}  # its place in `grads`
        self.grads: list[np.ndarray] = []
        self.examples = 0
        self.measure = jax.jit(self._measured)

    def add(self, inputs: tuple[Any, ...], targets: Any) -> None:
        if self.sites is None:
            self.sites = trace(self.model.function, (self.model.params, self.model.state, *inputs), {}).sites
            check_axes(self.sites, self.unit_axis)
            self.found = listed(self.sites, self.unit_axis)
            self.weights = {weight: place for place, weight in enumerate(_weights(self.sites))}
            self.counts = {place.name: UnitCounts() for place in self.sites.places}
        examples = _rows(inputs, 0)
        counts, grads = jax.device_get(self.measure(self.model.params, self.model.state, inputs, targets))
        for name, batch in counts.items():
            self.counts[name].add(batch, examples)
        grads = [np.asarray(grad, float) * examples for grad in grads]
        self.grads = [old + new for old, new in zip(self.grads, grads, strict=True)] if self.grads else grads
        self.examples += examples

    def _measured(self, params: Any, state: Any, inputs: tuple[Any, ...], targets: Any) -> tuple[Any, list[Any]]:
        """Return the counts of every site, and the gradient of every weight."""
        traced = trace(self.model.function, (params, state, *inputs), {})
        tapping = Tapping(traced.sites)
        _, taps = tapping.run(traced.program, traced.arrays, {})
        grads: dict[Value, Any] = {}
        if (loss := self.loss) is not None:
            values = [*tapping.pre_values(), *((w.program, w.value) for w in _weights(traced.sites))]

            def of(outs: list[Any]) -> Any:
                value = loss(jax.tree.unflatten(traced.out_tree, outs), targets)
                if jnp.shape(value):
                    raise UserError(f"loss returns the shape {jnp.shape(value)}, not a scalar. Return its mean over examples.")
                return value

            grads = tapping.gradients(traced.program, traced.arrays, of, dict.fromkeys(values))
        named = tapping.named(taps, grads)
        counts = {
            place.name: batch_counts(named[place.name], _axis(traced.sites, place, self.unit_axis), place.conditional)
            for place in traced.sites.places
        }
        return counts, [grads[w.program, w.value] for w in _weights(traced.sites)] if grads else []

    def result(self) -> Inspection:
        assert self.sites is not None
        if not self.sites.places:
            warnings.warn(f"the model has no sites: {NO_SITES} The frames are empty.", UserWarning, stacklevel=3)
        units, sites = [], []
        for place, found in zip(self.sites.places, self.found, strict=True):
            rows = self._units(place, found)
            units.append(rows)
            sites.append(self._site(place, found, rows))
        frame = pd.concat(units, ignore_index=True) if units else _typed(pd.DataFrame(columns=list(UNITS)))
        return Inspection(frame, _typed(pd.DataFrame(sites, columns=list(SITES))))

    def _units(self, place: Place, found: Site) -> pd.DataFrame:
        counts = self.counts[place.name]
        size = found.units
        measured = np.broadcast_to(np.asarray(counts.nonfinite) == 0, size) & (counts.entries > 0)
        flags: dict[str, Any] = dict.fromkeys(FLAGS)
        rate = None
        if counts.entries:
            rate = np.asarray(counts.active) / counts.entries
            flags["dead"] = is_dead(counts.active)
            flags["nearly_dead"] = is_nearly_dead(counts.active, counts.entries)
            flags["dormant"] = is_dormant(np.asarray(counts.abs_post) / counts.entries)
            if is_piecewise_linear(place.program, place.region):
                if has_identity_piece(place.program, place.region):
                    flags["always_on"] = counts.identity == counts.entries
            elif (largest := max_slope(place.program, place.region)) is not None:
                flags["saturated"] = is_saturated(np.asarray(counts.max_slope), np.asarray(largest))
            if self.loss is not None:
                flags["zero_gradient"] = self._zero_gradient(place, counts, size)
        frame = pd.DataFrame({"site": found.name, "unit": np.arange(size), "n": counts.n})
        frame["firing_rate"] = _masked(rate, measured, size, "Float64")
        for name, flag in flags.items():
            frame[name] = _masked(flag, measured, size, "boolean")
        return frame

    def _zero_gradient(self, place: Place, counts: UnitCounts, units: int) -> np.ndarray:
        """Return whether the gradients of a unit's weights are 0. Without a weight with an axis of units, its pre counts."""
        assert self.sites is not None
        zero = []
        for weight, grad in self._gradients(place):
            axis = weight.axis % grad.ndim
            if grad.shape[axis] == units and self.unit_axis.get(place.name, -1) == -1:
                zero.append(np.all(grad == 0, axis=tuple(other for other in range(grad.ndim) if other != axis)))
        return np.all(zero, axis=0) if zero else np.asarray(counts.has_gradient) == 0

    def _gradients(self, place: Place) -> list[tuple[Weight, np.ndarray]]:
        """Return the weights of a site with their gradients, in a loop by iteration."""
        assert self.sites is not None
        found = []
        for weight in self.sites.weights(place):
            grad = self.grads[self.weights[weight]]
            for step in place.steps[: len(self.sites.loops[weight.program])]:
                grad = grad[step]
            found.append((weight, grad))
        return found

    def _site(self, place: Place, found: Site, rows: pd.DataFrame) -> dict[str, Any]:
        counts = self.counts[place.name]
        fractions = {f"{flag}_fraction": _mean(rows[flag]) for flag in FLAGS}
        entries = counts.entries * found.units
        row = {"site": found.name, "activation": found.activation, "units": found.units, "n": counts.n, **fractions}
        row |= dict.fromkeys(("post_mean", "post_std", "grad_norm", "zero_entries"), pd.NA)
        if entries:
            row |= {"post_mean": counts.post_mean, "post_std": (counts.post_sum2 / entries) ** 0.5}
            row["zero_entries"] = counts.zeros / entries
        grads = [] if self.loss is None else [jnp.asarray(grad / self.examples) for _, grad in self._gradients(place)]
        if grads:
            row["grad_norm"] = float(norm(grads))
        return row


def _weights(sites: Sites) -> list[Weight]:
    return list(dict.fromkeys(weight for place in sites.places for weight in sites.weights(place)))


def _axis(sites: Sites, place: Place, unit_axis: Mapping[str, int]) -> int | None:
    return unit_axis.get(place.name, sites.unit_axis(place))


def _mean(flags: pd.Series) -> Any:
    return pd.NA if flags.isna().any() else float(flags.mean())


def _masked(values: Any, measured: np.ndarray, size: int, dtype: str) -> pd.Series:
    """Return values as a nullable column; units that are not measured are <NA>."""
    column = pd.Series(pd.NA, index=range(size), dtype=dtype) if values is None else pd.Series(values, range(size), dtype)
    return column.where(measured, pd.NA)


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame with nullable columns of flags and floats."""
    types: dict[Any, Any] = dict.fromkeys(("site", "activation"), "str") | dict.fromkeys(("unit", "units", "n"), "int64")
    types |= dict.fromkeys(FLAGS, "boolean")
    return frame.astype({name: types.get(name, "Float64") for name in frame.columns})


def _batches(x: Any, y: Any, size: int) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the model's inputs and targets, batch by batch."""
    for number, (batch, targets) in enumerate(_pairs(x, y)):
        inputs = batch if isinstance(batch, tuple) else (batch,)
        rows = _rows(inputs, number)
        targets = jnp.asarray(targets) if isinstance(targets, list) else targets
        for leaf in jax.tree.leaves(targets):
            if jnp.ndim(leaf) and len(leaf) != rows:
                raise UserError(f"y has {len(leaf)} rows, but x has {rows} in batch {number}. Pass a target for every example.")
        for start in range(0, rows, size):
            cut = _cut(rows, slice(start, start + size))
            yield jax.tree.map(cut, inputs), jax.tree.map(cut, targets)


def _pairs(x: Any, y: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(x, tuple | Mapping) or hasattr(x, "shape"):
        yield x, y
        return
    if not isinstance(x, Iterable):
        raise UserError(f"x is no array but a {type(x).__name__}. Pass an array, a tuple of arguments, or batches of either.")
    targets = itertools.repeat(None) if y is None else iter(y)
    end = object()
    for number, batch in enumerate(x):
        if (target := next(targets, end)) is end:
            raise UserError(f"y has {number} batches, and x has more. Pass a batch of targets for every batch of x.")
        yield batch, target
    if y is not None and next(targets, end) is not end:
        raise UserError("y has more batches than x. Pass a batch of targets for every batch of x.")


def _rows(inputs: tuple[Any, ...], number: int) -> int:
    rows = _first_axis(inputs)
    if rows is None:
        raise UserError(f"batch {number} of x has no axis of examples. Pass arrays with the examples on their first axis.")
    return rows


def _first_axis(inputs: Any) -> int | None:
    """Return the number of examples: the first axis of the first array with axes, after scalars and keys."""
    return next((len(leaf) for leaf in jax.tree.leaves(inputs) if jnp.ndim(leaf)), None)


def _cut(rows: int, part: slice) -> Callable[[Any], Any]:
    """Return a function that cuts arrays with an entry for every example; others stay whole."""
    return lambda array: array[part] if jnp.shape(array)[:1] == (rows,) else array
