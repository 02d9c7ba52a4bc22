"""Convolutions and pooling for inputs of any number of spatial axes, in full float precision."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from relu_study.errors import UserError
from relu_study.study.run_spec import RunSpec

WINDOW = 3  # entries of a convolution along each axis


def conv(spec: RunSpec, d_in: int, axes: int, rngs: nnx.Rngs) -> nnx.Conv:
    """Return a convolution with windows of 3 entries along each axis and zero padding.

    Batch normalisation cancels a bias. Its gradient would be rounding noise, which Adam scales up to whole steps.
    """
    return nnx.Conv(d_in, spec.width, (WINDOW,) * axes, use_bias=spec.norm != "batch_norm", **precise(), rngs=rngs)


def linear(d_in: int, d_out: int, rngs: nnx.Rngs) -> nnx.Linear:
    """Return a dense layer with a bias."""
    return nnx.Linear(d_in, d_out, **precise(), rngs=rngs)


def precise() -> dict[str, Any]:
    """Return the arguments of a layer that computes in full precision."""
    return {"param_dtype": jnp.result_type(float), "precision": jax.lax.Precision.HIGHEST}


def halved(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return spatial sizes after `pooled`."""
    return tuple(max(size // 2, 1) for size in shape)


def pooled(x: Float[Array, "B *S C"]) -> Float[Array, "B *s C"]:
    """Return averages over windows of 2 entries along every spatial axis that has several. An odd last entry is dropped."""
    window = tuple(2 if size > 1 else 1 for size in x.shape[1:-1])
    return nnx.avg_pool(x, window, window)


def with_channels(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an input with channels last. A vector is a sequence with one channel."""
    return (*shape, 1) if len(shape) == 1 else tuple(shape)


def check_form(name: str, inputs: jax.ShapeDtypeStruct, outputs: jax.ShapeDtypeStruct) -> None:
    """Raise UserError for inputs without spatial axes, tokens, and predictions of positions."""
    if not jnp.issubdtype(inputs.dtype, jnp.floating) or not inputs.shape:
        raise UserError(
            f"network {name!r} convolves floats, but the inputs are {inputs.dtype}{list(inputs.shape)}. "
            "Choose network='vit' for tokens."
        )
    if len(outputs.shape) != 1:
        raise UserError(
            f"network {name!r} predicts one vector for each example, but the outputs have shape {outputs.shape}. "
            "Choose network='vit' for predictions of positions."
        )
