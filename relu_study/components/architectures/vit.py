"""Transformer encoders on patches of images, and on sequences."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from relu_study.components.architectures.convolutions import linear, precise, with_channels
from relu_study.components.architectures.norms import norm
from relu_study.components.layers import Activate
from relu_study.components.networks import network
from relu_study.components.registry import activations
from relu_study.errors import UserError
from relu_study.study.run_spec import RunSpec

HIDDEN = 4  # hidden units of an MLP per unit of width, as in table 1 of the source
POSITION_STD = 0.02  # of the initial position embedding, as in the source's code


class EncoderBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, spec: RunSpec, heads: int, rngs: nnx.Rngs):
        width, hidden = spec.width, HIDDEN * spec.width
        self.norm_1 = norm(spec.norm, width, rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, keep_rngs=False, **precise(), rngs=rngs)
        self.norm_2 = norm(spec.norm, width, rngs)
        self.up = linear(width, hidden, rngs)
        self.activate = Activate(spec)
        self.down = linear(hidden * activations[spec.activation].fanout, width, rngs)

    def __call__(self, x: Float[Array, "B T W"]) -> Float[Array, "B T W"]:
        x = x + self.attention(self.norm_1(x))
        return x + self.down(self.activate(self.up(self.norm_2(x))))


# Most kernels follow no activation, so 1 / fan_in, which preserves the variance of a linear map.
@network("vit", initializer="lecun_normal", options={"patch": 2, "heads": 2, "vocabulary": 256})
class ViT(nnx.Module):
    """A transformer encoder: embedded patches, `depth` encoder blocks of `width` units, and a dense layer.

    A block is x + attention(norm(x)), then x + mlp(norm(x)), with `heads` heads and one hidden layer of 4 `width` units, which
    has the activation. The position embedding is learned. The output is dense on the mean over positions, or on every position
    if the outputs are (T, O). Set norm="layer_norm" for the network of the source; norm="none" omits all normalisations.

    Inputs are images (H, W, C) and vectors (L,), in patches of `patch` entries along each axis, or sequences without patches:
    vectors (T, C), and tokens (T,), integers from 0 to `vocabulary` - 1. Another token makes the run nonfinite.

    Source: Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.1, and appendix D.3 for the mean in place of a class token;
    normalisation before attention and MLP: Xiong et al. 2020, arXiv 2002.04745, section 3.
    """

    def __init__(self, spec: RunSpec, inputs: jax.ShapeDtypeStruct, outputs: jax.ShapeDtypeStruct, rngs: nnx.Rngs):
        heads = int(spec.option("heads"))
        positions = _positions(spec, inputs)
        _check_sizes(spec, heads, positions, outputs)
        self.patch = None if _is_sequence(inputs) else int(spec.option("patch"))
        self.embed = _embedding(spec, inputs, rngs)
        self.by_position = len(outputs.shape) == 2
        draw = nnx.initializers.normal(POSITION_STD, jnp.result_type(float))
        self.positions = nnx.Param(draw(rngs.params(), (positions, spec.width)))
        self.blocks = nnx.List([EncoderBlock(spec, heads, rngs) for _ in range(spec.depth)])
        self.norm = norm(spec.norm, spec.width, rngs)
        self.output = linear(spec.width, outputs.shape[-1], rngs)

    def __call__(self, x: Any) -> Float[Array, "B *T O"]:
        x = self.embed(x if self.patch is None else patches(x, self.patch)) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.output(x if self.by_position else jnp.mean(x, axis=1))


def _is_tokens(inputs: jax.ShapeDtypeStruct) -> bool:
    return jnp.issubdtype(inputs.dtype, jnp.integer)


def _is_sequence(inputs: jax.ShapeDtypeStruct) -> bool:
    return _is_tokens(inputs) or len(inputs.shape) == 2


def patches(x: Float[Array, "B *S"], patch: int) -> Float[Array, "B T P"]:
    """Return the entries of all patches of images (B, H, W, C), or of vectors (B, L) without channels."""
    examples, *sizes, channels = (len(x), *with_channels(x.shape[1:]))
    split = x.reshape(examples, *(part for size in sizes for part in (size // patch, patch)), channels)
    axes = range(1, 2 * len(sizes) + 1)
    counts, entries = axes[::2], axes[1::2]
    ordered = split.transpose(0, *counts, *entries, 2 * len(sizes) + 1)
    return ordered.reshape(examples, math.prod(size // patch for size in sizes), -1)


def _positions(spec: RunSpec, inputs: jax.ShapeDtypeStruct) -> int:
    """Return the number of positions that the encoder blocks see."""
    shape, patch = tuple(inputs.shape), int(spec.option("patch"))
    if _is_sequence(inputs):
        if _is_tokens(inputs) and len(shape) != 1:
            raise UserError(f"network 'vit' takes tokens as vectors (T,), but their shape is {shape}. Flatten them.")
        return shape[0]
    sizes = with_channels(shape)[:-1]
    if patch < 1 or any(size % patch for size in sizes):
        raise UserError(
            f"network 'vit' cannot divide inputs of shape {shape} into patches of patch={patch}. "
            f"Choose a divisor of {' and '.join(map(str, dict.fromkeys(sizes)))}."
        )
    return math.prod(size // patch for size in sizes)


def _embedding(spec: RunSpec, inputs: jax.ShapeDtypeStruct, rngs: nnx.Rngs) -> Any:
    """Return the layer that maps tokens, vectors or patches to `width` units."""
    if _is_tokens(inputs):
        return nnx.Embed(int(spec.option("vocabulary")), spec.width, param_dtype=jnp.result_type(float), rngs=rngs)
    if len(inputs.shape) == 2:
        return linear(inputs.shape[-1], spec.width, rngs)
    *sizes, channels = with_channels(inputs.shape)
    return linear(int(spec.option("patch")) ** len(sizes) * channels, spec.width, rngs)


def _check_sizes(spec: RunSpec, heads: int, positions: int, outputs: jax.ShapeDtypeStruct) -> None:
    """Raise UserError for values that no encoder can have."""
    if heads < 1 or spec.width % heads:
        raise UserError(f"network 'vit' cannot divide width={spec.width} among heads={heads}. Choose a multiple of heads.")
    if int(spec.option("vocabulary")) < 1:
        raise UserError(f"network 'vit' has vocabulary={spec.option('vocabulary')}. Give the number of distinct tokens.")
    if spec.norm == "batch_norm":
        raise UserError("network 'vit' has no form with norm='batch_norm'. Choose 'layer_norm' or 'none'.")
    if len(outputs.shape) > 2 or (len(outputs.shape) == 2 and outputs.shape[0] != positions):
        raise UserError(
            f"network 'vit' has {positions} positions, but the outputs have shape {outputs.shape}. "
            "Give outputs (O,), or (T, O) with one row for each position."
        )
