"""Exact search for the first layer of a ReLU network that is off along a path of inputs.

A layer is on at an input if some unit is positive there, else off. The network is linear between its kinks, so the search visits
each linear piece of the path.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

# Kernels and biases of the layers after the first. Kernels are flattened, because XLA samples them in this layout and vectorises
# only over the last axis.
Layers = tuple[Float[Array, "K UU"], Float[Array, "K U"]]

STEP = 5e-7  # resolution of a position in float32, as a fraction of the segment
MAX_PIECES = 1 << 14  # limit of pieces per segment; a segment with more stays uncertain
MIN_BATCH, BATCH_FRACTION = 16, 64  # segments per round: at least MIN_BATCH, and 1 / BATCH_FRACTION of all


def first_off(on: Bool[Array, " L"]) -> Int[Array, ""]:
    """Return the index of the first layer that is off, or L if all are on."""
    return jnp.argmin(jnp.append(on, False))  # argmin returns the first False


def on_at(pre: Float[Array, "G U"], layers: Layers, homogeneous: bool) -> Bool[Array, " L"]:
    """Return for each layer whether it is on at one of G inputs. `pre` has the first layer's pre-activations."""

    def apply_layer(pre: Float[Array, "G U"], layer: Any) -> tuple[Float[Array, "G U"], Bool[Array, ""]]:
        return _next(pre, layer, homogeneous), jnp.any(pre > 0)

    last, on = jax.lax.scan(apply_layer, pre, layers)
    return jnp.append(on, jnp.any(last > 0))


def decide_layers(
    path: Float[Array, "G U"], layers: Layers, on: Bool[Array, " L"], homogeneous: bool
) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """Return the index of the first layer that is off along a whole path (L if none is), and whether the index is certain.

    The path has straight segments between its points. The search walks each segment piece by piece. On a piece, no unit of a
    layer before the first undecided layer changes its sign. The undecided layer is linear there. It is on somewhere on the
    piece exactly if it is on at an end. A layer that is off on all pieces is off along the path. The index is uncertain if a
    segment has more than MAX_PIECES pieces.

    Under `vmap`, only undecided paths are walked, with enough segments per round to keep a device busy. A plain `vmap` would
    run every path until the longest ends. Other paths in the batch change a result only by the rounding of piece ends.

    Args:
      path: the first layer's pre-activations at the G points of the path.
      layers: kernels and biases of the later layers.
      on: whether each layer is known to be on.
      homogeneous: whether all biases are zero.
    """

    @custom_vmap
    def decide(*args: Any) -> Any:
        path, layers, on = jax.tree.map(lambda x: x[None], args)
        return jax.tree.map(lambda x: x[0], _walk(path, layers, on, homogeneous))

    @decide.def_vmap
    def decide_batch(size: int, is_mapped: Any, *args: Any) -> Any:
        path, layers, on = jax.tree.map(lambda x, m: x if m else jnp.broadcast_to(x, (size, *x.shape)), args, tuple(is_mapped))
        return _walk(path, layers, on, homogeneous), (True, True)

    return decide(path, layers, on)  # type: ignore[no-any-return]


class Segments(NamedTuple):
    """The S segments of P paths, and the network of each path."""

    start: Float[Array, "S U"]  # the first layer's pre-activations
    end: Float[Array, "S U"]
    layers: Any  # kernels and biases of each path's network
    per_path: int  # S / P
    homogeneous: bool


class WalkState(NamedTuple):
    """The progress of segments. `on` has one column per segment during a round, and one row per path between rounds."""

    progress: Float[Array, " S"]  # walked fraction of each segment
    on: Bool[Array, "..."]  # whether each layer is known to be on
    pieces: Int[Array, " S"]  # number of walked pieces


def _walk(path: Float[Array, "P G U"], layers: Any, on: Bool[Array, "P L"], homogeneous: bool) -> tuple[Array, Array]:
    """Return the results of `decide_layers` for P paths."""
    per_path = path.shape[1] - 1
    count = len(path) * per_path
    start, end = (points.reshape(count, -1) for points in (path[:, :-1], path[:, 1:]))
    segments = Segments(start, end, layers, per_path, homogeneous)

    def one_round(state: WalkState) -> WalkState:
        return _round(segments, state)

    initial = WalkState(jnp.zeros(count), on, jnp.zeros(count, jnp.int32))
    progress, on, _ = jax.lax.while_loop(lambda state: jnp.any(_undecided_between_rounds(state, per_path)), one_round, initial)
    return jax.vmap(first_off)(on), jnp.all(on, axis=1) | jnp.all(progress.reshape(-1, per_path) >= 1, axis=1)


def _undecided(all_on: Array, state: WalkState) -> Array:
    """Return whether each segment is walked further: before its end and MAX_PIECES, with a layer that is not known to be on."""
    return ~all_on & (state.progress < 1) & (state.pieces < MAX_PIECES)


def _undecided_between_rounds(state: WalkState, per_path: int) -> Array:
    """Return `_undecided` for all S segments, between rounds."""
    return _undecided(jnp.repeat(jnp.all(state.on, axis=1), per_path), state)


def _undecided_in_round(state: WalkState) -> Array:
    """Return `_undecided` for the segments of a round."""
    return _undecided(jnp.all(state.on, axis=0), state)


def _round(segments: Segments, state: WalkState) -> WalkState:
    """Walk a batch of undecided segments until half of them are decided.

    The next round continues the rest with new segments, so few segments wait for the longest. Segments are the last axis of every
    array of a round.
    """
    count, per_path = len(segments.start), segments.per_path
    batch = min(count, max(MIN_BATCH, count // BATCH_FRACTION))
    # `top_k` selects the undecided segments; `nonzero` would compile to 300 more instructions.
    is_undecided, chosen = jax.lax.top_k(_undecided_between_rounds(state, per_path).astype(jnp.float32), batch)
    chosen = jnp.where(is_undecided > 0, chosen, count)  # index `count` marks an empty slot, whose results are dropped
    path, segment = chosen // per_path, jnp.minimum(chosen, count - 1)
    weights, on = jax.tree.map(lambda x: jnp.moveaxis(x[segment // per_path], 0, -1), (segments.layers, state.on))
    start, end = segments.start[segment].T, segments.end[segment].T

    def next_piece(walked: WalkState) -> WalkState:
        return _next_piece(walked, start, end, weights, segments.homogeneous)

    initial = WalkState(jnp.where(chosen < count, state.progress[segment], 1.0), on, state.pieces[segment])
    half = jnp.sum(_undecided_in_round(initial)) // 2
    walked = jax.lax.while_loop(lambda walked: jnp.sum(_undecided_in_round(walked)) > half, next_piece, initial)
    return WalkState(
        state.progress.at[chosen].set(walked.progress, mode="drop"),
        state.on.at[path].max(walked.on.T, mode="drop"),
        state.pieces.at[chosen].set(walked.pieces, mode="drop"),
    )


def _next_piece(state: WalkState, start: Array, end: Array, weights: Any, homogeneous: bool) -> WalkState:
    """Walk one piece of each undecided segment of a round."""
    progress, on, pieces = state
    target, undecided = jnp.argmin(on, axis=0), _undecided_in_round(state)
    on_here, length = _piece(start + progress * (end - start), end, 1 - progress, weights, target, homogeneous)
    # A target that is on makes a later layer the target. This layer starts at the same position: on earlier pieces the old target
    # was off, so later layers were constant there and are already evaluated.
    target_on = jnp.take_along_axis(on_here, target[None], axis=0)[0]
    next_progress = jnp.where(progress + length < 1 - STEP, progress + length, 1.0)
    return WalkState(jnp.where(undecided & ~target_on, next_progress, progress), on | on_here & undecided, pieces + undecided)


def _piece(
    near: Float[Array, "U S"], far: Float[Array, "U S"], length: Array, layers: Any, target: Array, homogeneous: bool
) -> tuple[Bool[Array, "L S"], Float[Array, " S"]]:
    """Return whether each layer is on at an end of the next piece, and the length of the piece.

    The piece begins at `near` and ends at the first kink of a layer before `target`, or at `far`.

    Args:
      near, far: the first layer's pre-activations at both ends of the rest of a segment.
      length: the rest as a fraction of the segment.
      target: index of the first undecided layer.
    """

    def apply_layer(carry: Any, layer: Any) -> Any:
        (ends, length), (kernel, bias, index) = carry, layer
        near, far = ends
        # The signs of a piece are read one STEP after `near`, because a unit is 0 at its kink.
        before_target, positive = index < target, near + STEP / jnp.maximum(length, STEP) * (far - near) > 0
        kinks = jnp.where((positive != (far > 0)) & before_target, near / (near - far), 1.0)
        first_kink = jnp.min(kinks, axis=0)
        far = jnp.where(first_kink < 1, jnp.where(kinks == first_kink, 0, near + first_kink * (far - near)), far)
        ends = jnp.stack([near, far])
        pre = _next(jnp.where(positive | ~before_target, ends, 0), (kernel, bias), homogeneous)
        return (pre, first_kink * length), jnp.any(ends > 0, axis=(0, 1))

    (ends, length), on = jax.lax.scan(apply_layer, (jnp.stack([near, far]), length), (*layers, jnp.arange(len(layers[0]))))
    return jnp.concatenate([on, jnp.any(ends > 0, axis=(0, 1))[None]]), length


def _next(pre: Float[Array, "G U *S"], layer: Any, homogeneous: bool) -> Float[Array, "G U *S"]:
    """Return the next layer's pre-activations.

    Without biases the scale of the signal changes no sign. The largest signal is then scaled to 1, against underflow.
    """
    kernel, bias = layer
    post = jnp.maximum(pre, 0)
    if homogeneous:
        post /= jnp.maximum(jnp.max(post, axis=(0, 1)), 1e-30)
    return affine(post, kernel.reshape(len(bias), *bias.shape), bias)


def affine(inputs: Float[Array, "G D *S"], kernel: Float[Array, "D U *S"], bias: Float[Array, "U *S"]) -> Float[Array, "G U *S"]:
    """Return inputs @ kernel + bias."""
    if inputs.shape[0] > 64:
        return jnp.dot(inputs, kernel, precision=jax.lax.Precision.HIGHEST) + bias
    # Under vmap, sums over small matrices are faster than matrix products.
    return sum((inputs[:, i, None] * kernel[i] for i in range(kernel.shape[0])), bias)
