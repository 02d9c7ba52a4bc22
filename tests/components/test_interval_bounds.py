"""Soundness of interval bounds for every computation of a layer."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interval_cases import (
    DEAD,
    HPARAMS,
    HUGE,
    ON,
    SMALLEST,
    D,
    U,
    assert_holds,
    boxes,
    compiled_add,
    compiled_affine,
    compiled_batch_norm,
    compiled_dense,
    compiled_forward,
    compiled_layer_norm,
    compiled_through,
    flush,
    forwards,
    fused,
    inputs_of,
    inside,
    interval,
    normalised,
    numbers,
    sequential,
    unit_box,
    wild,
)
from tiers import tiered

from relu_study.components.activations import activation
from relu_study.components.interval_bounds import Interval, at_most
from relu_study.components.registry import activations


@settings(max_examples=100, deadline=None)
@given(box=boxes(wild), kernel=numbers((D, U), wild), bias=numbers((U,), wild), seed=st.integers(0, 9))
def test_every_dense_computation_stays_in_bounds(box, kernel, bias, seed):
    bound = compiled_dense(interval(*box), kernel, bias)
    for values in forwards(inputs_of(*box, seed), kernel, bias, seed):
        assert_holds(bound, values)


@settings(max_examples=100, deadline=None)
@given(kernel=numbers((D, U)), bias=st.one_of(st.just(np.zeros(U, np.float32)), numbers((U,))), seed=st.integers(0, 9))
def test_certified_unit_is_dead_in_every_forward_pass(kernel, bias, seed):
    bound = compiled_dense(unit_box(), kernel, bias)
    dead, on = (inside(bound, piece) for piece in (DEAD, ON))
    for values in forwards(inputs_of(-np.ones(D, np.float32), np.zeros(D, np.float32), seed), kernel, bias, seed):
        assert np.all(values[:, dead] <= 0) and np.all(values[:, on] >= 0)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_weights_that_cancel_to_the_last_bit_are_safe(data):
    """Biases at, and a rounding or two around, the exact maximum on the box."""
    kernel = data.draw(numbers((D, U)))
    top = np.array([math.fsum(-w for w in column if w < 0) for column in kernel.T], np.float32)
    steps = data.draw(numbers((U,), st.sampled_from([-8.0, -2.0, -1.0, 0.0, 1.0, 2.0])))
    bias = (-top + steps * np.spacing(top)).astype(np.float32)
    bound = compiled_dense(unit_box(), kernel, bias)
    dead = inside(bound, DEAD)
    for values in forwards(np.array(np.meshgrid(*[[-1, 0]] * D), np.float32).reshape(D, -1).T, kernel, bias):
        assert np.all(values[:, dead] <= 0)


@pytest.mark.parametrize("fan_in", tiered([1, 7, 300, 5000], 7, 5000))
def test_long_sums_stay_inside(fan_in):
    rng = np.random.default_rng(fan_in)
    kernel, bias = rng.normal(size=(fan_in, 8)).astype(np.float32), rng.normal(size=8).astype(np.float32)
    bound = compiled_dense(interval(-np.ones(fan_in), np.ones(fan_in)), kernel, bias)
    worst = np.concatenate([np.sign(kernel.T), -np.sign(kernel.T)]).astype(np.float32)  # these reach the ends exactly
    order = np.argsort(-np.abs(kernel[:, 0]))
    for values in (
        np.asarray(compiled_forward(worst, kernel, bias)),
        worst @ kernel + bias,
        fused(worst, kernel, bias),
        sequential(worst, kernel, bias, order, True, False),
    ):
        assert_holds(bound, values)
    ends = np.abs(kernel.astype(float)).sum(axis=0)
    assert np.all(np.asarray(bound.hi) <= (ends + bias) + 1e-6 * fan_in * (ends + np.abs(bias)) + 1e-5)


@settings(max_examples=100, deadline=None)
@given(box=boxes(wild, U), params=numbers((4, U), wild), epsilon=st.sampled_from([1e-5, 1e-3]), seed=st.integers(0, 9))
def test_batch_norm_stays_inside(box, params, epsilon, seed):
    (mean, variance, scale, bias), x = params, inputs_of(*box, seed)
    variance = np.abs(variance)
    bound = compiled_batch_norm(interval(*box), mean, variance, scale, bias, epsilon)
    with np.errstate(all="ignore"):
        other = scale / np.sqrt(variance + np.float32(epsilon))
        ours = np.asarray(normalised(x, mean, variance, scale, bias, epsilon))
        for values in (ours, (x - mean) * other + bias, x * other + (bias - mean * other)):
            assert_holds(bound, values)


def test_fresh_batch_norm_moves_no_sign():
    one, zero = np.ones(2, np.float32), np.zeros(2, np.float32)
    bound = compiled_batch_norm(interval([-3, 0], [0, 2]), zero, one, one, zero, 1e-5)
    assert inside(bound, DEAD).tolist() == [True, False] and inside(bound, ON).tolist() == [False, True]
    turned = compiled_affine(interval([-3, 0], [0, 2]), -one, zero)
    assert inside(turned, ON).tolist() == [True, False]
    assert not inside(compiled_affine(interval([-3, 0], [0, 2]), one, zero, centre=-1e-7), DEAD).any()


@pytest.mark.parametrize("units", tiered([1, 2, 5, 32], 1, 5))
@pytest.mark.parametrize("offset", tiered([0.0, 1e3, 1e6], 1e3))
def test_layer_norm_stays_inside(units, offset):
    rng = np.random.default_rng(units)
    scale, bias = rng.normal(size=(2, units)).astype(np.float32)
    box = interval(np.full(units, offset - 2), np.full(units, offset + 2))
    bound = compiled_layer_norm(box, scale, bias, 1e-6)
    x = inputs_of(*(np.asarray(end) for end in box), n=200)
    x = np.concatenate([x, offset + 2 * np.eye(units, dtype=np.float32)])  # one unit apart from all others is the extreme case

    def normed(x, n=jnp):
        rest = x - x.mean(axis=1, keepdims=True)
        return rest / n.sqrt((rest**2).mean(axis=1, keepdims=True) + 1e-6) * scale + bias

    for values in (normed(x, np), jax.jit(normed)(x)):
        assert_holds(bound, values)
    assert np.all(np.asarray(bound.hi) <= math.sqrt(units) * abs(scale) * 1.001 + bias + 1e-4)


def test_layer_norm_with_infinite_inputs_and_without_epsilon():
    bound = compiled_layer_norm(interval([-1, -math.inf], [1, math.inf]), np.ones(2, np.float32), np.zeros(2, np.float32), 1e-6)
    assert np.isinf(bound.lo).all() and np.isinf(bound.hi).all()
    with pytest.raises(ValueError, match="epsilon above 0"):
        compiled_layer_norm(unit_box(), np.ones(D, np.float32), np.zeros(D, np.float32), 0.0)


@settings(max_examples=100, deadline=None)
@given(one=boxes(wild, U), other=boxes(wild, U), seed=st.integers(0, 9))
def test_skip_connection_stays_inside(one, other, seed):
    bound = compiled_add(interval(*one), interval(*other))
    x, y = inputs_of(*one, seed), inputs_of(*other, seed + 1)
    with np.errstate(all="ignore"):
        for values in (x + y, add(x, y), flush(flush(x) + flush(y)), x.astype(float) + y.astype(float)):
            assert_holds(bound, values)


def test_sum_of_one_sign_keeps_it():
    bound = compiled_add(interval([-1.0, 0.0], [0.0, 1.0]), interval([-2.0, 0.0], [0.0, SMALLEST]))
    assert inside(bound, DEAD).tolist() == [True, False] and inside(bound, ON).tolist() == [False, True]


add, compiled_at_most = jax.jit(jnp.add), jax.jit(at_most)
compiled_phi = jax.jit(lambda phi, z: phi(z, HPARAMS), static_argnums=0)


@pytest.mark.parametrize("name", tiered(activations, "relu", "crelu", "gelu"))
@settings(max_examples=40, deadline=None)
@given(box=boxes(wild, U), seed=st.integers(0, 9))
def test_no_post_leaves_the_bounds(name, box, seed):
    phi, z = activations[name], inputs_of(*box, seed)
    z = np.concatenate([z, np.clip(np.linspace(-9, 9, 100)[:, None], *box).astype(np.float32)])
    bound = compiled_through(phi, interval(*box), HPARAMS)
    assert bound.lo.shape == bound.hi.shape == (U * phi.fanout,)
    assert_holds(bound, compiled_phi(phi, z))
    with jax.enable_x64(True):
        assert_holds(bound, compiled_phi(phi, z.astype(float)))


@pytest.mark.parametrize("name", tiered(activations, "relu", "crelu", "gelu"))
def test_range_of_phi_is_tight(name):
    phi, rng = activations[name], np.random.default_rng(1)
    lo, hi = np.sort(rng.normal(scale=2, size=(2, 200)), axis=0).astype(np.float32)
    bound = compiled_through(phi, interval(lo, hi), HPARAMS)
    t = np.linspace(0, 1, 2001)[:, None]
    post = np.asarray(compiled_phi(phi, np.clip(lo + (hi - lo) * t, lo, hi).astype(np.float32)))
    np.testing.assert_allclose(bound.lo, post.min(axis=0), atol=1e-4)
    np.testing.assert_allclose(bound.hi, post.max(axis=0), atol=1e-4)


def test_relu_is_bounded_without_a_rounding():
    bound = compiled_through(activations["relu"], interval([-2, -1, 0.1], [-1, 0.3, 0.7]), {})
    assert np.array_equal(bound.lo, np.float32([0, 0, 0.1])) and np.array_equal(bound.hi, np.float32([0, 0.3, 0.7]))


def test_subnormal_end_is_not_lost_in_relu():
    bound = compiled_through(activations["relu"], interval([-1.0, SMALLEST], [SMALLEST, 1.0]), {})
    assert np.asarray(bound.hi)[0] >= SMALLEST and np.asarray(bound.lo)[1] >= 0


def test_possible_overflow_gives_the_whole_line():
    box, huge, zero, one = interval(-np.ones(2), np.ones(2)), np.full((2, 1), 3e38, np.float32), np.zeros(1), np.ones((1, 1))
    bound = compiled_dense(box, huge, zero)
    after = compiled_through(activations["tanh"], bound, HPARAMS)  # the sum may be inf - inf
    more = compiled_dense(after, -one, zero), compiled_add(bound, bound), compiled_affine(bound, zero, zero)
    for nothing in (bound, after, *more):
        assert nothing.lo.tolist() == [-math.inf] and nothing.hi.tolist() == [math.inf]
        assert not inside(nothing, DEAD).any() and not inside(nothing, (-math.inf, math.inf)).any()


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_nonfinite_weights_certify_nothing(bad):
    for kernel, bias in (([[bad], [1.0]], [0.0]), ([[1.0], [1.0]], [bad])):
        bound = compiled_dense(unit_box(2), np.array(kernel), np.array(bias))
        assert not inside(bound, DEAD).any() and not inside(bound, ON).any()


@settings(max_examples=200, deadline=None)
@given(a=wild, b=wild)
def test_at_most_orders_as_real_numbers_do(a, b):
    assert bool(compiled_at_most(np.float32(a), np.float32(b))) == (np.float32(a) <= np.float32(b))


def test_at_most_at_the_ends_and_for_nan():
    inf, nan = math.inf, math.nan
    assert bool(at_most(-inf, -HUGE)) and bool(at_most(HUGE, inf)) and bool(at_most(inf, inf)) and not bool(at_most(inf, HUGE))
    for lo, hi in itertools.product((nan, -nan, -1.0, 0.0), repeat=2):
        if math.isnan(lo) or math.isnan(hi):
            assert not any(inside(interval([lo], [hi]), piece).any() for piece in ((-inf, 0.0), (0.0, inf), (-inf, inf)))
    with jax.enable_x64(True):
        assert not bool(at_most(jnp.array([5e-324]), 0.0)[0]) and bool(at_most(jnp.array([-5e-324]), 0.0)[0])


def test_in_float64_the_bounds_are_tighter_still():
    with jax.enable_x64(True):
        kernel = np.random.default_rng(0).normal(size=(D, U))
        bound = compiled_dense(Interval(-np.ones(D), np.zeros(D)), kernel, np.zeros(U))
        top = np.maximum(0, -kernel).sum(axis=0)
        assert bound.hi.dtype == float and np.all(bound.hi >= top) and np.all(bound.hi <= top + 1e-13)


def test_wide_unit_has_the_turning_points_it_declares():
    @activation("_bump", turning_points=(0.0,), smooth=True)
    def bump(pre):
        return -jnp.square(pre)

    try:
        bound = compiled_through(bump, interval([-1, 1], [2, 2]), {})
    finally:
        del activations._entries["_bump"]
    np.testing.assert_allclose(bound.lo, [-4, -4], atol=1e-4)
    np.testing.assert_allclose(bound.hi, [0, -1], atol=1e-4)
