"""Comparisons against tests of scipy, brute force and small cases by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from all_sign_flips import brute
from hypothesis import given, settings
from hypothesis import strategies as st

from relu_study.errors import UserError
from relu_study.stats import hypothesis_tests

NAN, INF = float("nan"), float("inf")


# paired_test, share_test
@pytest.mark.parametrize(("direction", "level"), [("less", 0.95), ("greater", 0.95), ("equivalent", 0.90)])
def test_paired_test_has_scipys_interval_and_brute_force_p(direction: str, level: float) -> None:
    x = np.random.default_rng(6).normal(0.02, 0.05, 10)
    found = hypothesis_tests.paired_test(np.append(x, [NAN, INF]), direction, 0.03)
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


@pytest.mark.parametrize("direction", ["less", "greater", "equivalent"])
@pytest.mark.parametrize("n", [1, 2, 9, 40])
@pytest.mark.parametrize(("against", "margin"), [(0.5, 0.1), (0.5, 0.45), (0.02, 0.05), (0.9, 0.02), (0.0, 0.05), (1.0, 0.2)])
def test_least_counted_p_is_the_smallest_of_all_counts(against: float, margin: float, n: int, direction: str) -> None:
    every = [hypothesis_tests.counted_test(k, n, against, direction, margin) for k in range(n + 1)]
    least = hypothesis_tests.least_counted_p(n, against, direction, margin)
    assert least == min(found[name] for found in every for name in ("p", "p_refute"))


def test_paired_test_of_constant_differences_has_no_width() -> None:
    found = hypothesis_tests.paired_test(np.full(7, 0.1), "greater", 0.05)
    assert found == {"effect": 0.1, "ci_lo": 0.1, "ci_hi": 0.1, "n": 7, "p": 2.0**-7, "p_refute": 1.0}
    assert hypothesis_tests.paired_test(np.zeros(7), "equivalent", 0.05)["p"] == 2.0**-7


@pytest.mark.parametrize("test", [hypothesis_tests.paired_test, lambda x, d, m: hypothesis_tests.share_test(x, 0.0, d, m)])
@pytest.mark.parametrize("direction", ["less", "greater", "equivalent"])
def test_one_pair_or_none_has_no_interval(test, direction: str) -> None:
    for values in (np.array([1.0]), np.array([]), np.array([NAN, 1.0])):
        found = test(values, direction, 0.05)
        assert np.isnan([found["ci_lo"], found["ci_hi"]]).all() and found["n"] == np.isfinite(values).sum()
        assert np.isnan(found["effect"]) == (found["n"] == 0)
        assert 0 <= found["p"] <= 1 and 0 <= found["p_refute"] <= 1


def test_unknown_direction_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="greater"):
        hypothesis_tests.paired_test(np.zeros(4), "greter", 0.1)


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
        found = hypothesis_tests.share_test(x, against, direction, 0.05)
        interval = scipy.stats.binomtest(hits, 16).proportion_ci(level, method="wilson")
        np.testing.assert_allclose((found["ci_lo"], found["ci_hi"]), np.array(interval) - against, atol=1e-12)
        np.testing.assert_allclose((found["p"], found["p_refute"]), expected[direction], atol=1e-15)
        assert (found["n"], found["effect"]) == (16, hits / 16 - against)


# holm, tuned
def test_holm_hand_computed() -> None:
    np.testing.assert_allclose(hypothesis_tests.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(hypothesis_tests.holm([0.5, 0.9]), [1, 1])
    assert hypothesis_tests.holm([]).shape == (0,)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(values: list[float]) -> None:
    corrected = hypothesis_tests.holm(np.array(values))
    for level in (0.01, 0.05, 0.5):
        rejected: set[int] = set()
        for i in sorted(range(len(values)), key=lambda i: values[i]):
            if values[i] * (len(values) - len(rejected)) > level:
                break
            rejected.add(i)
        assert rejected == set(np.flatnonzero(corrected <= level).tolist())


def test_tuned_reads_only_even_seeds() -> None:
    seeds = np.arange(6)
    steady = np.full(6, 1.0)
    parity = np.where(seeds % 2 == 0, 0.5, 9.0)  # better on the even seeds, far worse on the odd ones
    flattered = np.where(seeds % 2 == 0, 2.0, 0.0)
    assert hypothesis_tests.tuned([seeds] * 3, [steady, parity, flattered]) == 1
    assert hypothesis_tests.tuned([seeds] * 2, [steady, flattered]) == 0


def test_tuned_penalises_divergence_and_takes_first_of_equals() -> None:
    seeds = np.array([0, 2, 3])
    risky, steady = np.array([0.1, NAN, 0.1]), np.array([1.0, 1.0, NAN])
    assert hypothesis_tests.tuned([seeds, seeds, seeds], [risky, steady, steady]) == 1
    assert hypothesis_tests.tuned([seeds], [np.full(3, INF)]) == -1
    assert hypothesis_tests.tuned([np.array([1, 3])], [np.array([1.0, 1.0])]) == -1
    assert hypothesis_tests.tuned([], []) == -1


# compare
def test_benjamini_hochberg_hand_computed() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4 / rank: 0.02, 0.02, 0.04, 0.04.
    np.testing.assert_allclose(hypothesis_tests.benjamini_hochberg([0.01, 0.04, 0.03, 0.005]), [0.02, 0.04, 0.04, 0.02])
    assert hypothesis_tests.benjamini_hochberg([]).shape == (0,)


def test_improvement_counts_ties_as_half() -> None:
    difference = np.array([-1.0, -2, 0, 3, NAN])
    assert hypothesis_tests.improvement(difference, "lower") == 2.5 / 4
    assert hypothesis_tests.improvement(difference, "higher") == 1.5 / 4
    assert np.isnan(hypothesis_tests.improvement(difference, "none"))
    assert np.isnan(hypothesis_tests.improvement(np.array([NAN]), "lower"))


def test_two_sided_is_scipys_permutation_test() -> None:
    x = np.random.default_rng(7).normal(0.5, 1, 9)
    expected = scipy.stats.permutation_test((x,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    np.testing.assert_allclose(hypothesis_tests.two_sided(np.append(x, NAN)), expected, atol=1e-12)
    assert hypothesis_tests.two_sided(np.zeros(4)) == hypothesis_tests.two_sided(np.array([NAN])) == 1


def three() -> np.ndarray:
    """Ten seeds of three configurations: the second lower by about 1, the third the first again, two runs missing."""
    rng = np.random.default_rng(8)
    shared = rng.normal(0, 5, 10)  # what a seed gives to all of them: pairing takes it away
    values = np.stack([shared, shared - 1 + rng.normal(0, 0.1, 10), shared], axis=1)
    values[3, 1] = values[4, 2] = NAN
    return values


def test_compare_with_a_baseline_by_hand_and_by_scipy() -> None:
    values = three()
    one, other = hypothesis_tests.compare(["a", "b", "c"], values, "lower", baseline="a")
    difference = np.delete(values[:, 1] - values[:, 0], 3)
    interval = scipy.stats.ttest_1samp(difference, 0).confidence_interval(0.95)
    assert (one["name"], one["against"], one["n"], one["improvement"]) == ("b", "a", 9, 1.0)
    np.testing.assert_allclose((one["difference"], one["ci_lo"], one["ci_hi"]), (difference.mean(), *interval), rtol=1e-12)
    assert one["p"] == 2 * 2.0**-9 and one["p_corrected"] == 4 * 2.0**-9  # Holm: the smaller of two counts twice
    assert other == {
        "name": "c", "against": "a", "n": 9, "difference": 0.0, "ci_lo": 0.0, "ci_hi": 0.0,
        "improvement": 0.5, "p": 1.0, "p_corrected": 1.0,
    }  # fmt: skip


def test_compare_all_pairs_corrects_by_benjamini_and_hochberg() -> None:
    rows = hypothesis_tests.compare(["a", "b", "c"], three(), "higher")
    assert [(row["name"], row["against"]) for row in rows] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [row["improvement"] for row in rows] == [1.0, 0.5, 0.0]
    expected = scipy.stats.false_discovery_control([row["p"] for row in rows])
    np.testing.assert_allclose([row["p_corrected"] for row in rows], expected)


def test_compare_of_one_seed_and_of_no_pair_at_all() -> None:
    (one,) = hypothesis_tests.compare(["a", "b"], np.array([[1.0, 2.0]]), "lower")
    assert one["n"] == 1 and one["difference"] == -1 and np.isnan(one["ci_lo"]) and one["p"] == 1
    rows = hypothesis_tests.compare(["a", "b", "c"], np.array([[1.0, NAN, 2.0], [2.0, NAN, 2.0]]), "lower", baseline="a")
    assert rows[0]["n"] == 0 and all(np.isnan(rows[0][name]) for name in ("difference", "p", "p_corrected", "improvement"))
    assert rows[1]["p_corrected"] == rows[1]["p"] == 1  # the row without a pair is none of the questions


def test_compare_refuses_what_it_does_not_know() -> None:
    with pytest.raises(UserError, match=r"baseline 'relou'.*relu"):
        hypothesis_tests.compare(["relu", "selu"], np.zeros((2, 2)), "lower", baseline="relou")
    with pytest.raises(UserError, match=r"direction.*lower"):
        hypothesis_tests.compare(["relu", "selu"], np.zeros((2, 2)), "lowr")


def test_no_hit_in_many_proves_a_share_near_zero():
    # No share lies below 0, so only the upper side of the margin is in doubt.
    found = hypothesis_tests.counted_test(0, 5000, 1e-4, "equivalent", 0.005)
    assert found["p"] == pytest.approx((1 - 0.0051) ** 5000)
    assert found["ci_hi"] < 0.005 and found["effect"] == -1e-4


def test_normal_effect_has_its_normal_p_and_interval():
    found = hypothesis_tests.normal_test(0.3, 0.1, 50, "greater", 0.1)
    assert found["p"] == pytest.approx(scipy.stats.norm.sf(2)) and found["n"] == 50
    assert (found["ci_lo"], found["ci_hi"]) == pytest.approx(scipy.stats.norm.interval(0.95, 0.3, 0.1))
    assert hypothesis_tests.normal_test(0.3, 0.0, 50, "greater", 0.1)["p"] == 0
