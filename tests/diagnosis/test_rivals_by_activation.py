"""Rules of other tools on activations against cases by hand, and their false alarms on sparse but healthy networks."""

from __future__ import annotations

import numpy as np
import pytest
from detector_parts.sparse import sparse_but_healthy
from recorded_runs import NAN, recorded

from relu_study.diagnosis import rivals_by_activation as rivals
from relu_study.diagnosis.detector import Detector, detectors

CASES = [  # rule, metric, a value that fires, a value that just does not
    (rivals.deepdiagnosis_dead_node, "zero_entries", 0.7, np.nextafter(0.7, 0)),
    (rivals.thedeepchecker_dead, "quiet_fraction", 0.51, 0.5),
    (rivals.torch_audit_ta105, "zero_entries", 0.91, 0.9),
    (rivals.dlcheck_dead_activations, "zero_entries", 0.96, 0.95),
    (rivals.keras_contrib_dead_relu, "silent_fraction", 0.1, np.nextafter(0.1, 0)),
    (rivals.dormant_fraction, "dormant_fraction", 0.5, np.nextafter(0.5, 0)),
    (rivals.deeplocalize_zero_mean, "post_mean", 0.0, 1e-30),
]


@pytest.mark.parametrize(("rule", "metric", "fires", "quiet"), CASES, ids=lambda value: getattr(value, "name", ""))
def test_a_rule_fires_at_its_bound(rule: Detector, metric: str, fires: float, quiet: float) -> None:
    runs = [[quiet, fires], [fires, quiet], [fires, NAN]]  # only the last measurement counts
    history = recorded({metric: [runs]})
    assert rule.fires(history).tolist() == [True, False, False]
    assert np.isnan(rule.scores(history)).tolist() == [False, False, True]


@pytest.mark.parametrize(("rule", "metric", "fires", "quiet"), CASES, ids=lambda value: getattr(value, "name", ""))
def test_one_site_is_enough(rule: Detector, metric: str, fires: float, quiet: float) -> None:
    history = recorded({metric: [[quiet], [fires], [NAN]]})
    assert rule.fires(history)
    assert (rule.site_scores(history) >= rule.threshold).tolist() == [False, True, False]


def test_sagemaker_dead_relu_counts_units_active_on_fewer_than_one_percent() -> None:
    dead, nearly = [[[0.25], [0.25], [0.5]]], [[[0.26], [0.25], [0.0]]]
    history = recorded({"dead_fraction": dead, "nearly_dead_fraction": nearly})
    assert rivals.sagemaker_dead_relu.scores(history).tolist() == [0.51, 0.5, 0.5]
    assert rivals.sagemaker_dead_relu.fires(history).tolist() == [True, False, False]


def test_torchmortem_counts_the_later_half_of_the_measurements() -> None:
    zeros = [
        [0, 0, 0, 0.51, 0.51],  # 2 of the later 3
        [0.9, 0.9, 0, 0, 0.9],  # 1 of 3
        [0.9, 0.9, 0.5, 0.5, 0.9],  # 0.5 is not more than 0.5
    ]
    history = recorded({"zero_entries": [zeros]})
    np.testing.assert_allclose(rivals.torchmortem_dead_units.scores(history), [2 / 3, 1 / 3, 1 / 3])
    assert rivals.torchmortem_dead_units.fires(history).tolist() == [True, False, False]
    even = recorded({"zero_entries": [[[0, 0, 0.9, 0.1], [0, 0.9, 0.1, 0.1]]]})
    assert rivals.torchmortem_dead_units.fires(even).tolist() == [True, False]  # 1 of 2 is half
    cut = recorded({"zero_entries": [[0, 0.9, 0.9, 0, 0]]}, first_bad=2)
    assert rivals.torchmortem_dead_units.scores(cut) == 1  # the later of two


@pytest.mark.parametrize(
    ("active", "alarms"),
    [
        (25, {"deepdiagnosis_dead_node", "torchmortem_dead_units"}),
        (
            4,
            {
                "deepdiagnosis_dead_node",
                "torchmortem_dead_units",
                "torch_audit_ta105",
                "dlcheck_dead_activations",
                "thedeepchecker_dead",
            },
        ),
    ],
)
def test_false_alarms_on_sparse_but_healthy_networks(active: int, alarms: set[str]) -> None:
    history = sparse_but_healthy(active)
    found = {name for name in detectors if detectors[name].problem == "dying" and detectors[name].fires(history)}
    assert found == alarms
