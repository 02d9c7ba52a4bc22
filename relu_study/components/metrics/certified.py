"""Certified fractions: properties of a unit proven for every input of the task's box. The proof is in `interval_bounds`."""

from __future__ import annotations

import functools

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from relu_study.components.activations import Piece
from relu_study.components.interval_bounds import at_most
from relu_study.components.metrics.metric import metric
from relu_study.components.metrics.snapshot import SiteView, Snapshot
from relu_study.components.metrics.unit_fractions import always_on

certified = functools.partial(metric, per="unit", unit="fraction", low=0, high=1, requires=("bound",))


@certified(
    "certified_dead_fraction",
    store_mask=True,
    source="ours, by the interval bounds of Gowal et al. 2018, arXiv 1810.12715, section 3",
)
def certified_dead(site: SiteView) -> Bool[Array, "U"] | None:
    """The bound on pre over the task's box lies inside a flat piece of phi; a subset of dead, exact at site_1."""
    pieces = site.activation.flat
    if site.bound is None or not pieces:
        return None
    return jnp.stack([_within(site, piece) for piece in pieces]).any(axis=0)


@certified("certified_always_on_fraction", direction="none", source="as certified_dead_fraction")
def certified_always_on(site: SiteView) -> Bool[Array, "U"] | None:
    """The bound on pre over the task's box lies inside the identity piece of a piecewise linear phi; a subset of always on."""
    identity = site.activation.identity
    if site.bound is None or identity is None or site.activation.smooth:
        return None
    return site.bound.inside(identity)


def unsound(snapshot: Snapshot) -> dict[str, Int[Array, ""]]:
    """Return the number of units per site that are certified, but not measured, always on. Correct declarations give 0."""
    pairs = {name: (certified_always_on(site), always_on(site)) for name, site in snapshot.named().items()}
    return {name: jnp.sum(proved & ~on) for name, (proved, on) in pairs.items() if proved is not None and on is not None}


def _within(site: SiteView, piece: Piece) -> Bool[Array, "U"]:
    """Whether the bound is inside a flat piece. An end with a nonzero slope, as of jnp.maximum, is excluded."""
    assert site.bound is not None
    inside = site.bound.inside(piece)
    for end, reached in ((piece[0], at_most(site.bound.lo, piece[0])), (piece[1], at_most(piece[1], site.bound.hi))):
        if site.end_slopes and end in site.end_slopes:
            inside &= ~reached | (site.end_slopes[end] == 0)
    return inside
