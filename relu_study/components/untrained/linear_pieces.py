"""The first layer of a ReLU network that is off along a whole path, decided exactly on its linear pieces."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

# Kernels (flattened) and biases of the layers after the first. XLA fuses the sampling with the layout of a scan's input, and
# vectorises only over the last axis.
Layers = tuple[Float[Array, "K UU"], Float[Array, "K U"]]

STEP = 5e-7  # relative to a segment: the resolution of float32
MAX_PIECES = 1 << 14  # pieces of a segment before it is given up
MIN_BATCH, BATCH_FRACTION = 16, 64  # segments per round: the larger of MIN_BATCH and 1 / BATCH_FRACTION of all


def first_off(on: Bool[Array, " L"]) -> Int[Array, ""]:
    """Return the index of the first layer that is not on; L if all are on."""
    return jnp.argmin(jnp.append(on, False))


def on_at(pre: Float[Array, "G U"], layers: Layers, homogeneous: bool) -> Bool[Array, " L"]:
    """Return for each layer whether some unit is on at one of G inputs, given the first layer's pre-activations `pre`."""

    def pass_on(pre: Float[Array, "G U"], layer: Any) -> tuple[Float[Array, "G U"], Bool[Array, ""]]:
        return _next(pre, layer, homogeneous), jnp.any(pre > 0)

    last, on = jax.lax.scan(pass_on, pre, layers)
    return jnp.append(on, jnp.any(last > 0))


def decide_layers(
    path: Float[Array, "G U"], layers: Layers, on: Bool[Array, " L"], homogeneous: bool
) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """Return the first layer that is off along a whole path (L if none is), and whether this is certain.

    A segment between two points is walked piece by piece. On a piece no unit of a layer before the first undecided one changes
    its sign. The undecided layer is linear there: it is on somewhere exactly if it is on at an end. A layer that is off on all
    pieces of the path is off. The result is uncertain if a segment was given up after MAX_PIECES pieces.

    Mapped over many paths, only undecided paths are walked, with enough segments per round to keep a device busy. A plain
    `vmap` would wait for the longest path. The other paths change a result only by the rounding of piece ends.

    Args:
      path: the first layer's pre-activations at G points.
      layers: weights of the later layers.
      on: layers that are known to be on.
      homogeneous: all biases are zero.
    """

    @custom_vmap
    def settle(*args: Any) -> Any:
        path, layers, on = jax.tree.map(lambda x: x[None], args)
        return jax.tree.map(lambda x: x[0], _walk(path, layers, on, homogeneous))

    @settle.def_vmap
    def mapped_over(size: int, mapped: Any, *args: Any) -> Any:
        path, layers, on = jax.tree.map(lambda x, m: x if m else jnp.broadcast_to(x, (size, *x.shape)), args, tuple(mapped))
        return _walk(path, layers, on, homogeneous), (True, True)

    return settle(path, layers, on)  # type: ignore[no-any-return]


class Segments(NamedTuple):
    """The S segments of P paths, `each` of them per path, and the network that they enter."""

    here: Float[Array, "S U"]
    there: Float[Array, "S U"]
    layers: Any  # kernels and biases of each path
    each: int
    homogeneous: bool


class WalkState(NamedTuple):
    """The progress of segments. During a round `on` has one column per segment, between rounds one row per path."""

    progress: Float[Array, " S"]  # walked part of each segment; 1 at its end
    on: Bool[Array, "..."]  # layers known to be on
    pieces: Int[Array, " S"]


def _walk(path: Float[Array, "P G U"], layers: Any, on: Bool[Array, "P L"], homogeneous: bool) -> tuple[Array, Array]:
    """Return `decide_layers` for P paths. The segments of a round are the last axis of every array."""
    each = path.shape[1] - 1
    count = len(path) * each
    here, there = (ends.reshape(count, -1) for ends in (path[:, :-1], path[:, 1:]))
    segments = Segments(here, there, layers, each, homogeneous)

    def one_round(state: WalkState) -> WalkState:
        return _round(segments, state)

    start = WalkState(jnp.zeros(count), on, jnp.zeros(count, jnp.int32))
    progress, on, _ = jax.lax.while_loop(lambda state: jnp.any(_waiting(state, each)), one_round, start)
    return jax.vmap(first_off)(on), jnp.all(on, axis=1) | jnp.all(progress.reshape(-1, each) >= 1, axis=1)


def _undecided(all_on: Array, state: WalkState) -> Array:
    """Which segments are walked further: a layer is undecided, the end is not reached, and pieces are left."""
    return ~all_on & (state.progress < 1) & (state.pieces < MAX_PIECES)


def _waiting(state: WalkState, each: int) -> Array:
    """The undecided segments, between rounds."""
    return _undecided(jnp.repeat(jnp.all(state.on, axis=1), each), state)


def _left(state: WalkState) -> Array:
    """The undecided segments of a round."""
    return _undecided(jnp.all(state.on, axis=0), state)


def _round(segments: Segments, state: WalkState) -> WalkState:
    """Walk the first waiting segments until half of them are decided.

    The others continue with new ones, so few wait for the longest.
    """
    count, each = len(segments.here), segments.each
    few = min(count, max(MIN_BATCH, count // BATCH_FRACTION))
    # `nonzero` would compile to 300 more instructions.
    wait, chosen = jax.lax.top_k(_waiting(state, each).astype(jnp.float32), few)
    chosen = jnp.where(wait > 0, chosen, count)  # beyond the last: none
    owner, place = chosen // each, jnp.minimum(chosen, count - 1)
    weights, known = jax.tree.map(lambda x: jnp.moveaxis(x[place // each], 0, -1), (segments.layers, state.on))
    start, end = segments.here[place].T, segments.there[place].T

    def next_piece(walked: WalkState) -> WalkState:
        return _next_piece(walked, start, end, weights, segments.homogeneous)

    begin = WalkState(jnp.where(chosen < count, state.progress[place], 1.0), known, state.pieces[place])
    half = jnp.sum(_left(begin)) // 2
    walked = jax.lax.while_loop(lambda walked: jnp.sum(_left(walked)) > half, next_piece, begin)
    return WalkState(
        state.progress.at[chosen].set(walked.progress, mode="drop"),
        state.on.at[owner].max(walked.on.T, mode="drop"),
        state.pieces.at[chosen].set(walked.pieces, mode="drop"),
    )


def _next_piece(state: WalkState, start: Array, end: Array, weights: Any, homogeneous: bool) -> WalkState:
    """Walk one piece of each undecided segment of a round."""
    progress, on, pieces = state
    target, still = jnp.argmin(on, axis=0), _left(state)
    now, length = _piece(start + progress * (end - start), end, 1 - progress, weights, target, homogeneous)
    # While the undecided layer was off, later layers were constant and already evaluated: nothing is walked again.
    found = jnp.take_along_axis(now, target[None], axis=0)[0]
    ahead = jnp.where(progress + length < 1 - STEP, progress + length, 1.0)
    return WalkState(jnp.where(still & ~found, ahead, progress), on | now & still, pieces + still)


def _piece(
    here: Float[Array, "U S"], there: Float[Array, "U S"], length: Array, layers: Any, target: Array, homogeneous: bool
) -> tuple[Bool[Array, "L S"], Float[Array, " S"]]:
    """Return the layers that are on at an end of the next piece, and its length, up to the first kink before layer `target`."""

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
    """Return the next layer's pre-activations. Without biases their scale is arbitrary, and is normalised against underflow."""
    kernel, bias = layer
    post = jnp.maximum(pre, 0)
    if homogeneous:
        post /= jnp.maximum(jnp.max(post, axis=(0, 1)), 1e-30)
    return affine(post, kernel.reshape(len(bias), *bias.shape), bias)


def affine(inputs: Float[Array, "G D *S"], kernel: Float[Array, "D U *S"], bias: Float[Array, "U *S"]) -> Float[Array, "G U *S"]:
    """Return inputs kernel + bias."""
    if inputs.shape[0] > 64:
        return jnp.dot(inputs, kernel, precision=jax.lax.Precision.HIGHEST) + bias
    # Mapped over many small matrices, sums are faster than products.
    return sum((inputs[:, i, None] * kernel[i] for i in range(kernel.shape[0])), bias)
