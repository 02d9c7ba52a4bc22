"""Which layers of a ReLU network are off along a whole path: decided from kink to kink, never on a grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

Layers = tuple[Float[Array, "K U U"], Float[Array, "K U"]]  # kernels and biases of the layers after the first

STEP = 5e-7  # of an edge: float32 tells nothing closer apart
MOST = 1 << 14  # pieces that are walked before a path is given up
FEW = 16  # paths walked at a time


def first_off(on: Bool[Array, " L"]) -> Int[Array, ""]:
    """The place of the first layer that is not on; L if all are."""
    return jnp.argmin(jnp.append(on, False))


def on_at(pre: Float[Array, "G U"], layers: Layers, homogeneous: bool) -> Bool[Array, " L"]:
    """Is some unit of a layer on at one of G inputs, of which `pre` are the first layer's pre-activations?"""

    def pass_on(pre: Float[Array, "G U"], layer: Any) -> tuple[Float[Array, "G U"], Bool[Array, ""]]:
        return _next(pre, layer, homogeneous), jnp.any(pre > 0)

    last, on = jax.lax.scan(pass_on, pre, layers)
    return jnp.append(on, jnp.any(last > 0))


def walk(path: Array, layers: Any, on: Array, homogeneous: bool) -> tuple[Array, Array]:
    """The first layer that is off along the whole of some paths, and whether every layer before it was found on.

    `path` G x U x P holds the first layer's pre-activations at G points of P paths, `layers` the weights behind it and `on`
    L x P the layers that are known to be on; P is the last axis of all. Between two of the points a path is walked piece by
    piece, a piece being where no unit of a layer before the first one in doubt changes its sign: there that layer is linear, and
    on somewhere if it is so at an end. A layer with all of the path behind it is off. STEP is as little as float32 tells apart.
    """
    corners = jnp.swapaxes(path, 0, 1)
    here, there = corners[:, :-1], corners[:, 1:]

    def unsettled(state: Any) -> Array:
        at, on, pieces = state
        return ~jnp.all(on, axis=0) & jnp.any(at < 1, axis=0) & (pieces < MOST)

    def go_on(state: Any) -> Any:
        at, on, pieces = state
        target = jnp.argmin(on, axis=0)
        now, length = _piece(here + at * (there - here), there, 1 - at, layers, target, homogeneous)
        still, more = unsettled(state), on | now
        begin = jnp.take_along_axis(more, target[None], axis=0)[0]
        ahead = jnp.where(begin, 0.0, jnp.where(at + length < 1 - STEP, at + length, 1.0))
        return jnp.where(still, ahead, at), jnp.where(still, more, on), pieces + 1

    begin = jnp.zeros(here.shape[1:])
    at, on, _ = jax.lax.while_loop(lambda s: jnp.any(unsettled(s)), go_on, (begin, on, jnp.array(0)))
    every = jnp.all(on, axis=0)
    return jnp.where(every, len(on), jnp.argmin(on, axis=0)), every | jnp.all(at >= 1, axis=0)


def _piece(
    here: Array, there: Array, length: Array, layers: Any, target: Array, homogeneous: bool
) -> tuple[Bool[Array, "L ..."], Array]:
    """Which layers are on at an end of the next piece, and how long that is: to the first kink of a layer before `target`."""

    def pass_on(carry: Any, layer: Any) -> Any:
        (ends, length), (kernel, bias, place) = carry, layer
        near, far = ends
        below, begins = place < target, near + STEP / jnp.maximum(length, STEP) * (far - near) > 0
        own = jnp.where((begins != (far > 0)) & below, near / (near - far), 1.0)
        part = jnp.min(own, axis=0)
        far = jnp.where(part < 1, jnp.where(own == part, 0, near + part * (far - near)), far)
        ends = jnp.stack([near, far])
        post = jnp.where(begins | ~below, jnp.maximum(ends, 0), 0)
        if homogeneous:
            post /= jnp.maximum(jnp.max(post, axis=(0, 1)), 1e-30)
        pre = sum((post[:, i, None] * kernel[i][:, None] for i in range(kernel.shape[0])), bias[:, None])
        return (pre, part * length), jnp.any(ends > 0, axis=(0, 1, 2))

    (ends, length), on = jax.lax.scan(pass_on, (jnp.stack([here, there]), length), (*layers, jnp.arange(len(layers[0]))))
    return jnp.concatenate([on, jnp.any(ends > 0, axis=(0, 1, 2))[None]]), length


def _next(pre: Float[Array, "G U"], layer: Any, homogeneous: bool) -> Float[Array, "G U"]:
    """The next layer's pre-activations; without biases their scale says nothing, and is kept from vanishing."""
    post = jnp.maximum(pre, 0)
    if homogeneous:
        post /= jnp.maximum(jnp.max(post), 1e-30)
    return affine(post, *layer)


def affine(inputs: Float[Array, "G D"], kernel: Float[Array, "D U"], bias: Float[Array, " U"]) -> Float[Array, "G U"]:
    """inputs kernel + bias."""
    if inputs.shape[0] > 64:
        return jnp.dot(inputs, kernel, precision=jax.lax.Precision.HIGHEST) + bias
    # Mapped over very many, sums are faster than products of small matrices.
    return sum((inputs[:, i, None] * kernel[i] for i in range(kernel.shape[0])), bias)


def where_needed(function: Callable[..., Any], needed: Bool[Array, ""], otherwise: Any, *args: Any) -> Any:
    """`function(*args)` where it is needed, and else `otherwise`; mapped over many, only those that need it are worked on.

    Under a plain `vmap` all would wait for the one that takes longest, each time. Here they are taken a few at a time.
    """

    @custom_vmap
    def settle(needed: Any, otherwise: Any, *args: Any) -> Any:
        return jax.lax.cond(needed, lambda: function(*args), lambda: otherwise)

    @settle.def_vmap
    def some(size: int, mapped: Any, needed: Any, otherwise: Any, *args: Any) -> Any:
        needed, otherwise, *args = jax.tree.map(
            lambda x, m: x if m else jnp.broadcast_to(x, (size, *x.shape)), (needed, otherwise, *args), tuple(mapped)
        )
        few = min(size, max(FEW, size // FEW))

        def go_on(state: tuple[Any, Any]) -> tuple[Any, Any]:
            needed, found = state
            chosen = jnp.sort(jnp.where(needed, jnp.arange(size), size))[:few]
            now = function(*jax.tree.map(lambda x: jnp.moveaxis(x[jnp.minimum(chosen, size - 1)], 0, -1), args))
            found = jax.tree.map(lambda x, new: x.at[chosen].set(new, mode="drop"), found, now)
            return needed.at[chosen].set(False, mode="drop"), found

        _, found = jax.lax.while_loop(lambda state: jnp.any(state[0]), go_on, (needed, otherwise))
        return found, jax.tree.map(lambda _: True, found)

    return settle(needed, otherwise, *args)
