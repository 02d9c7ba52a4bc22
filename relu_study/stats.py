"""Statistics over plain arrays. Seeds are the unit of replication: the units of one run are not independent."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Real
from scipy import special
from scipy import stats as scipy_stats

from relu_study.registry import nearest
from relu_study.study import DIRECTIONS

RESAMPLES = 2_000
BLOCKS = 24
MOMENTS = ("mean", "ci_lo", "ci_hi", "std", "median", "iqm", "min", "max")


def summarise(values: Real[np.ndarray, "n ..."]) -> dict[str, np.ndarray]:
    """The n runs of a cell in numbers: how many are finite, their mean with its interval, spread and order statistics.

    Over axis 0, finite values only, m of them. `ci_lo` and `ci_hi`: the 95 % t interval, mean -+ t(0.975, m - 1) std / sqrt(m),
    of zero width in a constant cell. `std` divides by m - 1. `iqm`: the mean of the middle half, floor(m / 4) values left out at
    each end. One finite value: no interval and no `std` (NaN); none: all NaN.

    Returns: `n`, `n_finite` (whole numbers) and the names of `MOMENTS`, each of the shape "..." of `values`.
    Source: the interquartile mean as in Agarwal et al. 2021, arXiv:2108.13264, section 4.3; ours is over the seeds of one task.
    """
    values = np.asarray(values, dtype=np.float64)
    n, shape = values.shape[0], values.shape[1:]
    cells = values.reshape(n, int(np.prod(shape)))
    finite = np.isfinite(cells)
    ordered = np.sort(np.where(finite, cells, np.nan), axis=0)  # NaN goes last; no number depends on the order of the runs
    count = finite.sum(axis=0)
    found = {name: np.full(cells.shape[1], np.nan) for name in MOMENTS}
    for k in np.unique(count[count > 0]):
        chosen = count == k
        for name, value in _moments(ordered[:k, chosen]).items():
            found[name][chosen] = value
    whole = {"n": np.full(shape, n), "n_finite": count.reshape(shape)}
    return whole | {name: value.reshape(shape) for name, value in found.items()}


def _moments(ordered: Float[np.ndarray, "k cells"]) -> dict[str, np.ndarray]:
    mean, std, half = _t_interval(ordered, 0.95)
    return {
        "mean": mean,
        "ci_lo": mean - half,
        "ci_hi": mean + half,
        "std": std,
        "median": np.median(ordered, axis=0),
        "iqm": scipy_stats.trim_mean(ordered, 0.25, axis=0),
        "min": ordered[0],
        "max": ordered[-1],
    }


def _t_interval(values: Float[np.ndarray, "k cells"], level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation and half the width of the t interval of each cell; NaN where k is too small for it."""
    k, unknown = len(values), np.full(values.shape[1], np.nan)
    if k < 2:
        return (values[0] if k else unknown), unknown, unknown
    # The rounded mean of equal numbers can miss them by a bit, which would leave a constant cell with a width.
    constant = values.min(axis=0) == values.max(axis=0)
    mean = np.where(constant, values[0], values.mean(axis=0))
    std = np.where(constant, 0.0, values.std(axis=0, ddof=1))
    return mean, std, special.stdtrit(k - 1, 0.5 + level / 2) * std / np.sqrt(k)


def wilson(
    k: Real[np.ndarray, " *#s"] | int, n: Real[np.ndarray, " *#s"] | int, level: float = 0.95
) -> tuple[Float[np.ndarray, " *#s"], Float[np.ndarray, " *#s"]]:
    """Interval of a share of runs, k of n: where abs(k / n - p) <= z sqrt(p (1 - p) / n).

    Shapes broadcast; both ends lie in [0, 1], exactly 0 at k = 0 and exactly 1 at k = n; n = 0 gives NaN.

    Source: Wilson 1927, Journal of the American Statistical Association 22, 209-212; no continuity correction.
    """
    k, n = np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64)
    z = special.ndtri(0.5 + level / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(n > 0, k / n, np.nan)
        centre = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return np.where(k == 0, 0.0 * share, centre - half), np.where(k == n, 1.0 * share, centre + half)


def resamples(n: int, key: str) -> Float[np.ndarray, "resamples n"]:
    """How often each of n runs is drawn in each of 2,000 bootstrap samples; the same for the same `key` anywhere."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)


def bootstrap_ratio(numerator: Real[np.ndarray, " n"], denominator: Real[np.ndarray, " n"], key: str) -> tuple[float, float]:
    """95 % interval of sum(numerator) / sum(denominator) over n runs, such as dead units over units.

    Percentile bootstrap over runs; resamples whose denominator is 0 are left out. Fewer than two runs: NaN.
    """
    if len(numerator) < 2:
        return np.nan, np.nan
    drawn = resamples(len(numerator), key)
    above, below = drawn @ np.asarray(numerator, np.float64), drawn @ np.asarray(denominator, np.float64)
    ratios = above[below > 0] / below[below > 0]
    if ratios.size == 0:
        return np.nan, np.nan
    lo, hi = np.percentile(ratios, (2.5, 97.5))
    return float(lo), float(hi)


@dataclass(frozen=True)
class UnitLives:
    """What became of the U units of each of R runs at one site.

    Counts: `born_dead`; `died` (born alive, later dead); `revived` (was dead, later alive; each unit once); `dead_at_end`, at the
    last epoch at which the run was finite. `first_death`: the index of the epoch at which a unit died, -1 where it did not.
    `censored`: the run went nonfinite.
    """

    born_dead: Int[np.ndarray, " R"]
    died: Int[np.ndarray, " R"]
    revived: Int[np.ndarray, " R"]
    dead_at_end: Int[np.ndarray, " R"]
    first_death: Int[np.ndarray, "R U"]
    censored: Bool[np.ndarray, " R"]


def unit_lives(
    dead: Bool[np.ndarray, "R E U"], epochs: Real[np.ndarray, " E"], first_bad_epoch: Float[np.ndarray, " R"]
) -> UnitLives:
    """The life of every unit, from its dead (or certified dead) flags over the epochs.

    Born dead and died are disjoint: a unit that is born dead, revives and dies again was never at risk and counts as
    born dead and revived. From `first_bad_epoch` on (NaN: never) the flags of a run mean nothing and are not read.
    """
    seen = _seen(epochs, first_bad_epoch)
    dead, alive = dead & seen[:, :, None], ~dead & seen[:, :, None]
    falls = dead & alive[:, :1]
    was_dead = np.logical_or.accumulate(dead, axis=1)
    end = np.maximum(seen.sum(axis=1) - 1, 0)  # a run that was never finite has no flags left to count there
    return UnitLives(
        born_dead=dead[:, 0].sum(axis=1),
        died=falls.any(axis=1).sum(axis=1),
        revived=(was_dead & alive).any(axis=1).sum(axis=1),
        dead_at_end=dead[np.arange(len(dead)), end].sum(axis=1),
        first_death=np.where(falls.any(axis=1), falls.argmax(axis=1), -1),
        censored=~seen[:, -1],
    )


def _seen(epochs: Real[np.ndarray, " E"], first_bad_epoch: Float[np.ndarray, " R"]) -> Bool[np.ndarray, "R E"]:
    return ~(np.asarray(epochs)[None, :] >= np.asarray(first_bad_epoch, np.float64)[:, None])  # no epoch is >= NaN


def survival(
    dead: Bool[np.ndarray, "R E U"], epochs: Real[np.ndarray, " E"], first_bad_epoch: Float[np.ndarray, " R"], key: str
) -> dict[str, np.ndarray]:
    """Share of the units born alive that have not died yet, epoch by epoch: S_e = prod over j <= e of (1 - died_j / at_risk_j).

    Returns, each (E,): `runs` that are still finite; `at_risk`, their units born alive and not dead before this epoch; those
    that `died` at it; `censored`, units at risk whose run went nonfinite at it, so that at_risk - died - the next censored is
    the next at_risk; `survival` in [0, 1] with `lo` and `hi`, its 95 % percentile bootstrap over runs (NaN for fewer than two).
    Survival is NaN where no run is finite any more, and everywhere if no unit is born alive.

    Source: Kaplan & Meier 1958, Journal of the American Statistical Association 53, 457-481; interval by resampling whole runs,
    as the units of one run share their fate.
    """
    seen = _seen(epochs, first_bad_epoch)
    born_alive = ~dead[:, 0] & seen[:, :1]
    death = unit_lives(dead, epochs, first_bad_epoch).first_death
    index = np.arange(dead.shape[1])[None, :, None]
    pending = (born_alive[:, None] & ((death[:, None] < 0) | (death[:, None] >= index))).sum(axis=2)
    at_risk, died = pending * seen, (death[:, None] == index).sum(axis=2)
    lost = pending * (~seen & np.roll(seen, 1, axis=1) & (index[:, :, 0] > 0))
    runs = seen.sum(axis=0)
    totals = {"runs": runs, "at_risk": at_risk.sum(axis=0), "died": died.sum(axis=0), "censored": lost.sum(axis=0)}
    curve = _kaplan_meier(totals["at_risk"], totals["died"])
    lo = hi = np.full(len(runs), np.nan)
    if len(dead) > 1:
        drawn = resamples(len(dead), key)
        curves = _kaplan_meier(drawn @ at_risk.astype(np.float64), drawn @ died.astype(np.float64))
        if (curves := curves[~np.isnan(curves[:, 0])]).size:
            lo, hi = np.percentile(curves, (2.5, 97.5), axis=0)
    return totals | {name: np.where(runs > 0, x, np.nan) for name, x in (("survival", curve), ("lo", lo), ("hi", hi))}


def _kaplan_meier(at_risk: Real[np.ndarray, "... E"], died: Real[np.ndarray, "... E"]) -> Float[np.ndarray, "... E"]:
    left = 1 - died / np.where(at_risk > 0, at_risk, 1)
    return np.where(at_risk[..., :1] > 0, np.cumprod(left, axis=-1), np.nan)


def sign_flip(difference: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Exact one-sided p of a mean above 0, and of one below: the share of sign patterns with at least (at most) the observed sum.

    Valid at every n for independent differences that are symmetric about their mean. Up to n = 24 over all 2^n patterns, so
    p >= 2^-n; beyond, 24 blocks of neighbouring seeds change sign as one, which is as exact. A pattern that ties with the
    observed one counts whole (counted half, errors come up to twice as often as p says); a zero is the same under both
    signs. No values: (1, 1).

    Source: Fisher 1935, The Design of Experiments, section 21; Hemerik & Goeman 2018, Test 27, 811-825 (a subgroup of the flips).
    """
    difference = np.asarray(difference, np.float64)
    if len(difference) > BLOCKS:
        difference = np.array([block.sum() for block in np.array_split(difference, BLOCKS)])
    first, second = (_signed_sums(half) for half in np.array_split(difference, 2))
    second = np.sort(second)
    # Sums that differ by rounding are ties, and the patterns come in pairs of opposite sum.
    observed, slack = difference.sum(), 1e-12 * np.abs(difference).sum()
    fewer, more = (int(np.searchsorted(second, least - slack - first).sum()) for least in (observed, -observed))
    patterns = first.size * second.size
    return 1 - fewer / patterns, 1 - more / patterns


def _signed_sums(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " 2**n"]:
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


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
    (mean,), _, (half,) = _t_interval(difference[:, None], _level(direction))
    p, p_refute = _both_p(direction, margin, lambda bound: sign_flip(difference - bound))
    return _result(float(mean), float(mean - half), float(mean + half), len(difference), p, p_refute)


def share_test(hits: Float[np.ndarray, " n"], against: float, direction: str, margin: float) -> dict[str, float]:
    """The share of n runs that are 1 rather than 0, less a constant, against a margin.

    Returns what `paired_test` does, with Wilson's interval and exact binomial p: 0 of 16 runs do not prove that fewer than 1
    in 20 collapse (p 0.44), though 16 equal differences have p 2^-16 by sign flips.
    """
    hits = np.asarray(hits, np.float64)
    hits = hits[np.isfinite(hits)]
    k, n = int(hits.sum()), len(hits)
    lo, hi = (float(end) for end in wilson(k, n, _level(direction))) if n > 1 else (np.nan, np.nan)
    p, p_refute = _both_p(direction, margin, lambda bound: _binomial(k, n, against + bound))
    return _result(k / n - against if n else np.nan, lo - against, hi - against, n, p, p_refute)


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
