"""The arithmetic against scipy's own tests and intervals, brute force and closed forms."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from relu_study import stats
from relu_study.registry import UserError

NAN, INF = float("nan"), float("inf")
NUMBERS = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3))
WITH_HOLES = st.one_of(NUMBERS, st.sampled_from([NAN, INF, -INF]))


# summarise


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12).flatmap(lambda n: st.lists(st.lists(WITH_HOLES, min_size=n, max_size=n), min_size=1, max_size=6)))
def test_summarise_agrees_with_scipy_cell_by_cell(columns: list[list[float]]) -> None:
    values = np.array(columns).T
    found = stats.summarise(values)
    for cell, column in enumerate(columns):
        x = np.array([v for v in column if np.isfinite(v)])
        assert (found["n"][cell], found["n_finite"][cell]) == (len(column), len(x))
        if len(x) == 0:
            assert all(np.isnan(found[name][cell]) for name in stats.MOMENTS)
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
    found = stats.summarise(values)
    assert all(cell.shape == (3, 2) for cell in found.values())
    np.testing.assert_allclose(found["mean"], values.astype(float).mean(axis=0), rtol=1e-12)
    assert stats.summarise(values[:, 0, 0])["mean"].shape == ()


def test_summarise_known_interquartile_mean_and_interval() -> None:
    found = stats.summarise(np.array([1.0, 2, 3, 4, 5, 6, 7, 80]))
    assert found["iqm"] == 4.5  # of 3, 4, 5, 6
    assert found["mean"] == 13.5
    half = 2.3646242510102993 * scipy.stats.sem([1, 2, 3, 4, 5, 6, 7, 80])  # t(0.975, 7) from a printed table: 2.365
    np.testing.assert_allclose([found["ci_lo"], found["ci_hi"]], [13.5 - half, 13.5 + half], rtol=1e-9)


def test_summarise_of_a_constant_cell_has_no_width_at_all() -> None:
    found = stats.summarise(np.full((3, 1), 0.1))  # whose mean, rounded, is not 0.1
    assert found["mean"] == found["ci_lo"] == found["ci_hi"] == found["median"] == 0.1
    assert found["std"] == 0


def test_summarise_does_not_depend_on_the_order_of_the_runs() -> None:
    rng = np.random.default_rng(1)
    values = rng.lognormal(size=(33, 50))
    values[rng.random(values.shape) < 0.1] = np.nan
    one, other = stats.summarise(values), stats.summarise(values[rng.permutation(33)])
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), name


# wilson, bootstrap


@pytest.mark.parametrize("level", [0.90, 0.95])
def test_wilson_is_scipys(level: float) -> None:
    k, n = np.array([(k, n) for n in (1, 2, 7, 16, 32) for k in range(n + 1)]).T
    lo, hi = stats.wilson(k, n, level)
    for i in range(len(k)):
        expected = scipy.stats.binomtest(int(k[i]), int(n[i])).proportion_ci(level, method="wilson")
        np.testing.assert_allclose((lo[i], hi[i]), (expected.low, expected.high), atol=1e-12)
    assert (lo[k == 0] == 0).all() and (hi[k == n] == 1).all()
    assert np.isnan(stats.wilson(0, 0)).all()


def test_resamples_draw_whole_samples_with_the_moments_of_a_multinomial() -> None:
    drawn = stats.resamples(10, "a")
    assert drawn.shape == (2000, 10) and (drawn.sum(axis=1) == 10).all()
    # Each run is drawn Binomial(10, 1/10) times: mean 1, variance 0.9; 5 standard errors over 20,000 counts.
    assert abs(drawn.var() - 0.9) < 5 * np.sqrt((3 * 0.9**2 + 0.9) / 20_000)
    assert (np.abs(drawn.mean(axis=0) - 1) < 5 * np.sqrt(0.9 / 2000)).all()


def test_bootstrap_ratio_agrees_with_scipys_bootstrap() -> None:
    rng = np.random.default_rng(2)
    denominator = rng.integers(5, 30, 40).astype(float)
    numerator = denominator * rng.uniform(0, 1, 40)
    lo, hi = stats.bootstrap_ratio(numerator, denominator, "key")
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


def test_bootstrap_ratio_pools_its_units_and_resamples_its_runs() -> None:
    # 20 runs of 1,000 units that live or die together: as wide as 20 coins, not as 20,000.
    dead = np.where(np.arange(20) < 10, 1000, 0)
    lo, hi = stats.bootstrap_ratio(dead, np.full(20, 1000), "runs")
    assert 0.2 <= lo <= 0.35 and 0.65 <= hi <= 0.8
    # A run without units adds nothing; equal ratios have no width however the runs are drawn.
    assert stats.bootstrap_ratio(np.array([1, 2, 0]), np.array([4, 8, 0]), "k") == (0.25, 0.25)


def test_bootstrap_ratio_without_anything_to_resample() -> None:
    assert np.isnan(stats.bootstrap_ratio(np.array([3]), np.array([10]), "k")).all()
    assert np.isnan(stats.bootstrap_ratio(np.array([0, 0]), np.array([0, 0]), "k")).all()


def test_bootstrap_is_the_same_in_any_process_and_another_for_another_key() -> None:
    code = (
        "import numpy as np; from relu_study import stats\nprint(*stats.bootstrap_ratio(np.arange(9), np.full(9, 20), 'site_1'))"
    )
    command, env = [sys.executable, "-c", code], os.environ | {"PYTHONHASHSEED": "1"}
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert tuple(float(end) for end in said.split()) == stats.bootstrap_ratio(np.arange(9), np.full(9, 20), "site_1")
    assert not np.array_equal(stats.resamples(9, "site_1"), stats.resamples(9, "b"))


# sign_flip


def brute(difference: np.ndarray) -> tuple[float, float]:
    """Every sign pattern, one after the other in one matrix."""
    signs = np.array(list(itertools.product((1, -1), repeat=len(difference))))
    sums, seen = signs @ difference, difference.sum()
    tie = 1e-9 * np.abs(difference).sum()
    return (sums >= seen - tie).mean(), (sums <= seen + tie).mean()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(NUMBERS, st.sampled_from([0.0, 1.0, -1.0])), min_size=1, max_size=11))
def test_sign_flip_is_brute_force(values: list[float]) -> None:
    difference = np.array(values)
    assert stats.sign_flip(difference) == brute(difference)


@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_sign_flip_is_scipys_permutation_test(kind: str) -> None:
    rng = np.random.default_rng(4)
    for n in (2, 5, 8, 12):
        x = rng.normal(0.4, 1, n) if kind == "normal" else rng.integers(-2, 4, n).astype(float)
        for side, p in zip(("greater", "less"), stats.sign_flip(x), strict=True):
            expected = scipy.stats.permutation_test(
                (x,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative=side
            ).pvalue
            # Below 2 / 2^n scipy's estimate and ours count the observed pattern alike, as all are enumerated.
            np.testing.assert_allclose(p, expected, atol=1e-12)


def test_sign_flip_hand_computed() -> None:
    # Sums of (+-3, +-1, +-1): 5, 3, 3, 1, -1, -3, -3, -5. Observed 3 - 1 + 1 = 3: three of eight are at least 3.
    assert stats.sign_flip(np.array([3.0, -1, 1])) == (3 / 8, 7 / 8)
    assert stats.sign_flip(np.full(16, 0.3)) == (2.0**-16, 1.0)
    assert stats.sign_flip(np.zeros(5)) == (1.0, 1.0)
    assert stats.sign_flip(np.array([])) == (1.0, 1.0)
    assert stats.sign_flip(np.array([2.0])) == (0.5, 1.0)
    assert stats.sign_flip(np.full(32, 0.3)) == (2.0**-24, 1.0)


def test_sign_flip_of_sixteen_and_of_more_than_it_enumerates() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(0.3, 1, 16)
    assert stats.sign_flip(x) == brute(x)
    many = rng.normal(0.25, 1, 60)
    blocks = np.array([b.sum() for b in np.array_split(many, 24)])
    signs = rng.choice((-1.0, 1.0), size=(200_000, 24))
    simulated = (signs @ blocks >= blocks.sum()).mean()
    p = stats.sign_flip(many)[0]
    assert abs(simulated - p) < 4 * np.sqrt(p / 200_000)
    assert 0.2 < p / scipy.stats.ttest_1samp(many, 0, alternative="greater").pvalue < 5


def test_sign_flip_p_is_valid_where_ties_abound_and_half_ties_would_not_be() -> None:
    # All 2^10 equally likely outcomes of ten +-1 differences: an exact level, no simulation.
    p, half = np.empty(1024), np.empty(1024)
    for i, signs in enumerate(itertools.product((1.0, -1.0), repeat=10)):
        over = stats.sign_flip(np.array(signs))
        p[i], half[i] = over[0], (over[0] + 1 - over[1]) / 2
    for alpha in (0.001, 0.01, 0.02, 0.05, 0.1, 0.2):
        assert (p <= alpha).mean() <= alpha
    assert any((half <= alpha).mean() > alpha for alpha in (0.001, 0.01, 0.02, 0.05, 0.1, 0.2))


# paired_test, share_test


@pytest.mark.parametrize(("direction", "level"), [("less", 0.95), ("greater", 0.95), ("equivalent", 0.90)])
def test_paired_test_has_scipys_interval_and_brute_force_p(direction: str, level: float) -> None:
    x = np.random.default_rng(6).normal(0.02, 0.05, 10)
    found = stats.paired_test(np.append(x, [NAN, INF]), direction, 0.03)
    interval = scipy.stats.ttest_1samp(x, 0).confidence_interval(level)
    np.testing.assert_allclose((found["effect"], found["ci_lo"], found["ci_hi"]), (x.mean(), *interval), rtol=1e-12)
    above, below = {}, {}
    for bound in (0.03, -0.03):
        above[bound], below[bound] = brute(x - bound)
    expected = {
        "greater": (above[0.03], below[0.03]),
        "less": (below[-0.03], above[-0.03]),
        "equivalent": (max(below[0.03], above[-0.03]), min(above[0.03], below[-0.03])),
    }[direction]
    assert (found["p"], found["p_refute"]) == expected
    assert found["n"] == 10


def test_paired_test_of_constant_differences_has_no_width() -> None:
    found = stats.paired_test(np.full(7, 0.1), "greater", 0.05)
    assert found == {"effect": 0.1, "ci_lo": 0.1, "ci_hi": 0.1, "n": 7, "p": 2.0**-7, "p_refute": 1.0}
    assert stats.paired_test(np.zeros(7), "equivalent", 0.05)["p"] == 2.0**-7


@pytest.mark.parametrize("test", [stats.paired_test, lambda x, d, m: stats.share_test(x, 0.0, d, m)])
@pytest.mark.parametrize("direction", ["less", "greater", "equivalent"])
def test_one_pair_or_none_has_no_interval(test, direction: str) -> None:
    for values in (np.array([1.0]), np.array([]), np.array([NAN, 1.0])):
        found = test(values, direction, 0.05)
        assert np.isnan([found["ci_lo"], found["ci_hi"]]).all() and found["n"] == np.isfinite(values).sum()
        assert np.isnan(found["effect"]) == (found["n"] == 0)
        assert 0 <= found["p"] <= 1 and 0 <= found["p_refute"] <= 1


def test_an_unknown_direction_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="greater"):
        stats.paired_test(np.zeros(4), "greter", 0.1)


@pytest.mark.parametrize("hits", [0, 1, 5, 16])
@pytest.mark.parametrize("against", [0.0, 0.4, 1.0])
def test_share_test_is_scipys_binomial_test(hits: int, against: float) -> None:
    x = np.append(np.repeat([1.0, 0.0], [hits, 16 - hits]), NAN)

    def p(bound: float, side: str) -> float:
        if not 0 <= bound <= 1:  # a share is certainly above a negative bound, and below one above 1
            return float((bound < 0) == (side == "less"))
        return scipy.stats.binomtest(hits, 16, bound, alternative=side).pvalue

    top, bottom = against + 0.05, against - 0.05
    expected = {
        "greater": (p(top, "greater"), p(top, "less")),
        "less": (p(bottom, "less"), p(bottom, "greater")),
        "equivalent": (max(p(top, "less"), p(bottom, "greater")), min(p(top, "greater"), p(bottom, "less"))),
    }
    for direction, level in (("greater", 0.95), ("less", 0.95), ("equivalent", 0.90)):
        found = stats.share_test(x, against, direction, 0.05)
        interval = scipy.stats.binomtest(hits, 16).proportion_ci(level, method="wilson")
        np.testing.assert_allclose((found["ci_lo"], found["ci_hi"]), np.array(interval) - against, atol=1e-12)
        np.testing.assert_allclose((found["p"], found["p_refute"]), expected[direction], atol=1e-15)
        assert (found["n"], found["effect"]) == (16, hits / 16 - against)


# holm, tuned


def test_holm_hand_computed() -> None:
    np.testing.assert_allclose(stats.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(stats.holm([0.5, 0.9]), [1, 1])
    assert stats.holm([]).shape == (0,)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(values: list[float]) -> None:
    corrected = stats.holm(np.array(values))
    for level in (0.01, 0.05, 0.5):
        rejected: set[int] = set()
        for i in sorted(range(len(values)), key=lambda i: values[i]):
            if values[i] * (len(values) - len(rejected)) > level:
                break
            rejected.add(i)
        assert rejected == set(np.flatnonzero(corrected <= level).tolist())


def test_tuned_looks_at_even_seeds_alone() -> None:
    seeds = np.arange(6)
    steady = np.full(6, 1.0)
    parity = np.where(seeds % 2 == 0, 0.5, 9.0)  # better on the even seeds, far worse on the odd ones
    flattered = np.where(seeds % 2 == 0, 2.0, 0.0)
    assert stats.tuned([seeds] * 3, [steady, parity, flattered]) == 1
    assert stats.tuned([seeds] * 2, [steady, flattered]) == 0


def test_tuned_does_not_reward_divergence_and_takes_the_first_of_equals() -> None:
    seeds = np.array([0, 2, 3])
    risky, steady = np.array([0.1, NAN, 0.1]), np.array([1.0, 1.0, NAN])
    assert stats.tuned([seeds, seeds, seeds], [risky, steady, steady]) == 1
    assert stats.tuned([seeds], [np.full(3, INF)]) == -1
    assert stats.tuned([np.array([1, 3])], [np.array([1.0, 1.0])]) == -1
    assert stats.tuned([], []) == -1
