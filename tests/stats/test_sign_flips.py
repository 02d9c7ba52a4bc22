"""The sign-flip test: exact for few pairs, with rounding, ties and extreme doubles."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from all_sign_flips import brute
from hypothesis import given, settings
from hypothesis import strategies as st

from relu_study.stats import hypothesis_tests, sign_flips

NUMBERS = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(NUMBERS, st.sampled_from([0.0, 1.0, -1.0])), min_size=1, max_size=11))
def test_sign_flip_is_brute_force(values: list[float]) -> None:
    difference = np.array(values)
    assert sign_flips.sign_flip(difference) == brute(difference)


@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_sign_flip_is_scipys_permutation_test(kind: str) -> None:
    rng = np.random.default_rng(4)
    for n in (2, 5, 8, 12):
        x = rng.normal(0.4, 1, n) if kind == "normal" else rng.integers(-2, 4, n).astype(float)
        for side, p in zip(("greater", "less"), sign_flips.sign_flip(x), strict=True):
            expected = scipy.stats.permutation_test(
                (x,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative=side
            ).pvalue
            # Below 2 / 2^n scipy's estimate and ours count the observed pattern alike, as all are enumerated.
            np.testing.assert_allclose(p, expected, atol=1e-12)


def test_sign_flip_hand_computed() -> None:
    # Sums of (+-3, +-1, +-1): 5, 3, 3, 1, -1, -3, -3, -5. Observed 3 - 1 + 1 = 3: three of eight are at least 3.
    assert sign_flips.sign_flip(np.array([3.0, -1, 1])) == (3 / 8, 7 / 8)
    assert sign_flips.sign_flip(np.full(16, 0.3)) == (2.0**-16, 1.0)
    assert sign_flips.sign_flip(np.zeros(5)) == (1.0, 1.0)
    assert sign_flips.sign_flip(np.array([])) == (1.0, 1.0)
    assert sign_flips.sign_flip(np.array([2.0])) == (0.5, 1.0)
    assert sign_flips.sign_flip(np.full(32, 0.3)) == (2.0**-32, 1.0)
    assert sign_flips.sign_flip(np.full(33, 0.3)) == (2.0**-17, 1.0)  # of the patterns drawn, the observed one alone


def exactly(values: list[float]) -> tuple[float, float]:
    """Every sign pattern, without any rounding."""
    exact = [Fraction(value) for value in values]
    sums = [sum(sign * value for sign, value in zip(signs, exact)) for signs in itertools.product((1, -1), repeat=len(exact))]
    return sum(one >= sums[0] for one in sums) / len(sums), sum(one <= sums[0] for one in sums) / len(sums)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=8),
    st.integers(0, 7),
    st.sampled_from([1e8, 1e16, -1e16, 1e17, 1e-16, 1e300]),
)
def test_sign_flip_is_exact_for_any_range_of_differences(values: list[float], place: int, times: float) -> None:
    values[place % len(values)] *= times
    assert sign_flips.sign_flip(np.array(values)) == exactly(values)


SIZES = st.tuples(st.integers(1, 2**45 - 1), st.integers(-400, 400)).map(lambda parts: float(parts[0]) * 2.0 ** parts[1])

WHOLE = st.floats(1e-200, 1e200)  # of 53 binary digits


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(SIZES, st.sampled_from([-1, 1])), max_size=7), st.lists(WHOLE, max_size=2))
def test_sign_flip_is_exact_at_wildly_different_scales(signed: list[tuple[float, int]], opposite: list[float]) -> None:
    """Numbers of few digits at any scale, among opposite numbers of all digits, which cancel."""
    values = [size * sign for size, sign in signed] + [sign * size for size in dict.fromkeys(opposite) for sign in (1, -1)]
    assert sign_flips.sign_flip(np.array(values)) == exactly(values)


def with_rounding(values: list[float]) -> tuple[float, float]:
    """Every subset by itself: numbers of many digits are uncertain by 2^-40 of their size, as far as they do not cancel."""
    found = []
    for side in (1, -1):
        count = 0
        for chosen in itertools.product((0, 1), repeat=len(values)):
            net: dict[Fraction, int] = {}
            for value, taken in zip(values, chosen, strict=True):
                size = Fraction(abs(value))
                net[size] = net.get(size, 0) + taken * side * (1 if value > 0 else -1)
            long = {size for size in net if np.ldexp(np.frexp(float(size))[0], sign_flips.SHORT) % 1}
            allowed = sum(abs(k) * size for size, k in net.items() if size in long) * Fraction(sign_flips.ROUNDING)
            count += sum(k * size for size, k in net.items()) <= allowed
        found.append(count / 2 ** len(values))
    return found[0], found[1]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.floats(-1e6, 1e6).filter(bool), st.sampled_from([0.1, -0.1, 0.2, -0.3, 1.0, -1.0, 1e15 / 3, -1e15 / 3, 3e-9])
        ),
        max_size=8,
    )
)
def test_sign_flip_tolerates_rounding_of_long_numbers(values: list[float]) -> None:
    found, exact = sign_flips.sign_flip(np.array(values)), exactly(values)
    assert found == with_rounding(values) and found[0] >= exact[0] and found[1] >= exact[1]


def test_large_opposite_differences_hide_no_small_one() -> None:
    large, small = 1e16 / 3, [1.0, 2.0, -1.0, 5.0, 3.0]
    values = [large, *small, -large]
    assert sign_flips.sign_flip(np.array(values)) == exactly(values)
    hidden = [large, *small, -np.nextafter(large, 0)]  # these two may stand for equal numbers
    assert sign_flips.sign_flip(np.array(hidden))[0] > exactly(hidden)[0]


def test_sign_flip_of_extreme_doubles_is_exact() -> None:
    for values in ([1e16, -1, -2, 1, 3], [1.7e308, 5e-324, -5e-324, 1.0], [1.7e308] * 6, [5e-324, -1e-323, 5e-324]):
        with np.errstate(all="raise", under="ignore"):
            assert sign_flips.sign_flip(np.array(values)) == exactly(values), values


@pytest.mark.parametrize("n", [16, 31, 40])
def test_one_large_difference_hides_no_small_one(n: int) -> None:
    # Patterns that flip the large one have a sum below the observed one: half of the patterns, whatever the others are.
    small = np.random.default_rng(n).integers(-3, 4, n).astype(float)
    alone, among = (sign_flips.sign_flip(values) for values in (small, np.append(small, 1e16)))
    exact = n < sign_flips.EXACT
    assert among[0] == alone[0] / 2 if exact else abs(among[0] - alone[0] / 2) < 0.01
    assert among[1] == (1 + alone[1]) / 2 if exact else abs(among[1] - (1 + alone[1]) / 2) < 0.01


def test_difference_within_rounding_of_bound_is_zero() -> None:
    at_bound = np.array([0.1 + 0.2, 0.3, 0.3, 0.1 * 3])
    assert hypothesis_tests.paired_test(at_bound, "greater", 0.3)["p"] == 1.0


def test_sign_flip_of_sixteen_is_brute_force() -> None:
    x = np.random.default_rng(5).normal(0.3, 1, 16)
    assert sign_flips.sign_flip(x) == brute(x)


@pytest.mark.parametrize("n", [25, 32, 33, 64])
def test_sign_flip_of_many_is_scipys_monte_carlo(n: int) -> None:
    x = np.random.default_rng(n).normal(0.2, 1, n)
    for side, p in zip(("greater", "less"), sign_flips.sign_flip(x), strict=True):
        expected = scipy.stats.permutation_test(
            (x,), np.mean, permutation_type="samples", n_resamples=50_000, alternative=side, rng=np.random.default_rng(9)
        ).pvalue
        assert abs(p - expected) < 5 * np.sqrt(p * (1 - p) * (1 / 50_000 + 1 / sign_flips.PATTERNS)) + 2 / 50_000
    assert sign_flips.sign_flip(x) == sign_flips.sign_flip(x.copy()), "the same patterns each time"


def test_sign_flip_is_valid_with_many_ties() -> None:
    # All 2^10 equally likely outcomes of ten +-1 differences: an exact level, no simulation.
    p, half = np.empty(1024), np.empty(1024)
    for i, signs in enumerate(itertools.product((1.0, -1.0), repeat=10)):
        over = sign_flips.sign_flip(np.array(signs))
        p[i], half[i] = over[0], (over[0] + 1 - over[1]) / 2
    for alpha in (0.001, 0.01, 0.02, 0.05, 0.1, 0.2):
        assert (p <= alpha).mean() <= alpha
    assert any((half <= alpha).mean() > alpha for alpha in (0.001, 0.01, 0.02, 0.05, 0.1, 0.2))


@pytest.mark.parametrize("n", [0, 1, 7, 32, 33, 50])
def test_least_p_is_that_of_equal_signs(n: int) -> None:
    assert sign_flips.least_sign_flip(n) == sign_flips.sign_flip(np.linspace(1, 2, n))[0]


@pytest.mark.parametrize("n", [33, 70])
def test_sampled_patterns_are_counted_in_blocks(n: int) -> None:
    values = np.random.default_rng(n).normal(0.2, 1, n)
    flips = sign_flips._flips(n)
    sums = [flips.astype(float) @ (side - sign_flips._rounding(side)) for side in (values, -values)]
    assert sign_flips.sign_flip(values) == tuple(float(np.mean(one <= 0)) for one in sums)
    assert not flips[0].any() and 0.45 < flips.mean() < 0.55
