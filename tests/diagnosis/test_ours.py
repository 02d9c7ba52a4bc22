"""Our rules against cases by hand: fires, just does not fire, too short, nonfinite, one site, sparse but healthy networks."""

from __future__ import annotations

import numpy as np
import pytest
from recorded_runs import NAN, recorded, sparse_but_healthy

from relu_study.diagnosis import ours
from relu_study.diagnosis.detector import detectors
from relu_study.diagnosis.history import History

INF = float("inf")
BELOW = np.nextafter(1.0, 0)


def test_dying_is_the_largest_share_of_dead_units_at_the_end() -> None:
    history = recorded({"dead_fraction": [[0, 0.9, 0.25], [0, 0, 0.75]]})
    assert ours.dying.scores(history) == 0.75
    assert ours.dying.site_scores(history).tolist() == [0.25, 0.75]


def test_dying_fires_from_its_threshold_on() -> None:
    bound = ours.dying.threshold
    history = recorded({"dead_fraction": [[[0, bound], [0, bound * BELOW]]]})
    assert ours.dying.fires(history).tolist() == [True, False]


def test_dying_keeps_the_last_finite_measurement_of_a_nonfinite_run() -> None:
    assert ours.dying.scores(recorded({"dead_fraction": [[0, 0.75, 0]]}, first_bad=2)) == 0.75
    assert np.isnan(ours.dying.scores(recorded({"dead_fraction": [[0, 0.75, 0]]}, first_bad=0)))


@pytest.mark.parametrize("active", [25, 4])
def test_a_sparse_but_healthy_network_is_not_dying(active: int) -> None:
    history = sparse_but_healthy(active)
    assert history.by_site("zero_entries")[-1, 0] == 1 - active / 100
    assert ours.dying.scores(history) == 0
    assert not any(detectors[name].fires(history) for name in ("dying", "exploding", "vanishing", "not_learning"))


def test_exploding_is_the_loss_over_its_first_value() -> None:
    bound = ours.exploding.threshold
    history = recorded(network={"train_loss": [[0.5, 9, 0.5 * bound], [0.5, 9, 0.5 * bound * BELOW]]})
    assert ours.exploding.scores(history)[0] == bound
    assert ours.exploding.fires(history).tolist() == [True, False]


@pytest.mark.parametrize("first_bad", [0, 1, 2])
def test_a_nonfinite_run_explodes_from_its_first_nonfinite_measurement(first_bad: int) -> None:
    history = recorded(network={"train_loss": [0.5, 0.4, 0.3]}, first_bad=first_bad)
    assert ours.exploding.scores(history) == INF and ours.exploding.first_flag(history) == first_bad


def test_vanishing_compares_the_gradient_of_a_site_with_the_largest_later_one() -> None:
    gradients = [[0, 0.01, 0.01], [1, 2, 1], [0.2, 0.4, 0.4]]
    history = recorded({"grad_norm": gradients, "weight_norm": [[2, 3, 3], [4, 9, 9], [10, 1, 1]]})
    # sums over first weight norms: 0.02 / 2, 4 / 4, 1 / 10; the largest from each site on: 1, 1, 0.1
    np.testing.assert_allclose(ours.vanishing.site_scores(history), [2, 0, 0], atol=1e-12)


def test_vanishing_fires_from_its_threshold_on() -> None:
    small = 10.0**-ours.vanishing.threshold
    gradients = [[[small * 0.999], [small * 1.001]], [[1], [1]]]
    history = recorded({"grad_norm": gradients, "weight_norm": [np.ones((2, 1)), np.ones((2, 1))]})
    assert ours.vanishing.fires(history).tolist() == [True, False]


def test_a_converged_network_is_not_vanishing() -> None:
    early, late = 0.4 ** np.arange(20.0), 0.5 ** np.arange(20.0)  # both gradients fall, the first one a little faster
    history = recorded({"grad_norm": [early.tolist(), late.tolist()], "weight_norm": [[1] * 20, [1] * 20]})
    assert late[-1] / early[-1] > 60 and early[-1] < 1e-7
    np.testing.assert_allclose(ours.vanishing.scores(history), np.log10(2 / (1 / 0.6)), atol=1e-4)


def test_a_site_without_gradient_is_infinite_unless_no_later_one_has_any() -> None:
    ones = [[1, 1], [1, 1]]
    assert ours.vanishing.scores(recorded({"grad_norm": [[0, 0], [0, 1]], "weight_norm": ones})) == INF
    assert np.isnan(ours.vanishing.scores(recorded({"grad_norm": [[0, 0], [0, 0]], "weight_norm": ones})))


def test_vanishing_needs_two_sites() -> None:
    assert np.isnan(ours.vanishing.scores(recorded({"grad_norm": [[1, 1]], "weight_norm": [[1, 1]]})))


def test_gradients_of_nonfinite_measurements_do_not_count() -> None:
    history = recorded({"grad_norm": [[0, 0.1, 99], [0, 1, 1]], "weight_norm": [[1] * 3, [1] * 3]}, first_bad=2)
    np.testing.assert_allclose(ours.vanishing.scores(history), 1)


def flat_loss(share: float, constant_loss: float = NAN) -> History:
    return recorded(network={"train_loss": [share] * 9}, constant_loss=constant_loss)


def test_not_learning_compares_with_the_best_constant_or_else_the_first_loss() -> None:
    assert ours.not_learning.scores(flat_loss(3, constant_loss=4)) == 0.75
    assert ours.not_learning.scores(flat_loss(3)) == 1


def test_not_learning_fires_from_its_threshold_on() -> None:
    bound = ours.not_learning.threshold
    assert ours.not_learning.fires(flat_loss(bound, constant_loss=1))
    assert not ours.not_learning.fires(flat_loss(bound * BELOW, constant_loss=1))


def test_not_learning_abstains_early() -> None:
    after = ours.NUMBERS["not_learning"]["after"]
    history = flat_loss(1, constant_loss=1)  # epochs 0 to 8
    scores = ours.not_learning.over_time(history)
    assert np.isnan(scores).tolist() == [epoch < after * 8 for epoch in range(9)]


def test_a_loss_that_still_falls_is_learning() -> None:
    fall = ours.NUMBERS["not_learning"]["fall"]
    losses = [9, 8, 7, 6, 4, 4, 4, 4, 4 * (1 - fall) * 0.999], [9, 8, 7, 6, 4, 4, 4, 4, 4 * (1 - fall) * 1.001]
    history = recorded(network={"train_loss": np.array(losses)}, constant_loss=2)
    scores = ours.not_learning.scores(history)
    assert scores[0] == 0 and scores[1] == pytest.approx(2 * (1 - fall) * 1.001)


def test_a_run_that_ends_early_as_nonfinite_is_not_judged() -> None:
    assert np.isnan(ours.not_learning.scores(recorded(network={"train_loss": [1] * 9}, first_bad=2, constant_loss=1)))


def test_every_rule_has_at_most_three_numbers() -> None:
    assert all(len(numbers) <= 3 and numbers["threshold"] == detectors[name].threshold for name, numbers in ours.NUMBERS.items())
    assert set(ours.NUMBERS) == {name for name in detectors if not detectors[name].rival}
