"""Soundness of interval bounds for every computation of a layer, and their tightness."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import tiered

from relu_study.components.activations import activation
from relu_study.components.interval_bounds import Interval, affine, at_most, batch_norm, dense, layer_norm, through
from relu_study.components.registry import activations

TINY, SMALLEST, HUGE = 2.0**-126, 2.0**-149, float(np.finfo(np.float32).max)
KNOBS = {"leak": 0.25}
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
    return Interval(jnp.asarray(lo, jnp.float32), jnp.asarray(hi, jnp.float32))


def unit_box(d=D) -> Interval:
    return interval(-np.ones(d), np.zeros(d))


def inputs_of(lo, hi, seed=0, n=24) -> np.ndarray:
    """Corners and inner points of a box, none outside it."""
    rng = np.random.default_rng(seed)
    corners = np.where(rng.random((n, len(lo))) < 0.5, lo, hi)
    with np.errstate(over="ignore", invalid="ignore"):
        t = rng.random((n, len(lo)))
        inner = np.clip((t * lo.astype(float) + (1 - t) * hi.astype(float)).astype(np.float32), lo, hi)
    return np.concatenate([[lo, hi], corners, inner]).astype(np.float32)


def flush(x):
    return np.where(np.abs(x) < TINY, np.copysign(np.float32(0), x), x).astype(np.float32)


def fused(x, kernel, bias):
    """One fused multiply-add after the other: the product is exact in float64, each sum is rounded once to float32."""
    total = np.broadcast_to(bias, (len(x), kernel.shape[1])).astype(np.float32)
    for i in range(x.shape[1]):
        total = (x[:, i : i + 1].astype(float) * kernel[i].astype(float) + total.astype(float)).astype(np.float32)
    return total


def sequential(x, kernel, bias, order, bias_first, flushed):
    """Products and sums rounded to float32 one by one, in a given order, subnormals kept or flushed."""
    rounded = flush if flushed else np.float32
    x, kernel, bias = rounded(x), rounded(kernel), rounded(bias)
    total = np.broadcast_to(bias if bias_first else np.float32(0) * bias, (len(x), kernel.shape[1])).astype(np.float32)
    for i in order:
        total = rounded(total + rounded(x[:, i : i + 1] * kernel[i]))
    return total if bias_first else rounded(total + bias)


def exact(x, kernel, bias):
    """The layer in rational numbers, rounded once at the end to float64."""
    x, kernel, bias = (np.vectorize(lambda v: Fraction(float(v)), otypes=[object])(a) for a in (x, kernel, bias))
    return np.vectorize(lambda s: float(s) if abs(s) <= HUGE else math.copysign(math.inf, s), otypes=[float])(x @ kernel + bias)


compiled_forward = jax.jit(lambda x, kernel, bias: jnp.dot(x, kernel, precision="highest") + bias)
compiled_dense, compiled_add = jax.jit(dense), jax.jit(Interval.__add__)
compiled_batch_norm = jax.jit(batch_norm, static_argnums=5)


@jax.jit
def normalised(x, mean, variance, scale, bias, epsilon):
    """Batch norm in evaluation mode as flax computes it."""
    return (x - mean) * (jax.lax.rsqrt(variance + epsilon) * scale) + bias


def forwards(x, kernel, bias, seed=0):
    """The same layer, computed in every way we can think of."""
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
    """Each value lies in the bound; where nothing is promised anything goes."""
    lo, hi = (np.asarray(end, float) for end in bound)
    assert not np.isnan(lo).any() and not np.isnan(hi).any()
    unknown = np.isinf(lo) & np.isinf(hi)
    held = (np.asarray(values, float) >= lo) & (np.asarray(values, float) <= hi)
    assert np.all(held | unknown), (values, lo, hi)


# --------------------------------------------------------------------------------------- soundness


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
compiled_through, compiled_phi = jax.jit(through, static_argnums=0), jax.jit(lambda phi, z: phi(z, KNOBS), static_argnums=0)


@pytest.mark.parametrize("name", tiered(activations, "relu", "crelu", "gelu"))
@settings(max_examples=40, deadline=None)
@given(box=boxes(wild, U), seed=st.integers(0, 9))
def test_no_post_leaves_the_bounds(name, box, seed):
    phi, z = activations[name], inputs_of(*box, seed)
    z = np.concatenate([z, np.clip(np.linspace(-9, 9, 100)[:, None], *box).astype(np.float32)])
    bound = compiled_through(phi, interval(*box), KNOBS)
    assert bound.lo.shape == bound.hi.shape == (U * phi.fanout,)
    assert_holds(bound, compiled_phi(phi, z))
    with jax.enable_x64(True):
        assert_holds(bound, compiled_phi(phi, z.astype(float)))


@pytest.mark.parametrize("name", tiered(activations, "relu", "crelu", "gelu"))
def test_range_of_phi_is_tight(name):
    phi, rng = activations[name], np.random.default_rng(1)
    lo, hi = np.sort(rng.normal(scale=2, size=(2, 200)), axis=0).astype(np.float32)
    bound = through(phi, interval(lo, hi), KNOBS)
    t = np.linspace(0, 1, 2001)[:, None]
    post = np.asarray(phi(jnp.asarray(np.clip(lo + (hi - lo) * t, lo, hi), jnp.float32), KNOBS))
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
    after = through(activations["tanh"], bound, KNOBS)  # the sum may be inf - inf
    more = dense(after, -jnp.ones((1, 1)), jnp.zeros(1)), bound + bound, affine(bound, jnp.zeros(1), jnp.zeros(1))
    for nothing in (bound, after, *more):
        assert nothing.lo.tolist() == [-math.inf] and nothing.hi.tolist() == [math.inf]
        assert not nothing.inside((-math.inf, 0.0)).any() and not nothing.inside((-math.inf, math.inf)).any()


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_nonfinite_weights_certify_nothing(bad):
    for kernel, bias in (([[bad], [1.0]], [0.0]), ([[1.0], [1.0]], [bad])):
        bound = dense(unit_box(2), jnp.array(kernel), jnp.array(bias))
        assert not bound.inside((-math.inf, 0.0)).any() and not bound.inside((0.0, math.inf)).any()


# --------------------------------------------------------------------------------------- exactness


def test_one_unit_in_sixteen_is_certified_by_its_signs():
    kernel = np.random.default_rng(0).normal(scale=0.05, size=(D, 160_000)).astype(np.float32)
    bound = compiled_dense(unit_box(), kernel, np.zeros(160_000, np.float32))
    for piece, sign in (((-math.inf, 0.0), 1), ((0.0, math.inf), -1)):
        certified = np.asarray(bound.inside(piece))
        assert np.array_equal(certified, np.all(sign * kernel >= 0, axis=0))
        assert abs(certified.mean() - 1 / 16) < 4 * math.sqrt(1 / 16 * 15 / 16 / certified.size)


def test_negative_weights_are_always_certified_always_on():
    kernel = -np.random.default_rng(1).uniform(size=(D, 100_000)).astype(np.float32)
    bound = compiled_dense(unit_box(), kernel, np.zeros(100_000, np.float32))
    assert np.asarray(bound.inside((0.0, math.inf))).mean() == 1 and np.asarray(bound.inside((-math.inf, 0.0))).mean() == 0


def test_sign_of_a_subnormal_weight_counts():
    kernel = np.array([[1, 1], [0, 0], [2, 2], [-SMALLEST, SMALLEST]], np.float32)
    bound = compiled_dense(unit_box(), kernel, np.zeros(2, np.float32))
    assert bound.inside((-math.inf, 0.0)).tolist() == [False, True]
    bias = np.array([[SMALLEST, -SMALLEST]], np.float32)
    assert dense(unit_box(), jnp.ones((D, 2)), jnp.asarray(bias[0])).inside((-math.inf, 0.0)).tolist() == [False, True]


def test_zero_weights_of_either_sign_are_dead_and_always_on():
    kernel = jnp.array([[0.0, -0.0]] * D)
    bound = dense(unit_box(), kernel, jnp.array([0.0, -0.0]))
    assert bound.inside((-math.inf, 0.0)).all() and bound.inside((0.0, math.inf)).all()


def test_with_a_bias_it_is_exact_but_for_ties():
    """Dead on the box exactly when b + sum max(0, -w) <= 0; ties of cancelling terms are left uncertified."""
    rng = np.random.default_rng(2)
    kernel, bias = rng.normal(size=(D, 50_000)).astype(np.float32), rng.normal(scale=3, size=50_000).astype(np.float32)
    top = bias + np.maximum(0, -kernel.astype(float)).sum(axis=0)
    size = np.abs(kernel).sum(axis=0) + np.abs(bias)
    certified = np.asarray(compiled_dense(unit_box(), kernel, bias).inside((-math.inf, 0.0)))
    assert np.all(certified <= (top <= 0)) and np.all(certified >= (top <= -4e-6 * size)) and 0.1 < certified.mean() < 0.4
    tie = dense(unit_box(), jnp.array([[-0.5], [-0.25], [1.0], [1.0]]), jnp.array([-0.75]))
    assert not tie.inside((-math.inf, 0.0)).any()


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_certified_units_of_deep_nets_are_dead_in_xla_and_numpy(depth):
    """Biases and scales are drawn so that every layer has certified units, and the test is never empty."""
    x, found = inputs_of(-np.ones(D, np.float32), np.zeros(D, np.float32), n=300), np.zeros((2, depth), int)
    bounds = jax.jit(lambda params: stack_bounds(params))
    for seed in range(12):
        rng = np.random.default_rng(seed)
        sizes = [D, *[8] * depth]
        params = [
            (rng.normal(-0.1, 1, (i, o)).astype(np.float32) * scale, rng.choice(np.float32([-40, 0, 40]), o) * scale)
            for i, o, scale in zip(sizes, sizes[1:], np.float32(10.0) ** rng.integers(-9, 9, depth), strict=False)
        ]
        ours, theirs = jnp.asarray(x), x
        for layer, (bound, (kernel, bias)) in enumerate(zip(bounds(params), params, strict=True)):
            pre, plain = compiled_forward(ours, kernel, bias), theirs @ kernel + bias
            for row, piece in enumerate(((-math.inf, 0.0), (0.0, math.inf))):
                sure = np.asarray(bound.inside(piece))
                found[row, layer] += sure.sum()
                for values in (np.asarray(pre), plain):
                    assert np.all((values[:, sure] >= piece[0]) & (values[:, sure] <= piece[1]))
            ours, theirs = jax.nn.relu(pre), np.maximum(plain, 0)
    assert found.min() > 0


def stack_bounds(params) -> list[Interval]:
    pre, box = [], unit_box()
    for kernel, bias in params:
        pre.append(dense(box, kernel, bias))
        box = through(activations["relu"], pre[-1], {})
    return pre


@settings(max_examples=60, deadline=None)
@given(layers=st.lists(st.tuples(numbers((D, D), wild), numbers((D,), wild)), min_size=2, max_size=2), seed=st.integers(0, 9))
def test_two_layers_at_the_edge_of_float32(layers, seed):
    x = inputs_of(-np.ones(D, np.float32), np.zeros(D, np.float32), seed)
    (w1, b1), (w2, b2) = layers
    _, bound = compiled_stack(layers)
    dead = np.asarray(bound.inside((-math.inf, 0.0)))
    for one in forwards(x, w1, b1, seed):
        with np.errstate(all="ignore"):
            post = np.maximum(one, 0).astype(np.float32)
        for values in forwards(post, w2, b2, seed) if np.isfinite(post).all() else ():
            assert np.all(values[:, dead] <= 0)


compiled_stack = jax.jit(stack_bounds)


# ----------------------------------------------------------------------------------------- the rest


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
