"""Tightness of interval bounds: certificates by the signs of weights, and in deep networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interval_cases import (
    DEAD,
    ON,
    SMALLEST,
    D,
    compiled_dense,
    compiled_forward,
    compiled_stack,
    forwards,
    inputs_of,
    inside,
    numbers,
    unit_box,
    wild,
)
from tiers import tiered


def test_one_unit_in_sixteen_is_certified_by_its_signs():
    kernel = np.random.default_rng(0).normal(scale=0.05, size=(D, 160_000)).astype(np.float32)
    bound = compiled_dense(unit_box(), kernel, np.zeros(160_000, np.float32))
    for piece, sign in ((DEAD, 1), (ON, -1)):
        certified = inside(bound, piece)
        assert np.array_equal(certified, np.all(sign * kernel >= 0, axis=0))
        assert abs(certified.mean() - 1 / 16) < 4 * math.sqrt(1 / 16 * 15 / 16 / certified.size)


def test_negative_weights_are_always_certified_always_on():
    kernel = -np.random.default_rng(1).uniform(size=(D, 100_000)).astype(np.float32)
    bound = compiled_dense(unit_box(), kernel, np.zeros(100_000, np.float32))
    assert inside(bound, ON).mean() == 1 and inside(bound, DEAD).mean() == 0


def test_sign_of_a_subnormal_weight_counts():
    kernel = np.array([[1, 1], [0, 0], [2, 2], [-SMALLEST, SMALLEST]], np.float32)
    bound = compiled_dense(unit_box(), kernel, np.zeros(2, np.float32))
    assert inside(bound, DEAD).tolist() == [False, True]
    bias = np.array([[SMALLEST, -SMALLEST]], np.float32)
    assert inside(compiled_dense(unit_box(), np.ones((D, 2), np.float32), bias[0]), DEAD).tolist() == [False, True]


def test_zero_weights_of_either_sign_are_dead_and_always_on():
    bound = compiled_dense(unit_box(), np.float32([[0.0, -0.0]] * D), np.float32([0.0, -0.0]))
    assert inside(bound, DEAD).all() and inside(bound, ON).all()


def test_with_a_bias_it_is_exact_but_for_ties():
    """Dead on the box exactly when b + sum max(0, -w) <= 0; ties of cancelling terms are left uncertified."""
    rng = np.random.default_rng(2)
    kernel, bias = rng.normal(size=(D, 50_000)).astype(np.float32), rng.normal(scale=3, size=50_000).astype(np.float32)
    top = bias + np.maximum(0, -kernel.astype(float)).sum(axis=0)
    size = np.abs(kernel).sum(axis=0) + np.abs(bias)
    certified = inside(compiled_dense(unit_box(), kernel, bias), DEAD)
    assert np.all(certified <= (top <= 0)) and np.all(certified >= (top <= -4e-6 * size)) and 0.1 < certified.mean() < 0.4
    tie = compiled_dense(unit_box(), np.float32([[-0.5], [-0.25], [1.0], [1.0]]), np.float32([-0.75]))
    assert not inside(tie, DEAD).any()


@pytest.mark.parametrize("depth", tiered([1, 2, 3, 4], 4))
def test_certified_units_of_deep_nets_are_dead_in_xla_and_numpy(depth):
    """Biases and scales are drawn so that every layer has certified units, and the test is never empty."""
    x, found = inputs_of(-np.ones(D, np.float32), np.zeros(D, np.float32), n=300), np.zeros((2, depth), int)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        sizes = [D, *[8] * depth]
        params = [
            (rng.normal(-0.1, 1, (i, o)).astype(np.float32) * scale, rng.choice(np.float32([-40, 0, 40]), o) * scale)
            for i, o, scale in zip(sizes, sizes[1:], np.float32(10.0) ** rng.integers(-9, 9, depth), strict=False)
        ]
        ours, theirs = x, x
        for layer, (bound, (kernel, bias)) in enumerate(zip(compiled_stack(params), params, strict=True)):
            pre, plain = np.asarray(compiled_forward(ours, kernel, bias)), theirs @ kernel + bias
            for row, piece in enumerate((DEAD, ON)):
                sure = inside(bound, piece)
                found[row, layer] += sure.sum()
                for values in (pre, plain):
                    assert np.all((values[:, sure] >= piece[0]) & (values[:, sure] <= piece[1]))
            ours, theirs = np.maximum(pre, 0), np.maximum(plain, 0)
    assert found.min() > 0


@settings(max_examples=40, deadline=None)
@given(layers=st.lists(st.tuples(numbers((D, D), wild), numbers((D,), wild)), min_size=2, max_size=2), seed=st.integers(0, 9))
def test_two_layers_at_the_edge_of_float32(layers, seed):
    x = inputs_of(-np.ones(D, np.float32), np.zeros(D, np.float32), seed)
    (w1, b1), (w2, b2) = layers
    _, bound = compiled_stack(layers)
    dead = inside(bound, DEAD)
    for one in forwards(x, w1, b1, seed):
        with np.errstate(all="ignore"):
            post = np.maximum(one, 0).astype(np.float32)
        for values in forwards(post, w2, b2, seed) if np.isfinite(post).all() else ():
            assert np.all(values[:, dead] <= 0)
