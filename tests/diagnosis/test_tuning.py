"""The choice of a threshold against brute force and cases by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relu_study.diagnosis.tuning import choose_threshold
from relu_study.errors import UserError

NAN, INF = float("nan"), float("inf")
SCORES = st.sampled_from([NAN, -INF, 0.0, 0.25, 0.5, 0.75, 1.0, INF])


def balanced_accuracy(scores: np.ndarray, sick: np.ndarray, threshold: float) -> tuple[float, float]:
    hits = sum(bool(s >= threshold) for s, bad in zip(scores, sick) if bad) / sick.sum()
    alarms = sum(bool(s >= threshold) for s, bad in zip(scores, sick) if not bad) / (~sick).sum()
    return (hits + 1 - alarms) / 2, alarms


def test_separable_scores_get_the_midpoint_of_the_gap() -> None:
    assert choose_threshold(np.array([0.0, 0.2, 0.6, 1.0]), np.array([False, False, True, True])) == pytest.approx(0.4)


def test_false_alarms_are_limited() -> None:
    scores = np.array([0.1, 0.5, 0.4, 0.9, 0.45, 0.47])
    sick = np.array([False, False, True, True, True, True])
    assert choose_threshold(scores, sick, max_false_alarms=0.5) == pytest.approx(0.25)  # all four hits, one alarm of two
    assert choose_threshold(scores, sick, max_false_alarms=0.49) == pytest.approx(0.7)  # one hit, no alarm


def test_ties_go_to_the_higher_threshold() -> None:
    scores, sick = np.array([0.0, 1.0, 2.0, 3.0]), np.array([False, True, False, True])
    assert choose_threshold(scores, sick, max_false_alarms=1) == pytest.approx(2.5)  # 0.75 at 0.5 and at 2.5


def test_nan_never_fires_and_infinity_always_does() -> None:
    scores, sick = np.array([0.5, NAN, INF, NAN]), np.array([False, False, True, True])
    threshold = choose_threshold(scores, sick)
    assert threshold == np.nextafter(0.5, 1)


@given(st.lists(st.tuples(SCORES, st.booleans()), min_size=2, max_size=12), st.sampled_from([0.0, 0.2, 0.5, 1.0]))
def test_no_other_threshold_is_better(runs: list[tuple[float, bool]], limit: float) -> None:
    scores, sick = np.array([score for score, _ in runs]), np.array([bad for _, bad in runs])
    if not sick.any() or sick.all() or not np.isfinite(scores).any():
        with pytest.raises(UserError, match=r"runs with and without|finite score"):
            choose_threshold(scores, sick, limit)
        return
    grid = [-0.1, 0, 0.1, 0.25, 0.3, 0.5, 0.6, 0.75, 0.9, 1.0, 1.1]
    allowed = [accuracy for accuracy, alarms in (balanced_accuracy(scores, sick, t) for t in grid) if alarms <= limit]
    if not allowed:
        with pytest.raises(UserError, match="false alarms"):
            choose_threshold(scores, sick, limit)
        return
    accuracy, alarms = balanced_accuracy(scores, sick, choose_threshold(scores, sick, limit))
    assert alarms <= limit and accuracy == pytest.approx(max(allowed))
