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

import functools
import operator
from collections.abc import Mapping
from math import inf
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from relu_study.components.activations import Activation, Piece


class Interval(NamedTuple):
    """lo <= value <= hi for each coordinate; `+` adds the intervals of a skip connection.

    The whole line, -inf to inf, says that nothing is known, not even that the value is a number.
    """

    lo: Float[Array, "*U"]
    hi: Float[Array, "*U"]

    def __add__(self, other: Interval) -> Interval:  # type: ignore[override]
        least, most = (jnp.sign(_rank(jnp.stack(ends))) for ends in zip(self, other, strict=True))
        size = _largest(self) + _largest(other)
        return _outward(self.lo + other.lo, self.hi + other.hi, size, 1, size, least.min(axis=0), most.max(axis=0))

    def inside(self, piece: Piece) -> Bool[Array, "*U"]:
        """True where the interval is known to lie in the closed piece."""
        return jnp.isfinite(self.lo) & jnp.isfinite(self.hi) & at_most(piece[0], self.lo) & at_most(self.hi, piece[1])


def at_most(a: ArrayLike, b: ArrayLike) -> Bool[Array, "..."]:
    """a <= b for real numbers, subnormal ones included, which XLA on a CPU takes for zero."""
    dtype = jnp.result_type(a, b, jnp.float32)
    return _rank(jnp.asarray(a, dtype)) <= _rank(jnp.asarray(b, dtype))


def dense(interval: Interval, kernel: Float[Array, "D U"], bias: Float[Array, "U"]) -> Interval:
    """Bounds of x @ kernel + bias for x in the interval (D,), for a fan-in D of at most 2^20."""
    box = Interval(interval.lo[:, None], interval.hi[:, None])
    corners, weight = (box.lo * kernel, box.hi * kernel), jnp.abs(kernel)
    terms = jnp.stack([jnp.minimum(*corners), jnp.maximum(*corners), _largest(box) * weight, _largest(box) + weight])
    lo, hi, size, spread = terms.sum(axis=1)
    least, most = _signs(box, kernel)
    sign = jnp.sign(_rank(bias))
    return _outward(
        lo + bias,
        hi + bias,
        size + jnp.abs(bias),
        kernel.shape[0] + 1,
        spread,
        jnp.minimum(least.min(axis=0), sign),
        jnp.maximum(most.max(axis=0), sign),
    )


def affine(interval: Interval, scale: Float[Array, "*U"], shift: Float[Array, "*U"], centre: ArrayLike = 0.0) -> Interval:
    """Bounds of (x - centre) * scale + shift, also when computed as x * scale + (shift - centre * scale).

    `scale` may be off by a few roundings.
    """
    centre = jnp.asarray(centre, interval.lo.dtype)
    corners = (interval.lo - centre) * scale, (interval.hi - centre) * scale
    size = _largest(interval) + jnp.abs(centre)
    least, most = _signs(interval, scale)
    # Where something is taken off x, its sign says nothing about that of the term.
    moved, sign = jnp.abs(jnp.sign(_rank(centre))), jnp.sign(_rank(shift))
    return _outward(
        jnp.minimum(*corners) + shift,
        jnp.maximum(*corners) + shift,
        size * jnp.abs(scale) + jnp.abs(shift),
        16,
        size + jnp.abs(scale),
        jnp.where(moved, -1, jnp.minimum(least, sign)),
        jnp.where(moved, 1, jnp.maximum(most, sign)),
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
    return affine(interval, factor * jnp.sign(_rank(scale)), bias, mean)


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
    posts = [activation(z, knobs) for z in (lo, hi, *(jnp.clip(t, lo, hi) for t in activation.turning_points))]
    least, most = functools.reduce(jnp.minimum, posts), functools.reduce(jnp.maximum, posts)
    known = jnp.isfinite(lo) & jnp.isfinite(hi)
    pieces = _exact_pieces(activation)
    if (-inf, inf) not in pieces:
        exact = functools.reduce(operator.or_, (Interval(lo, hi).inside(piece) for piece in pieces), jnp.zeros(lo.shape, bool))
        error = 16 * jnp.finfo(lo.dtype).eps * (1 + _largest(interval) + _largest(Interval(least, most)).reshape(-1, *lo.shape))
        slack = jnp.where(exact, 0, error).reshape(least.shape)
        least, most = jnp.maximum(least - slack, activation.values[0]), jnp.minimum(most + slack, activation.values[1])
    known = jnp.tile(known, activation.fanout)
    return Interval(jnp.where(known, least, -inf), jnp.where(known, most, inf))


def _rank(x: Array) -> Array:
    """Integers in the order of the floating-point numbers x, both zeros at 0."""
    bits = lax.bitcast_convert_type(x, jnp.dtype(f"int{8 * x.dtype.itemsize}"))
    return jnp.where(bits >= 0, bits, jnp.iinfo(bits.dtype).min - bits)


def _signs(interval: Interval, weight: Array) -> tuple[Array, Array]:
    """The least and the greatest sign that weight * x takes for x in the interval: -1, 0 or 1."""
    lo, hi, weight = (jnp.sign(_rank(x)) for x in (*interval, weight))
    return jnp.minimum(lo * weight, hi * weight), jnp.maximum(lo * weight, hi * weight)


def _largest(interval: Interval) -> Array:
    return jnp.maximum(jnp.abs(interval.lo), jnp.abs(interval.hi))


def _gamma(roundings: int, dtype: jnp.dtype) -> float:
    total = roundings * float(jnp.finfo(dtype).eps) / 2
    return total / (1 - total)


def _outward(lo: Array, hi: Array, size: Array, roundings: int, spread: Array, least: Array, most: Array) -> Interval:
    """The ends moved outward by all that computing them, and the value itself, may lose.

    size: sum of the terms' magnitudes; roundings: those on the way of one term; spread: magnitudes that a number
    flushed to zero is multiplied by; least, most: the signs of the terms, of which none is below, none above.
    """
    info = jnp.finfo(size.dtype)
    gamma = _gamma(roundings + 8, size.dtype)
    slack = 2 * gamma * (1 + 2 * gamma) * size + 8 * info.tiny * (roundings + 8 + spread)
    known = jnp.isfinite(2 * size + slack)
    return Interval(
        jnp.where(known, jnp.maximum(lo - slack, jnp.where(least < 0, -inf, 0)), -inf),
        jnp.where(known, jnp.minimum(hi + slack, jnp.where(most > 0, inf, 0)), inf),
    )


def _normal(interval: Interval) -> Interval:
    """The interval without subnormal ends, which phi would flush to zero: they move outward."""
    tiny = jnp.finfo(interval.lo.dtype).tiny
    lo = jnp.where(_rank(interval.lo) < 0, jnp.minimum(interval.lo, -tiny), interval.lo)
    return Interval(lo, jnp.where(_rank(interval.hi) > 0, jnp.maximum(interval.hi, tiny), interval.hi))


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
