"""The exact sign-flip permutation test of paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from relu_study.stats.intervals import generator

EXACT = 32  # up to here all sign patterns are counted, meet in the middle
PATTERNS = 1 << 17  # sampled beyond that
BLOCK = 1 << 12  # patterns at a time
ROUNDING = 2.0**-40  # relative to the flipped differences: closer sums are ties
SHORT = 45  # a number with at most this many binary digits is exact


def sign_flip(difference: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Return the one-sided sign-flip p values of a mean above 0 and of a mean below 0.

    p is the share of sign patterns with a sum of at least (at most) the observed one. The test is valid at every n for
    independent differences that are symmetric about their mean.

    - Up to n = 32 it is exact over all 2^n patterns, for any range of sizes: p >= 2^-n.
    - Beyond, it uses the observed pattern and 2^17 - 1 fixed random ones: p >= 2^-17.
    - A tie with the observed pattern counts whole. Counted half, errors would be up to twice as frequent as p.
    - A zero is equal under both signs. Without values the result is (1, 1).

    Source: Fisher 1935, The Design of Experiments, section 21; Phipson & Smyth 2010, arXiv:1603.05766, for the observed pattern.
    """
    difference = np.asarray(difference, np.float64)
    if len(difference) > EXACT:
        sides = np.stack([side - _rounding(side) for side in (difference, -difference)], axis=1)
        flips, counts = _flips(len(difference)), np.zeros(2, int)
        for first in range(0, PATTERNS, BLOCK):  # all patterns as floats would take 2 GiB for 2,000 differences
            block = flips[first : first + BLOCK].astype(float)
            counts += [int((block @ side <= 0).sum()) for side in sides.T]
        above, below = (counts / PATTERNS).tolist()
        return above, below
    if (exponent := np.frexp(np.abs(difference).max(initial=0))[1]) > 0:  # no sum of the largest doubles overflows
        scaled = np.ldexp(difference, -exponent)
        difference = scaled if (np.ldexp(scaled, exponent) == difference).all() else difference
    difference = difference[difference != 0]
    patterns = 2 ** len(difference)
    fewer, more = (patterns - _at_most_zero(side) for side in (difference, -difference))
    return 1 - fewer / patterns, 1 - more / patterns


def least_sign_flip(n: int) -> float:
    """Return the smallest p of `sign_flip` for n differences: that of n differences with the same sign."""
    return 2.0**-n if n <= EXACT else 1 / PATTERNS


@lru_cache(maxsize=2)
def _flips(n: int) -> Int[np.ndarray, "patterns n"]:
    """Return the sampled sign patterns; 1 flips a difference. Sums of only the flipped ones keep small differences."""
    flips = generator(f"sign_flip/{n}").integers(0, 2, (PATTERNS, n), dtype=np.int8)
    flips[0] = 0  # the observed pattern
    return flips


def _rounding(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return the assumed rounding error of each value; 0 for a value with few binary digits."""
    short = np.ldexp(np.frexp(values)[0], SHORT) % 1 == 0
    return np.where(short, 0.0, ROUNDING * np.abs(values))


class _Half(NamedTuple):
    """Half of the distinct absolute values: their rounding errors, and their numbers of either sign."""

    sizes: Shaped[np.ndarray, " m"]
    rounding: Shaped[np.ndarray, " m"]
    plus: Int[np.ndarray, " m"]
    minus: Int[np.ndarray, " m"]


def _halves(values: Float[np.ndarray, " n"]) -> list[_Half]:
    """Split the values by size into two halves with similar numbers of subset sums."""
    sizes, index = np.unique(np.abs(values), return_inverse=True)
    plus, minus = (np.bincount(index[side], minlength=len(sizes)) for side in (values > 0, values < 0))
    members: list[list[int]] = [[], []]
    sums = [1, 1]
    for i in np.lexsort((-sizes, -(plus + minus))).tolist():
        half = int(sums[1] < sums[0])
        members[half].append(i)
        sums[half] *= int(plus[i] + minus[i]) + 1
    # Largest first: the subset sums are then nearly sorted.
    indices = [np.array(sorted(half, reverse=True), int) for half in members]
    return [_Half(sizes[at], _rounding(sizes[at]), plus[at], minus[at]) for at in indices]


def _at_most_zero(values: Float[np.ndarray, " n"]) -> int:
    """Return the number of subsets of nonzero values with a sum of at most 0, up to rounding.

    Flipping a subset lowers the total by twice the subset's sum. The tolerance of a subset is the rounding of its own values:
    a large value outside it hides no small one. Values of opposite sign and equal size cancel exactly and add no tolerance.
    The count uses doubles if their error cannot change it, else exact integers.
    """
    halves = _halves(values)
    empty = math.prod(
        math.comb(p + m, m) for half in halves for p, m in zip(half.plus.tolist(), half.minus.tolist(), strict=True)
    )
    with np.errstate(over="ignore", invalid="ignore"):  # if sums overflow, the integers decide
        (first, ways), (second, others) = map(_subset_sums, halves)
        order = np.argsort(second, kind="stable")
        second, others = second[order], np.concatenate([[0], np.cumsum(others[order])])
        total = np.abs(values).sum()
        # Sums of multiples of one unit are exact up to 53 binary digits.
        short = not any(half.rounding.any() for half in halves)
        exact = short and bool(np.isfinite(total)) and (values % np.spacing(total) == 0).all()
        error = 0.0 if exact else (len(values) + 4) * np.finfo(float).eps * total
        certain, possible = (
            int((ways * others[np.searchsorted(second, limit - first, side="right")]).sum()) for limit in (-error, error)
        )
    if possible - certain <= empty:  # only subsets that cancel, with the empty one: their sum is exactly 0
        return possible
    return _counted(*(_subset_sums(half) for half in _integers(halves)))


def _counted(left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]) -> int:
    """Return the number of pairs of subset sums, as Python integers, with a sum of at most 0."""
    sums, ways = ([part.tolist() for part in parts] for parts in zip(left, right, strict=True))
    ascending = sorted(range(len(sums[0])), key=sums[0].__getitem__)
    descending = sorted(range(len(sums[1])), key=sums[1].__getitem__, reverse=True)
    below, others = [sums[1][i] for i in descending], [ways[1][i] for i in descending]
    count, above, rest = 0, 0, sum(others)
    for i in ascending:
        limit = -sums[0][i]
        while above < len(below) and below[above] > limit:
            rest -= others[above]
            above += 1
        count += ways[0][i] * rest
    return count


def _integers(halves: Sequence[_Half]) -> list[_Half]:
    """Return the sizes and their rounding errors as exact Python integers in a common unit."""
    ratios = [[size.as_integer_ratio() for size in half.sizes.tolist()] for half in halves]
    unit, steps = max(below for half in ratios for _, below in half), int(1 / ROUNDING)  # powers of two
    whole = [np.array([above * (unit // below) for above, below in half], dtype=object) for half in ratios]
    return [
        half._replace(sizes=sizes * steps, rounding=sizes * (half.rounding != 0))
        for half, sizes in zip(halves, whole, strict=True)
    ]


def _subset_sums(half: _Half) -> tuple[Shaped[np.ndarray, " s"], Int[np.ndarray, " s"]]:
    """Return the sums of all subsets minus their rounding, with the number of subsets of each sum."""
    sums, ways = np.zeros(1, half.sizes.dtype), np.ones(1, np.int64)
    for size, rounding, plus, minus in zip(*half, strict=True):
        net = range(-int(minus), int(plus) + 1)
        steps = np.array([k * size - abs(k) * rounding for k in net], half.sizes.dtype)
        sums = (sums[:, None] + steps).ravel()
        ways = (ways[:, None] * np.array([math.comb(int(plus + minus), k + int(minus)) for k in net], np.int64)).ravel()
    return sums, ways
