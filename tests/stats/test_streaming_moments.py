"""Streaming moments against NumPy on all draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relu_study.stats.streaming_moments import BINS, Sums, accumulate, merge, quantiles


def drawn(seed: int, n: int = 1000, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.normal(offset, 1.0, (n, 3))
    values[rng.random((n, 3)) < 0.1] = np.nan
    return values


@given(st.lists(st.integers(1, 200), min_size=1, max_size=6), st.sampled_from([0.0, 1e6]))
def test_merged_parts_equal_the_whole(sizes, offset):
    values, sums, start = drawn(1, sum(sizes), offset), {}, 0
    for size in sizes:
        accumulate(sums, "x", values[start : start + size], (-4, 4))
        start += size
    known = ~np.isnan(values)
    np.testing.assert_array_equal(sums["n:x"], known.sum(axis=0))
    np.testing.assert_allclose(sums["sum:x"], np.nansum(values, axis=0), rtol=1e-12, atol=1e-9)
    squares = [((v[k] - v[k].mean()) ** 2).sum() if k.any() else 0 for v, k in zip(values.T, known.T)]
    np.testing.assert_allclose(sums["m2:x"], squares, rtol=1e-6, atol=1e-9)  # a sum of squares would cancel at an offset of 1e6
    np.testing.assert_array_equal(sums["bins:x"].sum(axis=-1), known.sum(axis=0))


def test_merging_with_nothing_changes_nothing():
    some: Sums = {}
    accumulate(some, "x", drawn(2), None)
    whole: Sums = {}
    merge(whole, some)
    accumulate(whole, "x", np.full((5, 3), np.nan))
    assert all((whole[name] == some[name]).all() for name in some)


def test_quantiles_are_those_of_the_draws_to_a_bin():
    values, sums = drawn(3, 100_000), {}
    accumulate(sums, "x", values, (-4, 4))
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    found = quantiles(sums["bins:x"], (-4, 4), levels)
    np.testing.assert_allclose(found, np.nanquantile(values, levels, axis=0).T, atol=8 / BINS)


def test_values_outside_range_count_at_nearest_end():
    sums: Sums = {}
    accumulate(sums, "x", np.array([-9.0, 9.0, 9.0, 9.0]), (-4, 4))
    assert sums["bins:x"][0] == 1 and sums["bins:x"][-1] == 3
    assert quantiles(sums["bins:x"], (-4, 4), (0.5,))[0] == pytest.approx(4, abs=8 / BINS)


def test_no_draws_have_no_quantiles():
    assert np.isnan(quantiles(np.zeros(BINS, int), (-4, 4), (0.5,))).all()
