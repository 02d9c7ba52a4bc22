"""Interval bounds through a network, rounded outward: what no input of the box can exceed.

What is promised. Take any floating-point input inside an interval and compute the layer with XLA or
NumPy, its sums in any order, with or without fused multiply-adds, subnormal numbers kept or flushed to
zero. The result lies inside the interval returned here. So a unit that these bounds put inside a flat
piece is dead on every input: certified dead is a subset of dead.

How. With n roundings of relative error u on the way of a term, a computed sum is within
gamma_n * sum |w_i x_i| of the exact one, gamma_n = n u / (1 - n u) (Higham 2002, section 3.1). The ends
computed here err by as much again, so each end moves outward by twice that, plus a term for underflow.
Where a sum might overflow nothing is promised: the interval is the whole line.

Why it is exact in the first layer. A sum of terms none of which is positive is not positive when
computed, in whatever order. So where every term has the right sign on the whole interval (decided
bit by bit, since XLA on a CPU takes subnormal numbers for zero), the end stops at 0 and no rounding moves it: on the box
[-1, 0]^D with zero bias a unit is certified dead exactly when none of its weights is negative. For every other unit
the moved end lies above 0. With a bias, cancelling terms that meet 0 exactly are decided on the safe side.

Source: Moore 1966, "Interval analysis", for the arithmetic; Gowal et al. 2018, arXiv 1810.12715, section 3, for networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from relu_study.activations import Activation, Piece


class Interval(NamedTuple):
    """lo <= value <= hi for each coordinate; `+` adds the intervals of a skip connection.

    The whole line, -inf to inf, says that nothing is known, not even that the value is a number.
    """

    lo: Float[Array, "*U"]
    hi: Float[Array, "*U"]

    def __add__(self, other: Interval) -> Interval:  # type: ignore[override]
        signs = (mine & theirs for mine, theirs in zip(_signs(self, 1.0), _signs(other, 1.0), strict=True))
        size = _largest(self) + _largest(other)
        return _outward(self.lo + other.lo, self.hi + other.hi, size, 1, size, *signs)

    def inside(self, piece: Piece) -> Bool[Array, "*U"]:
        """True where the interval is known to lie in the closed piece."""
        finite = jnp.isfinite(self.lo) & jnp.isfinite(self.hi)
        return finite & at_most(piece[0], self.lo) & at_most(self.hi, piece[1])


def at_most(a: ArrayLike, b: ArrayLike) -> Bool[Array, "..."]:
    """a <= b for real numbers, subnormal ones included, which XLA on a CPU takes for zero; NaN is in no order."""
    dtype = jnp.result_type(a, b, jnp.float32)
    a, b = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
    return (_rank(a) <= _rank(b)) & ~jnp.isnan(a) & ~jnp.isnan(b)


def dense(interval: Interval, kernel: Float[Array, "D U"], bias: Float[Array, "U"]) -> Interval:
    """Bounds of x @ kernel + bias for x in the interval (D,), for a fan-in D of at most 2^20."""
    box = Interval(interval.lo[:, None], interval.hi[:, None])
    corners = box.lo * kernel, box.hi * kernel
    never_above, never_below = (jnp.all(sign, axis=0) for sign in _signs(box, kernel))
    return _outward(
        jnp.minimum(*corners).sum(axis=0) + bias,
        jnp.maximum(*corners).sum(axis=0) + bias,
        (_largest(box) * jnp.abs(kernel)).sum(axis=0) + jnp.abs(bias),
        kernel.shape[0] + 1,
        _largest(box).sum() + jnp.abs(kernel).sum(axis=0),
        never_above & at_most(bias, 0.0),
        never_below & at_most(0.0, bias),
    )


def affine(interval: Interval, scale: Float[Array, "*U"], shift: Float[Array, "*U"], centre: ArrayLike = 0.0) -> Interval:
    """Bounds of (x - centre) * scale + shift, also when computed as x * scale + (shift - centre * scale).

    `scale` may be off by a few roundings.
    """
    centre = jnp.asarray(centre, interval.lo.dtype)
    corners = (interval.lo - centre) * scale, (interval.hi - centre) * scale
    size = _largest(interval) + jnp.abs(centre)
    # The signs of the terms are those of x only where nothing is taken off it.
    never_above, never_below = (_is_zero(centre) & sign for sign in _signs(interval, scale))
    return _outward(
        jnp.minimum(*corners) + shift,
        jnp.maximum(*corners) + shift,
        size * jnp.abs(scale) + jnp.abs(shift),
        16,
        size + jnp.abs(scale),
        never_above & at_most(shift, 0.0),
        never_below & at_most(0.0, shift),
    )


def batch_norm(
    interval: Interval,
    mean: Float[Array, "U"],
    variance: Float[Array, "U"],
    scale: Float[Array, "U"],
    bias: Float[Array, "U"],
    epsilon: float,
) -> Interval:
    """Bounds of (x - mean) / sqrt(variance + epsilon) * scale + bias with running averages: evaluation mode."""
    factor = jnp.maximum(jnp.abs(scale) * lax.rsqrt(variance + epsilon), jnp.finfo(scale.dtype).tiny)
    # A product that XLA flushes to zero would lose its sign, and with it the sign of the whole term.
    return affine(interval, jnp.where(_is_zero(scale), 0.0, jnp.copysign(factor, scale)), bias, mean)


def layer_norm(interval: Interval, scale: Float[Array, "U"], bias: Float[Array, "U"], epsilon: float) -> Interval:
    """Bounds of (x - mean) / sqrt(variance + epsilon) * scale + bias, mean and variance over the U units.

    Exactly, no deviation exceeds sqrt(U - 1) standard deviations. Computed, the mean is off by a rounding and
    the deviations no longer cancel; sqrt(U) holds always, if the variance is the mean square of those
    same deviations (the shortcut mean(x^2) - mean(x)^2 can come out as 0 and obeys no such bound).
    """
    if not epsilon > 0:
        raise ValueError(f"layer_norm needs an epsilon above 0, not {epsilon!r}")
    units = interval.lo.shape[-1]
    finite = jnp.isfinite(4 * _largest(interval).sum())
    most = jnp.where(finite, units**0.5 * (1 + 2 * _gamma(units + 16, interval.lo.dtype)), inf)
    most = jnp.broadcast_to(most.astype(interval.lo.dtype), interval.lo.shape)
    return affine(Interval(-most, most), scale, bias)


def through(activation: Activation, interval: Interval, knobs: Mapping[str, ArrayLike]) -> Interval:
    """Bounds of phi(pre), (fanout * U,), for pre in the interval (U,).

    phi is monotone between its turning points, so its range is that of the ends and of the turning points within. On flat
    and identity pieces no rounding happens; elsewhere phi is trusted to 2^-19 (1 + abs(pre) + abs(phi)) in float32.
    """
    lo, hi = _normal(interval)
    post = jnp.stack([activation(z, knobs) for z in (lo, hi, *(jnp.clip(t, lo, hi) for t in activation.turning_points))])
    exact = jnp.zeros(lo.shape, bool)
    for piece in _exact_pieces(activation):
        exact |= Interval(lo, hi).inside(piece)
    error = 16 * jnp.finfo(lo.dtype).eps * (1 + _largest(interval))

    def per_coordinate(x: Array) -> Array:
        return jnp.tile(x, activation.fanout)

    slack = jnp.where(per_coordinate(exact), 0, per_coordinate(error) + 16 * jnp.finfo(lo.dtype).eps * jnp.abs(post).max(axis=0))
    known = per_coordinate(jnp.isfinite(lo) & jnp.isfinite(hi)) & jnp.isfinite(slack)
    least, most = activation.values
    return Interval(
        jnp.where(known, jnp.maximum(post.min(axis=0) - slack, least), -inf),
        jnp.where(known, jnp.minimum(post.max(axis=0) + slack, most), inf),
    )


def _rank(x: Array) -> Array:
    """Integers in the order of the floating-point numbers x, both zeros at 0 (NaN aside)."""
    bits = lax.bitcast_convert_type(x, jnp.dtype(f"int{8 * x.dtype.itemsize}"))
    return jnp.where(bits >= 0, bits, jnp.iinfo(bits.dtype).min - bits)


def _signs(interval: Interval, weight: ArrayLike) -> tuple[Array, Array]:
    """Is weight * x never above 0, and never below 0, for x in the interval?"""
    positive, negative = at_most(0.0, weight), at_most(weight, 0.0)
    low, high, still = at_most(interval.hi, 0.0), at_most(0.0, interval.lo), _is_zero(weight)
    return (positive & low) | (negative & high) | still, (positive & high) | (negative & low) | still


def _is_zero(x: ArrayLike) -> Array:
    return at_most(x, 0.0) & at_most(0.0, x)


def _largest(interval: Interval) -> Array:
    return jnp.maximum(jnp.abs(interval.lo), jnp.abs(interval.hi))


def _gamma(roundings: int, dtype: jnp.dtype) -> float:
    total = roundings * float(jnp.finfo(dtype).eps) / 2
    return total / (1 - total)


def _outward(
    lo: Array, hi: Array, size: Array, roundings: int, spread: Array, never_above: Array, never_below: Array
) -> Interval:
    """The ends moved outward by all that computing them, and the value itself, may lose.

    size: sum of the terms' magnitudes; roundings: those on the way of one term; spread: magnitudes that a number
    flushed to zero is multiplied by; never_above, never_below: the value is known not to cross 0.
    """
    info = jnp.finfo(size.dtype)
    gamma = _gamma(roundings + 8, size.dtype)
    slack = 2 * gamma * (1 + 2 * gamma) * size + 8 * info.tiny * (roundings + 8 + spread)
    lo, hi = lo - slack, hi + slack
    known = jnp.isfinite(2 * size + slack)
    return Interval(
        jnp.where(known, jnp.where(never_below, jnp.maximum(lo, 0), lo), -inf),
        jnp.where(known, jnp.where(never_above, jnp.minimum(hi, 0), hi), inf),
    )


def _normal(interval: Interval) -> Interval:
    """The interval without subnormal ends, which phi would flush to zero: they move outward."""
    tiny = jnp.finfo(interval.lo.dtype).tiny
    lo = jnp.where(at_most(0.0, interval.lo), jnp.maximum(interval.lo, 0), jnp.minimum(interval.lo, -tiny))
    hi = jnp.where(at_most(interval.hi, 0.0), jnp.minimum(interval.hi, 0), jnp.maximum(interval.hi, tiny))
    return Interval(lo, hi)


def _exact_pieces(activation: Activation) -> list[Piece]:
    """The flat and identity pieces, those that touch joined: there phi rounds nothing."""
    pieces = sorted([*activation.flat, *([activation.identity] if activation.identity else [])])
    joined: list[Piece] = []
    for lo, hi in pieces:
        if joined and joined[-1][1] >= lo:
            joined[-1] = (joined[-1][0], max(joined[-1][1], hi))
        else:
            joined.append((lo, hi))
    return joined
