"""The sites of a function: names, activations, units and source lines, without running it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from relu_study.errors import UserError, nearest
from relu_study.watch.activation_names import activation_name
from relu_study.watch.sites import Place, Sites
from relu_study.watch.tap import trace


@dataclass(frozen=True)
class Site:
    """One nonlinearity of a function."""

    name: str  # of its layer: "conv1", "blocks.3.up", "Dense_0", "layers[2]"
    activation: str  # "relu", "leaky_relu(0.1)", ...; "elementwise" if it is none of the known ones
    shape: tuple[int, ...]  # of pre and post
    units: int  # length of the unit axis
    parameters: tuple[str, ...]  # paths of the parameters that feed it
    line: str  # "model.py:12" of the user's code


def find_sites(fn: Callable[..., Any], *args: Any, unit_axis: Mapping[str, int] | None = None, **kwargs: Any) -> list[Site]:
    """Return the sites of `fn(*args, **kwargs)`, in program order. Nothing is computed.

    A site is a maximal elementwise region of the function's jaxpr that starts at a value with features and contains a
    nonlinear operation. A site's name is the path of the parameter of the last product, convolution or normalisation before
    it. Iterations of a loop have indices ("layers[2]"), repeated names have numbers ("shared.2").

    Args:
      fn: a JAX function.
      args, kwargs: its arguments: arrays, or `jax.ShapeDtypeStruct`s. The first one has the parameters.
      unit_axis: axis of the units by site, where it is not the last.

    Returns:
      One `Site` for each nonlinearity, without losses, softmax, statistics of normalisations and masks of attention.

    Raises:
      UserError: for a while loop, shard_map or custom derivative that contains a site, and for an unknown name in `unit_axis`.
    """
    return listed(trace(fn, args, kwargs).sites, unit_axis or {})


def listed(sites: Sites, unit_axis: Mapping[str, int]) -> list[Site]:
    """Return the description of every site."""
    check_axes(sites, unit_axis)
    activations: dict[int, str] = {}

    def activation(place: Place) -> str:
        if id(place.region) not in activations:
            activations[id(place.region)] = activation_name(place.program, place.region)
        return activations[id(place.region)]

    return [
        Site(
            place.name,
            activation(place),
            place.shape,
            units_of(sites, place, unit_axis),
            tuple(leaf.path for leaf in sites.parameters(place)),
            sites.line(place),
        )
        for place in sites.places
    ]


def units_of(sites: Sites, place: Place, unit_axis: Mapping[str, int]) -> int:
    """Return the number of units of a site."""
    axis = unit_axis.get(place.name, sites.unit_axis(place))
    return 1 if axis is None else place.shape[axis]


def check_axes(sites: Sites, unit_axis: Mapping[str, int]) -> None:
    """Raise UserError for a site or an axis in `unit_axis` that does not exist."""
    shapes = {place.name: place.shape for place in sites.places}
    for name, axis in unit_axis.items():
        if name not in shapes:
            raise nearest(name, shapes, "site in unit_axis")
        if not -len(shapes[name]) <= axis < len(shapes[name]):
            raise UserError(f"unit_axis: {name!r} has the shape {shapes[name]} and no axis {axis}. Choose one of its axes.")
