"""Sums over examples from which the flags of a unit follow. Sums of batches add up exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from relu_study.components.metrics.output_moments import moments
from relu_study.watch.tap import Tap


class BatchCounts(NamedTuple):
    """Counts of one site on one batch, by unit."""

    entries: Int[Array, ""]  # examples x positions of a unit; 0: its branch was not taken
    nonfinite: Int[Array, "U"]
    active: Int[Array, "U"]  # entries with a slope other than 0
    identity: Int[Array, "U"]  # entries with post = pre
    zeros: Int[Array, ""]  # entries of post that are 0
    max_slope: Float[Array, "U"]
    abs_post: Float[Array, "U"]  # mean
    post_mean: Float[Array, ""]
    post_variance: Float[Array, ""]
    has_gradient: Int[Array, "U"]  # entries with a gradient other than 0


def batch_counts(tap: Tap, axis: int | None, conditional: bool = False) -> BatchCounts:
    """Return the counts of a tap whose units are on `axis`; None: all entries belong to one unit.

    A `conditional` tap that is NaN throughout has no entries.
    """
    pre, post, slope = (by_unit(array, axis) for array in tap[:3])
    grad = jnp.zeros_like(pre) if tap.grad is None else by_unit(tap.grad, axis)
    finite = jnp.isfinite(pre) & jnp.isfinite(post) & jnp.isfinite(slope)
    absent = conditional & jnp.all(jnp.isnan(pre))
    exact = post.astype(jnp.promote_types(post.dtype, jnp.float32))  # means of bfloat16 are too coarse
    mean, variance = moments(exact)
    return BatchCounts(
        jnp.where(absent, 0, pre.shape[0]),
        jnp.where(absent, 0, jnp.sum(~finite, axis=0)),
        jnp.sum(slope != 0, axis=0),
        jnp.sum(post == pre, axis=0),
        jnp.sum(post == 0),
        jnp.max(slope, axis=0, initial=0),
        jnp.mean(jnp.abs(exact), axis=0),
        mean,
        variance,
        jnp.sum(grad != 0, axis=0),
    )


def by_unit(array: Float[Array, "..."], axis: int | None) -> Float[Array, "E U"]:
    """Return the entries of each unit: examples x positions."""
    if axis is None:
        return array.reshape(-1, 1)
    moved = jnp.moveaxis(array, axis, -1)
    return moved.reshape(-1, moved.shape[-1])


@dataclass
class UnitCounts:
    """Counts of one site over all batches so far."""

    n: int = 0  # examples
    entries: int = 0
    nonfinite: np.ndarray | int = 0
    active: np.ndarray | int = 0
    identity: np.ndarray | int = 0
    zeros: int = 0
    max_slope: np.ndarray | float = 0.0
    abs_post: np.ndarray | float = 0.0  # sum
    post_mean: float = 0.0
    post_sum2: float = 0.0  # sum of squared deviations from the mean
    has_gradient: np.ndarray | int = 0

    def add(self, counts: BatchCounts, examples: int) -> None:
        """Add a batch. Moments combine by Chan, Golub & LeVeque 1983, equation 2.1."""
        entries = int(counts.entries)
        if not entries:
            self.nonfinite = self.nonfinite + np.zeros_like(counts.nonfinite)
            return
        units = np.size(counts.active)
        old, new = self.entries * units, entries * units
        delta = float(counts.post_mean) - self.post_mean
        self.post_sum2 += float(counts.post_variance) * new + delta**2 * old * new / (old + new)
        self.post_mean += delta * new / (old + new)
        self.n += examples
        self.entries += entries
        self.zeros += int(counts.zeros)
        for name in ("nonfinite", "active", "identity", "has_gradient"):
            setattr(self, name, getattr(self, name) + np.asarray(getattr(counts, name), np.int64))
        self.abs_post = self.abs_post + np.asarray(counts.abs_post, float) * entries
        self.max_slope = np.maximum(self.max_slope, np.asarray(counts.max_slope, float))
