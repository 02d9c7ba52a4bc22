"""Convolutional networks: stages of convolution, normalisation and activation."""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float

from relu_study.components.architectures.norms import norm
from relu_study.components.layers import Activate
from relu_study.components.networks import network
from relu_study.components.registry import activations
from relu_study.study.run_spec import RunSpec


class ConvStage(nnx.Module):
    """A 3 x 3 convolution, normalisation, activation, and an average over 2 x 2 pixels where there are several."""

    def __init__(self, spec: RunSpec, channels: int, rngs: nnx.Rngs):
        # Batch normalisation cancels a bias, whose gradient is then rounding, which Adam scales up to whole steps.
        self.conv = nnx.Conv(channels, spec.width, (3, 3), use_bias=spec.norm != "batch_norm", rngs=rngs)
        self.norm = norm(spec.norm, spec.width, rngs)
        self.activate = Activate(spec)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w V"]:
        x = self.activate(self.norm(self.conv(x)))
        window = tuple(2 if size > 1 else 1 for size in x.shape[1:3])
        return nnx.avg_pool(x, window, window)


@network("cnn", initializer="he_normal")
class CNN(nnx.Module):
    """A convolutional network on images: `depth` stages of `width` channels, then a dense layer on all features.

    Each stage is a 3 x 3 convolution, normalisation, activation and 2 x 2 average pooling.

    Source: LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document recognition", section II;
    the order convolution, normalisation, activation: Ioffe & Szegedy 2015, arXiv 1502.03167, section 3.2.
    """

    def __init__(self, spec: RunSpec, inputs: jax.ShapeDtypeStruct, outputs: jax.ShapeDtypeStruct, rngs: nnx.Rngs):
        channels = spec.width * activations[spec.activation].fanout
        self.stages = nnx.List([ConvStage(spec, channels if i else inputs.shape[-1], rngs) for i in range(spec.depth)])
        pixels = inputs.shape[:2]
        for _ in range(spec.depth):
            pixels = tuple(max(size // 2, 1) for size in pixels)
        self.output = nnx.Linear(pixels[0] * pixels[1] * channels, outputs.shape[-1], rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B O"]:
        for stage in self.stages:
            x = stage(x)
        return self.output(x.reshape(len(x), -1))
