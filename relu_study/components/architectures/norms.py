"""Normalisation layers by the names of RunSpec's field `norm`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx


def norm(kind: str, features: int, rngs: nnx.Rngs) -> Callable[[Any], Any]:
    """Return a layer for `features` channels: batch_norm (momentum 0.99), layer_norm, or the identity for none."""
    if kind == "none":
        return nnx.identity
    # The two-pass variance: mean(x^2) - mean(x)^2 cancels in float32.
    layer = nnx.BatchNorm if kind == "batch_norm" else nnx.LayerNorm
    built = layer(features, use_fast_variance=False, param_dtype=jnp.result_type(float), rngs=rngs)
    if isinstance(built, nnx.BatchNorm):  # flax stores running averages in float32 for every parameter dtype
        built.mean, built.var = nnx.BatchStat(jnp.zeros(features)), nnx.BatchStat(jnp.ones(features))
    return built
