"""Networks as pure functions of parameters and other variables, for training and measurement."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from relu_study.components.activations import Activation
from relu_study.components.flax_models import FlaxModel, as_functions
from relu_study.components.layers import Context, Site
from relu_study.components.networks import Network, network_of
from relu_study.components.options import program_options
from relu_study.components.registry import activations, ours
from relu_study.components.tasks.task import Signature
from relu_study.engine.convolutions import with_products
from relu_study.engine.state import build
from relu_study.study.run_spec import TRACED_FIELDS, RunSpec
from relu_study.watch.activation_names import activation_name
from relu_study.watch.find import units_of
from relu_study.watch.region_function import is_piecewise_linear
from relu_study.watch.sites import Place
from relu_study.watch.tap import trace

NETWORK_FIELDS = ("network", "depth", "width", "activation", "output", "norm", "dropout")


@dataclass(frozen=True)
class Forward:
    """A network as a function.

    `apply(params, stats, x, context)` returns outputs and the other variables after the call. `flax` is None for a network of
    the modules of `layers.py`, which logs its sites.
    """

    apply: Callable[..., tuple[Any, Any]]
    params: Any  # shapes
    feature_major: bool  # it takes a FeatureMajorBatch and an Interval
    flax: FlaxModel | None = None
    graph: Any = None  # of a network that logs its sites


def forward_of(spec: RunSpec, signature: Signature) -> Forward:
    """Return the network of a spec as a function, from shapes only."""
    network = network_of(spec)
    if not network.sized:
        model = flax_model(network, network_spec(spec), signature.inputs, signature.outputs)

        def apply_flax(params: Any, stats: Any, x: Any, ctx: Context) -> tuple[Any, Any]:
            return model.apply(params, stats, x, ctx.train, ctx.key)

        return Forward(apply_flax, model.params, False, model)
    # no arrays: each shape would compile a program
    module = nnx.eval_shape(lambda: build(spec, signature.d_in, signature.d_out))
    graph, params, _ = nnx.split(module, nnx.Param, nnx.BatchStat)

    def apply(params: Any, stats: Any, x: Any, ctx: Context) -> tuple[Any, Any]:
        model = nnx.merge(graph, params, stats, copy=True)
        return model(x, ctx), nnx.state(model, nnx.BatchStat)

    return Forward(apply, params, network.bounded, graph=graph)


def network_spec(spec: RunSpec) -> RunSpec:
    """Return a spec with only the fields and options that a Flax network may read."""
    fields = {name: getattr(spec, name) for name in NETWORK_FIELDS}
    return RunSpec(**fields, options=program_options(spec, "network", "activation"))


@functools.lru_cache(maxsize=64)
def flax_model(network: Network, spec: RunSpec, inputs: jax.ShapeDtypeStruct, outputs: jax.ShapeDtypeStruct) -> FlaxModel:
    """Return a Flax network as functions."""
    model = as_functions(f"network {network.name!r}", lambda rngs: network(spec, inputs, outputs, rngs), inputs)

    def apply(params: Any, rest: Any, x: Any, train: bool, key: Any = None) -> tuple[Any, Any]:
        return with_products(lambda params, rest, x: model.apply(params, rest, x, train, key))(params, rest, x)

    return replace(model, apply=apply) if jax.default_backend() == "cpu" else model


def site_units(spec: RunSpec, signature: Signature) -> dict[str, int]:
    """Number of units at each site, from shapes only."""
    return {f"site_{i}": units for i, (_, units) in enumerate(sites_of(spec, signature), 1)}


def sites_of(spec: RunSpec, signature: Signature) -> list[tuple[Activation, int]]:
    """The activation and the units of each site, in the order of the calls."""
    if not (network := network_of(spec)).sized:
        return _flax_sites(network, network_spec(spec), signature.inputs, signature.outputs)
    sites: list[tuple[Activation, int]] = []

    def record(x: Float[Array, "1 D"]) -> None:
        ctx = Context({name: jnp.zeros(()) for name in TRACED_FIELDS})
        build(spec, signature.d_in, signature.d_out)(x, ctx)  # type: ignore[operator]
        logged = [entry for entry in ctx.activations_log if isinstance(entry[0], Site)]
        sites.extend((activations[site.activation], pre.shape[-1]) for site, pre, _ in logged)

    jax.eval_shape(record, jax.ShapeDtypeStruct((1, signature.d_in), jnp.result_type(float)))
    return sites


@functools.lru_cache(maxsize=256)
def _flax_sites(
    network: Network, spec: RunSpec, inputs: jax.ShapeDtypeStruct, outputs: jax.ShapeDtypeStruct
) -> list[tuple[Activation, int]]:
    model = flax_model(network, spec, inputs, outputs)
    x = jax.ShapeDtypeStruct((2, *inputs.shape), inputs.dtype)
    found = trace(lambda params, rest, x: model.apply(params, rest, x, False)[0], (model.params, model.rest, x), {}).sites
    return [(site_activation(place), units_of(found, place, {})) for place in found.places]


def site_activation(place: Place) -> Activation:
    """Return the package's activation at a site that was found, or one without declared pieces if it is none of them."""
    name = activation_name(place.program, place.region)
    if name in activations and ours(activations[name]):
        return activations[name]
    return Activation(name, jnp.asarray, smooth=not is_piecewise_linear(place.program, place.region))


def probe_function(forward: Forward) -> Callable[[Any, Any, Any], Any]:
    """Return the network in evaluation mode: a function of parameters, other variables and inputs."""
    context = Context({})
    return lambda params, stats, x: forward.apply(params, stats, x, context)[0]
