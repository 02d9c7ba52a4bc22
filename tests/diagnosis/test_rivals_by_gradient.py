"""Rules of other tools on gradients and losses against cases by hand."""

from __future__ import annotations

import numpy as np
import pytest
from recorded_runs import NAN, recorded

from relu_study.diagnosis import rivals_by_gradient as rivals
from relu_study.diagnosis.detector import Detector
from relu_study.diagnosis.history import History

INF = float("inf")


def test_sagemaker_vanishing_gradient_is_below_its_bound() -> None:
    history = recorded({"grad_mean_abs": [[[1, 0.99e-7], [1, 1e-7], [0, 1], [0, NAN]], [[1, 1], [1, 1], [1, 1], [1, NAN]]]})
    assert rivals.sagemaker_vanishing_gradient.fires(history).tolist() == [True, False, False, False]
    assert rivals.sagemaker_vanishing_gradient.scores(history)[:3].tolist() == [-0.99e-7, -1e-7, -1]


@pytest.mark.parametrize("rule", [rivals.sagemaker_exploding_tensor, rivals.deeplocalize_nonfinite])
def test_nonfinite_rules(rule: Detector) -> None:
    assert rule.scores(recorded({"a": [[1, 2, 3]]})) == 0
    assert rule.first_flag(recorded({"a": [[1, 2, 3]]}, first_bad=1)) == 1
    assert rule.fires(recorded({"a": [[1, 2, 3]]}, first_bad=0))


def gradients(first: list[float], last: list[float], loss: float = 1.0) -> History:
    """Return eleven measurements (epochs 0 to 10) that begin with the given gradient norms and then repeat the last."""
    norms = [[*values, *[values[-1]] * (11 - len(values))] for values in (first, last)]
    return recorded({"grad_norm": norms}, {"train_loss": [1.0] * 5 + [loss] * 6}, constant_loss=1)


def test_autotrainer_vanishing_needs_a_small_norm_and_a_small_ratio_at_one_check() -> None:
    rule = rivals.autotrainer_vanishing
    assert rule.fires(gradients([0.9e-4], [0.1]))  # ratio 9e-4
    assert not rule.fires(gradients([1e-4], [0.2]))  # norm not below 1e-4
    assert not rule.fires(gradients([0.9e-4], [0.09]))  # ratio not below 1e-3
    assert not rule.fires(gradients([0.9e-4, 0.2], [0.01, 500]))  # each at another check
    assert rule.fires(gradients([0.9e-4, 1], [0.1, 1]))  # at the first check only
    assert rule.scores(gradients([0.5e-4], [0.1])) == pytest.approx(2)  # min(1e-3 / 5e-4, 1e-4 / 5e-5)
    assert np.isnan(rule.scores(gradients([0.0], [0.0])))


def test_autotrainer_judges_unconverged_networks_from_thirty_percent_on() -> None:
    rule = rivals.autotrainer_vanishing
    history = gradients([0.9e-4], [0.1])
    assert rule.first_flag(history) == 3 and np.isnan(rule.over_time(history)[:3]).all()
    assert rule.scores(gradients([0.9e-4], [0.1], loss=0.29)) == 0  # converged: below 0.3 of the constant's
    assert rule.fires(gradients([0.9e-4], [0.1], loss=0.31))


def test_autotrainer_reads_accuracy_where_it_is_recorded() -> None:
    losses, accuracy = np.ones((3, 5)), np.array([[0, 0.2, 0.69, 0.5, 0.5], [0, 0.2, 0.7, 0.5, 0.5], [NAN] * 5])
    sites = {"grad_norm": [np.full((3, 5), 1e-5), np.ones((3, 5))]}
    history = recorded(sites, {"train_loss": losses, "accuracy": accuracy})
    assert rivals.autotrainer_vanishing.fires(history).tolist() == [True, False, True]
    assert rivals.autotrainer_slow_convergence.fires(history).tolist() == [False, False, True]


def test_autotrainer_exploding_is_a_ratio_above_seventy_or_a_nonfinite_value() -> None:
    rule = rivals.autotrainer_exploding
    assert rule.fires(gradients([71], [1])) and not rule.fires(gradients([70], [1]))
    assert not rule.fires(gradients([71], [1], loss=0.1))
    nonfinite = recorded({"grad_norm": [[1, 1], [1, 1]]}, {"train_loss": [1, 1]}, first_bad=1)
    assert rule.scores(nonfinite) == INF


def test_autotrainer_dying_relu_is_a_share_of_all_gradient_entries() -> None:
    zeros = np.array([[0, 0.7, 0, 0, 0], [0, 0.69, 0, 0, 0]])
    history = recorded({"zero_gradients": [np.ones((2, 5))]}, {"zero_gradients": zeros, "train_loss": np.ones((2, 5))})
    assert rivals.autotrainer_dying_relu.scores(history).tolist() == [0.7, 0.69]
    assert rivals.autotrainer_dying_relu.fires(history).tolist() == [True, False]
    assert rivals.autotrainer_dying_relu.first_flag(history).tolist() == [2, -1]  # 30 % of 4 epochs


def test_autotrainer_slow_convergence_is_no_gain_of_a_hundredth() -> None:
    losses = np.array([[1, 0.995, 0.99, 0.985, 0.98], [1, 0.995, 0.98, 0.98, 0.98], [1, 1.1, 1.2, 1.3, 1.4]])
    history = recorded(network={"train_loss": losses})
    assert rivals.autotrainer_slow_convergence.fires(history).tolist() == [True, False, True]
    np.testing.assert_allclose(rivals.autotrainer_slow_convergence.scores(history), [-0.005, -0.015, 0], atol=1e-12)
    assert np.isnan(rivals.autotrainer_slow_convergence.scores(recorded(network={"train_loss": [1.0]}))).all()


def test_sagemaker_loss_not_decreasing_compares_ten_measurements() -> None:
    losses = np.ones((3, 12))
    losses[0, 11], losses[1, 11], losses[2, 1] = 0.9991, 0.9989, 2
    scores = rivals.sagemaker_loss_not_decreasing.scores(recorded(network={"train_loss": losses}))
    np.testing.assert_allclose(scores, [-0.09, -0.11, -50])
    assert rivals.sagemaker_loss_not_decreasing.fires(recorded(network={"train_loss": losses})).tolist() == [True, False, False]
    assert np.isnan(rivals.sagemaker_loss_not_decreasing.scores(recorded(network={"train_loss": losses[0, :10]})))


def test_torchmortem_vanishing_is_a_ratio_of_means_over_the_later_half() -> None:
    rule = rivals.torchmortem_vanishing
    runs = [[9, 9, 1, 3], [9, 9, 1, 3], [9, 9, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], [[0, 0, 200, 200], [0, 0, 200, 199]]
    first, last = runs[0], [*runs[1], [1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]
    history = recorded({"grad_norm": [first, last]})
    np.testing.assert_allclose(rule.scores(history), [100, 99.75, INF, 0, INF])
    assert rule.fires(history).tolist() == [True, False, True, False, True]
    assert np.isnan(rule.scores(recorded({"grad_norm": [[1, 1]]})))


def test_torchmortem_exploding_is_a_norm_above_a_thousand_at_any_measurement() -> None:
    history = recorded({"grad_norm": [[[1, 1001, 1], [1, 1000, 1]], [[1, 1, 1], [1, 1, 1]]]})
    assert rivals.torchmortem_exploding.fires(history).tolist() == [True, False]
    assert rivals.torchmortem_exploding.site_scores(history).tolist() == [[1001, 1], [1000, 1]]
