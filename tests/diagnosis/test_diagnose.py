"""Findings of runs by hand: site, units, onset, first flag, evidence; and their summary over seeds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from detector_parts.sparse import sparse_but_healthy
from recorded_runs import NAN, recorded

from relu_study.diagnosis import diagnose as diagnosing
from relu_study.diagnosis.detector import PROBLEMS, Detector, detectors
from relu_study.diagnosis.diagnose import ADVICE, OURS, diagnose, summarise
from relu_study.diagnosis.history import History
from relu_study.diagnosis.ours import NUMBERS
from relu_study.errors import UserError


def test_a_finding_names_site_units_onset_and_first_flag() -> None:
    dead = [[0, 0.25, 0.25, 0.25, 0.25], [0, 0.9, 0.2, 0.9, 0.95]]
    history = recorded({"dead_fraction": dead}, units={"site_1": 40, "site_2": 20})
    ((finding,),) = diagnose(history, only=["dying"])
    assert (finding.problem, finding.detector, finding.site) == ("dying", "dying", "site_2")
    assert finding.units == (19, 20) and finding.score == 0.95 - NUMBERS["dying"]["margin"]
    assert finding.threshold == detectors["dying"].threshold
    assert (finding.first_flag, finding.onset) == (1, 3)  # it stopped firing at epoch 2
    amount = f"19 of 20 units, {finding.score:.3g}, threshold {finding.threshold:.3g}, since epoch 3"
    assert finding.evidence == f"{detectors['dying'].quantity} at site_2: {amount}"
    assert finding.advice == ADVICE["dying"]


def test_a_problem_that_is_over_is_no_finding() -> None:
    assert diagnose(recorded({"dead_fraction": [[0, 0.9, 0.1]]})) == [[]]


def test_unknown_units_are_none() -> None:
    ((finding,),) = diagnose(recorded({"dead_fraction": [[0, 0.9]]}))
    assert finding.units is None and "units, " not in finding.evidence


def test_every_rule_on_units_counts_them() -> None:
    history = recorded({"silent_fraction": [[0.25]], "zero_entries": [[0.75]]}, units={"site_1": 8})
    findings = diagnose(history, only=["keras_contrib_dead_relu", "deepdiagnosis_dead_node"])[0]
    assert [finding.units for finding in findings] == [(2, 8), None]


def test_a_finding_of_the_whole_network_has_no_site() -> None:
    ((finding,),) = diagnose(recorded(network={"train_loss": [1, 0.9, 0.8, 0.7]}, first_bad=2), only=["exploding"])
    assert finding.site == "" and finding.units is None and finding.onset == 2 and np.isinf(finding.score)
    bound = f"threshold {detectors['exploding'].threshold:.3g}"
    assert finding.evidence == f"train loss over its first value: infinite, {bound}, since epoch 2"


def test_findings_of_many_runs_agree_with_each_run() -> None:
    draw = np.random.default_rng(3)
    sites = {name: [draw.uniform(0, 1, (2, 3, 8)) for _ in range(2)] for name in ("dead_fraction", "grad_norm", "weight_norm")}
    history = recorded(sites, {"train_loss": draw.uniform(0.5, 2, (2, 3, 8))}, constant_loss=np.ones((2, 3)))
    together = diagnose(history)
    assert together == [diagnose(history.of_run(index))[0] for index in np.ndindex(2, 3)]
    assert any(together) and len({finding.problem for run in together for finding in run}) > 1


@pytest.mark.parametrize("active", [25, 4])
def test_a_sparse_but_healthy_network_has_no_finding(active: int) -> None:
    assert diagnose(sparse_but_healthy(active)) == [[]]


def test_an_empty_record_has_no_finding() -> None:
    assert diagnose(sparse_but_healthy(25).until(0)) == [[]]


def test_unknown_detectors_are_refused() -> None:
    with pytest.raises(UserError, match="Did you mean dying"):
        diagnose(sparse_but_healthy(25), only=["dyin"])


def test_every_problem_has_advice_and_a_rule_of_ours() -> None:
    assert set(ADVICE) == set(PROBLEMS) == {detectors[name].problem for name in OURS}
    assert set(OURS) == {name for name in detectors if not detectors[name].rival}


def test_a_summary_counts_all_seeds() -> None:
    dead = np.zeros((4, 2, 6))  # runs, sites, measurements
    dead[0, 1, 2:], dead[1, 1, 4:], dead[2, 0, 5:] = 0.95, 0.9, 1
    history = recorded({"dead_fraction": [dead[:, 0], dead[:, 1]]})
    (row,) = summarise(diagnose(history))
    assert (row.problem, row.detector, row.count, row.runs, row.share) == ("dying", "dying", 3, 4, 0.75)
    assert row.onset == 4 and row.site == "site_2"
    assert row.evidence == "3 of 4 runs, median score 0.5, median onset at epoch 4, most often at site_2 (2 of 3)"


def test_among_equally_frequent_sites_the_largest_score_is_worst() -> None:
    history = recorded({"dead_fraction": [[[0.6], [0]], [[0], [0.9]]]})
    assert summarise(diagnose(history))[0].site == "site_2"


def test_a_summary_is_sorted_by_share() -> None:
    history = recorded({"dead_fraction": [[[0, 0.9], [0, 0]]]}, {"train_loss": [[1, 99], [1, NAN]]})
    history.finite[1, 1] = False
    rows = summarise(diagnose(history, only=["dying", "exploding"]))
    assert [(row.problem, row.share) for row in rows] == [("exploding", 1), ("dying", 0.5)]
    assert summarise([]) == [] and summarise([[], []]) == []


@pytest.mark.parametrize(("clock", "since"), [("epoch", ", since epoch 1"), ("step", ", since step 1"), ("", "")])
def test_the_evidence_names_the_clock_of_the_record(clock: str, since: str) -> None:
    history = dataclasses.replace(recorded({"dead_fraction": [[0, 0.9, 0.9]]}), clock=clock)
    ((finding,),) = diagnose(history)
    assert finding.evidence.endswith(f"threshold {finding.threshold:.3g}{since}")


def test_healthy_runs_are_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []

    class Counted(Detector):
        def _read(self, history: History) -> np.ndarray:
            shapes.append(history.runs)
            return super()._read(history)

    counted = Counted(**vars(detectors["dying"]))
    monkeypatch.setattr(diagnosing, "detectors", {"dying": counted})
    history = recorded({"dead_fraction": [[[0, 0.1], [0, 0.9], [0, 0.2]]]})
    assert [len(run) for run in diagnose(history, only=["dying"])] == [0, 1, 0]
    assert shapes[0] == (3,) and set(shapes[1:]) == {(1,)}  # the scores over time are those of the sick run only
