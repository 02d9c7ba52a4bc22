"""Which layers of a ReLU network are off along a whole path: decided from kink to kink, never on a grid."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

# Kernels, each as one row, and biases of the layers after the first: XLA fuses drawing them with laying them out for a scan, and
# vectorises over the last axis alone.
Layers = tuple[Float[Array, "K UU"], Float[Array, "K U"]]

STEP = 5e-7  # of an edge: float32 tells nothing closer apart
MOST = 1 << 14  # pieces that are walked before a path is given up
FEW, SHARE = 16, 64  # so many stretches are walked at a time, or this part of all of them where that is more


def first_off(on: Bool[Array, " L"]) -> Int[Array, ""]:
    """The place of the first layer that is not on; L if all are."""
    return jnp.argmin(jnp.append(on, False))


def on_at(pre: Float[Array, "G U"], layers: Layers, homogeneous: bool) -> Bool[Array, " L"]:
    """Is some unit of a layer on at one of G inputs, of which `pre` are the first layer's pre-activations?"""

    def pass_on(pre: Float[Array, "G U"], layer: Any) -> tuple[Float[Array, "G U"], Bool[Array, ""]]:
        return _next(pre, layer, homogeneous), jnp.any(pre > 0)

    last, on = jax.lax.scan(pass_on, pre, layers)
    return jnp.append(on, jnp.any(last > 0))


def walk(
    path: Float[Array, "G U"], layers: Layers, on: Bool[Array, " L"], homogeneous: bool
) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """The first layer that is off along a whole path, and whether every layer before it was found on.

    `path` holds the first layer's pre-activations at G points, `layers` the weights behind it and `on` the layers that are known
    to be on. Between two of the points it is walked piece by piece, a piece being where no unit of a layer before the first one
    in doubt changes its sign: there that layer is linear, and on somewhere if it is so at an end; where it is off, all behind it
    are constant. A layer with all of the path behind it is off. STEP is as little as float32 tells apart.

    Mapped over many paths, only those in doubt are walked, so many stretches at a time as keep a device busy: under a plain
    `vmap` all would wait for the longest.
    """

    @custom_vmap
    def settle(path: Any, layers: Any, on: Any) -> Any:
        return jax.tree.map(lambda x: x[0], _walked(path[None], jax.tree.map(lambda x: x[None], layers), on[None], homogeneous))

    @settle.def_vmap
    def many(size: int, mapped: Any, *args: Any) -> Any:
        path, layers, on = jax.tree.map(lambda x, m: x if m else jnp.broadcast_to(x, (size, *x.shape)), args, tuple(mapped))
        return _walked(path, layers, on, homogeneous), (True, True)

    return settle(path, layers, on)  # type: ignore[no-any-return]


def _walked(path: Float[Array, "P G U"], layers: Any, on: Bool[Array, "P L"], homogeneous: bool) -> tuple[Array, Array]:
    """`walk` of P paths. A stretch lies between two points of a path; those walked at a time are the last axis of all."""
    each = path.shape[1] - 1
    stretches = len(path) * each
    here, there = (ends.reshape(stretches, -1) for ends in (path[:, :-1], path[:, 1:]))
    few = min(stretches, max(FEW, stretches // SHARE))

    def unsettled(at: Array, on: Array, pieces: Array) -> Array:
        return ~jnp.all(on, axis=0) & (at < 1) & (pieces < MOST)

    def waiting(state: Any) -> Array:
        at, on, pieces = state
        return unsettled(at, jnp.repeat(on.T, each, axis=1), pieces)

    def some(state: Any) -> Any:
        at, on, pieces = state
        wait, chosen = jax.lax.top_k(waiting(state).astype(jnp.float32), few)
        chosen = jnp.where(wait > 0, chosen, stretches)  # beyond the last: none
        owner, place = chosen // each, jnp.minimum(chosen, stretches - 1)
        weights, known = jax.tree.map(lambda x: jnp.moveaxis(x[place // each], 0, -1), (layers, on))
        begin, end = here[place].T, there[place].T
        taken = (jnp.where(chosen < stretches, at[place], 1.0), known, pieces[place])
        half = jnp.sum(unsettled(*taken)) // 2

        def go_on(state: Any) -> Any:
            at, on, pieces = state
            target, still = jnp.argmin(on, axis=0), unsettled(at, on, pieces)
            now, length = _piece(begin + at * (end - begin), end, 1 - at, weights, target, homogeneous)
            found = jnp.take_along_axis(now, target[None], axis=0)[0]
            ahead = jnp.where(at + length < 1 - STEP, at + length, 1.0)
            return jnp.where(still & ~found, ahead, at), on | now & still, pieces + still

        left = jax.lax.while_loop(lambda state: jnp.sum(unsettled(*state)) > half, go_on, taken)
        return (
            at.at[chosen].set(left[0], mode="drop"),
            on.at[owner].max(left[1].T, mode="drop"),
            pieces.at[chosen].set(left[2], mode="drop"),
        )

    begun = (jnp.zeros(stretches), on, jnp.zeros(stretches, jnp.int32))
    at, on, _ = jax.lax.while_loop(lambda state: jnp.any(waiting(state)), some, begun)
    every = jnp.all(on, axis=1)
    return jnp.where(every, on.shape[1], jnp.argmin(on, axis=1)), every | jnp.all(at.reshape(-1, each) >= 1, axis=1)


def _piece(
    here: Float[Array, "U S"], there: Float[Array, "U S"], length: Array, layers: Any, target: Array, homogeneous: bool
) -> tuple[Bool[Array, "L S"], Float[Array, " S"]]:
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
        kernel = kernel.reshape(len(bias), *bias.shape)
        pre = sum((post[:, i, None] * kernel[i] for i in range(len(kernel))), bias)
        return (pre, part * length), jnp.any(ends > 0, axis=(0, 1))

    (ends, length), on = jax.lax.scan(pass_on, (jnp.stack([here, there]), length), (*layers, jnp.arange(len(layers[0]))))
    return jnp.concatenate([on, jnp.any(ends > 0, axis=(0, 1))[None]]), length


def _next(pre: Float[Array, "G U"], layer: Any, homogeneous: bool) -> Float[Array, "G U"]:
    """The next layer's pre-activations; without biases their scale says nothing, and is kept from vanishing."""
    post = jnp.maximum(pre, 0)
    if homogeneous:
        post /= jnp.maximum(jnp.max(post), 1e-30)
    kernel, bias = layer
    return affine(post, kernel.reshape(len(bias), len(bias)), bias)


def affine(inputs: Float[Array, "G D"], kernel: Float[Array, "D U"], bias: Float[Array, " U"]) -> Float[Array, "G U"]:
    """inputs kernel + bias."""
    if inputs.shape[0] > 64:
        return jnp.dot(inputs, kernel, precision=jax.lax.Precision.HIGHEST) + bias
    # Mapped over very many, sums are faster than products of small matrices.
    return sum((inputs[:, i, None] * kernel[i] for i in range(kernel.shape[0])), bias)
