"""docs/diagnosis.md has every threshold, error rate and rule as they are."""

from __future__ import annotations

import pytest
from diagnosis_page import PAGE, generated, rates, rivals, thresholds

from relu_study.diagnosis import error_rates
from relu_study.diagnosis.detector import detectors
from relu_study.diagnosis.thresholds import packaged

TEXT = PAGE.read_text(encoding="utf-8")


def test_generated_parts_are_up_to_date() -> None:
    assert generated(TEXT) == TEXT, "write the page again: python tests/support/diagnosis_page.py"


def test_every_number_of_our_rules_is_listed() -> None:
    rows = [line.strip("| ").split(" | ") for line in thresholds().splitlines()[2:]]
    numbers = {(rule, name): number for rule, values in packaged().items() for name, number in values.items()}
    assert {(rule.strip("`"), name): float(value) for rule, name, value, _ in rows} == numbers


def test_every_rule_of_another_tool_is_listed_with_its_source() -> None:
    lines = rivals().splitlines()[2:]
    others = [entry for entry in detectors.values() if entry.rival]
    assert len(lines) == len(others) > 10
    assert all(f"`{entry.name}`" in line for entry, line in zip(others, lines, strict=True))
    (strict,) = (line for line in lines if "`torchmortem_exploding`" in line)
    (at_least,) = (line for line in lines if "`autotrainer_dying_relu`" in line)
    assert "> 1000 |" in strict and ">= 0.7 |" in at_least


def test_measured_rates_make_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"dying": {"recall": [0.9, 0.8, 0.95], "false_alarms": [0.02, 0.0, 0.1], "configurations": 1200}}
    monkeypatch.setattr(error_rates, "_packaged", lambda: found)
    assert rates().splitlines()[2:] == ["| `dying` | 0.90 [0.80, 0.95] | 0.02 [0.00, 0.10] | 1,200 |"]
    monkeypatch.setattr(error_rates, "_packaged", dict)
    assert rates().startswith("No error rate is measured yet")
