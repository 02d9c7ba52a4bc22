"""Interval bounds through a network, rounded outward: bounds of every value that an input of the box can produce.

Guarantee. Compute a layer on any floating-point input inside an interval with XLA or NumPy. Sums may be in any order, with or
without fused multiply-adds, and subnormal numbers may be kept or flushed to zero. The result is inside the returned interval.
A unit with bounds inside a flat piece is therefore dead on every input: certified dead is a subset of dead.

Method. If each term of a sum undergoes n roundings of relative error u, the computed sum is within gamma_n * sum |w_i x_i| of
the exact one, gamma_n = n u / (1 - n u) (Higham 2002, section 3.1). The computed ends have the same error. Each end
therefore moves outward by twice that, plus a term for underflow. If a sum might overflow, the interval is the whole line.

Exactness in the first layer. A computed sum of terms that are not positive is not positive, in any order. If every term has
the right sign on the whole interval, the end is clamped at 0 and no rounding moves it. Signs are decided from the bits: XLA
on a CPU treats subnormal numbers as zero. On the box [-1, 0]^D with zero bias, a unit is thus certified dead exactly if none
of its weights is negative; for every other unit the moved end is above 0. With a bias, terms that cancel to exactly 0 are
decided conservatively.

Source: Moore 1966, "Interval analysis", for the arithmetic; Gowal et al. 2018, arXiv 1810.12715, section 3, for networks.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from math import inf
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from relu_study.components.activations import Activation, Piece


class Interval(NamedTuple):
    """lo <= value <= hi per coordinate. `+` adds the intervals of a skip connection.

    The whole line, -inf to inf, is no information: the value may even be NaN.
    """

    lo: Float[Array, "*U"]
    hi: Float[Array, "*U"]

    def __add__(self, other: Interval) -> Interval:  # type: ignore[override]
        least, most = (jnp.sign(_rank(jnp.stack(ends))) for ends in zip(self, other, strict=True))
        size = _largest(self) + _largest(other)
        return _outward(self.lo + other.lo, self.hi + other.hi, size, 1, size, least.min(axis=0), most.max(axis=0))

    def inside(self, piece: Piece) -> Bool[Array, "*U"]:
        """Return True where the interval is provably inside the closed piece."""
        return jnp.isfinite(self.lo) & jnp.isfinite(self.hi) & at_most(piece[0], self.lo) & at_most(self.hi, piece[1])


def at_most(a: ArrayLike, b: ArrayLike) -> Bool[Array, "..."]:
    """Return a <= b, also for subnormal numbers, which XLA on a CPU treats as zero."""
    dtype = jnp.result_type(a, b, jnp.float32)
    return _rank(jnp.asarray(a, dtype)) <= _rank(jnp.asarray(b, dtype))


def dense(interval: Interval, kernel: Float[Array, "D U"], bias: Float[Array, "U"]) -> Interval:
    """Return bounds of x @ kernel + bias for x in the interval (D,), for a fan-in D of at most 2^20."""
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
    """Return bounds of (x - centre) * scale + shift, valid also if computed as x * scale + (shift - centre * scale).

    `scale` may have an error of a few roundings.
    """
    centre = jnp.asarray(centre, interval.lo.dtype)
    corners = (interval.lo - centre) * scale, (interval.hi - centre) * scale
    size = _largest(interval) + jnp.abs(centre)
    least, most = _signs(interval, scale)
    # With a nonzero centre, the sign of x does not determine the sign of the term.
    centred, sign = jnp.abs(jnp.sign(_rank(centre))), jnp.sign(_rank(shift))
    return _outward(
        jnp.minimum(*corners) + shift,
        jnp.maximum(*corners) + shift,
        size * jnp.abs(scale) + jnp.abs(shift),
        16,
        size + jnp.abs(scale),
        jnp.where(centred, -1, jnp.minimum(least, sign)),
        jnp.where(centred, 1, jnp.maximum(most, sign)),
    )


def batch_norm(
    interval: Interval,
    mean: Float[Array, "U"],
    variance: Float[Array, "U"],
    scale: Float[Array, "U"],
    bias: Float[Array, "U"],
    epsilon: float,
) -> Interval:
    """Return bounds of (x - mean) / sqrt(variance + epsilon) * scale + bias with running averages (evaluation mode)."""
    factor = jnp.maximum(jnp.abs(scale) * lax.rsqrt(variance + epsilon), jnp.finfo(scale.dtype).tiny)
    # A product flushed to zero would lose its sign, and with it the sign of the term.
    return affine(interval, factor * jnp.sign(_rank(scale)), bias, mean)


def layer_norm(interval: Interval, scale: Float[Array, "U"], bias: Float[Array, "U"], epsilon: float) -> Interval:
    """Return bounds of (x - mean) / sqrt(variance + epsilon) * scale + bias, mean and variance over the U units.

    In exact arithmetic no deviation exceeds sqrt(U - 1) standard deviations. The computed mean has a rounding error, and the
    deviations no longer cancel. The bound sqrt(U) then still holds if the variance is the mean square of the same
    deviations. The shortcut mean(x^2) - mean(x)^2 can be computed as 0 and has no such bound.

    Raises:
      ValueError: for an epsilon that is not positive.
    """
    if not epsilon > 0:
        raise ValueError(f"layer_norm needs an epsilon above 0, not {epsilon!r}")
    units = interval.lo.shape[-1]
    finite = jnp.isfinite(4 * _largest(interval).sum())
    most = jnp.where(finite, units**0.5 * (1 + 2 * _gamma(units + 16, interval.lo.dtype)), inf)
    most = jnp.broadcast_to(most.astype(interval.lo.dtype), interval.lo.shape)
    return affine(Interval(-most, most), scale, bias)


def through(activation: Activation, interval: Interval, hparams: Mapping[str, Any]) -> Interval:
    """Return bounds of phi(pre), (fanout * U,), for pre in the interval (U,).

    phi is monotone between its turning points. Its extreme values are at the ends or at turning points inside the interval.
    On flat and identity pieces phi is exact. Elsewhere its error is assumed below 2^-19 (1 + abs(pre) + abs(phi)) in float32.
    """
    lo, hi = _normal(interval)
    posts = [activation(z, hparams) for z in (lo, hi, *(jnp.clip(t, lo, hi) for t in activation.turning_points))]
    least, most = functools.reduce(jnp.minimum, posts), functools.reduce(jnp.maximum, posts)
    finite = jnp.isfinite(lo) & jnp.isfinite(hi)
    pieces = _exact_pieces(activation)
    if (-inf, inf) not in pieces:
        exact = functools.reduce(operator.or_, (Interval(lo, hi).inside(piece) for piece in pieces), jnp.zeros(lo.shape, bool))
        error = 16 * jnp.finfo(lo.dtype).eps * (1 + _largest(interval) + _largest(Interval(least, most)).reshape(-1, *lo.shape))
        slack = jnp.where(exact, 0, error).reshape(least.shape)
        least, most = jnp.maximum(least - slack, activation.values[0]), jnp.minimum(most + slack, activation.values[1])
    # Where phi overflows, its ends are infinite or NaN (inf - inf): no information.
    finite = jnp.tile(finite, activation.fanout) & jnp.isfinite(least) & jnp.isfinite(most)
    return Interval(jnp.where(finite, least, -inf), jnp.where(finite, most, inf))


def _rank(x: Array) -> Array:
    """Return integers in the order of the floating-point numbers x, with both zeros at 0."""
    bits = lax.bitcast_convert_type(x, jnp.dtype(f"int{8 * x.dtype.itemsize}"))
    return jnp.where(bits >= 0, bits, jnp.iinfo(bits.dtype).min - bits)


def _signs(interval: Interval, weight: Array) -> tuple[Array, Array]:
    """Return the least and the greatest sign (-1, 0 or 1) of weight * x for x in the interval."""
    lo, hi, weight = (jnp.sign(_rank(x)) for x in (*interval, weight))
    return jnp.minimum(lo * weight, hi * weight), jnp.maximum(lo * weight, hi * weight)


def _largest(interval: Interval) -> Array:
    return jnp.maximum(jnp.abs(interval.lo), jnp.abs(interval.hi))


def _gamma(roundings: int, dtype: jnp.dtype) -> float:
    total = roundings * float(jnp.finfo(dtype).eps) / 2
    return total / (1 - total)


def _outward(lo: Array, hi: Array, size: Array, roundings: int, spread: Array, least: Array, most: Array) -> Interval:
    """Return the ends, moved outward by the rounding errors of the ends and of the bounded value.

    Args:
      size: sum of the terms' magnitudes.
      roundings: number of roundings of one term.
      spread: sum of the factors that may multiply a number flushed to zero.
      least, most: bounds on the signs of the terms.
    """
    info = jnp.finfo(size.dtype)
    gamma = _gamma(roundings + 8, size.dtype)
    slack = 2 * gamma * (1 + 2 * gamma) * size + 8 * info.tiny * (roundings + 8 + spread)
    finite = jnp.isfinite(2 * size + slack)
    return Interval(
        jnp.where(finite, jnp.maximum(lo - slack, jnp.where(least < 0, -inf, 0)), -inf),
        jnp.where(finite, jnp.minimum(hi + slack, jnp.where(most > 0, inf, 0)), inf),
    )


def _normal(interval: Interval) -> Interval:
    """Return the interval with subnormal ends moved outward to normal numbers: phi might flush them to zero."""
    tiny = jnp.finfo(interval.lo.dtype).tiny
    lo = jnp.where(_rank(interval.lo) < 0, jnp.minimum(interval.lo, -tiny), interval.lo)
    return Interval(lo, jnp.where(_rank(interval.hi) > 0, jnp.maximum(interval.hi, tiny), interval.hi))


def _exact_pieces(activation: Activation) -> list[Piece]:
    """Return the flat and identity pieces, where phi is exact, with adjacent pieces joined."""
    pieces = sorted([*activation.flat, *([activation.identity] if activation.identity else [])])
    joined: list[Piece] = []
    for lo, hi in pieces:
        if joined and joined[-1][1] >= lo:
            joined[-1] = (joined[-1][0], max(joined[-1][1], hi))
        else:
            joined.append((lo, hi))
    return joined
