"""Flax models with planted dead units: convolutions, normalisation, dropout, transformers, lifted transforms."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from watched_models import IMAGES, TOKENS, Planted, X, built, initial, kill, planted, put, with_bias


class Residual(nnx.Module):
    """A CNN with batch normalisation, a skip connection, dropout and a dense head."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1, self.norm = nnx.Conv(3, 8, (3, 3), rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.conv2, self.drop = nnx.Conv(8, 8, (3, 3), rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.head, self.out = nnx.Linear(8, 12, rngs=rngs), nnx.Linear(12, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        h = nnx.relu(self.norm(self.conv1(x)))
        h = nnx.relu(h + self.conv2(self.drop(h)))
        return self.out(nnx.gelu(self.head(h.mean((1, 2)))))


def residual() -> Residual:
    model = built(Residual)
    kill(model.norm, 3)
    kill(model.conv2, 5, 6)
    kill(model.head, 0)
    return model


@planted
def convolutions_with_batch_norm_and_skip() -> Planted:
    return Planted(residual(), IMAGES, {"norm": {3}, "conv2": {5, 6}, "head": {0}})


@planted
def linen_mlp_with_batch_norm_and_dropout() -> Planted:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x)))
            x = nn.Dropout(0.5, deterministic=not train)(x)
            return nn.Dense(3)(nn.relu(nn.LayerNorm()(nn.Dense(8)(x))))

    module = Net()
    variables = with_bias(initial(module, X), BatchNorm_0={1, 2}, LayerNorm_0={4})
    return Planted((module, variables), X, {"BatchNorm_0": {1, 2}, "LayerNorm_0": {4}}, {"train": False})


@planted
def linen_cnn_with_pooling() -> Planted:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
            x = nn.relu(nn.BatchNorm(not train)(nn.Conv(8, (3, 3), strides=2, use_bias=False)(x)))
            x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
            x = nn.Dropout(0.2)(x.reshape(len(x), -1), deterministic=not train)
            return nn.log_softmax(nn.Dense(3)(nn.relu(nn.Dense(9)(x))))  # Dense_0(Dense_1)

    module = Net()
    variables = with_bias(initial(module, IMAGES, train=False), Conv_0={2}, BatchNorm_0={0, 7}, Conv_2={0, 3, 7}, Dense_1={8})
    dead = {"Conv_0": {2}, "BatchNorm_0": {0, 7}, "Conv_2": {0, 3, 7}, "Dense_1": {8}}
    return Planted((module, variables), IMAGES, dead, {"train": False})


@planted
def transformer_block() -> Planted:
    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.attention = nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)
            self.norm1, self.norm2 = nnx.LayerNorm(6, rngs=rngs), nnx.RMSNorm(6, rngs=rngs)
            self.up, self.down = nnx.Linear(6, 12, rngs=rngs), nnx.Linear(12, 6, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = x + self.attention(self.norm1(x), mask=nnx.make_causal_mask(x[..., 0]))
            return x + self.down(nnx.relu(self.up(self.norm2(x))))

    class Transformer(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.blocks = nnx.List([Block(rngs) for _ in range(2)])
            self.norm, self.out = nnx.LayerNorm(6, rngs=rngs), nnx.Linear(6, 4, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            for block in self.blocks:
                x = block(x)
            return nnx.softmax(self.out(self.norm(x)))

    model = built(Transformer)
    kill(model.blocks[1].up, 0, 11)
    return Planted(model, TOKENS, {"blocks.0.up": set(), "blocks.1.up": {0, 11}})


@planted
def linen_scan_of_rematerialised_blocks() -> Planted:
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: Any, _: Any) -> Any:
            return x + nn.relu(nn.Dense(6)(x)), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            scanned = nn.scan(nn.remat(Block), {"params": 0}, split_rngs={"params": True}, length=3)
            return nn.Dense(2)(scanned(name="layers")(x, None)[0])

    module = Net()
    variables = initial(module, X)
    dense = variables["params"]["layers"]["Dense_0"]
    dense["bias"] = put(dense["bias"], (1, 4), -1e3)
    return Planted((module, variables), X, {f"layers.Dense_0[{step}]": {4} if step == 1 else set() for step in range(3)})


@planted
def nnx_scan_of_blocks() -> Planted:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            make = nnx.vmap(lambda rngs: nnx.Linear(6, 6, rngs=rngs), in_axes=0, out_axes=0)
            self.layers, self.out = make(rngs.fork(split=3)), nnx.Linear(6, 2, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            step = nnx.scan(lambda h, layer: h + nnx.relu(layer(h)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            return self.out(step(x, self.layers))

    model = built(Net)
    model.layers.bias.set_value(put(model.layers.bias[...], (2, 1), -1e3))
    return Planted(model, X, {f"layers[{step}]": {1} if step == 2 else set() for step in range(3)})


@planted
def sequential_of_jitted_parts() -> Planted:
    model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(8), jax.jit(lambda x: jnp.maximum(x, 0)), nn.Dense(2)])
    variables = with_bias(initial(model, X), layers_0={0}, layers_2={3})
    return Planted((model, variables), X, {"layers_0": {0}, "layers_2": {3}})
