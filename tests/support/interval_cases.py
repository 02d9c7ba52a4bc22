"""Boxes, layers and forward passes for tests of interval bounds."""

from __future__ import annotations

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from relu_study.components.interval_bounds import Interval, affine, batch_norm, dense, layer_norm, through
from relu_study.components.registry import activations

TINY, SMALLEST, HUGE = 2.0**-126, 2.0**-149, float(np.finfo(np.float32).max)
HPARAMS = {"leak": 0.25}
D, U = 4, 3


EDGE = [0.0, -0.0, SMALLEST, -SMALLEST, 1e-40, -1e-40, TINY, -TINY, 1e-30, -1e-30, 0.1, -0.1, 0.5, -0.5, 1.0, -1.0, 3.0, -3.0]
LARGE = [1e18, -1e18, 1e30, -1e30, HUGE, -HUGE]
mild = st.one_of(st.sampled_from(EDGE), st.floats(-4, 4, width=32))
wild = st.one_of(mild, st.sampled_from(LARGE), st.floats(allow_nan=False, allow_infinity=False, width=32))


def numbers(shape, of=mild):
    size = math.prod(shape)
    return st.lists(of, min_size=size, max_size=size).map(lambda v: np.array(v, np.float32).reshape(shape))


def boxes(of=mild, d=D):
    return st.tuples(numbers((d,), of), numbers((d,), of)).map(lambda ends: (np.minimum(*ends), np.maximum(*ends)))


def interval(lo, hi) -> Interval:
    return Interval(jnp.asarray(np.asarray(lo, np.float32)), jnp.asarray(np.asarray(hi, np.float32)))


def unit_box(d=D) -> Interval:
    return interval(-np.ones(d), np.zeros(d))


def inputs_of(lo, hi, seed=0, n=24) -> np.ndarray:
    """Return corners and inner points of a box."""
    rng = np.random.default_rng(seed)
    corners = np.where(rng.random((n, len(lo))) < 0.5, lo, hi)
    with np.errstate(over="ignore", invalid="ignore"):
        t = rng.random((n, len(lo)))
        inner = np.clip((t * lo.astype(float) + (1 - t) * hi.astype(float)).astype(np.float32), lo, hi)
    return np.concatenate([[lo, hi], corners, inner]).astype(np.float32)


def flush(x):
    return np.where(np.abs(x) < TINY, np.copysign(np.float32(0), x), x).astype(np.float32)


def fused(x, kernel, bias):
    """Return the layer by fused multiply-adds: each product is exact in float64, each sum is rounded once to float32."""
    total = np.broadcast_to(bias, (len(x), kernel.shape[1])).astype(np.float32)
    for i in range(x.shape[1]):
        total = (x[:, i : i + 1].astype(float) * kernel[i].astype(float) + total.astype(float)).astype(np.float32)
    return total


def sequential(x, kernel, bias, order, bias_first, flushed):
    """Return the layer with each product and sum rounded to float32, in a given order. Subnormals are flushed if `flushed`."""
    rounded = flush if flushed else np.float32
    x, kernel, bias = rounded(x), rounded(kernel), rounded(bias)
    total = np.broadcast_to(bias if bias_first else np.float32(0) * bias, (len(x), kernel.shape[1])).astype(np.float32)
    for i in order:
        total = rounded(total + rounded(x[:, i : i + 1] * kernel[i]))
    return total if bias_first else rounded(total + bias)


def exact(x, kernel, bias):
    """Return the layer in rational numbers, rounded once at the end to float64."""
    x, kernel, bias = (np.vectorize(lambda v: Fraction(float(v)), otypes=[object])(a) for a in (x, kernel, bias))
    return np.vectorize(lambda s: float(s) if abs(s) <= HUGE else math.copysign(math.inf, s), otypes=[float])(x @ kernel + bias)


compiled_forward = jax.jit(lambda x, kernel, bias: jnp.dot(x, kernel, precision="highest") + bias)
compiled_dense, compiled_add = jax.jit(dense), jax.jit(Interval.__add__)
compiled_batch_norm, compiled_layer_norm = jax.jit(batch_norm, static_argnums=5), jax.jit(layer_norm, static_argnums=3)
compiled_affine, compiled_through = jax.jit(affine), jax.jit(through, static_argnums=0)
compiled_inside = jax.jit(Interval.inside, static_argnums=1)
DEAD, ON = (-math.inf, 0.0), (0.0, math.inf)


def inside(bound: Interval, piece) -> np.ndarray:
    return np.asarray(compiled_inside(bound, piece))


@jax.jit
def normalised(x, mean, variance, scale, bias, epsilon):
    """Return batch norm in evaluation mode, in the order of operations of flax."""
    return (x - mean) * (jax.lax.rsqrt(variance + epsilon) * scale) + bias


def forwards(x, kernel, bias, seed=0):
    """Yield the same layer by several orders of summation and rounding."""
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        yield np.asarray(compiled_forward(x, kernel, bias))
        yield np.asarray((jnp.asarray(x)[:, :, None] * kernel).sum(axis=1) + bias)
        yield x @ kernel + bias
        yield fused(x, kernel, bias)
        for flushed in (False, True):
            for bias_first in (False, True):
                yield sequential(x, kernel, bias, rng.permutation(x.shape[1]), bias_first, flushed)
        yield exact(x[:12], kernel, bias)


def assert_holds(bound: Interval, values) -> None:
    """Assert that each value is within its bound. A bound that is infinite on both sides allows every value, also NaN."""
    lo, hi = (np.asarray(end, float) for end in bound)
    assert not np.isnan(lo).any() and not np.isnan(hi).any()
    unknown = np.isinf(lo) & np.isinf(hi)
    held = (np.asarray(values, float) >= lo) & (np.asarray(values, float) <= hi)
    assert np.all(held | unknown), (values, lo, hi)


def stack_bounds(params) -> list[Interval]:
    pre, box = [], unit_box()
    for kernel, bias in params:
        pre.append(dense(box, kernel, bias))
        box = through(activations["relu"], pre[-1], {})
    return pre


compiled_stack = jax.jit(stack_bounds)
