"""Our rules against cases by hand: fires, just does not fire, too short, nonfinite, one site, sparse but healthy networks."""

from __future__ import annotations

import numpy as np
import pytest
from detector_parts.sparse import sparse_but_healthy
from recorded_runs import NAN, recorded

from relu_study.diagnosis import ours
from relu_study.diagnosis.detector import detectors
from relu_study.diagnosis.history import History

INF = float("inf")
BELOW = np.nextafter(1.0, 0)


DYING, LEARNING = ours.NUMBERS["dying"], ours.NUMBERS["not_learning"]


def dead(*sites: float, network: float = 0.0) -> History:
    """Shares of dead units by site, and in the network."""
    return recorded({"dead_fraction": [[0, share] for share in sites]}, {"dead_fraction": [0, network]})


def test_the_worst_site_has_the_share_of_the_network() -> None:
    assert ours.dying.site_scores(dead(0.25, 0.75, 0.5, network=0.6)).tolist() == [0, 0.6, 0.5 - DYING["margin"]]
    assert ours.dying.scores(dead(0.25, 0.75, network=0.6)) == 0.6


def test_a_dead_site_counts_less_the_margin_in_a_network_that_lives() -> None:
    assert ours.dying.scores(dead(1, 0, 0, network=0.1)) == 1 - DYING["margin"]
    assert ours.dying.fires(dead(1, 0, 0, network=0.1))
    assert not ours.dying.fires(dead(0.7, 0, 0, network=0.2)), "many healthy narrow networks have such a site"


def test_a_site_below_its_least_share_scores_zero() -> None:
    just = DYING["site"] * BELOW
    assert ours.dying.scores(dead(just, just, network=just)) == 0
    assert ours.dying.scores(dead(DYING["site"], network=DYING["site"])) == DYING["site"]


def test_dying_fires_from_its_threshold_on() -> None:
    bound = ours.dying.threshold
    both = [[0, bound], [0, bound * BELOW]]
    history = recorded({"dead_fraction": [[[0, 0.6], [0, 0.6]]]}, {"dead_fraction": both})
    assert ours.dying.fires(history).tolist() == [True, False]


def test_a_missing_share_of_the_network_is_that_of_the_known_sites() -> None:
    """Scalars of another tool, and an inspection, have sites only."""
    history = recorded({"dead_fraction": [[0, 0.5], [0, 0.75], [0, NAN]]}, units={"site_1": 30, "site_2": 10, "site_3": 5})
    assert ours.dying.scores(history) == (15 + 7.5) / 40
    assert ours.dying.scores(recorded({"dead_fraction": [[0, 0.5], [0, 0.75]]})) == 0.625


def test_dying_keeps_the_last_finite_measurement_of_a_nonfinite_run() -> None:
    lost = {"dead_fraction": [0, 0.75, 0]}
    assert ours.dying.scores(recorded({"dead_fraction": [lost["dead_fraction"]]}, lost, first_bad=2)) == 0.75
    assert np.isnan(ours.dying.scores(recorded({"dead_fraction": [lost["dead_fraction"]]}, lost, first_bad=0)))


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


@pytest.mark.parametrize("loss", [[-1.0, -5, -20], [0.0, 1, 2]])
def test_a_loss_that_begins_at_zero_or_below_has_no_ratio(loss: list[float]) -> None:
    assert np.isnan(ours.exploding.scores(recorded(network={"train_loss": loss})))
    assert ours.exploding.scores(recorded(network={"train_loss": loss}, first_bad=1)) == INF


def test_a_fall_from_a_huge_loss_to_the_best_constant_is_not_learning() -> None:
    history = recorded(network={"train_loss": [1e12, *[5.0] * 100]}, constant_loss=1)
    assert ours.not_learning.scores(history) == 5


def test_where_a_constant_is_perfect_there_is_nothing_to_learn() -> None:
    assert np.isnan(ours.not_learning.scores(recorded(network={"train_loss": [1.0] * 101}, constant_loss=0)))


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


def test_not_learning_abstains_in_the_first_fifth_and_waits_until_after() -> None:
    """Of 100 epochs: silent before epoch 5; a flat loss counts from epoch 25 on, clear evidence from epoch 5 on."""
    assert LEARNING["after"] == 0.25
    flat = recorded(network={"train_loss": [1.0] * 101}, constant_loss=1)
    scores = ours.not_learning.over_time(flat)
    assert np.isnan(scores[:5]).all() and (scores[5:25] == 0).all() and (scores[25:] == 1).all()


@pytest.mark.parametrize("share", [1.0, BELOW])
def test_a_loss_far_above_the_best_constant_counts_early(share: float) -> None:
    loss = LEARNING["early"] * share
    history = recorded(network={"train_loss": [loss] * 101}, constant_loss=1)
    assert ours.not_learning.over_time(history)[5] == (loss if share == 1 else 0)


def test_a_constant_output_counts_early() -> None:
    history = recorded(network={"train_loss": [1.0] * 101, "constant": [1.0] * 101}, constant_loss=1)
    assert ours.not_learning.first_flag(history) == 5


def test_a_nonfinite_run_does_not_learn() -> None:
    history = recorded(network={"train_loss": [1.0] * 101}, first_bad=8, constant_loss=1)
    assert ours.not_learning.first_flag(history) == 8 and ours.not_learning.scores(history) == INF


def test_a_record_that_is_too_short_is_not_judged() -> None:
    assert np.isnan(ours.not_learning.scores(recorded(network={"train_loss": [1.0]}, constant_loss=1)))


def test_every_rule_has_at_most_three_numbers() -> None:
    assert all(len(numbers) <= 3 and numbers["threshold"] == detectors[name].threshold for name, numbers in ours.NUMBERS.items())
    assert set(ours.NUMBERS) == {name for name in detectors if not detectors[name].rival}
