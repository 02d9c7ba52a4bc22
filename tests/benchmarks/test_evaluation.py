"""Error rates of the benchmark of detectors, by hand, and thresholds that read the tuning half only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from detector_parts import tuning
from detector_parts.evaluation import Labels, Scores, auc, interval, rates, resampled

from relu_study.diagnosis import thresholds
from relu_study.diagnosis.detector import Detector
from relu_study.diagnosis.diagnose import OURS
from relu_study.errors import UserError

NAN = np.nan
PROGRESS = np.array([0.0, 0.1, 0.25, 1.0])


def scored(over_time: Any, threshold: float = 0.5, problem: str = "dying") -> Scores:
    rule = Detector(
        name="rule", problem=problem, threshold=threshold, requires=(), reads=(), source="", adaptation="", rival=False,
        quantity="", units_of="", text="", function=lambda history: history.overall(""),
    )  # fmt: skip
    return Scores(rule, np.asarray(over_time, float))


def labelled(sick: Any, healthy: Any, onset: Any = 0, problem: str = "dying", configuration: Any = None) -> Labels:
    sick, healthy = np.asarray(sick, bool), np.asarray(healthy, bool)
    number = np.arange(len(sick)) if configuration is None else np.asarray(configuration)
    return Labels(problem, "sign", sick, healthy, np.broadcast_to(np.asarray(onset), sick.shape), number, PROGRESS)


def rate(found: Scores, truth: Labels) -> dict[str, float]:
    return {name: float(values[0]) for name, values in rates(found, truth, np.ones((1, len(truth.sick)))).items()}


FOUR = scored([[0, 0, 0.6, 0.6], [0, 0, 0, 0.4], [0, 0.7, 0, 0], [NAN] * 4])


def test_alarm_counts_at_any_measurement_and_abstaining_on_a_sick_run_is_a_miss() -> None:
    found = rate(FOUR, labelled([1, 1, 0, 0], [0, 0, 1, 1]))
    assert (found["recall"], found["false_alarms"], found["balanced_accuracy"]) == (0.5, 0.5, 0.5)
    assert found["coverage"] == 0.75
    assert rate(FOUR, labelled([0, 1, 0, 1], [1, 0, 1, 0]))["recall"] == 0


def test_runs_of_no_class_do_not_count() -> None:
    found = rate(FOUR, labelled([1, 0, 0, 0], [0, 0, 0, 1]))
    assert (found["recall"], found["false_alarms"]) == (1, 0)


def test_delay_is_from_onset_and_early_recall_among_early_onsets() -> None:
    """Flags at measurement 2 and 1; onsets at 1 and 3."""
    truth = labelled([1, 0, 1, 0], [0, 1, 0, 0], onset=[1, 0, 3, 0])
    found = rate(FOUR, truth)
    assert found["recall_at_0.1"] == 0 and found["recall_at_0.25"] == 1
    assert found["delay"] == -2 and found["delay_share"] == pytest.approx(-0.9)
    assert rate(FOUR, labelled([1, 0, 0, 0], [0, 1, 0, 0], onset=1))["delay"] == 1


def test_precision_at_a_base_rate() -> None:
    found = rate(scored([[1, 1, 1, 1], [0, 0, 0, 1], [0] * 4, [0] * 4]), labelled([1, 0, 0, 0], [0, 1, 1, 1]))
    assert found["precision_at_0.1"] == pytest.approx(0.1 / (0.1 + 0.9 / 3)) and found["precision_at_0.5"] == pytest.approx(0.75)


def test_auc_counts_pairs_with_ties_as_half_and_abstaining_lowest() -> None:
    generator = np.random.default_rng(1)
    score = generator.integers(0, 4, 40).astype(float)
    score[:5], score[5] = NAN, np.inf
    sick, healthy = generator.random(40) < 0.4, np.zeros(40, bool)
    healthy[~sick] = True
    low = np.where(np.isnan(score), -1e9, score)
    pairs = np.mean([(a > b) + (a == b) / 2 for a in low[sick] for b in low[healthy]])
    assert auc(score, sick[None].astype(float), healthy[None].astype(float))[0] == pytest.approx(pairs)


def test_configurations_are_resampled_with_their_twins() -> None:
    configuration, twins = np.array([0, 0, 1, 1, 2, 2, 3, 3]), np.array([0, 0, 2, 2])
    weight = resampled(configuration, np.ones(8, bool), twins)
    assert (weight[0] == 1).all() and (weight[:, :4] == weight[:, :1]).all() and (weight[:, 4:] == weight[:, 4:5]).all()
    assert (weight[:, 0] + weight[:, 4] == 2).all() and len(np.unique(weight[:, 0])) == 3


def test_interval_is_of_the_resamples() -> None:
    values = np.concatenate([[0.3], np.linspace(0, 1, 1001)])
    assert interval(values) == pytest.approx((0.3, 0.025, 0.975))


# ------------------------------------------------------------------------------------------- no leakage


def suite(seed: int = 0, runs: int = 4_000) -> tuple[dict[str, Scores], list[Labels], np.ndarray]:
    """Scores of our four rules that tell sick from healthy runs; half of the configurations tune."""
    generator = np.random.default_rng(seed)
    found, labels = {}, []
    for problem in OURS:
        sick = generator.random(runs) < 0.3
        found[problem] = scored(generator.normal(3.0 * sick)[:, None].repeat(4, axis=1), problem=problem)
        labels.append(labelled(sick, ~sick, problem=problem))
    return found, labels, np.arange(runs) < runs // 2


def permuted(labels: list[Labels], inside: np.ndarray, seed: int = 3) -> list[Labels]:
    order = np.arange(len(inside))
    order[inside] = np.random.default_rng(seed).permutation(order[inside])
    return [labelled(one.sick[order], one.healthy[order], problem=one.problem) for one in labels]


def file(found: dict[str, Scores], labels: list[Labels], tuning_half: np.ndarray) -> str:
    numbers = tuning.chosen(found, labels, tuning_half)
    return thresholds.as_json({name: {"threshold": number} for name, number in numbers.items()})


def held_out(found: dict[str, Scores], labels: list[Labels], tuning_half: np.ndarray, problem: str = "dying") -> float:
    """Balanced accuracy on the held-out half with the chosen threshold; 0.5 where none can be chosen."""
    try:
        threshold = tuning.chosen(found, [one for one in labels if one.problem == problem], tuning_half)[problem]
    except UserError:
        return 0.5
    truth = next(one for one in suite()[1] if one.problem == problem).only(~tuning_half)
    return rate(scored(found[problem].over_time, threshold), truth)["balanced_accuracy"]


def test_held_out_labels_do_not_reach_the_thresholds() -> None:
    found, labels, tuning_half = suite()
    expected = file(found, labels, tuning_half)
    assert file(found, permuted(labels, ~tuning_half), tuning_half) == expected
    assert file(found, [one.only(tuning_half) for one in labels], tuning_half) == expected, "deleted"
    half = np.arange(len(tuning_half)) < len(tuning_half) // 4
    assert file(found, labels, half) != expected, "other tuning runs give other thresholds"


def test_permuted_tuning_labels_leave_chance() -> None:
    found, labels, tuning_half = suite()
    assert held_out(found, labels, tuning_half) > 0.8
    chance = [held_out(found, permuted(labels, tuning_half, seed), tuning_half) for seed in range(10)]
    assert np.mean(chance) == pytest.approx(0.5, abs=0.03)
