"""Verdicts on the claims of a study: effect, interval, corrected p, verdict and reason of each row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from relu_study.errors import nearest
from relu_study.stats.hypothesis_tests import holm, paired_test, share_test
from relu_study.stats.sign_flips import EXACT
from relu_study.storage.configurations import Configuration
from relu_study.storage.schema import COLUMNS
from relu_study.storage.tile_identity import LOSSES
from relu_study.study.claims import DIRECTIONS, Claim, Target

TEXTS = ("claim", "statement", "contrast", "target", "metric", "site", "epoch", "direction", "verdict", "reason")
SIGNIFICANT = 0.05
SLACK = 1e-5  # share of the margin around a bound, since float32 rounding must not move a value beyond it
EVENTS = ("collapsed", "constant")  # 0/1 metrics that a claim may compare with a constant as a share of runs

Row = dict[str, Any]
Configurations = Mapping[tuple[str, str], Configuration]


class NotTestable(Exception):
    """A row that the stored runs cannot test, with the reason."""


def verdict(direction: str, margin: float, ci_lo: float, ci_hi: float) -> str:
    """Return the verdict of an interval, regardless of p: "confirmed", "refuted" or "inconclusive".

    `greater` is confirmed by an interval wholly above `margin` and refuted by one wholly below it. `less` is its mirror image at
    -`margin`. `equivalent` is confirmed by an interval wholly inside +-`margin` and refuted by one wholly outside. An end on the
    bound or a NaN interval is inconclusive.
    """
    if direction not in DIRECTIONS:
        raise nearest(direction, DIRECTIONS, "direction")
    slack = SLACK * abs(margin)
    if direction == "equivalent":
        inside = -margin + slack < ci_lo and ci_hi < margin - slack
        outside = ci_lo > margin + slack or ci_hi < -margin - slack
    else:
        lo, hi = (ci_lo, ci_hi) if direction == "greater" else (-ci_hi, -ci_lo)
        inside, outside = lo > margin + slack, hi < margin - slack
    return "confirmed" if inside else "refuted" if outside else "inconclusive"


def evaluate_claims(claims: Sequence[Claim], configurations: Configurations, targets: Sequence[Target]) -> list[Row]:
    """Return the rows of `verdicts.csv`: each claim on each of its targets (default: all), then one `overall` row per claim id.

    `configurations` contains the stored runs by (arm, target). Each run gives one number, which `Claim` defines. Runs are
    paired by seed; pairs with a nonfinite number are left out. A row that the stored runs cannot test is "not testable", with
    a `reason`.

    A row takes the `verdict` of its interval if `p_corrected` < 0.05, else "inconclusive". `p` is one-sided: the smaller of
    the p of the claim and the p of the opposite claim. Each row thus has two tests, so `p_corrected` is Holm's correction of
    2 p over all testable rows of the study. `margin`, `effect` and the interval (95 %; 90 % for `equivalent`) are in the units
    of the metric.

    An `overall` row is confirmed if every testable row of its claim is confirmed, and refuted if one is refuted.

    Source: Shaffer 1980, Annals of Statistics 8, 1342-1347 (Holm's procedure with a direction for each rejection).
    """
    ids = dict.fromkeys(claim.claim for claim in claims)  # several claims may share an id
    by_id = [claim for name in ids for claim in claims if claim.claim == name]
    rows = [
        _measure(claim, target, configurations)
        for claim in by_id
        for target in targets
        if not claim.targets or target.name in claim.targets
    ]
    return assign_verdicts(rows) if targets else []


def assign_verdicts(rows: Sequence[Row]) -> list[Row]:
    """Fill in the verdicts of measured rows in place. Return all rows, with an `overall` row after the rows of each claim."""
    tested = [row for row in rows if row["verdict"] != "not testable"]
    for row, corrected in zip(tested, corrected_p([row["p"] for row in tested]), strict=True):
        row["p_corrected"] = float(corrected)
        row["verdict"], why = _judge(row, len(tested))
        row["reason"] = "; ".join(filter(None, (why, row["reason"])))
    ids = dict.fromkeys(row["claim"] for row in rows)
    return [row for name in ids for row in _with_overall([r for r in rows if r["claim"] == name])]


def corrected_p(p: Sequence[float]) -> Float[np.ndarray, " m"]:
    """Return Holm's correction of the one-sided p values of all testable rows, doubled because a row has two tests."""
    return holm([min(1.0, 2 * value) for value in p])


def empty_row(claim: str, statement: str) -> Row:
    """Return a row of verdicts.csv with only the claim filled in."""
    row: Row = {name: "" if name in TEXTS else math.nan for name in COLUMNS["verdicts"]}
    return row | {"claim": claim, "statement": statement}


def _measure(claim: Claim, target: Target, configurations: Configurations) -> Row:
    """Return the row of a claim on a target: its effect, interval and p, or the reason why it is not testable."""
    unit = target.variance if claim.relative else 1.0
    against = claim.against if isinstance(claim.against, str) else claim.against * unit
    claim, margin = replace(claim, against=against), claim.margin * unit
    row = _described(claim, target, margin)
    try:
        numbers, others, note = _paired(claim, target, configurations)
    except NotTestable as why:
        return row | {"n": 0, "verdict": "not testable", "reason": f"not testable because {why}"}
    needed = max(claim.least_seeds, 1)
    if len(numbers) < needed:
        reason = f"not testable because the seeds left to compare are {len(numbers)} and {needed} are needed"
        return row | {"n": len(numbers), "verdict": "not testable", "reason": "; ".join(filter(None, (reason, note)))}
    if is_share(claim):
        result = share_test(numbers, float(claim.against), claim.direction, margin)
    else:
        result = paired_test(numbers - others, claim.direction, margin)
    row |= {name: result[name] for name in ("effect", "ci_lo", "ci_hi", "n")}
    return row | {"p": min(result["p"], result["p_refute"]), "reason": note}


def _described(claim: Claim, target: Target, margin: float) -> Row:
    """Return the row of a claim on a target before its runs are read."""
    return empty_row(claim.claim, claim.statement) | {
        "contrast": _contrast(claim),
        "target": target.name,
        "metric": claim.metric,
        "site": claim.site if claim.over is None else f"{claim.site} over {claim.over}",
        "epoch": _short(claim.epoch),
        "direction": claim.direction,
        "margin": margin,
    }


def _judge(row: Row, tested: int) -> tuple[str, str]:
    """Return the verdict of a testable row and its reason. `tested` is the number of testable rows of the study."""
    answer = verdict(row["direction"], row["margin"], row["ci_lo"], row["ci_hi"])
    equivalent = row["direction"] == "equivalent"
    bound = 0.0 - row["margin"] if row["direction"] == "less" else row["margin"]  # 0.0 - 0.0 is 0, where -0.0 is "-0"
    edge = f"+-{bound:.3g}" if equivalent else f"{bound:.3g}"
    if math.isnan(row["ci_lo"]):
        return "inconclusive", "one seed gives no interval"
    interval = f"the {90 if equivalent else 95} % interval [{row['ci_lo']:.3g}, {row['ci_hi']:.3g}]"
    if answer == "inconclusive":
        where = f"{interval} reaches {edge}"
    elif equivalent:
        where = f"{interval} lies wholly {'inside' if answer == 'confirmed' else 'outside'} {edge}"
    else:
        where = f"{interval} lies wholly {'above' if row['ci_lo'] > bound else 'below'} {edge}"
    if row["p_corrected"] < SIGNIFICANT:
        return answer, where + ("; p is that of the opposite claim" if answer == "refuted" else "")
    doubt = f"the corrected p {row['p_corrected']:.3g} is not below {SIGNIFICANT:g}"
    needed = math.floor(math.log2(2 * tested / SIGNIFICANT)) + 1
    if answer != "inconclusive" and row["n"] < needed <= EXACT:
        doubt += f" (with {tested} testable rows, {needed} seeds are enough for that and {row['n']} may be too few)"
    return "inconclusive", f"{where}{', and' if answer == 'inconclusive' else ', but'} {doubt}"


def _with_overall(rows: list[Row]) -> list[Row]:
    """Return the rows of one claim, then its `overall` row."""
    verdicts = [row["verdict"] for row in rows]
    testable = [v for v in verdicts if v != "not testable"]
    if not testable:
        overall = "not testable"
    elif "refuted" in testable:
        overall = "refuted"
    else:
        overall = "confirmed" if set(testable) == {"confirmed"} else "inconclusive"
    order = ("confirmed", "refuted", "inconclusive", "not testable")
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in order if v in verdicts)
    last = empty_row(rows[0]["claim"], rows[0]["statement"]) | {"contrast": "overall", "verdict": overall}
    return [*rows, last | {"reason": f"of {len(rows)} rows {counts}"}]


def _paired(
    claim: Claim, target: Target, configurations: Configurations
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], str]:
    """Return the numbers of the arm and of its comparison, paired by seed, and a note on omitted pairs."""
    labels, against = arm_labels(claim), claim.against
    arm = _mean_by_seed(claim, labels, claim.epoch, target, configurations)
    if claim.off_floor is not None:
        _refuse_at_floor(claim, claim.off_floor, target, configurations)
    if isinstance(against, str):
        epoch = claim.epoch if claim.against_epoch is None else claim.against_epoch
        other = _mean_by_seed(replace(claim, site=claim.against_site or claim.site), [against], epoch, target, configurations)
        if claim.against_dead_site:
            other = {seed: other[seed] for seed in _seeds_with_dead_site(configurations[against, target.name])}
    elif claim.against_dead_site:
        raise NotTestable("a constant has no dead site")
    else:
        other = dict.fromkeys(arm, float(against))
    both = sorted(set(arm) & set(other))
    pairs = np.array([(arm[seed], other[seed]) for seed in both], dtype=np.float64).reshape(-1, 2)
    finite = np.isfinite(pairs).all(axis=1)
    note = "" if finite.all() else f"{len(pairs) - finite.sum()} of {len(pairs)} seeds left out as nonfinite or empty"
    return pairs[finite, 0], pairs[finite, 1], note


def _mean_by_seed(
    claim: Claim, labels: Sequence[str], epoch: str | float, target: Target, configurations: Configurations
) -> dict[int, float]:
    """Return seed -> mean over these arms, for the seeds common to all arms. The mean is NaN if one number is nonfinite."""
    columns = []
    for label in labels:
        stored = configurations.get((label, target.name))
        if stored is None or len(stored.seeds) == 0:
            raise NotTestable(f"arm {label!r} has no stored runs on target {target.name!r}")
        numbers = _numbers(claim, label, stored, epoch, target.floor)
        columns.append(dict(zip(stored.seeds.tolist(), numbers.tolist(), strict=True)))
    common = set(columns[0]).intersection(*columns[1:])
    return {seed: math.fsum(column[seed] for column in columns) / len(columns) for seed in sorted(common)}


def _numbers(claim: Claim, label: str, stored: Configuration, epoch: str | float, floor: float) -> Float[np.ndarray, " n"]:
    """Return the number of each stored run of an arm, NaN if nonfinite or empty."""
    series = _series(claim.metric, claim.site, label, stored)
    if claim.over is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            series = series / _series(claim.metric, claim.over, label, stored)
    if epoch in ("min", "max"):
        # A loss is NaN only in a nonfinite run. Other metrics may be empty at some epochs, which fmin and fmax skip.
        least, most = (np.minimum, np.maximum) if claim.metric in LOSSES else (np.fmin, np.fmax)
        extreme = (least if epoch == "min" else most).reduce(series, axis=1)
        is_finite_run = np.isnan(np.asarray(stored.first_bad_epoch, np.float64))
        numbers = np.where(is_finite_run, extreme, np.nan)  # an extreme over all epochs is undefined for other runs
    else:
        numbers = series[:, _epoch_index(epoch, label, stored)]
    numbers = np.where(np.isfinite(numbers), numbers - (floor if claim.excess else 0.0), np.nan)
    if not np.isfinite(numbers).any():
        over = "" if claim.over is None else f" over {claim.over}"
        raise NotTestable(f"{claim.metric}/{claim.site}{over} of {label!r} is empty or nonfinite in every run")
    if claim.equals is not None:  # compare in the precision of the tiles: 0.1 in float32 differs from 0.1 in float64
        stored_as = np.result_type(*stored.values.values())
        numbers = np.where(np.isnan(numbers), np.nan, numbers.astype(stored_as) == claim.equals)
    return numbers


def _series(metric: str, site: str, label: str, stored: Configuration) -> Float[np.ndarray, "n E"]:
    """Return a metric of an arm by run and epoch. Site `last` is the one nearest the output."""
    if site == "last":
        if not stored.sites:
            raise NotTestable(f"{label!r} has no sites")
        site = max(stored.sites, key=lambda name: (len(name), name))  # site_10 comes after site_9
    if f"{metric}/{site}" not in stored.values:
        raise NotTestable(f"{metric}/{site} of {label!r} was not measured")
    return np.asarray(stored.values[f"{metric}/{site}"], dtype=np.float64)


def _epoch_index(epoch: str | float, label: str, stored: Configuration) -> int:
    """Return the index of a measured epoch. Raises NotTestable for an epoch without measurements."""
    if epoch == "last":
        return -1
    matches = np.flatnonzero(np.isclose(stored.epochs, float(epoch), rtol=0, atol=1e-6))
    if not matches.size:
        raise NotTestable(f"epoch {_short(epoch)} of {label!r} was not measured")
    return int(matches[0])


def _seeds_with_dead_site(stored: Configuration) -> list[int]:
    """Return the seeds whose run ends with a site that is dead in all its units."""
    names = [f"dead_fraction/{site}" for site in stored.sites]
    fractions = [stored.values[name][:, -1] for name in names if name in stored.values]
    if not fractions:
        raise NotTestable("the dead fraction of its sites was not measured")
    return stored.seeds[(np.array(fractions) == 1).any(axis=0)].tolist()


def _refuse_at_floor(claim: Claim, off_floor: float, target: Target, configurations: Configurations) -> None:
    """Raise NotTestable if the arm's mean loss exceeds the floor by less than `off_floor` of the target's variance."""
    epoch = "last" if claim.epoch in ("min", "max") else claim.epoch
    loss = replace(claim, metric="val_loss", site="all", over=None, equals=None, excess=True)
    above = np.nanmean(list(_mean_by_seed(loss, arm_labels(claim), epoch, target, configurations).values()))
    if not above >= off_floor * target.variance:
        share = f"{100 * off_floor:.3g} % of the target's variance"
        raise NotTestable(f"the mean loss of {_named(claim)} is {above:.3g} above the floor, less than {share}")


def is_share(claim: Claim) -> bool:
    """Whether the row compares a share of runs with a constant."""
    is_event = claim.equals is not None or (claim.metric in EVENTS and claim.over is None and not claim.excess)
    return is_event and len(arm_labels(claim)) == 1 and not isinstance(claim.against, str)


def arm_labels(claim: Claim) -> list[str]:
    """Return the labels of the claim's arm or arms."""
    return [claim.arm] if isinstance(claim.arm, str) else list(claim.arm)


def _named(claim: Claim) -> str:
    """Return the words for the claim's arm, or for the mean of its arms."""
    labels = arm_labels(claim)
    return labels[0] if len(labels) == 1 else f"the mean of {', '.join(labels[:-1])} and {labels[-1]}"


def _short(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _when(epoch: str | float) -> str:
    """Return the words for an epoch, such as " at epoch 5"."""
    words = {"last": " at the last epoch", "min": " at its least", "max": " at its greatest"}
    return words[str(epoch)] if epoch in words else f" at epoch {float(epoch):g}"


def _where(site: str) -> str:
    """Return the words for a site, such as " at site_1"."""
    return {"last": " at its last site", "all": " at all sites"}.get(site, f" at {site}")


def _contrast(claim: Claim) -> str:
    """Return the words for the compared numbers, such as "relu vs baseline"."""
    against_epoch = claim.against_epoch if isinstance(claim.against, str) else None
    parts = [
        "" if claim.equals is None else f"share of runs at {claim.equals:g}, ",
        _named(claim),
        "" if against_epoch is None else _when(claim.epoch),
        "" if claim.against_site is None else _where(claim.site),
        f" vs {_short(claim.against)}",
        "" if against_epoch is None else _when(against_epoch),
        "" if claim.against_site is None else _where(claim.against_site),
        " with a dead site" if claim.against_dead_site else "",
        ", above the floor" if claim.excess else "",
    ]
    return "".join(parts)
