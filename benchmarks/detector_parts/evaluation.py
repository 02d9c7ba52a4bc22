"""Detections of every detector on every run, and error rates with bootstrap intervals over configurations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from detector_parts.truth import Truth
from detector_parts.truth import constant_loss as source_constant
from relu_study.diagnosis.detector import Detector, detectors
from relu_study.diagnosis.history import History
from relu_study.storage.configurations import Configuration as Stored

RESAMPLES = 1_000
EARLY = (0.10, 0.25)  # shares of training
BASE_RATES = (0.01, 0.10, 0.50)


def history(runs: Stored, constant_loss: float) -> History:
    """Return the recorded metrics of a configuration, as a detector sees them.

    `constant_loss`, of the best constant prediction on all rows, stands in for that of each run's probe set in older tiles.
    """
    bad = runs.epochs[None, :] >= np.where(np.isnan(runs.first_bad_epoch), np.inf, runs.first_bad_epoch)[:, None]
    values = {name: np.where(bad, np.nan, value.astype(float)) for name, value in runs.values.items()}
    units = {site: mask.shape[-1] for site, mask in runs.dead.items()}
    constant = np.full(len(runs.run_ids), constant_loss) if runs.constant_loss is None else runs.constant_loss.astype(float)
    return History(runs.epochs.astype(float), tuple(runs.sites), values, ~bad, constant, float(runs.epochs[-1]), units)


@dataclass(frozen=True)
class Scores:
    """Scores of one detector over the measurements of every run: R runs of all configurations, E measurements."""

    detector: Detector
    over_time: Float[np.ndarray, "R E"]

    @property
    def fires(self) -> Bool[np.ndarray, "R E"]:
        """Whether the detector has fired by each measurement."""
        return np.logical_or.accumulate(self.over_time >= self.detector.threshold, axis=1)

    @property
    def at_end(self) -> Bool[np.ndarray, " R"]:
        """Whether the detector fires at the end of training, as `diagnose` reports it."""
        return np.asarray(self.over_time[:, -1] >= self.detector.threshold)

    @property
    def first(self) -> Int[np.ndarray, " R"]:
        """The first measurement that fires; the number of measurements if none does."""
        fires = self.fires
        return np.where(fires[:, -1], fires.argmax(axis=1), fires.shape[1])

    @property
    def largest(self) -> Float[np.ndarray, " R"]:
        """The largest score of each run; NaN: the detector abstains."""
        known = ~np.isnan(self.over_time)
        return np.where(known.any(axis=1), np.where(known, self.over_time, -np.inf).max(axis=1), np.nan)


def scores(truths: Sequence[Truth], stored: Sequence[Stored], only: Sequence[str] | None = None) -> dict[str, Scores]:
    """Return the scores of every detector, or of `only` these, with the runs of the configurations in order."""
    histories = [history(runs, source_constant(one.configuration.source)) for one, runs in zip(truths, stored, strict=True)]
    return {
        name: Scores(detectors[name], np.concatenate([detectors[name].over_time(one) for one in histories]))
        for name in (detectors if only is None else only)
    }


def unknown_constant(detector: Detector, stored: Sequence[Stored]) -> dict[str, Scores]:
    """Return the scores of a detector that does not know the loss of the best constant, as in a monitor."""
    name = f"{detector.name}_unknown_constant"
    histories = [
        dataclasses.replace(one, constant_loss=one.constant_loss * np.nan) for one in (history(runs, 1.0) for runs in stored)
    ]
    over_time = np.concatenate([detector.over_time(one) for one in histories])
    return {name: Scores(dataclasses.replace(detector, name=name), over_time)}


@dataclass(frozen=True)
class Labels:
    """The classes of all runs for one problem and one definition of truth. Arrays have one entry per run."""

    problem: str
    truth: str
    sick: Bool[np.ndarray, " R"]
    healthy: Bool[np.ndarray, " R"]
    onset: Int[np.ndarray, " R"]
    configuration: Int[np.ndarray, " R"]  # its number
    progress: Float[np.ndarray, "E"]  # share of training at each measurement

    def only(self, configurations: Bool[np.ndarray, " C"]) -> Labels:
        """Return the labels with the runs of other configurations in no class."""
        inside = configurations[self.configuration]
        return Labels(
            self.problem, self.truth, self.sick & inside, self.healthy & inside, self.onset, self.configuration, self.progress
        )


def labels(
    problem: str, truths: Sequence[Truth], progress: Float[np.ndarray, "E"], name: str = "sign", sign: bool = True
) -> Labels:
    """Return the classes of all runs for a problem, from the truth about each configuration."""
    number = np.concatenate([np.full(len(one.learned), i) for i, one in enumerate(truths)])
    return Labels(
        problem,
        name,
        np.concatenate([one.sick(problem, sign) for one in truths]),
        np.concatenate([one.healthy() for one in truths]),
        np.concatenate([one.onset(problem) for one in truths]),
        number,
        progress,
    )


def auc(
    score: Float[np.ndarray, " R"], sick: Float[np.ndarray, "B R"], healthy: Float[np.ndarray, "B R"]
) -> Float[np.ndarray, " B"]:
    """Return the area under the ROC curve with weights of sick and healthy runs; ties count half. NaN scores are lowest."""
    _, rank = np.unique(np.nan_to_num(score, nan=-np.inf, posinf=np.inf, neginf=-np.inf), return_inverse=True)
    order = np.argsort(rank, kind="stable")
    starts = np.flatnonzero(np.diff(rank[order], prepend=-1))
    of_sick, of_healthy = (np.add.reduceat(weights[:, order], starts, axis=1) for weights in (sick, healthy))
    below = np.cumsum(of_healthy, axis=1) - of_healthy / 2
    with np.errstate(invalid="ignore"):
        return (of_sick * below).sum(axis=1) / (of_sick.sum(axis=1) * of_healthy.sum(axis=1))


def rates(found: Scores, truth: Labels, weight: Float[np.ndarray, "B R"]) -> dict[str, Float[np.ndarray, " B"]]:
    """Return the error rates of a detector with B weightings of the runs.

    Delays are over sick runs that fire, from the onset; earlier flags have negative delays. Early recall is over runs whose
    onset is at most that share of training.
    """
    fires, first = found.fires[:, -1], found.first
    sick, healthy = weight * truth.sick, weight * truth.healthy
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, alarms = _mean(fires, sick), _mean(fires, healthy)
        result = {
            "recall": recall,
            "false_alarms": alarms,
            "balanced_accuracy": (recall + 1 - alarms) / 2,
            "auc": auc(found.largest, sick, healthy),
            "coverage": _mean(~np.isnan(found.largest), sick + healthy),
            "recall_at_end": _mean(found.at_end, sick),
            "false_alarms_at_end": _mean(found.at_end, healthy),
            **{f"precision_at_{rate:g}": recall * rate / (recall * rate + alarms * (1 - rate)) for rate in BASE_RATES},
        }
        last = len(truth.progress) - 1
        for share in EARLY:
            before = truth.progress[np.minimum(truth.onset, last)] <= share
            by_then = truth.progress[np.minimum(first, last)] <= share
            result[f"recall_at_{share:g}"] = _mean(fires & by_then, sick * before)
        delayed = sick * fires * (truth.onset <= last)  # without a sign there is no onset
        result["delay"] = _median(first - truth.onset, delayed)
        progress = truth.progress[np.minimum(first, last)] - truth.progress[np.minimum(truth.onset, last)]
        result["delay_share"] = _median(progress, delayed)
    return result


def _mean(values: Any, weight: Float[np.ndarray, "B R"]) -> Float[np.ndarray, " B"]:
    return weight @ np.asarray(values, float) / weight.sum(axis=1)


def _median(values: Any, weight: Float[np.ndarray, "B R"]) -> Float[np.ndarray, " B"]:
    """Return the weighted median; NaN without weight."""
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weight[:, order], axis=1)
    place = (total >= total[:, -1:] / 2).argmax(axis=1)
    return np.where(total[:, -1] > 0, np.asarray(values, float)[order][place], np.nan)


def resampled(
    configuration: Int[np.ndarray, " R"], counted: Bool[np.ndarray, " R"], twins: Int[np.ndarray, " C"]
) -> Float[np.ndarray, "B R"]:
    """Return weights of runs in bootstrap samples. Configurations are drawn with replacement, with their twin: the group.

    The first weighting is 1 for every run.
    """
    groups = np.unique(twins[configuration[counted]])
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(len(groups), np.full(len(groups), 1 / max(len(groups), 1)), size=RESAMPLES)
    weight = np.zeros((RESAMPLES + 1, twins.max() + 1))
    weight[0, groups] = 1
    weight[1:, groups] = drawn
    return weight[:, twins[configuration]]


def interval(values: Float[np.ndarray, " B"]) -> tuple[float, float, float]:
    """Return an estimate with its 95 % percentile interval; the first value is the estimate."""
    known = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(known, (0.025, 0.975)) if known.size else (np.nan, np.nan)
    return float(values[0]), float(low), float(high)


def table(
    found: Mapping[str, Scores],
    all_labels: Sequence[Labels],
    splits: Mapping[str, Bool[np.ndarray, " C"]],
    twins: Int[np.ndarray, " C"],
) -> pd.DataFrame:
    """Return one row per detector, split and definition of truth, with every rate and its interval."""
    return pd.DataFrame(list(_rows(found, all_labels, splits, twins)))


def _rows(
    found: Mapping[str, Scores],
    all_labels: Sequence[Labels],
    splits: Mapping[str, Bool[np.ndarray, " C"]],
    twins: Int[np.ndarray, " C"],
) -> Iterator[dict[str, Any]]:
    for split, members in splits.items():
        for every in all_labels:
            truth = every.only(members)
            counted = truth.sick | truth.healthy
            weight = resampled(truth.configuration, counted, twins)
            for name, scored in found.items():
                if scored.detector.problem != truth.problem:
                    continue
                row = {
                    "detector": name,
                    "problem": truth.problem,
                    "rival": scored.detector.rival,
                    "split": split,
                    "truth": truth.truth,
                    "threshold": scored.detector.threshold,
                    "sick": int(truth.sick.sum()),
                    "sick_configurations": len(np.unique(truth.configuration[truth.sick])),
                    "healthy": int(truth.healthy.sum()),
                }
                for rate, values in rates(scored, truth, weight).items():
                    row[rate], row[f"{rate}_lo"], row[f"{rate}_hi"] = interval(values)
                yield row


def named_rightly(
    found: Mapping[str, Scores], order: Sequence[str], truths: Sequence[Truth], members: Bool[np.ndarray, " C"]
) -> tuple[int, int]:
    """Return how many sick runs with a finding have a first-named problem that they have, and the number of sick runs.

    The named problem is the first of `order` that fires at the end of training.
    """
    sick = {problem: np.concatenate([one.sick(problem) for one in truths]) for problem in order}
    inside = np.concatenate([np.full(len(one.learned), member) for one, member in zip(truths, members, strict=True)])
    any_sick = np.logical_or.reduce(list(sick.values())) & inside
    firing = np.stack([found[problem].over_time[:, -1] >= found[problem].detector.threshold for problem in order])
    named = np.where(firing.any(axis=0), firing.argmax(axis=0), -1)
    right = np.zeros(len(inside), bool)
    for i, problem in enumerate(order):
        right |= (named == i) & sick[problem]
    return int((right & any_sick).sum()), int(any_sick.sum())
