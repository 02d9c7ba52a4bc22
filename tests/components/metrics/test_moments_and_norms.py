"""Moments and norms of tiny, huge and equal values."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relu_study.components.activations import relu
from relu_study.components.metrics.norms import norm
from relu_study.components.metrics.output_moments import moments
from relu_study.components.metrics.snapshot import SiteView, Snapshot
from relu_study.components.registry import metrics as registry


@pytest.mark.parametrize(("offset", "spread"), [(0.0, 1.0), (1e3, 1e-2), (1e5, 1.0), (-7.0, 1e-4)])
def test_moments_of_values_far_from_zero(offset, spread):
    values = (offset + spread * np.random.default_rng(0).normal(size=(8192, 32))).astype(np.float32)
    mean, variance = (float(m) for m in jax.jit(moments)(values))
    exact = values.mean(dtype=float)
    assert abs(mean - exact) <= max(np.spacing(np.float32(abs(exact))), 1e-7 * spread)  # the last bit
    assert math.sqrt(variance) == pytest.approx(values.std(dtype=float), rel=1e-4)


def test_moments_of_equal_values_and_of_sites_far_apart():
    assert float(jax.jit(moments)(jnp.full((8192, 32), 0.1))[1]) < 1e-16
    rng = np.random.default_rng(0)
    posts = [rng.normal(mean, spread, (500, units)).astype(np.float32) for mean, spread, units in ((1e3, 0.1, 3), (-2, 0.01, 5))]
    view = SiteView(relu, *[None] * 11)
    shot = Snapshot(tuple(view._replace(post=jnp.asarray(post)) for post in posts), *[None] * 7)
    together = np.concatenate([np.ravel(post) for post in posts]).astype(float)
    for site, post in (("site_1", posts[0].astype(float)), ("site_2", posts[1].astype(float)), ("all", together)):
        assert float(registry["post_mean"].function(shot)[site]) == pytest.approx(post.mean(), rel=1e-6)
        assert float(registry["post_std"].function(shot)[site]) == pytest.approx(post.std(), rel=1e-5)


def test_norms_of_tiny_and_huge_vectors():
    for scale in (1e-36, 1e-30, 1.0, 1e30):
        tree = {"a": jnp.full((3, 4), scale), "b": (jnp.full(4, -scale),)}
        assert float(norm(tree)) == pytest.approx(4 * scale, rel=1e-6)
    assert float(norm([jnp.zeros(3)])) == 0 and float(norm([])) == 0 and float(norm([jnp.zeros((0, 3))])) == 0
    assert math.isnan(float(norm([jnp.array([1.0, jnp.nan])]))) and float(norm([jnp.array([1.0, -jnp.inf])])) == math.inf
