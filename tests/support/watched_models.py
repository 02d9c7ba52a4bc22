"""Models with planted dead units: a bias of -1e3 before a ReLU, by Flax module or plain function."""

from __future__ import annotations

import functools
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


def normal(seed: int, *shape: int) -> np.ndarray:
    """Return normal numbers by NumPy, which compiles no program for each shape."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X, IMAGES, TOKENS = (jnp.asarray(normal(0, *shape)) for shape in ((64, 6), (16, 8, 8, 3), (8, 5, 6)))


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


def put(array: Any, index: Any, value: Any) -> jax.Array:
    """Return an array with other entries at an index."""
    changed = np.array(array)
    changed[index] = value
    return jnp.asarray(changed)


def stacked(*trees: Any) -> Any:
    """Return trees of equal structure as one tree with a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *trees)


def bias(size: int, *dead: int) -> jax.Array:
    """Return a bias that keeps units alive, except dead ones."""
    return put(np.ones(size, np.float32), list(dead), DEAD)


def dense(seed: int, d_in: int, d_out: int, *dead: int) -> dict[str, jax.Array]:
    w = normal(seed, d_in, d_out) / np.float32(np.sqrt(d_in))
    return {"w": jnp.asarray(w - w.mean(0)), "b": bias(d_out, *dead)}  # positive inputs cancel: no unit dies by chance


def affine(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return x @ layer["w"] + layer["b"]


def mlp(params: list[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    for layer in params[:-1]:
        x = jax.nn.relu(affine(layer, x))
    return affine(params[-1], x)


def weights(shapes: Any) -> Any:
    """Return a tree of numbers for a tree of shapes, by the names of a layer's parameters."""

    def leaf(path: Any, shape: Any) -> Any:
        names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
        if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
            return KEY
        if "kernel" in names:
            return jnp.asarray(normal(len(names), *shape.shape) / np.float32(np.sqrt(np.prod(shape.shape[:-1]))))
        return jnp.asarray(np.full(shape.shape, bool({"scale", "var"} & set(names)), shape.dtype))

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def built(make: Callable[[nnx.Rngs], Any]) -> Any:
    """Return an NNX module with numbers of `weights`, in place of a compiled program for every parameter."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    return nnx.merge(graph, weights(shapes))


def initial(module: nn.Module, x: Any, **call: Any) -> Any:
    """Return the variables of a Linen module with numbers of `weights`."""
    return weights(jax.eval_shape(functools.partial(module.init, **call), KEY, x))


def with_bias(variables: Any, **dead: set[int]) -> Any:
    """Return Linen variables with dead units and others that are alive, by layer."""
    variables = jax.tree.map(np.asarray, variables)
    for path, units in dead.items():
        layer = variables["params"][path]
        if "kernel" in layer:
            layer["kernel"] = layer["kernel"] - layer["kernel"].mean(tuple(range(layer["kernel"].ndim - 1)))
        layer["bias"] = put(layer["bias"] + 1, sorted(units), DEAD)
    return jax.tree.map(jnp.asarray, variables)


def kill(layer: nnx.Module, *units: int) -> None:
    """Plant dead units in an NNX layer."""
    layer.bias.set_value(put(np.asarray(layer.bias[...]) + 1, list(units), DEAD))


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
        params[name]["b"] = put(params[name]["b"], 5, -DEAD)
    params["layer"]["w"] = put(params["layer"]["w"], 5, 0)
    return Planted((net, params), X, {"in": {1, 5}, "layer": {0, 5}})


@planted
def one_scan_iteration() -> Planted:
    def net(params: Any, x: Any) -> Any:
        def layer(h: Any, layer: Any) -> Any:
            return jax.checkpoint(lambda h: h + jax.nn.relu(affine(layer, h)))(h), None

        return affine(params["out"], jax.lax.scan(layer, x, params["layers"])[0])

    layers = [dense(seed, 6, 6, *((0, 3) if seed == 2 else ())) for seed in range(4)]
    params = {"layers": stacked(*layers), "out": dense(9, 6, 2)}
    dead = {f"layers[{step}]": {0, 3} if step == 2 else set() for step in range(4)}
    return Planted((net, params), X, dead)


@planted
def batch_of_one() -> Planted:
    params = [dense(0, 6, 8), dense(1, 8, 3)]
    params[0]["b"] = jnp.asarray(np.float32([1, -1, 1, 1, -1, -1, 1, -1]) * -DEAD)
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

    params = {"one": dense(0, 6, 8, 2, 3), "slope": put(np.full(8, 0.25, np.float32), 2, 0), "two": dense(1, 8, 8, 0)}
    return Planted((net, params | {"three": dense(2, 8, 3)}), X, {"one": {2}, "two": set()})


@planted
def gate_of_two_layers() -> Planted:
    class SwiGLU(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.up, self.gate = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(6, 8, rngs=rngs)
            self.down = nnx.Linear(8, 6, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.down(nnx.silu(self.gate(x)) * self.up(x))

    model = built(SwiGLU)
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
    variables = with_bias(initial(module, TOKENS), Dense_0={1, 7, 12})  # 12 is no gate
    return Planted((module, variables), TOKENS, {"Dense_0": {1, 7}})


@planted
def gated_linear_unit() -> Planted:
    class Glu(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.both, self.down = nnx.Linear(6, 16, rngs=rngs), nnx.Linear(8, 6, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.down(nnx.glu(self.both(x)))  # the second half is the gate

    model = built(Glu)
    kill(model.both, 3, 8, 15)
    return Planted(model, TOKENS, {"both": {0, 7}})


@planted
def two_arguments() -> Planted:
    def net(params: Any, x: Any, mask: Any) -> Any:
        h = jax.nn.relu(affine(params[0], x)) * mask[..., None]
        return affine(params[1], jnp.where(mask[..., None], h, 0.0))

    mask = jnp.asarray((normal(1, 8, 5) > -0.5).astype(np.float32))
    return Planted((net, [dense(0, 6, 8, 4), dense(1, 8, 3)]), (TOKENS, mask), {"0": {4}})


@planted
def branch_not_taken() -> Planted:
    def net(params: Any, x: Any, *, index: int) -> Any:
        h = jax.nn.relu(affine(params["in"], x))
        branches = [lambda h, name=name: jax.nn.relu(affine(params[name], h)) for name in ("a", "b", "c")]
        return affine(params["out"], jax.lax.switch(jnp.array(index), branches, h))

    params = {"in": dense(0, 6, 8), "a": dense(1, 8, 8), "b": dense(2, 8, 8, 6), "c": dense(3, 8, 8), "out": dense(4, 8, 3)}
    return Planted((net, params), X, {"in": set(), "a": None, "b": {6}, "c": None}, {"index": 1})
