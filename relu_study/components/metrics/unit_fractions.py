"""Fractions of dead, nearly dead, always on, saturated, dormant, zero-gradient, quiet and silent units on the probe set.

These metrics count units, not zero entries of activations.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real

from relu_study.components.metrics.metric import metric
from relu_study.components.metrics.snapshot import SiteView

NEARLY = 100  # a nearly dead unit is active on fewer than 1 in 100 examples
SATURATED = 0.01  # slopes of a saturated unit, as a share of the maximal slope
TAU = 0.025  # mean abs(post) of a dormant unit, as a share of its layer's average
QUIET = 1e-5  # abs(post) of a quiet unit is smaller on all but 1 in 20 examples
EXCEPTIONS = 20

fraction = functools.partial(metric, per="unit", unit="fraction", low=0, high=1)


@fraction("dead_fraction", requires=("slope",), store_mask=True, source="Maas, Hannun & Ng 2013, ICML workshop, section 2")
def dead(site: SiteView) -> Bool[Array, "U"]:
    """phi'(pre) = 0 on every probe example; an upper bound on true death."""
    return is_dead(_active_examples(site))


@fraction("nearly_dead_fraction", requires=("slope",), source="ours; dead with a tolerance of 1 % of the examples")
def nearly_dead(site: SiteView) -> Bool[Array, "U"]:
    """Not dead, but phi'(pre) != 0 on fewer than 1 % of the probe examples."""
    return is_nearly_dead(_active_examples(site), site.slope.shape[0])


@fraction("always_on_fraction", direction="none", requires=("pre",), source="ours; the counterpart of dead on the linear side")
def always_on(site: SiteView) -> Bool[Array, "U"] | None:
    """pre in the identity piece on every probe example, so that the unit is linear; piecewise linear phi only."""
    if site.activation.smooth:
        return None
    if site.activation.identity is None:
        return site.linear
    lo, hi = site.activation.identity
    # On a CPU, XLA computes min and max several times faster than a reduction over comparisons.
    return (jnp.min(site.pre, axis=0) >= lo) & (jnp.max(site.pre, axis=0) <= hi)


@fraction(
    "saturated_fraction",
    requires=("slope", "max_slope"),
    source="after Glorot & Bengio 2010, AISTATS, section 3; the threshold is ours",
)
def saturated(site: SiteView) -> Bool[Array, "U"] | None:
    """abs phi'(pre) below 0.01 of its maximum on every probe example; smooth phi only."""
    if not site.activation.smooth:
        return None
    return is_saturated(jnp.max(site.slope, axis=0), site.max_slope)


@fraction("dormant_fraction", requires=("post",), source="Sokar, Agarwal, Castro & Evci 2023, arXiv 2302.12902, definition 3.1")
def dormant(site: SiteView) -> Bool[Array, "U"]:
    """Mean abs(post) at most tau = 0.025 of its layer's average; every unit where the layer is all zero."""
    return is_dormant(jnp.mean(jnp.abs(site.post), axis=0).reshape(site.activation.fanout, -1).mean(axis=0))


@fraction("zero_gradient_fraction", requires=("kernel_grad",), source="ours; Is ReLU Dead? (2019) watches the same gradients")
def zero_gradient(site: SiteView) -> Bool[Array, "U"] | None:
    """The probe-set loss gradient of all incoming weights and the bias is exactly 0; the unit may be dead downstream instead."""
    if site.kernel_grad is None:
        return None
    zero_kernel = jnp.all(site.kernel_grad == 0, axis=range(site.kernel_grad.ndim - 1))
    return zero_kernel if site.bias_grad is None else zero_kernel & (site.bias_grad == 0)


@fraction(
    "quiet_fraction",
    requires=("pre", "post"),
    default=False,
    source="Ben Braiek & Khomh 2022, arXiv 2204.00694 (TheDeepChecker): the 95th percentile of abs(post) is below 1e-5",
)
def quiet(site: SiteView) -> Bool[Array, "U"]:
    """abs(post) < 1e-5 on at least 95 % of the probe examples; of a unit with several outputs, each of them."""
    loud = jnp.sum(~(jnp.abs(site.post) < QUIET), axis=0)
    return _of_units(loud <= len(site.post) // EXCEPTIONS, site)


@fraction("silent_fraction", requires=("pre", "post"), default=False, source="the rule of keras-contrib's DeadReluDetector")
def silent(site: SiteView) -> Bool[Array, "U"]:
    """post = 0 on every probe example; of a unit with several outputs, each of them. The slope may differ from 0."""
    return _of_units(jnp.all(site.post == 0, axis=0), site)


def _of_units(outputs: Bool[Array, "V"], site: SiteView) -> Bool[Array, "U"]:
    """Return which units have all their outputs in a mask over the columns of post, in blocks of U columns."""
    return outputs.reshape(-1, site.pre.shape[1]).all(axis=0)


def _active_examples(site: SiteView) -> Int[Array, "U"]:
    """Return the number of probe examples on which each unit has a nonzero slope."""
    return jnp.sum(site.slope != 0, axis=0)


def is_dead(active: Int[Any, "U"]) -> Bool[Any, "U"]:
    """Return whether units are dead, from their number of entries with a nonzero slope."""
    return active == 0


def is_nearly_dead(active: Int[Any, "U"], entries: int) -> Bool[Any, "U"]:
    """Return whether units are nearly dead, from their number of `entries` and of those with a nonzero slope."""
    return (active > 0) & (NEARLY * active < entries)


def is_saturated(largest: Float[Any, "U"], max_slope: Real[Any, ""]) -> Bool[Any, "U"]:
    """Return whether units are saturated, from their largest abs slope and the activation's."""
    return largest < SATURATED * max_slope


def is_dormant(score: Float[Any, "U"]) -> Bool[Any, "U"]:
    """Return whether units of a layer are dormant, from their mean abs(post)."""
    return score <= TAU * score.mean()
