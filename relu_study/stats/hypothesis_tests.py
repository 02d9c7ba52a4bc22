"""Configurations compared, paired by seed: differences with intervals, p by sign flips, corrected for many questions."""

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

ENDS = ("lower", "higher", "none")  # which end of a metric is better
EXACT = 32  # differences whose sign patterns are all counted, half of them at a time
PATTERNS = 1 << 17  # drawn for more than that
ROUNDING = 2.0**-40  # of the differences that change their sign: sums that are no further apart are ties
SHORT = 45  # binary digits; a number with no more of them is exact


def sign_flip(difference: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """One-sided p of a mean above 0, and of one below: the share of sign patterns with at least (at most) the observed sum.

    Valid at every n for independent differences that are symmetric about their mean. Up to n = 32 exact, over all 2^n patterns,
    so that p >= 2^-n, however far apart their sizes are. Beyond, Monte Carlo over 2^17 - 1 patterns and the observed one, the
    same ones each time, so that p >= 2^-17. A pattern that ties with the observed one counts whole (counted half, errors come up
    to twice as often as p says); a zero is the same under both signs. No values: (1, 1).

    Source: Fisher 1935, The Design of Experiments, section 21; Phipson & Smyth 2010, arXiv:1603.05766, for counting the observed.
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
    """Which differences change their sign, as 0 and 1: sums of these lose no small difference to a large one that stays."""
    flips = generator(f"sign_flip/{n}").integers(0, 2, (PATTERNS, n), dtype=np.int8).astype(float)
    flips[0] = 0  # the observed pattern
    return flips


def _rounding(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """How far each value may be from what it stands for; one with few binary digits is no rounded number."""
    short = np.ldexp(np.frexp(values)[0], SHORT) % 1 == 0
    return np.where(short, 0.0, ROUNDING * np.abs(values))


class _Half(NamedTuple):
    """Half of the distinct sizes of some values: each size with its rounding, and how often it has either sign."""

    sizes: Shaped[np.ndarray, " m"]
    rounding: Shaped[np.ndarray, " m"]
    plus: Int[np.ndarray, " m"]
    minus: Int[np.ndarray, " m"]


def _halves(values: Float[np.ndarray, " n"]) -> list[_Half]:
    """Values by size in two halves, whose numbers of subset sums are about the same."""
    sizes, place = np.unique(np.abs(values), return_inverse=True)
    plus, minus = (np.bincount(place[side], minlength=len(sizes)) for side in (values > 0, values < 0))
    chosen: list[list[int]] = [[], []]
    sums = [1, 1]
    for i in np.lexsort((-sizes, -(plus + minus))).tolist():
        half = int(sums[1] < sums[0])
        chosen[half].append(i)
        sums[half] *= int(plus[i] + minus[i]) + 1
    # The largest first: the subset sums are then nearly in order.
    places = [np.array(sorted(half, reverse=True), int) for half in chosen]
    return [_Half(sizes[at], _rounding(sizes[at]), plus[at], minus[at]) for at in places]


def _at_most_zero(values: Float[np.ndarray, " n"]) -> int:
    """How many subsets of nonzero values have a sum of at most 0, or one above it by no more than rounding.

    Flipped, a subset lowers the sum of all by twice its own. Only the rounding of its own values is allowed to a subset, so that
    a large value elsewhere hides no small one; nor do two values of opposite sign and equal size, which cancel without rounding.
    Doubles decide where their error is too small to matter; else exact integers do.
    """
    halves = _halves(values)
    empty = math.prod(
        math.comb(p + m, m) for half in halves for p, m in zip(half.plus.tolist(), half.minus.tolist(), strict=True)
    )
    with np.errstate(over="ignore", invalid="ignore"):  # where sums overflow, every pattern is left to the integers
        (first, ways), (second, others) = map(_subset_sums, halves)
        order = np.argsort(second, kind="stable")
        second, others = second[order], np.concatenate([[0], np.cumsum(others[order])])
        total = np.abs(values).sum()
        # Sums of whole numbers of one unit are exact as long as 53 binary digits hold them.
        short = not any(half.rounding.any() for half in halves)
        exact = short and bool(np.isfinite(total)) and (values % np.spacing(total) == 0).all()
        error = 0.0 if exact else (len(values) + 4) * np.finfo(float).eps * total
        surely, perhaps = (
            int((ways * others[np.searchsorted(second, limit - first, side="right")]).sum()) for limit in (-error, error)
        )
    if perhaps - surely <= empty:  # subsets whose values cancel, the empty one among them: their sum is 0
        return perhaps
    return _counted(*(_subset_sums(half) for half in _integers(halves)))


def _counted(left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]) -> int:
    """How many pairs of subset sums, as Python's integers, have a sum of at most 0."""
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
    """The sizes and their rounding, exactly, as Python's integers in a common unit."""
    ratios = [[size.as_integer_ratio() for size in half.sizes.tolist()] for half in halves]
    unit, steps = max(below for half in ratios for _, below in half), int(1 / ROUNDING)  # powers of two
    whole = [np.array([above * (unit // below) for above, below in half], dtype=object) for half in ratios]
    return [
        half._replace(sizes=sizes * steps, rounding=sizes * (half.rounding != 0))
        for half, sizes in zip(halves, whole, strict=True)
    ]


def _subset_sums(half: _Half) -> tuple[Shaped[np.ndarray, " s"], Int[np.ndarray, " s"]]:
    """The sums of all subsets less their rounding, and how many subsets have each."""
    sums, ways = np.zeros(1, half.sizes.dtype), np.ones(1, np.int64)
    for size, rounding, plus, minus in zip(*half, strict=True):
        net = range(-int(minus), int(plus) + 1)
        steps = np.array([k * size - abs(k) * rounding for k in net], half.sizes.dtype)
        sums = (sums[:, None] + steps).ravel()
        ways = (ways[:, None] * np.array([math.comb(int(plus + minus), k + int(minus)) for k in net], np.int64)).ravel()
    return sums, ways


def paired_test(difference: Float[np.ndarray, " n"], direction: str, margin: float) -> dict[str, float]:
    """Differences of n pairs of runs against a margin, in the units of the metric.

    `effect` is their mean, `ci_lo` and `ci_hi` its t interval (95 %, or 90 % for `equivalent`; zero width if all are the same)
    and `n` their number, nonfinite ones left out. `p` is that of the claim, by `sign_flip` of difference - bound: one-sided
    towards the claimed side (above `margin` for `greater`, below -`margin` for `less`), or the larger of the two one-sided p
    (TOST) for `equivalent`. `p_refute` is that of its opposite against the same bounds. Fewer than two values: no interval.

    All rests on differences that are symmetric about their mean. What happens in fewer than 1 run in n is not excluded by n
    runs that missed it, and a long tail on one side makes p too small. Shares of runs against a constant have `share_test`.

    Source: Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15, 657-680 (TOST); p by sign flips where his is by t.
    """
    difference = np.asarray(difference, np.float64)
    difference = difference[np.isfinite(difference)]
    (mean,), _, (half,) = t_interval(difference[:, None], _level(direction))
    p, p_refute = _both_p(direction, margin, lambda bound: sign_flip(_beyond(difference, bound)))
    return _result(float(mean), float(mean - half), float(mean + half), len(difference), p, p_refute)


def _beyond(difference: Float[np.ndarray, " n"], bound: float) -> Float[np.ndarray, " n"]:
    """The differences less a bound; one that misses it by no more than rounding is 0."""
    beyond = difference - bound
    return np.where(np.abs(beyond) <= ROUNDING * abs(bound), 0.0, beyond)


def share_test(hits: Float[np.ndarray, " n"], against: float, direction: str, margin: float) -> dict[str, float]:
    """The share of n runs that are 1 rather than 0, less a constant, against a margin.

    Returns what `paired_test` does, with Wilson's interval and exact binomial p: 0 of 16 runs do not prove that fewer than 1
    in 20 collapse (p 0.44), though 16 equal differences have p 2^-16 by sign flips.
    """
    hits = np.asarray(hits, np.float64)
    hits = hits[np.isfinite(hits)]
    return counted_test(int(hits.sum()), len(hits), against, direction, margin)


def counted_test(k: int, n: int, against: float, direction: str, margin: float) -> dict[str, float]:
    """`share_test` of k hits in n."""
    lo, hi = (float(end) for end in wilson(k, n, _level(direction))) if n > 1 else (np.nan, np.nan)
    p, p_refute = _both_p(direction, margin, lambda bound: _binomial(k, n, against + bound))
    return _result(k / n - against if n else np.nan, lo - against, hi - against, n, p, p_refute)


def normal_test(effect: float, error: float, n: int, direction: str, margin: float) -> dict[str, float]:
    """An effect with its standard error, of so many draws that it is normal, against a margin: what `paired_test` returns."""
    half = float(special.ndtri(0.5 + _level(direction) / 2)) * error

    def tails(bound: float) -> tuple[float, float]:
        z = (effect - bound) / error if error else math.copysign(math.inf, effect - bound)
        return float(special.ndtr(-z)), float(special.ndtr(z))

    return _result(effect, effect - half, effect + half, n, *_both_p(direction, margin, tails))


def _binomial(k: int, n: int, share: float) -> tuple[float, float]:
    if n == 0:
        return 1.0, 1.0
    if not 0 <= share <= 1:  # no share lies there, so one of the two is certain
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
    """p of m questions asked together, corrected so that with probability 0.95 no true null falls below 0.05.

    The i-th smallest times m - i + 1, never below its predecessor's, at most 1. p in [0, 1].

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected


def benjamini_hochberg(p: Sequence[float] | Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """p of m questions asked together, so that of those below 0.05 no more than 5 % are expected to be true nulls.

    Source: Benjamini & Hochberg 1995, Journal of the Royal Statistical Society B 57, 289-300; also under positive dependence.
    """
    p = np.asarray(p, np.float64)
    return scipy_stats.false_discovery_control(p, method="bh") if p.size else p


def improvement(difference: Float[np.ndarray, " n"], better: str) -> float:
    """Probability of improvement: the share of pairs whose difference is on the better side, ties as half; no pairs: NaN.

    Source: Agarwal et al. 2021, arXiv:2108.13264, section 4.3; theirs is over all pairs of runs, ours over runs of one seed.
    """
    sign = np.sign(difference[np.isfinite(difference)])
    if better == "none" or not sign.size:
        return np.nan
    return float(np.mean((1 + (sign if better == "higher" else -sign)) / 2))


def two_sided(difference: Float[np.ndarray, " n"]) -> float:
    """p of a mean difference of 0, by `sign_flip`: twice the smaller of its tails, at most 1; nonfinite pairs are left out."""
    return min(1.0, 2 * min(sign_flip(difference[np.isfinite(difference)])))


def compare(
    names: Sequence[str], values: Float[np.ndarray, "seeds k"], better: str, baseline: str | None = None
) -> list[dict[str, Any]]:
    """Each of k configurations against the baseline, or every pair of them, paired by seed.

    `values` holds one column for each name, NaN where a run is missing or nonfinite; `better` is lower, higher or none. Each row:
    `name`, `against`, `n` pairs, `difference` of their means with its 95 % t interval `ci_lo`, `ci_hi`, `improvement` (the
    probability of it), `p` (two-sided, by sign flips) and `p_corrected`: Holm's against a baseline, Benjamini and Hochberg's for
    all pairs. Without a pair all are NaN, p among them, and the row is not one of those corrected for.
    """
    if better not in ENDS:
        raise nearest(better, ENDS, "direction of a metric")
    if baseline is not None and baseline not in names:
        raise nearest(baseline, names, "baseline")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise UserError(f"{twice!r} names two configurations; give each a name of its own")
    place = {name: i for i, name in enumerate(names)}
    pairs = [(a, baseline) for a in names if a != baseline] if baseline is not None else list(itertools.combinations(names, 2))
    rows = [{"name": a, "against": b, **compared(values[:, place[a]] - values[:, place[b]], better)} for a, b in pairs]
    correct(rows, benjamini_hochberg if baseline is None else holm)
    return rows


def correct(rows: Sequence[dict[str, Any]], by: Callable[[Sequence[float]], Float[np.ndarray, " m"]]) -> None:
    """Fill in the `p_corrected` of rows of comparisons that are asked together; one without a `p` is none of the questions."""
    asked = [row for row in rows if not np.isnan(row["p"])]
    for row, corrected in zip(asked, by([row["p"] for row in asked]), strict=True):
        row["p_corrected"] = float(corrected)


def compared(difference: Float[np.ndarray, " n"], better: str) -> dict[str, Any]:
    """One row of `compare` from the differences of n pairs, nonfinite ones left out; `p_corrected` is yet to be filled in."""
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
    """Which of several tried values is the best on the even seeds; report it on the odd ones, that the choice never saw.

    One array of seeds and one of last `val_loss` for each tried value. The best has the fewest nonfinite runs, then the
    lowest mean loss, then comes first. Returns its index, -1 if no value has a finite run on an even seed.
    """
    ranks = []
    for index, (seed, loss) in enumerate(zip(seeds, losses, strict=True)):
        chosen = np.asarray(loss, np.float64)[np.asarray(seed) % 2 == 0]
        finite = chosen[np.isfinite(chosen)]
        if finite.size:
            ranks.append((chosen.size - finite.size, float(finite.mean()), index))
    return min(ranks)[2] if ranks else -1
