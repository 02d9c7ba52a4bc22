"""Histories: by site, until a measurement, the last finite measurement, and single runs."""

from __future__ import annotations

import numpy as np
import pytest
from recorded_runs import NAN, recorded

from relu_study.diagnosis.history import History
from relu_study.errors import UserError


def test_absent_sites_and_metrics_are_nan() -> None:
    history = recorded({"a": [[1, 2], [3, 4]], "b": [[5, 6]]}, {"c": [7, 8]})
    np.testing.assert_array_equal(history.by_site("a"), [[1, 3], [2, 4]])
    np.testing.assert_array_equal(history.by_site("b"), [[5, NAN], [6, NAN]])
    assert np.isnan(history.by_site("none")).all() and np.isnan(history.overall("a")).all()
    np.testing.assert_array_equal(history.overall("c"), [7, 8])
    assert history.has("a") and history.has("b") and history.has("c") and not history.has("none")


def test_until_keeps_the_first_measurements_and_the_planned_length() -> None:
    history = recorded({"a": [[1, 2, 3]]}, total_epochs=9).until(2)
    np.testing.assert_array_equal(history.by_site("a"), [[1], [2]])
    assert len(history) == 2 and history.total_epochs == 9 and history.epochs.tolist() == [0, 1]
    assert len(history.until(0)) == 0 and history.until(0).by_site("a").shape == (0, 1)


def test_latest_and_middle_are_of_the_finite_measurements_of_each_run() -> None:
    metrics = {"loss/all": np.array([[0.0, 1, 2, 3, 4], [5, 6, 7, NAN, NAN], [NAN] * 5])}
    finite = np.isfinite(metrics["loss/all"])
    history = History(np.arange(5.0), (), metrics, finite, np.full(3, NAN), 4.0)
    np.testing.assert_array_equal(history.latest(history.overall("loss")), [4, 7, NAN])
    np.testing.assert_array_equal(history.middle(history.overall("loss")), [2, 6, NAN])
    expected = [[False, False, True, True, True], [False, True, True, False, False], [False] * 5]
    np.testing.assert_array_equal(history.later_half(), expected)


def test_latest_of_a_single_run_and_of_an_empty_record() -> None:
    history = recorded({"a": [[1, 2, 3], [4, 5, 6]]}, first_bad=2)
    np.testing.assert_array_equal(history.latest(history.by_site("a")), [2, 5])
    empty = history.until(0)
    assert empty.latest(empty.by_site("a")).tolist() == pytest.approx([NAN, NAN], nan_ok=True)


def test_of_run_and_flat_agree_with_indexing() -> None:
    values = np.arange(24.0).reshape(2, 3, 4)
    history = recorded({"a": [values]}, constant_loss=np.arange(6.0).reshape(2, 3))
    one = history.of_run((1, 2))
    np.testing.assert_array_equal(one.by_site("a")[:, 0], values[1, 2])
    assert one.runs == () and one.constant_loss == 5
    flat = history.flat()
    assert flat.runs == (6,) and flat.of_run(5).by_site("a").tolist() == one.by_site("a").tolist()
    assert one.flat().runs == (1,) and history.until(0).flat().runs == (6,)


def test_a_metric_of_another_shape_is_refused() -> None:
    finite = np.ones((2, 3), bool)
    with pytest.raises((UserError, TypeError), match=r"a/all|shape|finite"):
        History(np.arange(3.0), (), {"a/all": np.zeros((3, 2))}, finite, np.full(2, NAN), 2.0)
