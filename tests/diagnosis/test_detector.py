"""The decorator, the registry, and what every registered detector promises."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from recorded_runs import NAN, recorded

from relu_study.diagnosis.detector import PROBLEMS, Registry, above, detector, detectors
from relu_study.diagnosis.history import History
from relu_study.errors import UserError

METRICS: tuple[str, ...] = (
    "zero_entries",
    "dead_fraction",
    "nearly_dead_fraction",
    "silent_fraction",
    "quiet_fraction",
    "dormant_fraction",
)
METRICS += ("post_mean", "grad_mean_abs", "grad_norm", "weight_norm", "update_norm", "zero_gradients")


def random_history(runs: tuple[int, ...], measurements: int = 12, sites: int = 3, seed: int = 0) -> History:
    draw = np.random.default_rng(seed)
    by_site = {name: [draw.uniform(0, 1, (*runs, measurements)) for _ in range(sites)] for name in METRICS}
    network = {name: draw.uniform(0, 1, (*runs, measurements)) for name in ("train_loss", "zero_gradients")}
    return recorded(by_site, network, constant_loss=draw.uniform(0.2, 2, runs))


@pytest.mark.parametrize("name", detectors)
def test_every_detector_declares_itself(name: str) -> None:
    entry = detectors[name]
    assert entry.name == name and entry.problem in PROBLEMS and np.isfinite(entry.threshold)
    assert entry.source and entry.text and entry.quantity != "score"
    assert entry.rival == entry.text.startswith("Rule re-implemented from its description: ")
    assert bool(entry.adaptation) == entry.rival


@pytest.mark.parametrize("name", detectors)
def test_many_runs_at_once_score_as_each_run(name: str) -> None:
    entry, history = detectors[name], random_history((2, 3))
    scores, sites, flags = entry.scores(history), entry.site_scores(history), entry.first_flag(history)
    assert scores.shape == (2, 3) and sites.shape == (2, 3, 3) and entry.over_time(history).shape == (2, 3, 12)
    for index in np.ndindex(2, 3):
        one = history.of_run(index)
        np.testing.assert_array_equal(entry.scores(one), scores[index])
        np.testing.assert_array_equal(entry.site_scores(one), sites[index])
        assert entry.first_flag(one) == flags[index]
        assert entry.fires(one) == entry.fires(history)[index]


@pytest.mark.parametrize("name", detectors)
def test_over_time_is_the_score_of_each_start_of_the_record(name: str) -> None:
    entry, history = detectors[name], random_history((4,), measurements=11, seed=1)
    for count in range(1, 12):
        np.testing.assert_array_equal(entry.over_time(history)[..., count - 1], entry.scores(history.until(count)))


@pytest.mark.parametrize("name", detectors)
def test_an_empty_record_abstains(name: str) -> None:
    entry, empty = detectors[name], random_history((2,)).until(0)
    assert np.isnan(entry.scores(empty)).all() and not entry.fires(empty).any()
    assert entry.first_flag(empty).tolist() == [-1, -1] and entry.over_time(empty).shape == (2, 0)


@pytest.mark.parametrize("name", detectors)
def test_a_missing_metric_abstains(name: str) -> None:
    entry, history = detectors[name], random_history((2,))
    for missing in entry.requires:
        metrics = {key: values for key, values in history.metrics.items() if not key.startswith(f"{missing}/")}
        assert np.isnan(entry.scores(dataclasses.replace(history, metrics=metrics))).all()


@pytest.mark.parametrize("name", [name for name in detectors if detectors[name].requires])
def test_nan_metrics_of_a_finite_run_abstain(name: str) -> None:
    entry, history = detectors[name], random_history((2,))
    metrics = {key: np.full_like(values, NAN) for key, values in history.metrics.items()}
    unknown = dataclasses.replace(history, metrics=metrics)
    assert np.isnan(entry.scores(unknown)).all() and not entry.fires(unknown).any()


@pytest.mark.parametrize("name", detectors)
def test_one_site_and_no_site_give_one_score_per_run(name: str) -> None:
    entry, history = detectors[name], random_history((2,), sites=1)
    assert entry.scores(history).shape == (2,) and entry.site_scores(history).shape == (2, 1)
    none = dataclasses.replace(history, sites=())
    assert entry.scores(none).shape == (2,) and entry.site_scores(none).shape == (2, 0)


def test_the_score_is_the_largest_known_one_over_sites() -> None:
    history = recorded({"dormant_fraction": [[[0, 0.2], [0, NAN]], [[0, NAN], [0, NAN]], [[0, 0.1], [0, NAN]]]})
    np.testing.assert_array_equal(detectors["dormant_fraction"].scores(history), [0.2, NAN])


def test_first_flag_is_the_first_firing_measurement() -> None:
    history = recorded({"dead_fraction": [[[0, 0.9, 0, 0.9], [0, 0, 0, 0]]]})
    assert detectors["dying"].first_flag(history).tolist() == [1, -1]


def test_unknown_names_and_problems_get_the_nearest_ones() -> None:
    with pytest.raises(UserError, match=r"unknown detector 'dyin'\. Did you mean dying"):
        detectors["dyin"]
    assert "dying" in detectors and "dyin" not in detectors and len(detectors) == len(list(detectors))
    with pytest.raises(UserError, match="unknown problem 'dead'"):
        detector("new", problem="dead", threshold=1, requires=(), source="test")(lambda history: history.epochs)


def test_a_name_belongs_to_one_function() -> None:
    registry, dying, exploding = Registry(), detectors["dying"], detectors["exploding"]
    registry.add(dying)
    registry.add(dataclasses.replace(dying, threshold=0.1))  # the same function again
    with pytest.raises(UserError, match=r"'dying' is registered already, by relu_study\.diagnosis\.ours\.dying"):
        registry.add(dataclasses.replace(exploding, name="dying"))


def test_above_is_the_next_float() -> None:
    assert above(0.5) > 0.5 and (above(0.5) + 0.5) / 2 in (0.5, above(0.5))
