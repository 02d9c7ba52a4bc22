"""The measuring program of a monitored model: every metric of every site on the probe set, in one compiled pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from relu_study.components.metrics import histograms
from relu_study.components.metrics.metric import default_metrics
from relu_study.components.metrics.snapshot import Snapshot
from relu_study.components.registry import metrics
from relu_study.engine.tapped_sites import TappedNetwork
from relu_study.errors import UserError, printable
from relu_study.stats.histogram_bins import bounded
from relu_study.storage.quantities import MetricInfo
from relu_study.watch.find import Site, listed
from relu_study.watch.models import Model
from relu_study.watch.tap import trace

ABSENT = ("collapsed", "constant", "train_loss", "val_loss")  # metrics of a study's task; the monitor's `loss` is train_loss
ENTRIES = 2**14  # in a histogram: more would take as long as all other metrics together
FIRST = ("loss", "dead_fraction", "nearly_dead_fraction", "saturated_fraction", "dormant_fraction", "grad_norm", "update_ratio")
MEASURED = ("update_ratio", "zero_entries")  # optional metrics that every monitor measures
LOSS = MetricInfo("lower", False, "loss", 0.0)


class Measured(NamedTuple):
    """The numbers of one measurement, for M members. Names are in `Program`."""

    values: Float[Array, "M V"]
    dead: tuple[UInt8[Array, "M bytes"], ...]  # packed bits, by site
    histograms: Int[Array, "H 65"]  # summed over members
    finite: Bool[Array, "M places"]  # by site, then outputs, loss, gradients, parameters


@dataclass(frozen=True)
class Program:
    """A compiled measurement with the names of its numbers. One call compiles, later ones do not."""

    # Of parameters, other state, previous parameters, inputs and targets. Returns copies of the parameters too: the caller's
    # arrays may be donated.
    run: Callable[..., tuple[Measured, Any]]
    read: Callable[[Any], tuple[Any, Any]]  # parameters and other state of a later version of the model
    sites: tuple[Site, ...]
    left_out: tuple[str, ...]  # sites inside branches that a call may not take
    series: tuple[str, ...]  # "metric/site" of each value
    histograms: tuple[str, ...]  # "pre/SITE", "post/SITE", "gradient/SITE"
    places: tuple[str, ...]  # of `finite`, in the order of the computation
    bins: Mapping[str, tuple[float, float]]  # range of the histograms with linear bins
    members: int
    examples: int

    def metrics(self) -> dict[str, MetricInfo]:
        """Return the properties of every measured metric, in the order of TensorBoard's charts."""
        measured = dict.fromkeys(name.partition("/")[0] for name in self.series)
        names = [*(name for name in FIRST if name in measured), *(name for name in measured if name not in FIRST)]
        return {name: LOSS if name == "loss" else _info(name) for name in names}


def _info(name: str) -> MetricInfo:
    metric = metrics[name]
    return MetricInfo(metric.direction, metric.sites, metric.unit, metric.low, metric.high)


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Raise an error of the user's model or loss as a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"the model cannot be evaluated on the probe set ({text}). Check probe, targets, loss, ensemble, and the keyword "
            "arguments of the model."
        ) from error


@_one_line_errors()
def measuring_program(
    model: Model,
    inputs: tuple[Any, ...],
    targets: Any,
    loss: Callable[[Any, Any], Any] | None,
    unit_axis: Mapping[str, int],
    ensemble: bool | str,
) -> Program:
    """Return the measuring program of a model, from shapes only.

    Args:
      model: with `ensemble`, its parameters and its other state have a leading axis of members; with "params", only its
        parameters.
      inputs, targets: the probe set.
      loss: `loss(outputs, targets)`, the mean over examples.

    Raises:
      UserError: a model that cannot be evaluated on the probe set, an ensemble without a leading axis, an axis in `unit_axis`
        that does not exist, a loss that is no scalar.
    """
    model = differentiable(model)
    members = _members(model.params) if ensemble else 1
    mapped = _mapped(model.state, members, ensemble) if ensemble else jax.tree.map(lambda _: None, model.state)
    params = jax.tree.map(lambda leaf: _shape(leaf, 1 if ensemble else 0), model.params)
    state = jax.tree.map(
        lambda leaf, axis: None if leaf is None else _shape(leaf, 0 if axis is None else 1),
        model.state,
        mapped,
        is_leaf=_is_none,
    )
    traced = trace(model.function, (params, state, *jax.tree.map(_shape, inputs)), {})
    found = {site.name: site for site in listed(traced.sites, unit_axis)}
    places = [place for place in traced.sites.places if not place.conditional]
    network = TappedNetwork.of_traced(traced, places, unit_axis)
    names: dict[str, Any] = {"sites": [_label(place.name) for place in places]}

    def one(params: Any, state: Any, previous: Any, inputs: Any, targets: Any) -> Measured:
        return _measured(network, (params, state, previous, inputs, targets), loss, names)

    def run(params: Any, state: Any, previous: Any, inputs: Any, targets: Any) -> tuple[Measured, Any]:
        arguments = (params, state, previous, inputs, targets)
        if ensemble:
            result = jax.vmap(one, in_axes=(0, mapped, 0, None, None))(*arguments)
        else:
            result = jax.tree.map(lambda array: array[None], one(*arguments))
        return result._replace(histograms=jnp.sum(result.histograms, axis=0)), jax.tree.map(jnp.copy, params)

    jitted = jax.jit(run)
    # Fills `names`. The first call reuses this trace.
    jax.eval_shape(jitted, model.params, model.state, model.params, inputs, targets)
    return Program(
        run=jitted,
        read=model.read,
        sites=tuple(replace(found[place.name], name=_label(place.name)) for place in places),
        left_out=tuple(_label(place.name) for place in traced.sites.places if place.conditional),
        series=names["series"],
        histograms=names["histograms"],
        places=names["places"],
        bins=names["bins"],
        members=members,
        examples=examples_of(inputs),
    )


def _measured(
    network: TappedNetwork, arguments: tuple[Any, ...], loss: Callable[[Any, Any], Any] | None, names: dict[str, Any]
) -> Measured:
    """Measure one member. `names` receives the names of the numbers."""
    params, state, previous, inputs, targets = arguments

    def of(outputs: Any) -> Array:
        value = jnp.zeros(()) if loss is None else jnp.asarray(loss(outputs, targets))
        if value.shape:
            raise UserError(f"loss returns the shape {value.shape}, not a scalar. Return its mean over examples.")
        return value

    tapped = network.measure(params, state, previous, inputs, of)
    sites, grads = tuple(site._replace(**_exact(site._asdict())) for site in tapped.sites), _exact(tapped.grads)
    if loss is None:
        sites, grads = tuple(site._replace(kernel_grad=None) for site in sites), None
    params, previous = _exact(params), _exact(previous)
    steps = jax.tree.map(jnp.subtract, params, previous)
    outputs = _by_example(tapped.outputs, examples_of(inputs))
    snapshot = Snapshot(sites, outputs, None, tapped.loss, None, params, grads, steps)  # type: ignore[arg-type]
    named = {f"site_{number}": name for number, name in enumerate(names["sites"], 1)} | {"all": "all"}
    values, dead = _values(snapshot, named)
    if loss is not None:
        values = {"loss/all": tapped.loss, **values}
    counts = {}
    for name, count in histograms.counts(snapshot, entries=ENTRIES).items():
        kind, site = name.split(":")
        if kind != "gradient" or snapshot.named()[site].kernel_grad is not None:
            counts[f"{kind}/{named[site]}"] = count
    finite = _finite(snapshot, named, tapped.outputs, loss is not None)
    names["series"], names["histograms"], names["places"] = tuple(values), tuple(counts), tuple(finite)
    ranges = {name: bounded(site.activation.values) for name, site in snapshot.named().items()}
    names["bins"] = {f"post/{named[name]}": span for name, span in ranges.items() if span is not None}
    stacked = jnp.stack(list(counts.values())) if counts else jnp.zeros((0, histograms.BINS), jnp.int32)
    numbers = [jnp.asarray(value, jnp.result_type(float)) for value in values.values()]
    return Measured(jnp.stack(numbers), tuple(dead), stacked, jnp.stack(list(finite.values())))


def _label(site: str) -> str:
    """Return the name of a site in files: one line, and other than `all`, the name of the whole network."""
    return "all_site" if site == "all" else printable(site)


def _exact(tree: Any) -> Any:
    """Return a tree with its low-precision arrays in float32, so that norms and means are not rounded to bfloat16."""

    def exact(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))

    return jax.tree.map(exact, tree)


def _values(snapshot: Snapshot, named: Mapping[str, str]) -> tuple[dict[str, Array], list[Array]]:
    """Return every default metric that is defined here, with those of `MEASURED`, and the packed dead masks."""
    values: dict[str, Array] = {}
    dead = []
    for name in (*(name for name in default_metrics() if name not in ABSENT), *MEASURED):
        values |= {f"{name}/{named[site]}": value for site, value in metrics[name].read(snapshot).items()}
    masks = metrics["dead_fraction"].masks(snapshot)
    for name in snapshot.named():
        dead.append(jnp.packbits(masks[name]))
    return values, dead


def _by_example(outputs: Any, examples: int) -> Float[Array, "N O"]:
    """Return all numbers of an example in one row; zeros where an output has no axis of examples."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(outputs)]
    if any(leaf.shape[:1] != (examples,) for leaf in leaves):
        return jnp.zeros((examples, 1))
    return jnp.concatenate([leaf.reshape(examples, -1) for leaf in leaves], axis=1)


def _finite(snapshot: Snapshot, named: Mapping[str, str], outputs: Any, with_loss: bool) -> dict[str, Array]:
    """Return whether each place is finite: sites in program order, outputs, loss, gradients, parameters."""
    places = {named[name]: _all_finite((site.pre, site.post)) for name, site in snapshot.named().items()}
    places["outputs"] = _all_finite(outputs)
    if with_loss:
        places |= {"loss": _all_finite(snapshot.train_loss), "gradients": _all_finite(snapshot.grads)}
    return places | {"parameters": _all_finite(snapshot.params)}


def _all_finite(tree: Any) -> Bool[Array, ""]:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.size]
    # The largest magnitude is NaN if an entry is. The norms of gradients and parameters compute it too.
    return jnp.all(jnp.stack([jnp.isfinite(jnp.max(jnp.abs(leaf))) for leaf in leaves])) if leaves else jnp.array(True)


def differentiable(model: Model) -> Model:
    """Return a model whose parameters are all floats. Parameters of other types become other state."""
    if all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in map(_shape, jax.tree.leaves(model.params))):
        return model

    whole_function, read = model.function, model.read  # without the arrays of the model

    def split(params: Any, state: Any) -> tuple[Any, Any]:
        floats = jax.tree.map(lambda leaf: leaf if jnp.issubdtype(_shape(leaf).dtype, jnp.inexact) else None, params)
        others = jax.tree.map(lambda leaf: None if jnp.issubdtype(_shape(leaf).dtype, jnp.inexact) else leaf, params)
        return floats, (others, state)

    def function(params: Any, state: Any, *inputs: Any) -> Any:
        others, state = state
        whole = jax.tree.map(lambda one, other: other if one is None else one, params, others, is_leaf=_is_none)
        return whole_function(whole, state, *inputs)

    return Model(function, *split(model.params, model.state), lambda given: split(*read(given)))


# -------------------------------------------------------------------------------------- ensembles


def _members(params: Any) -> int:
    """Return the number of members: the length of the leading axis, which all parameters share."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise UserError("the ensemble has no parameters. Pass the stacked parameters of its members.")
    sizes = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for _, leaf in leaves}
    for path, leaf in leaves:
        if len(sizes) > 1 or not jnp.ndim(leaf):
            raise UserError(
                f"ensemble=True needs parameters with one leading axis of members, but {jax.tree_util.keystr(path)} has the "
                f"shape {jnp.shape(leaf)} and the leading lengths are {sorted(sizes)}. Stack the members, as jax.vmap does."
            )
    return sizes.pop()


def _mapped(state: Any, members: int, ensemble: bool | str) -> Any:
    """Return the axis of the members in every array of the other state; None: shared by all members."""
    arrays = [(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state) if jnp.ndim(leaf)]
    shared = [(path, leaf) for path, leaf in arrays if jnp.shape(leaf)[0] != members]
    if ensemble == "params" or len(shared) == len(arrays):
        return jax.tree.map(lambda _: None, state)
    if shared:
        name = jax.tree_util.keystr(shared[0][0])
        raise UserError(
            f"{name} has the shape {jnp.shape(shared[0][1])}, without the axis of the {members} members that other arrays have. "
            "Stack all of them, or pass ensemble='params' if the members share all but the parameters."
        )
    return jax.tree.map(lambda leaf: 0 if jnp.ndim(leaf) else None, state)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _shape(leaf: Any, drop: int = 0) -> jax.ShapeDtypeStruct:
    """Return the shape of an array without its first `drop` axes."""
    return jax.ShapeDtypeStruct(jnp.shape(leaf)[drop:], leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf))


def examples_of(inputs: Any) -> int:
    """Return the number of examples: the length of the first array's first axis."""
    return next((int(np.shape(leaf)[0]) for leaf in jax.tree.leaves(inputs) if np.ndim(leaf)), 0)
