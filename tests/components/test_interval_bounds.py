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
    HPARAMS,
    HUGE,
    SMALLEST,
    D,
    U,
    assert_holds,
    boxes,
    compiled_add,
    compiled_batch_norm,
    compiled_dense,
    compiled_forward,
    flush,
    forwards,
    fused,
    inputs_of,
    interval,
    normalised,
    numbers,
    sequential,
    unit_box,
    wild,
)
from tiers import tiered

from relu_study.components.activations import activation
from relu_study.components.interval_bounds import Interval, affine, at_most, batch_norm, dense, layer_norm, through
from relu_study.components.registry import activations


@settings(max_examples=150, deadline=None)
@given(box=boxes(wild), kernel=numbers((D, U), wild), bias=numbers((U,), wild), seed=st.integers(0, 9))
def test_every_dense_computation_stays_in_bounds(box, kernel, bias, seed):
    bound = compiled_dense(interval(*box), kernel, bias)
    for values in forwards(inputs_of(*box, seed), kernel, bias, seed):
        assert_holds(bound, values)


@settings(max_examples=150, deadline=None)
@given(kernel=numbers((D, U)), bias=st.one_of(st.just(np.zeros(U, np.float32)), numbers((U,))), seed=st.integers(0, 9))
def test_certified_unit_is_dead_in_every_forward_pass(kernel, bias, seed):
    bound = compiled_dense(unit_box(), kernel, bias)
    dead, on = (np.asarray(bound.inside(piece)) for piece in ((-math.inf, 0.0), (0.0, math.inf)))
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
    dead = np.asarray(bound.inside((-math.inf, 0.0)))
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
    one, zero = jnp.ones(2), jnp.zeros(2)
    bound = batch_norm(interval([-3, 0], [0, 2]), zero, one, one, zero, 1e-5)
    assert bound.inside((-math.inf, 0.0)).tolist() == [True, False] and bound.inside((0.0, math.inf)).tolist() == [False, True]
    turned = affine(interval([-3, 0], [0, 2]), -one, zero)
    assert turned.inside((0.0, math.inf)).tolist() == [True, False]
    assert not affine(interval([-3, 0], [0, 2]), one, zero, centre=-1e-7).inside((-math.inf, 0.0)).any()


@pytest.mark.parametrize("units", tiered([1, 2, 5, 32], 1, 5))
@pytest.mark.parametrize("offset", tiered([0.0, 1e3, 1e6], 1e3))
def test_layer_norm_stays_inside(units, offset):
    rng = np.random.default_rng(units)
    scale, bias = rng.normal(size=(2, units)).astype(np.float32)
    box = interval(np.full(units, offset - 2), np.full(units, offset + 2))
    bound = layer_norm(box, jnp.asarray(scale), jnp.asarray(bias), 1e-6)
    x = inputs_of(*(np.asarray(end) for end in box), n=200)
    x = np.concatenate([x, offset + 2 * np.eye(units, dtype=np.float32)])  # one unit apart from all others is the extreme case
    for n in (np, jnp):
        rest = n.asarray(x) - n.asarray(x).mean(axis=1, keepdims=True)
        values = rest / n.sqrt((rest**2).mean(axis=1, keepdims=True) + 1e-6) * scale + bias
        assert_holds(bound, values)
    assert np.all(np.asarray(bound.hi) <= math.sqrt(units) * abs(scale) * 1.001 + bias + 1e-4)


def test_layer_norm_with_infinite_inputs_and_without_epsilon():
    bound = layer_norm(interval([-1, -math.inf], [1, math.inf]), jnp.ones(2), jnp.zeros(2), 1e-6)
    assert np.isinf(bound.lo).all() and np.isinf(bound.hi).all()
    with pytest.raises(ValueError, match="epsilon above 0"):
        layer_norm(unit_box(), jnp.ones(D), jnp.zeros(D), 0.0)


@settings(max_examples=100, deadline=None)
@given(one=boxes(wild, U), other=boxes(wild, U), seed=st.integers(0, 9))
def test_skip_connection_stays_inside(one, other, seed):
    bound = compiled_add(interval(*one), interval(*other))
    x, y = inputs_of(*one, seed), inputs_of(*other, seed + 1)
    with np.errstate(all="ignore"):
        for values in (x + y, add(x, y), flush(flush(x) + flush(y)), x.astype(float) + y.astype(float)):
            assert_holds(bound, values)


def test_sum_of_one_sign_keeps_it():
    bound = interval([-1.0, 0.0], [0.0, 1.0]) + interval([-2.0, 0.0], [0.0, SMALLEST])
    assert bound.inside((-math.inf, 0.0)).tolist() == [True, False] and bound.inside((0.0, math.inf)).tolist() == [False, True]


add = jax.jit(jnp.add)
compiled_through, compiled_phi = jax.jit(through, static_argnums=0), jax.jit(lambda phi, z: phi(z, HPARAMS), static_argnums=0)


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
    bound = through(phi, interval(lo, hi), HPARAMS)
    t = np.linspace(0, 1, 2001)[:, None]
    post = np.asarray(phi(jnp.asarray(np.clip(lo + (hi - lo) * t, lo, hi), jnp.float32), HPARAMS))
    np.testing.assert_allclose(bound.lo, post.min(axis=0), atol=1e-4)
    np.testing.assert_allclose(bound.hi, post.max(axis=0), atol=1e-4)


def test_relu_is_bounded_without_a_rounding():
    bound = through(activations["relu"], interval([-2, -1, 0.1], [-1, 0.3, 0.7]), {})
    assert np.array_equal(bound.lo, np.float32([0, 0, 0.1])) and np.array_equal(bound.hi, np.float32([0, 0.3, 0.7]))


def test_subnormal_end_is_not_lost_in_relu():
    bound = through(activations["relu"], interval([-1.0, SMALLEST], [SMALLEST, 1.0]), {})
    assert np.asarray(bound.hi)[0] >= SMALLEST and np.asarray(bound.lo)[1] >= 0


def test_possible_overflow_gives_the_whole_line():
    box, huge = interval(-np.ones(2), np.ones(2)), jnp.full((2, 1), 3e38)
    bound = dense(box, huge, jnp.zeros(1))
    after = through(activations["tanh"], bound, HPARAMS)  # the sum may be inf - inf
    more = dense(after, -jnp.ones((1, 1)), jnp.zeros(1)), bound + bound, affine(bound, jnp.zeros(1), jnp.zeros(1))
    for nothing in (bound, after, *more):
        assert nothing.lo.tolist() == [-math.inf] and nothing.hi.tolist() == [math.inf]
        assert not nothing.inside((-math.inf, 0.0)).any() and not nothing.inside((-math.inf, math.inf)).any()


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_nonfinite_weights_certify_nothing(bad):
    for kernel, bias in (([[bad], [1.0]], [0.0]), ([[1.0], [1.0]], [bad])):
        bound = dense(unit_box(2), jnp.array(kernel), jnp.array(bias))
        assert not bound.inside((-math.inf, 0.0)).any() and not bound.inside((0.0, math.inf)).any()


@settings(max_examples=200, deadline=None)
@given(a=wild, b=wild)
def test_at_most_orders_as_real_numbers_do(a, b):
    assert bool(at_most(jnp.float32(a), jnp.float32(b))) == (np.float32(a) <= np.float32(b))


def test_at_most_at_the_ends_and_for_nan():
    inf, nan = math.inf, math.nan
    assert bool(at_most(-inf, -HUGE)) and bool(at_most(HUGE, inf)) and bool(at_most(inf, inf)) and not bool(at_most(inf, HUGE))
    for lo, hi in itertools.product((nan, -nan, -1.0, 0.0), repeat=2):
        if math.isnan(lo) or math.isnan(hi):
            assert not any(interval([lo], [hi]).inside(piece).any() for piece in ((-inf, 0.0), (0.0, inf), (-inf, inf)))
    with jax.enable_x64(True):
        assert not bool(at_most(jnp.array([5e-324]), 0.0)[0]) and bool(at_most(jnp.array([-5e-324]), 0.0)[0])


def test_in_float64_the_bounds_are_tighter_still():
    with jax.enable_x64(True):
        kernel = jnp.array(np.random.default_rng(0).normal(size=(D, U)))
        bound = dense(Interval(-jnp.ones(D), jnp.zeros(D)), kernel, jnp.zeros(U))
        top = np.maximum(0, -np.asarray(kernel)).sum(axis=0)
        assert bound.hi.dtype == float and np.all(bound.hi >= top) and np.all(bound.hi <= top + 1e-13)


def test_wide_unit_has_the_turning_points_it_declares():
    @activation("_bump", turning_points=(0.0,), smooth=True)
    def bump(pre):
        return -jnp.square(pre)

    try:
        bound = through(bump, interval([-1, 1], [2, 2]), {})
    finally:
        del activations._entries["_bump"]
    np.testing.assert_allclose(bound.lo, [-4, -4], atol=1e-4)
    np.testing.assert_allclose(bound.hi, [0, -1], atol=1e-4)
