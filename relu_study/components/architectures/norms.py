"""Normalisation layers by the names of RunSpec's field `norm`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import nnx


def norm(kind: str, features: int, rngs: nnx.Rngs) -> Callable[[Any], Any]:
    """Return a layer for `features` channels: none, batch_norm (momentum 0.99) or layer_norm."""
    if kind == "batch_norm":
        return nnx.BatchNorm(features, use_fast_variance=False, rngs=rngs)
    if kind == "layer_norm":
        return nnx.LayerNorm(features, use_fast_variance=False, rngs=rngs)
    return nnx.identity if hasattr(nnx, "identity") else _identity


def _identity(x: Any) -> Any:
    return x
