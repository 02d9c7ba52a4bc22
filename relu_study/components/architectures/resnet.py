"""Residual networks of pre-activation blocks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from relu_study.components.architectures.convolutions import check_form, conv, linear, pooled, with_channels
from relu_study.components.architectures.norms import norm
from relu_study.components.layers import Activate
from relu_study.components.networks import network
from relu_study.components.registry import activations
from relu_study.study.run_spec import RunSpec

STAGES = 3  # of equal numbers of blocks, with average pooling between them


class NormActConv(nnx.Module):
    """Normalisation, activation, and a convolution with windows of 3 entries."""

    def __init__(self, spec: RunSpec, axes: int, rngs: nnx.Rngs):
        self.norm = norm(spec.norm, spec.width, rngs)
        self.activate = Activate(spec)
        self.conv = conv(spec, spec.width * activations[spec.activation].fanout, axes, rngs)

    def __call__(self, x: Float[Array, "B *S W"]) -> Float[Array, "B *S W"]:
        return self.conv(self.activate(self.norm(x)))


class PreActivationBlock(nnx.Module):
    """x + F(x), where F is twice normalisation, activation and convolution."""

    def __init__(self, spec: RunSpec, axes: int, rngs: nnx.Rngs):
        self.first = NormActConv(spec, axes, rngs)
        self.second = NormActConv(spec, axes, rngs)

    def __call__(self, x: Float[Array, "B *S W"]) -> Float[Array, "B *S W"]:
        return x + self.second(self.first(x))


# Weights of variance 2 / fan_in preserve the mean square of pre-activations under ReLU, the default activation.
@network("resnet", initializer="he_normal")
class ResNet(nnx.Module):
    """A residual network: a 3 x 3 convolution, `depth` pre-activation blocks of `width` channels, and a dense layer.

    A block is x + F(x), where F is twice normalisation, activation and a 3 x 3 convolution. The blocks form three stages of
    equal depth, as for 32 x 32 images in the source. Between stages, 2 x 2 average pooling halves the image; all stages have the
    same width, so every shortcut is the identity. After the last block: normalisation, activation, and the mean over pixels.

    Inputs are images (H, W, C), sequences (L, C) or vectors (L,), as for `cnn`.

    Source: He, Zhang, Ren & Sun 2016, arXiv 1603.05027, section 3 (figure 4e) and equation 5; the three stages: He et al.
    2015, arXiv 1512.03385, section 4.2.
    """

    def __init__(self, spec: RunSpec, inputs: jax.ShapeDtypeStruct, outputs: jax.ShapeDtypeStruct, rngs: nnx.Rngs):
        check_form("resnet", inputs, outputs)
        *sizes, d_in = with_channels(inputs.shape)
        axes = len(sizes)
        self.stem = conv(spec, d_in, axes, rngs)
        self.blocks = nnx.List([PreActivationBlock(spec, axes, rngs) for _ in range(spec.depth)])
        self.norm = norm(spec.norm, spec.width, rngs)
        self.activate = Activate(spec)
        self.output = linear(spec.width * activations[spec.activation].fanout, outputs.shape[0], rngs)

    def __call__(self, x: Any) -> Float[Array, "B O"]:
        x = self.stem(x.reshape(len(x), *with_channels(x.shape[1:])))
        for i, block in enumerate(self.blocks):
            x = block(pooled(x) if _starts_stage(i, len(self.blocks)) else x)
        x = self.activate(self.norm(x))
        return self.output(jnp.mean(x, axis=tuple(range(1, x.ndim - 1))))


def _starts_stage(block: int, depth: int) -> bool:
    """Whether a block is the first of the second or third stage."""
    return block > 0 and STAGES * block // depth > STAGES * (block - 1) // depth
