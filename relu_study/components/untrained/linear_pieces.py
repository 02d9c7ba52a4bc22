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

STEP = 5e-7  # of a stretch: float32 tells nothing closer apart
MAX_PIECES = 1 << 14  # pieces of a stretch, after which it is given up
MIN_BATCH, BATCH_FRACTION = 16, 64  # stretches walked at a time: FEW, or one in PART of all where that is more


def first_off(on: Bool[Array, " L"]) -> Int[Array, ""]:
    """The place of the first layer that is not on; L if all are."""
    return jnp.argmin(jnp.append(on, False))


def on_at(pre: Float[Array, "G U"], layers: Layers, homogeneous: bool) -> Bool[Array, " L"]:
    """Is some unit of a layer on at one of G inputs, of which `pre` are the first layer's pre-activations?"""

    def pass_on(pre: Float[Array, "G U"], layer: Any) -> tuple[Float[Array, "G U"], Bool[Array, ""]]:
        return _next(pre, layer, homogeneous), jnp.any(pre > 0)

    last, on = jax.lax.scan(pass_on, pre, layers)
    return jnp.append(on, jnp.any(last > 0))


def decide_layers(
    path: Float[Array, "G U"], layers: Layers, on: Bool[Array, " L"], homogeneous: bool
) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """The first layer that is off along a whole path, L if none is, and whether that is certain: no stretch was given up.

    `path` holds the first layer's pre-activations at G points, `layers` the weights behind it and `on` the layers that are known
    to be on. A stretch between two of the points is walked piece by piece, a piece being where no unit of a layer before the
    first one in doubt changes its sign: there that layer is linear, and on somewhere if it is so at an end. A layer with all of
    the path behind it is off. STEP is as little as float32 tells apart.

    Mapped over many paths, only those in doubt are walked, as many stretches at a time as keep a device busy: under a plain
    `vmap` all would wait for the longest. A path is the same alone and among others, but for the rounding of where pieces end.
    """

    @custom_vmap
    def settle(*args: Any) -> Any:
        path, layers, on = jax.tree.map(lambda x: x[None], args)
        return jax.tree.map(lambda x: x[0], _walked(path, layers, on, homogeneous))

    @settle.def_vmap
    def mapped_over(size: int, mapped: Any, *args: Any) -> Any:
        path, layers, on = jax.tree.map(lambda x, m: x if m else jnp.broadcast_to(x, (size, *x.shape)), args, tuple(mapped))
        return _walked(path, layers, on, homogeneous), (True, True)

    return settle(path, layers, on)  # type: ignore[no-any-return]


def _walked(path: Float[Array, "P G U"], layers: Any, on: Bool[Array, "P L"], homogeneous: bool) -> tuple[Array, Array]:
    """`walk` of P paths. Stretches that are walked at a time are the last axis of all."""
    each = path.shape[1] - 1
    stretches = len(path) * each
    here, there = (ends.reshape(stretches, -1) for ends in (path[:, :-1], path[:, 1:]))
    few = min(stretches, max(MIN_BATCH, stretches // BATCH_FRACTION))

    def unsettled(every: Array, gone: Array, pieces: Array) -> Array:
        return ~every & (gone < 1) & (pieces < MAX_PIECES)

    def waiting(state: Any) -> Array:
        gone, on, pieces = state
        return unsettled(jnp.repeat(jnp.all(on, axis=1), each), gone, pieces)

    def one_round(state: Any) -> Any:
        gone, on, pieces = state
        # The first that wait, as `nonzero` would find them by sums that compile to 300 instructions more.
        wait, chosen = jax.lax.top_k(waiting(state).astype(jnp.float32), few)
        chosen = jnp.where(wait > 0, chosen, stretches)  # beyond the last: none
        owner, place = chosen // each, jnp.minimum(chosen, stretches - 1)
        weights, known = jax.tree.map(lambda x: jnp.moveaxis(x[place // each], 0, -1), (layers, on))
        start, end = here[place].T, there[place].T

        def left(state: Any) -> Array:
            gone, known, pieces = state
            return unsettled(jnp.all(known, axis=0), gone, pieces)

        def go_on(state: Any) -> Any:
            gone, known, pieces = state
            target, still = jnp.argmin(known, axis=0), left(state)
            now, length = _piece(start + gone * (end - start), end, 1 - gone, weights, target, homogeneous)
            # Where the layer in doubt was off all behind it were constant, and seen: nothing is walked again for the next one.
            found = jnp.take_along_axis(now, target[None], axis=0)[0]
            ahead = jnp.where(gone + length < 1 - STEP, gone + length, 1.0)
            return jnp.where(still & ~found, ahead, gone), known | now & still, pieces + still

        # A round ends when half are settled: the others go on among fresh ones, and few wait for the longest.
        begun = (jnp.where(chosen < stretches, gone[place], 1.0), known, pieces[place])
        half = jnp.sum(left(begun)) // 2
        walked = jax.lax.while_loop(lambda state: jnp.sum(left(state)) > half, go_on, begun)
        return (
            gone.at[chosen].set(walked[0], mode="drop"),
            on.at[owner].max(walked[1].T, mode="drop"),
            pieces.at[chosen].set(walked[2], mode="drop"),
        )

    begun = (jnp.zeros(stretches), on, jnp.zeros(stretches, jnp.int32))
    gone, on, _ = jax.lax.while_loop(lambda state: jnp.any(waiting(state)), one_round, begun)
    return jax.vmap(first_off)(on), jnp.all(on, axis=1) | jnp.all(gone.reshape(-1, each) >= 1, axis=1)


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
        pre = _next(jnp.where(begins | ~below, ends, 0), (kernel, bias), homogeneous)
        return (pre, part * length), jnp.any(ends > 0, axis=(0, 1))

    (ends, length), on = jax.lax.scan(pass_on, (jnp.stack([here, there]), length), (*layers, jnp.arange(len(layers[0]))))
    return jnp.concatenate([on, jnp.any(ends > 0, axis=(0, 1))[None]]), length


def _next(pre: Float[Array, "G U *S"], layer: Any, homogeneous: bool) -> Float[Array, "G U *S"]:
    """The next layer's pre-activations; without biases their scale says nothing, and is kept from vanishing."""
    kernel, bias = layer
    post = jnp.maximum(pre, 0)
    if homogeneous:
        post /= jnp.maximum(jnp.max(post, axis=(0, 1)), 1e-30)
    return affine(post, kernel.reshape(len(bias), *bias.shape), bias)


def affine(inputs: Float[Array, "G D *S"], kernel: Float[Array, "D U *S"], bias: Float[Array, "U *S"]) -> Float[Array, "G U *S"]:
    """inputs kernel + bias."""
    if inputs.shape[0] > 64:
        return jnp.dot(inputs, kernel, precision=jax.lax.Precision.HIGHEST) + bias
    # Mapped over very many, sums are faster than products of small matrices.
    return sum((inputs[:, i, None] * kernel[i] for i in range(kernel.shape[0])), bias)
