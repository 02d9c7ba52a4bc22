"""Paired comparisons of configurations: t intervals of differences, sign-flip p values, corrections for multiple tests."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import special
from scipy import stats as scipy_stats

from relu_study.errors import UserError, nearest
from relu_study.stats.intervals import generator, t_interval, wilson
from relu_study.study.claims import DIRECTIONS

ENDS = ("lower", "higher", "none")  # the better direction of a metric
EXACT = 32  # up to here all sign patterns are counted, meet in the middle
PATTERNS = 1 << 17  # sampled beyond that
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
        flips = _flips(len(difference))
        above, below = (np.mean(flips @ (side - _rounding(side)) <= 0) for side in (difference, -difference))
        return float(above), float(below)
    if (exponent := np.frexp(np.abs(difference).max(initial=0))[1]) > 0:  # no sum of the largest doubles overflows
        scaled = np.ldexp(difference, -exponent)
        difference = scaled if (np.ldexp(scaled, exponent) == difference).all() else difference
    difference = difference[difference != 0]
    patterns = 2 ** len(difference)
    fewer, more = (patterns - _at_most_zero(side) for side in (difference, -difference))
    return 1 - fewer / patterns, 1 - more / patterns


@lru_cache(maxsize=2)
def _flips(n: int) -> Float[np.ndarray, "patterns n"]:
    """Return the sampled sign patterns; 1 flips a difference. Sums of only the flipped ones keep small differences."""
    flips = generator(f"sign_flip/{n}").integers(0, 2, (PATTERNS, n), dtype=np.int8).astype(float)
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


def paired_test(difference: Float[np.ndarray, " n"], direction: str, margin: float) -> dict[str, float]:
    """Test the mean difference of n pairs of runs against a margin, in the units of the metric.

    Args:
      difference: n differences; nonfinite ones are ignored.
      direction: "greater" (above `margin`), "less" (below -`margin`) or "equivalent" (within +-`margin`).
      margin: the smallest difference that matters.

    Returns:
      effect: the mean.
      ci_lo, ci_hi: its t interval, 95 % (90 % for `equivalent`); zero width for equal values; NaN for fewer than two.
      n: the number of finite differences.
      p: p of the claim by `sign_flip` of difference - bound: one-sided, or the larger of two one-sided p (TOST) for
        `equivalent`.
      p_refute: p of the opposite claim against the same bounds.

    The test assumes differences that are symmetric about their mean. n runs cannot exclude an event rarer than 1 in n, and
    a long tail on one side makes p too small. Use `share_test` for shares of runs against a constant.

    Source: Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15, 657-680 (TOST); p by sign flips where his is by t.
    """
    difference = np.asarray(difference, np.float64)
    difference = difference[np.isfinite(difference)]
    (mean,), _, (half,) = t_interval(difference[:, None], _level(direction))
    p, p_refute = _both_p(direction, margin, lambda bound: sign_flip(_beyond(difference, bound)))
    return _result(float(mean), float(mean - half), float(mean + half), len(difference), p, p_refute)


def _beyond(difference: Float[np.ndarray, " n"], bound: float) -> Float[np.ndarray, " n"]:
    """Return difference - bound, with differences within rounding of the bound set to 0."""
    beyond = difference - bound
    return np.where(np.abs(beyond) <= ROUNDING * abs(bound), 0.0, beyond)


def share_test(hits: Float[np.ndarray, " n"], against: float, direction: str, margin: float) -> dict[str, float]:
    """Test the share of n 0/1 runs, minus a constant, against a margin.

    Returns the keys of `paired_test`, with Wilson's interval and exact binomial p. For example, 0 of 16 runs do not prove
    that fewer than 1 in 20 collapse (p 0.44), but 16 equal differences would have p 2^-16 by sign flips.
    """
    hits = np.asarray(hits, np.float64)
    hits = hits[np.isfinite(hits)]
    return counted_test(int(hits.sum()), len(hits), against, direction, margin)


def counted_test(k: int, n: int, against: float, direction: str, margin: float) -> dict[str, float]:
    """Return `share_test` of k hits in n runs."""
    lo, hi = (float(end) for end in wilson(k, n, _level(direction))) if n > 1 else (np.nan, np.nan)
    p, p_refute = _both_p(direction, margin, lambda bound: _binomial(k, n, against + bound))
    return _result(k / n - against if n else np.nan, lo - against, hi - against, n, p, p_refute)


def normal_test(effect: float, error: float, n: int, direction: str, margin: float) -> dict[str, float]:
    """Test a normally distributed effect, the mean of many draws with a standard error, against a margin, as `paired_test`."""
    half = float(special.ndtri(0.5 + _level(direction) / 2)) * error

    def tails(bound: float) -> tuple[float, float]:
        z = (effect - bound) / error if error else math.copysign(math.inf, effect - bound)
        return float(special.ndtr(-z)), float(special.ndtr(z))

    return _result(effect, effect - half, effect + half, n, *_both_p(direction, margin, tails))


def _binomial(k: int, n: int, share: float) -> tuple[float, float]:
    if n == 0:
        return 1.0, 1.0
    if not 0 <= share <= 1:  # impossible share: one of the two is certain
        return (0.0, 1.0) if share < 0 else (1.0, 0.0)
    above, below = (float(scipy_stats.binomtest(k, n, share, alternative=side).pvalue) for side in ("greater", "less"))
    return above, below


def _level(direction: str) -> float:
    return 0.90 if direction == "equivalent" else 0.95


def _both_p(direction: str, margin: float, tails: Callable[[float], tuple[float, float]]) -> tuple[float, float]:
    if direction == "equivalent":
        (over, under_top), (above_bottom, below) = tails(margin), tails(-margin)
        return max(under_top, above_bottom), min(over, below)
    if direction not in DIRECTIONS:
        raise nearest(direction, DIRECTIONS, "direction")
    above, below = tails(margin if direction == "greater" else -margin)
    return (above, below) if direction == "greater" else (below, above)


def _result(effect: float, lo: float, hi: float, n: int, p: float, p_refute: float) -> dict[str, float]:
    return {"effect": effect, "ci_lo": lo, "ci_hi": hi, "n": n, "p": p, "p_refute": p_refute}


def holm(p: Sequence[float] | Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Return Holm-corrected p values of m tests. With probability 0.95 no true null has a corrected p below 0.05.

    The i-th smallest p is multiplied by m - i + 1, made nondecreasing, and clipped to 1. p in [0, 1].

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected


def benjamini_hochberg(p: Sequence[float] | Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Return p values of m tests, corrected for the false discovery rate: at most 5 % of those below 0.05 are true nulls.

    Source: Benjamini & Hochberg 1995, Journal of the Royal Statistical Society B 57, 289-300; also under positive dependence.
    """
    p = np.asarray(p, np.float64)
    return scipy_stats.false_discovery_control(p, method="bh") if p.size else p


def improvement(difference: Float[np.ndarray, " n"], better: str) -> float:
    """Return the probability of improvement: the share of pairs with a better difference, ties as half; NaN without pairs.

    Source: Agarwal et al. 2021, arXiv:2108.13264, section 4.3; theirs is over all pairs of runs, ours over runs of one seed.
    """
    sign = np.sign(difference[np.isfinite(difference)])
    if better == "none" or not sign.size:
        return np.nan
    return float(np.mean((1 + (sign if better == "higher" else -sign)) / 2))


def two_sided(difference: Float[np.ndarray, " n"]) -> float:
    """Return the two-sided `sign_flip` p of a mean difference: twice the smaller tail, at most 1. Nonfinite pairs are ignored."""
    return min(1.0, 2 * min(sign_flip(difference[np.isfinite(difference)])))


def compare(
    names: Sequence[str], values: Float[np.ndarray, "seeds k"], better: str, baseline: str | None = None
) -> list[dict[str, Any]]:
    """Compare each of k configurations with a baseline, or every pair of them, paired by seed.

    Args:
      names: distinct names of the configurations.
      values: one column per name; NaN where a run is missing or nonfinite.
      better: "lower", "higher" or "none".
      baseline: a name; None: every pair.

    Returns one row per comparison:
      name, against, n: the pair, and its number of seeds.
      difference, ci_lo, ci_hi: of the means, with a 95 % t interval.
      improvement: probability of improvement.
      p, p_corrected: two-sided by sign flips; corrected by Holm against a baseline, by Benjamini and Hochberg for all pairs.

    A row without pairs is NaN and does not count in the correction.

    Raises:
      UserError: for an unknown direction or baseline, or a repeated name.
    """
    if better not in ENDS:
        raise nearest(better, ENDS, "direction of a metric")
    if baseline is not None and baseline not in names:
        raise nearest(baseline, names, "baseline")
    if len(set(names)) < len(names):
        repeated = next(name for name in names if list(names).count(name) > 1)
        raise UserError(f"{repeated!r} names two configurations. Give each a different name")
    column = {name: i for i, name in enumerate(names)}
    pairs = [(a, baseline) for a in names if a != baseline] if baseline is not None else list(itertools.combinations(names, 2))
    rows = [{"name": a, "against": b, **compared(values[:, column[a]] - values[:, column[b]], better)} for a, b in pairs]
    correct(rows, benjamini_hochberg if baseline is None else holm)
    return rows


def correct(rows: Sequence[dict[str, Any]], by: Callable[[Sequence[float]], Float[np.ndarray, " m"]]) -> None:
    """Set `p_corrected` of a family of comparisons by the correction `by`. Rows with NaN as `p` do not count."""
    tested = [row for row in rows if not np.isnan(row["p"])]
    for row, corrected in zip(tested, by([row["p"] for row in tested]), strict=True):
        row["p_corrected"] = float(corrected)


def compared(difference: Float[np.ndarray, " n"], better: str) -> dict[str, Any]:
    """Return one row of `compare` from the finite differences of n pairs, without its `p_corrected`."""
    finite = difference[np.isfinite(difference)]
    (mean,), _, (half,) = t_interval(finite[:, None], 0.95)
    return {
        "n": len(finite),
        "difference": float(mean),
        "ci_lo": float(mean - half),
        "ci_hi": float(mean + half),
        "improvement": improvement(finite, better),
        "p": two_sided(finite) if len(finite) else np.nan,
        "p_corrected": np.nan,
    }


def tuned(seeds: Sequence[Int[np.ndarray, " n"]], losses: Sequence[Float[np.ndarray, " n"]]) -> int:
    """Return the index of the best candidate value on the even seeds; -1 if none has a finite run there.

    The odd seeds stay unseen for an unbiased report. The best has the fewest nonfinite runs, then the lowest mean loss, then
    the lowest index.

    Args:
      seeds: one array of seeds per candidate.
      losses: the last `val_loss` of each run, in the same shape.
    """
    ranks = []
    for index, (seed, loss) in enumerate(zip(seeds, losses, strict=True)):
        even = np.asarray(loss, np.float64)[np.asarray(seed) % 2 == 0]
        finite = even[np.isfinite(even)]
        if finite.size:
            ranks.append((even.size - finite.size, float(finite.mean()), index))
    return min(ranks)[2] if ranks else -1
