"""Histories from the arrays of a tile."""

from __future__ import annotations

from typing import Any

import numpy as np

from relu_study.diagnosis.diagnose import diagnose
from relu_study.diagnosis.tiles import history_of

NAN = float("nan")


def tile() -> dict[str, Any]:
    """Two runs of three measurements: one healthy, one that is dead and then nonfinite."""
    return {
        "epoch": np.array([0, 0.5, 1]),
        "status": np.array(["ok", "nonfinite"]),
        "first_bad_epoch": np.array([NAN, 1.0]),
        "probe_examples": np.array(64),
        "units:site_1": np.array(20),
        "units:site_2": np.array(10),
        "units:site_10": np.array(5),
        "metric:train_loss/all": np.array([[1, 0.5, 0.2], [1, 1, NAN]], np.float32),
        "metric:dead_fraction/site_2": np.array([[0, 0, 0], [0, 1, NAN]], np.float32),
        "dead:site_1": np.zeros((2, 3, 3), np.uint8),
    }


def test_a_tile_becomes_a_history_of_its_runs() -> None:
    history = history_of(tile())
    assert history.runs == (2,) and len(history) == 3 and history.total_epochs == 1
    assert history.sites == ("site_1", "site_2", "site_10")  # in the order of the network
    assert history.units == {"site_1": 20, "site_2": 10, "site_10": 5}
    assert set(history.metrics) == {"train_loss/all", "dead_fraction/site_2"}
    assert history.finite.tolist() == [[True, True, True], [True, True, False]]
    assert np.isnan(history.constant_loss).all()


def test_runs_of_a_tile_have_their_own_findings() -> None:
    healthy, sick = diagnose(history_of(tile()), only=["exploding", "dying"])
    assert healthy == [] and [finding.problem for finding in sick] == ["exploding", "dying"]
    assert sick[0].onset == 1 and sick[1].site == "site_2" and sick[1].units == (10, 10) and sick[1].onset == 0.5


def test_a_known_length_and_constant_loss_are_kept() -> None:
    history = history_of(tile() | {"constant_loss": np.array([1, 2.0])}, total_epochs=8)
    assert history.total_epochs == 8 and history.of_run(1).constant_loss == 2


def test_a_nonfinite_run_is_found_without_a_recorded_loss() -> None:
    arrays = tile()
    del arrays["metric:train_loss/all"]
    healthy, sick = diagnose(history_of(arrays), only=["exploding", "not_learning"])
    assert healthy == [] and [finding.problem for finding in sick] == ["exploding", "not_learning"]
