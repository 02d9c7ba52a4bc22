"""Findings of a single measurement."""

from __future__ import annotations

from relu_study.diagnosis.detector import detectors
from relu_study.diagnosis.moment import findings_of_moment
from relu_study.diagnosis.ours import NUMBERS

NAN, MARGIN = float("nan"), NUMBERS["dying"]["margin"]
UNITS = {"one": 20, "two": 10, "three": 4}


def test_each_sick_site_has_a_finding_in_program_order() -> None:
    found = findings_of_moment(UNITS, {"dead_fraction/one": 0.9, "dead_fraction/two": 0.1, "dead_fraction/three": 1})
    assert [(finding.problem, finding.site, finding.units, finding.score) for finding in found] == [
        ("dying", "one", (18, 20), 0.9 - MARGIN),
        ("dying", "three", (4, 4), 23 / 34),  # the share of the network
    ]
    amount = f"18 of 20 units, {0.9 - MARGIN:.3g}, threshold {found[0].threshold:.3g}"
    assert found[0].evidence == f"{detectors['dying'].quantity} at one: {amount}"


def test_rules_that_compare_measurements_abstain() -> None:
    assert findings_of_moment(UNITS, {"dead_fraction/one": NAN, "train_loss/all": 9.0, "grad_norm/one": 1e-9}) == []
    assert findings_of_moment(UNITS, {}) == findings_of_moment({}, {}) == []
