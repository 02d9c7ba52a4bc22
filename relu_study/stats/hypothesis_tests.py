"""Paired comparisons of configurations: t intervals of differences, sign-flip p values, corrections for multiple tests."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from relu_study.errors import UserError, nearest
from relu_study.stats.intervals import t_interval, wilson
from relu_study.stats.sign_flips import ROUNDING, sign_flip
from relu_study.study.claims import DIRECTIONS

BETTER = ("lower", "higher", "none")  # the better values of a metric


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

    The test assumes differences that are symmetric about their mean. A long tail on one side makes p too small. n runs cannot
    exclude an event rarer than 1 in n. Use `share_test` for shares of runs against a constant.

    Source: Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15, 657-680 (TOST); his p is by t, ours by sign flips.
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
    that fewer than 1 in 20 collapse (p 0.44). Sign flips of 16 equal differences would give p 2^-16.
    """
    hits = np.asarray(hits, np.float64)
    hits = hits[np.isfinite(hits)]
    return counted_test(int(hits.sum()), len(hits), against, direction, margin)


def counted_test(k: int, n: int, against: float, direction: str, margin: float) -> dict[str, float]:
    """Return `share_test` of k hits in n runs."""
    lo, hi = (float(end) for end in wilson(k, n, _level(direction))) if n > 1 else (np.nan, np.nan)
    p, p_refute = _both_p(direction, margin, lambda bound: _binomial(k, n, against + bound))
    return _result(k / n - against if n else np.nan, lo - against, hi - against, n, p, p_refute)


def least_counted_p(n: int, against: float, direction: str, margin: float) -> float:
    """Return the smallest p of `counted_test` over all k of 0 to n hits, of the claim or of its opposite.

    One-sided p values are monotone in k, so the smallest is at k = 0 or n. The p of an equivalence is the larger of two that
    run in opposite directions, so it is smallest where they cross.
    """

    def tails(k: int, bound: float) -> tuple[float, float]:
        return _binomial(k, n, against + bound)

    def crossed(k: int) -> bool:
        return tails(k, margin)[1] >= tails(k, -margin)[0]

    hits = [0, n]
    if direction == "equivalent":
        k = bisect.bisect_left(range(n), True, key=crossed)
        hits += [max(k - 1, 0), k]
    return min(min(_both_p(direction, margin, functools.partial(tails, k))) for k in hits)


def normal_test(effect: float, error: float, n: int, direction: str, margin: float) -> dict[str, float]:
    """Test a normally distributed effect with a standard error `error` against a margin. Returns the keys of `paired_test`.

    The mean of n draws is such an effect if n is large.
    """
    half = float(special.ndtri(0.5 + _level(direction) / 2)) * error

    def tails(bound: float) -> tuple[float, float]:
        z = (effect - bound) / error if error else math.copysign(math.inf, effect - bound)
        return float(special.ndtr(-z)), float(special.ndtr(z))

    return _result(effect, effect - half, effect + half, n, *_both_p(direction, margin, tails))


def _binomial(k: int, n: int, share: float) -> tuple[float, float]:
    """Return the exact p values of a true share above `share` and of one below it, from k hits in n runs."""
    if n == 0:
        return 1.0, 1.0
    if not 0 <= share <= 1:  # every true share is on the same side of an impossible one
        return (0.0, 1.0) if share < 0 else (1.0, 0.0)
    from scipy.stats import binomtest  # at first use: importing scipy.stats takes half a second

    above, below = (float(binomtest(k, n, share, alternative=side).pvalue) for side in ("greater", "less"))
    return above, below


def _level(direction: str) -> float:
    """Return the level of the interval that decides a claim: two one-sided tests at 5 % leave 90 %."""
    return 0.90 if direction == "equivalent" else 0.95


def _both_p(direction: str, margin: float, tails: Callable[[float], tuple[float, float]]) -> tuple[float, float]:
    """Return the p of a claim and the p of its opposite. `tails` gives the p of an effect above a bound and of one below it."""
    if direction == "equivalent":
        (above_top, below_top), (above_bottom, below_bottom) = tails(margin), tails(-margin)
        return max(below_top, above_bottom), min(above_top, below_bottom)
    if direction not in DIRECTIONS:
        raise nearest(direction, DIRECTIONS, "direction")
    above, below = tails(margin if direction == "greater" else -margin)
    return (above, below) if direction == "greater" else (below, above)


def _result(effect: float, lo: float, hi: float, n: int, p: float, p_refute: float) -> dict[str, float]:
    return {"effect": effect, "ci_lo": lo, "ci_hi": hi, "n": n, "p": p, "p_refute": p_refute}


def holm(p: Sequence[float] | Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Return Holm-corrected p values of m tests. With probability 0.95 no true null has a corrected p below 0.05.

    The i-th smallest p is multiplied by m - i + 1. Then the p values are made nondecreasing and clipped to 1.

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected


def benjamini_hochberg(p: Sequence[float] | Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Return p values of m tests, corrected for the false discovery rate.

    On average, at most 5 % of the corrected p values below 0.05 belong to true nulls, also under positive dependence.

    Source: Benjamini & Hochberg 1995, Journal of the Royal Statistical Society B 57, 289-300.
    """
    from scipy.stats import false_discovery_control  # at first use: importing scipy.stats takes half a second

    p = np.asarray(p, np.float64)
    return false_discovery_control(p, method="bh") if p.size else p


def improvement(difference: Float[np.ndarray, " n"], better: str) -> float:
    """Return the probability of improvement: the share of pairs with a better difference. Ties count half; NaN without pairs.

    Source: Agarwal et al. 2021, arXiv:2108.13264, section 4.3. They pair every run with every run; ours are paired by seed.
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
    if better not in BETTER:
        raise nearest(better, BETTER, "direction of a metric")
    if baseline is not None and baseline not in names:
        raise nearest(baseline, names, "baseline")
    if len(set(names)) < len(names):
        repeated = next(name for name in names if list(names).count(name) > 1)
        raise UserError(f"{repeated!r} names two configurations. Give each a different name.")
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
    """Return one row of `compare` from the differences of n pairs, with NaN as `p_corrected`. Nonfinite pairs are ignored."""
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
    """Return the index of the best candidate value on the even seeds; -1 if no candidate has a finite run there.

    The odd seeds are not used, so their results are an unbiased estimate. The best candidate has the fewest nonfinite runs,
    then the lowest mean loss, then the lowest index.

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
