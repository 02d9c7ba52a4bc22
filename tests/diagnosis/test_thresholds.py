"""The packaged numbers of our rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from relu_study.diagnosis import thresholds
from relu_study.errors import UserError


def test_as_json_writes_the_packaged_file() -> None:
    packaged = thresholds.packaged()
    text = (Path(thresholds.__file__).parent / thresholds.FILE).read_text(encoding="utf-8")
    assert thresholds.as_json(packaged) == text and json.loads(text) == packaged


def test_all_digits_are_kept() -> None:
    numbers = {"b": {"threshold": 0.1 + 0.2}, "a": {"threshold": 1e-300, "after": 0.25}}
    assert json.loads(thresholds.as_json(numbers)) == numbers
    assert thresholds.as_json(numbers).index('"a"') < thresholds.as_json(numbers).index('"b"')


def test_a_rule_needs_a_threshold_and_at_most_three_numbers() -> None:
    with pytest.raises(UserError, match="no threshold"):
        thresholds.as_json({"a": {"after": 1.0}})
    with pytest.raises(UserError, match="4 numbers"):
        thresholds.as_json({"a": {"threshold": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}})
