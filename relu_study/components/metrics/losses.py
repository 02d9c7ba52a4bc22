"""Losses, and the indicators of constant and collapsed networks."""

from __future__ import annotations

import functools
import operator

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from relu_study.components.metrics.metric import metric
from relu_study.components.metrics.output_moments import moments
from relu_study.components.metrics.snapshot import Snapshot
from relu_study.components.metrics.unit_fractions import dead


@metric("train_loss", per="network", unit="loss", low=0, requires=("train_loss",), source="textbook: the mean of the task's loss")
def train_loss(snapshot: Snapshot) -> Float[Array, ""]:
    """Mean loss over the probe set, in evaluation mode."""
    return snapshot.train_loss


@metric("val_loss", per="network", unit="loss", low=0, requires=("val_loss",), source="textbook: the mean of the task's loss")
def val_loss(snapshot: Snapshot) -> Float[Array, ""]:
    """Mean loss over the validation rows, in evaluation mode."""
    return snapshot.val_loss


@metric(
    "collapsed",
    per="network",
    unit="0 or 1",
    low=0,
    high=1,
    source="Lu, Shin, Su & Karniadakis 2019, arXiv 1903.06733, section 3 (there at the start, and for every input: born dead)",
)
def collapsed(snapshot: Snapshot) -> Shaped[Array, ""]:
    """1 where some site is dead in all its units on the probe set and the output is constant (see there).

    In an `mlp` the one follows from the other; in a network that leads around a dead site it does not.
    """
    if not snapshot.sites:
        return jnp.array(jnp.nan)
    cut = functools.reduce(operator.or_, (jnp.all(dead(site)) for site in snapshot.sites), jnp.array(False))
    return cut & constant(snapshot)


@metric("constant", per="network", unit="0 or 1", low=0, high=1, source="ours; the threshold 1e-4 too")
def constant(snapshot: Snapshot) -> Bool[Array, ""]:
    """1 where the prediction's variance over the probe set, summed over outputs, is at most 1e-4 of the target's.

    Bitwise equal predictions are constant, even if rounding gives them a variance.
    """
    prediction = snapshot.prediction
    _, variance = moments(prediction, axis=0)
    return (variance.sum() <= 1e-4 * snapshot.target_variance) | jnp.all(prediction == prediction[:1])
