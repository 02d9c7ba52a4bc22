"""Models with planted dead units: a bias of -1e3 before a ReLU, by Flax module or plain function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

DEAD = -1e3
KEY = jax.random.key(0)
X = jax.random.normal(KEY, (64, 6))
IMAGES = jax.random.normal(KEY, (16, 8, 8, 3))
TOKENS = jax.random.normal(KEY, (8, 5, 6))


@dataclass(frozen=True)
class Planted:
    """A model as `inspect` takes it, with the dead units of every site in program order; None: not measurable."""

    model: Any
    x: Any
    dead: dict[str, set[int] | None]
    call: dict[str, Any] = field(default_factory=dict)


MODELS: dict[str, Callable[[], Planted]] = {}


def planted(make: Callable[[], Planted]) -> Callable[[], Planted]:
    MODELS[make.__name__] = make
    return make


def bias(size: int, *dead: int) -> jax.Array:
    """Return a bias that keeps units alive, except dead ones."""
    return jnp.ones(size).at[jnp.array(dead, int)].set(DEAD)


def dense(seed: int, d_in: int, d_out: int, *dead: int) -> dict[str, jax.Array]:
    w = jax.random.normal(jax.random.fold_in(KEY, seed), (d_in, d_out)) / np.sqrt(d_in)
    return {"w": w - w.mean(0), "b": bias(d_out, *dead)}  # positive inputs cancel: no unit dies by chance


def affine(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return x @ layer["w"] + layer["b"]


def mlp(params: list[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    for layer in params[:-1]:
        x = jax.nn.relu(affine(layer, x))
    return affine(params[-1], x)


def with_bias(variables: Any, **dead: set[int]) -> Any:
    """Return Linen variables with dead units and others that are alive, by layer."""
    variables = jax.tree.map(jnp.asarray, variables)
    for path, units in dead.items():
        layer = variables["params"][path]
        if "kernel" in layer:
            layer["kernel"] -= layer["kernel"].mean(tuple(range(layer["kernel"].ndim - 1)))
        layer["bias"] = (layer["bias"] + 1).at[jnp.array(sorted(units))].set(DEAD)
    return variables


def kill(layer: nnx.Module, *units: int) -> None:
    """Plant dead units in an NNX layer."""
    layer.bias[...] = (layer.bias[...] + 1).at[jnp.array(units)].set(DEAD)


@planted
def list_of_layers() -> Planted:
    params = [dense(0, 6, 8, 1, 4), dense(1, 8, 8, 0), dense(2, 8, 3)]
    return Planted((mlp, params), X, {"0": {1, 4}, "1": {0}})


@planted
def no_dead_unit() -> Planted:
    return Planted((mlp, [dense(0, 6, 8), dense(1, 8, 8), dense(2, 8, 3)]), X, {"0": set(), "1": set()})


@planted
def every_unit_dead() -> Planted:
    params = [dense(0, 6, 8), dense(1, 8, 8, *range(8)), dense(2, 8, 3)]
    return Planted((mlp, params), X, {"0": set(), "1": set(range(8))})


@planted
def one_dead_unit_in_a_dictionary() -> Planted:
    def net(params: Any, x: Any) -> Any:
        h = jnp.maximum(affine(params["first"], x), 0)
        h = jnp.where((z := affine(params["second"], h)) > 0, z, 0.0)
        return affine(params["last"], h)

    params = {"last": dense(0, 8, 3), "second": dense(1, 8, 8, 7), "first": dense(2, 6, 8)}
    return Planted((net, params), X, {"first": set(), "second": {7}})


@planted
def two_flat_pieces() -> Planted:
    def net(params: Any, x: Any) -> Any:
        return affine(params["out"], jax.nn.hard_tanh(affine(params["layer"], jax.nn.relu6(affine(params["in"], x)))))

    params = {"in": dense(0, 6, 8, 1), "layer": dense(1, 8, 8, 0), "out": dense(2, 8, 3)}
    for name in ("in", "layer"):  # the upper piece is flat too
        params[name]["b"] = params[name]["b"].at[5].set(-DEAD)
    params["layer"]["w"] = params["layer"]["w"].at[5].set(0)
    return Planted((net, params), X, {"in": {1, 5}, "layer": {0, 5}})


@planted
def one_scan_iteration() -> Planted:
    def net(params: Any, x: Any) -> Any:
        def layer(h: Any, layer: Any) -> Any:
            return jax.checkpoint(lambda h: h + jax.nn.relu(affine(layer, h)))(h), None

        return affine(params["out"], jax.lax.scan(layer, x, params["layers"])[0])

    layers = [dense(seed, 6, 6, *((0, 3) if seed == 2 else ())) for seed in range(4)]
    params = {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers), "out": dense(9, 6, 2)}
    dead = {f"layers[{step}]": {0, 3} if step == 2 else set() for step in range(4)}
    return Planted((net, params), X, dead)


@planted
def batch_of_one() -> Planted:
    params = [dense(0, 6, 8), dense(1, 8, 3)]
    params[0]["b"] = jnp.array([1.0, -1, 1, 1, -1, -1, 1, -1]) * -DEAD
    return Planted((mlp, params), X[:1], {"0": {1, 4, 5, 7}})


@planted
def shared_layer() -> Planted:
    def net(params: Any, x: Any) -> Any:
        h = jax.nn.relu(affine(params["in"], x))
        for _ in range(2):
            h = jax.nn.relu(affine(params["shared"], h))
        return affine(params["out"], h)

    params = {"in": dense(0, 6, 8), "shared": dense(3, 8, 8, 2, 5), "out": dense(2, 8, 3)}
    return Planted((net, params), X, {"in": set(), "shared": {2, 5}, "shared.2": {2, 5}})


@planted
def mask_as_a_product() -> Planted:
    def net(params: Any, x: Any) -> Any:
        z = affine(params["up"], x)
        return affine(params["down"], z * (z > 0))

    return Planted((net, {"up": dense(0, 6, 8, 3), "down": dense(1, 8, 3)}), X, {"up": {3}})


@planted
def leak_keeps_units_alive() -> Planted:
    def net(params: Any, x: Any) -> Any:
        z = affine(params["one"], x)
        h = jnp.where(z > 0, z, params["slope"] * z)  # PReLU, with a dead slope of unit 2
        return affine(params["three"], jax.nn.leaky_relu(affine(params["two"], h), 0.1))

    params = {"one": dense(0, 6, 8, 2, 3), "slope": jnp.full(8, 0.25).at[2].set(0), "two": dense(1, 8, 8, 0)}
    return Planted((net, params | {"three": dense(2, 8, 3)}), X, {"one": {2}, "two": set()})


@planted
def gate_of_two_layers() -> Planted:
    class SwiGLU(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.up, self.gate = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(6, 8, rngs=rngs)
            self.down = nnx.Linear(8, 6, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.down(nnx.silu(self.gate(x)) * self.up(x))

    model = SwiGLU(nnx.Rngs(0))
    kill(model.gate, 2, 6)
    return Planted(model, TOKENS, {"gate": {2, 6}})


@planted
def gate_of_one_split_layer() -> Planted:
    class SwiGLU(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            gate, up = jnp.split(nn.Dense(16)(x), 2, axis=-1)
            return nn.Dense(6)(nn.silu(gate) * up)

    module = SwiGLU()
    variables = with_bias(module.init(KEY, TOKENS), Dense_0={1, 7, 12})  # 12 is no gate
    return Planted((module, variables), TOKENS, {"Dense_0": {1, 7}})


@planted
def gated_linear_unit() -> Planted:
    class Glu(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.both, self.down = nnx.Linear(6, 16, rngs=rngs), nnx.Linear(8, 6, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.down(nnx.glu(self.both(x)))  # the second half is the gate

    model = Glu(nnx.Rngs(0))
    kill(model.both, 3, 8, 15)
    return Planted(model, TOKENS, {"both": {0, 7}})


@planted
def two_arguments() -> Planted:
    def net(params: Any, x: Any, mask: Any) -> Any:
        h = jax.nn.relu(affine(params[0], x)) * mask[..., None]
        return affine(params[1], jnp.where(mask[..., None], h, 0.0))

    mask = jax.random.bernoulli(KEY, 0.7, (8, 5)).astype(float)
    return Planted((net, [dense(0, 6, 8, 4), dense(1, 8, 3)]), (TOKENS, mask), {"0": {4}})


@planted
def branch_not_taken() -> Planted:
    def net(params: Any, x: Any, *, index: int) -> Any:
        h = jax.nn.relu(affine(params["in"], x))
        branches = [lambda h, name=name: jax.nn.relu(affine(params[name], h)) for name in ("a", "b", "c")]
        return affine(params["out"], jax.lax.switch(jnp.array(index), branches, h))

    params = {"in": dense(0, 6, 8), "a": dense(1, 8, 8), "b": dense(2, 8, 8, 6), "c": dense(3, 8, 8), "out": dense(4, 8, 3)}
    return Planted((net, params), X, {"in": set(), "a": None, "b": {6}, "c": None}, {"index": 1})
