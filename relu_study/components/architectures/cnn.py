"""Convolutional networks: stages of convolution, normalisation and activation."""

from __future__ import annotations

import math
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from relu_study.components.architectures.convolutions import check_form, conv, halved, linear, pooled, with_channels
from relu_study.components.architectures.norms import norm
from relu_study.components.layers import Activate
from relu_study.components.networks import network
from relu_study.components.registry import activations
from relu_study.study.run_spec import RunSpec


class ConvStage(nnx.Module):
    """A convolution with windows of 3 entries, normalisation, activation, and average pooling."""

    def __init__(self, spec: RunSpec, d_in: int, axes: int, rngs: nnx.Rngs):
        self.conv = conv(spec, d_in, axes, rngs)
        self.norm = norm(spec.norm, spec.width, rngs)
        self.activate = Activate(spec)

    def __call__(self, x: Float[Array, "B *S C"]) -> Float[Array, "B *s V"]:
        return pooled(self.activate(self.norm(self.conv(x))))


# Weights of variance 2 / fan_in preserve the mean square of pre-activations under ReLU, the default activation.
@network("cnn", initializer="he_normal")
class CNN(nnx.Module):
    """A convolutional network: `depth` stages of `width` channels, then a dense layer on all features.

    Each stage is a 3 x 3 convolution, normalisation, activation and 2 x 2 average pooling. Inputs are images (H, W, C),
    sequences (L, C) or vectors (L,). A sequence has windows of 3 and pools of 2 entries. A vector is a sequence with one channel.

    Source: LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document recognition", section II;
    the order convolution, normalisation, activation: Ioffe & Szegedy 2015, arXiv 1502.03167, section 3.2.
    """

    def __init__(self, spec: RunSpec, inputs: jax.ShapeDtypeStruct, outputs: jax.ShapeDtypeStruct, rngs: nnx.Rngs):
        check_form("cnn", inputs, outputs)
        *sizes, d_in = with_channels(inputs.shape)
        channels, shape = spec.width * activations[spec.activation].fanout, tuple(sizes)
        self.stages = nnx.List([ConvStage(spec, channels if i else d_in, len(sizes), rngs) for i in range(spec.depth)])
        for _ in range(spec.depth):
            shape = halved(shape)
        self.output = linear(math.prod(shape) * channels, outputs.shape[0], rngs)

    def __call__(self, x: Any) -> Float[Array, "B O"]:
        x = x.reshape(len(x), *with_channels(x.shape[1:]))
        for stage in self.stages:
            x = stage(x)
        return self.output(x.reshape(len(x), -1))
