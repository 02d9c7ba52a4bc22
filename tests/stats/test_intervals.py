"""Summaries and intervals against scipy, brute force and closed forms."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from relu_study.errors import UserError
from relu_study.stats import intervals

NAN, INF = float("nan"), float("inf")
NUMBERS = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3))
WITH_HOLES = st.one_of(NUMBERS, st.sampled_from([NAN, INF, -INF]))


# summarise


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12).flatmap(lambda n: st.lists(st.lists(WITH_HOLES, min_size=n, max_size=n), min_size=1, max_size=6)))
def test_summarise_agrees_with_scipy_cell_by_cell(columns: list[list[float]]) -> None:
    values = np.array(columns).T
    found = intervals.summarise(values)
    for cell, column in enumerate(columns):
        x = np.array([v for v in column if np.isfinite(v)])
        assert (found["n"][cell], found["n_finite"][cell]) == (len(column), len(x))
        if len(x) == 0:
            assert all(np.isnan(found[name][cell]) for name in intervals.MOMENTS)
            continue
        expected = {
            "mean": x.mean(),
            "median": np.median(x),
            "iqm": scipy.stats.trim_mean(x, 0.25),
            "min": x.min(),
            "max": x.max(),
            "std": NAN if len(x) == 1 else scipy.stats.tstd(x) if x.min() < x.max() else 0.0,
        }
        if len(x) > 1:
            interval = scipy.stats.ttest_1samp(x, 0.0).confidence_interval(0.95) if x.min() < x.max() else (x[0], x[0])
            expected |= {"ci_lo": interval[0], "ci_hi": interval[1]}
        else:
            expected |= {"ci_lo": NAN, "ci_hi": NAN}
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][cell], value, rtol=1e-9, atol=1e-9, err_msg=name)


def test_summarise_keeps_the_shape_of_the_cells_and_takes_float32() -> None:
    values = np.random.default_rng(0).normal(size=(7, 3, 2)).astype(np.float32)
    found = intervals.summarise(values)
    assert all(cell.shape == (3, 2) for cell in found.values())
    np.testing.assert_allclose(found["mean"], values.astype(float).mean(axis=0), rtol=1e-12)
    assert intervals.summarise(values[:, 0, 0])["mean"].shape == ()


def test_summarise_known_interquartile_mean_and_interval() -> None:
    found = intervals.summarise(np.array([1.0, 2, 3, 4, 5, 6, 7, 80]))
    assert found["iqm"] == 4.5  # of 3, 4, 5, 6
    assert found["mean"] == 13.5
    half = 2.3646242510102993 * scipy.stats.sem([1, 2, 3, 4, 5, 6, 7, 80])  # t(0.975, 7) from a printed table: 2.365
    np.testing.assert_allclose([found["ci_lo"], found["ci_hi"]], [13.5 - half, 13.5 + half], rtol=1e-9)


def test_summarise_of_a_constant_cell_has_no_width_at_all() -> None:
    found = intervals.summarise(np.full((3, 1), 0.1))  # whose mean, rounded, is not 0.1
    assert found["mean"] == found["ci_lo"] == found["ci_hi"] == found["median"] == 0.1
    assert found["std"] == 0


def test_summarise_does_not_depend_on_the_order_of_the_runs() -> None:
    rng = np.random.default_rng(1)
    values = rng.lognormal(size=(33, 50))
    values[rng.random(values.shape) < 0.1] = np.nan
    one, other = intervals.summarise(values), intervals.summarise(values[rng.permutation(33)])
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), name


# wilson, bootstrap


@pytest.mark.parametrize("level", [0.90, 0.95])
def test_wilson_is_scipys(level: float) -> None:
    k, n = np.array([(k, n) for n in (1, 2, 7, 16, 32) for k in range(n + 1)]).T
    lo, hi = intervals.wilson(k, n, level)
    for i in range(len(k)):
        expected = scipy.stats.binomtest(int(k[i]), int(n[i])).proportion_ci(level, method="wilson")
        np.testing.assert_allclose((lo[i], hi[i]), (expected.low, expected.high), atol=1e-12)
    assert (lo[k == 0] == 0).all() and (hi[k == n] == 1).all()
    assert np.isnan(intervals.wilson(0, 0)).all()


def share(numerator: np.ndarray, denominator: np.ndarray, key: str = "key") -> tuple[float, float]:
    return intervals.ratio_interval(numerator, denominator, intervals.generator(key))


def mean_of(values: np.ndarray):
    return lambda weights: weights @ values / weights.sum(axis=1, keepdims=values.ndim > 1)


def test_bootstrap_resamples_whole_runs() -> None:
    drawn = []
    intervals.bootstrap(lambda weights: drawn.append(weights) or weights[:, 0], 20, intervals.generator("a"))
    (weights,) = drawn
    assert weights.shape == (2000, 20) and (weights.sum(axis=1) == 20).all()
    # Each run is drawn Binomial(20, 1/20) times: mean 1, variance 0.95; 5 standard errors over 40,000 counts.
    assert abs(weights.var() - 0.95) < 5 * np.sqrt((3 * 0.95**2 + 0.95) / 40_000)
    assert (np.abs(weights.mean(axis=0) - 1) < 5 * np.sqrt(0.95 / 2000)).all()


def test_share_of_many_runs_has_scipys_bootstrap_interval() -> None:
    rng = np.random.default_rng(2)
    denominator = rng.integers(5, 30, 40).astype(float)
    numerator = denominator * rng.uniform(0, 1, 40)
    lo, hi = share(numerator, denominator)
    expected = scipy.stats.bootstrap(
        (numerator, denominator),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(3),
    )
    wide = expected.standard_error
    # A 2.5 % point of 2,000 draws has a standard error of about 0.06 standard deviations; 4 of them.
    np.testing.assert_allclose([lo, hi], expected.confidence_interval, atol=0.25 * wide)


def test_share_pools_its_units_and_resamples_its_runs() -> None:
    # 20 runs of 1,000 units that live or die together: as wide as 20 coins, not as 20,000.
    dead = np.where(np.arange(20) < 10, 1000, 0)
    lo, hi = share(dead, np.full(20, 1000))
    assert 0.2 <= lo <= 0.35 and 0.65 <= hi <= 0.8
    # A run without units adds nothing; equal ratios have no width however the runs are drawn.
    assert share(np.array([1, 2, 0]), np.array([4, 8, 0])) == (0.25, 0.25)
    assert share(np.tile([1, 2, 0], 10), np.tile([4, 8, 0], 10)) == (0.25, 0.25)


def test_share_of_few_runs_has_the_t_interval_of_its_runs() -> None:
    # Runs with as many units each: the jackknife of their share is the t interval of their own shares.
    dead = np.array([1, 0, 3, 2, 2, 5, 1])
    interval = scipy.stats.ttest_1samp(dead / 8, 0).confidence_interval(0.95)
    np.testing.assert_allclose(share(dead, np.full(7, 8)), interval, rtol=1e-12)
    assert share(np.array([0, 0, 8]), np.full(3, 8)) == (0.0, 1.0)  # no share lies beyond


def test_share_without_anything_to_resample() -> None:
    assert np.isnan(share(np.array([3]), np.array([10]))).all()
    for n in (2, 30):
        assert np.isnan(share(np.zeros(n, int), np.zeros(n, int))).all()


def test_bootstrap_of_few_runs_needs_explicit_least() -> None:
    values = np.arange(19.0)
    with pytest.raises(UserError, match=r"19 runs covers too little.*at least 20"):
        intervals.bootstrap(mean_of(values), 19, intervals.generator("k"))
    lo, hi = intervals.bootstrap(mean_of(values), 19, intervals.generator("k"), least=2)
    assert lo < 9 < hi


def test_bootstrap_depends_only_on_its_key() -> None:
    code = (
        "import numpy as np; from relu_study.stats import intervals\n"
        "print(*intervals.ratio_interval(np.arange(24), np.full(24, 30), intervals.generator('site_1')))"
    )
    command, env = [sys.executable, "-c", code], os.environ | {"PYTHONHASHSEED": "1"}
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert tuple(float(end) for end in said.split()) == share(np.arange(24), np.full(24, 30), "site_1")
    assert share(np.arange(24), np.full(24, 30), "site_1") != share(np.arange(24), np.full(24, 30), "b")


# how often an interval holds what it should


@pytest.mark.parametrize("n", [5, 10, 32])
def test_t_interval_of_95_percent_holds_95_percent(n: int) -> None:
    found = intervals.summarise(np.random.default_rng(n).normal(3, 2, (n, 40_000)))
    held = np.mean((found["ci_lo"] <= 3) & (found["ci_hi"] >= 3))
    assert abs(held - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 40_000)
    assert 0.93 < held < 0.97


def test_wilson_holds_95_percent_of_32_runs_on_average() -> None:
    k = np.arange(33)
    lo, hi = intervals.wilson(k, np.full(33, 32))
    held = [scipy.stats.binom.pmf(k, 32, p)[(lo <= p) & (p <= hi)].sum() for p in np.linspace(0.05, 0.95, 181)]
    assert 0.93 < np.mean(held) < 0.97  # exact: no simulation


DOCUMENTED = {5: 0.83, 10: 0.90, 20: 0.93, 100: 0.95}  # in the docstring of `bootstrap`


@pytest.mark.parametrize("n", DOCUMENTED)
def test_bootstrap_coverage_matches_documentation(n: int) -> None:
    values = np.random.default_rng(n).normal(size=(n, 4_000))
    lo, hi = intervals.bootstrap(mean_of(values), n, intervals.generator("coverage"), least=2)
    held = np.mean((lo <= 0) & (hi >= 0))
    assert abs(held - DOCUMENTED[n]) < 0.005 + 4 * np.sqrt(held * (1 - held) / 4_000)
    text = " ".join((intervals.bootstrap.__doc__ or "").split())
    assert ", ".join(f"{m}: {share:.0%}".replace("%", " %") for m, share in DOCUMENTED.items()) in text.replace("n = 5", "5")
    assert (0.93 < held < 0.97) == (n == 100) or n == 20


@pytest.mark.parametrize("n", [5, 10, 19])
def test_jackknife_of_few_runs_covers_95_percent(n: int) -> None:
    values = np.random.default_rng(n).normal(size=(n, 4_000))
    lo, hi = intervals.interval_over_runs(mean_of(values), n, intervals.generator("coverage"))
    assert 0.93 < np.mean((lo <= 0) & (hi >= 0)) < 0.97
