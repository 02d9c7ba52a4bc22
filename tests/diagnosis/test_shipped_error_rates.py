"""Measured error rates: read from the packaged file, or absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from relu_study.diagnosis import error_rates
from relu_study.diagnosis.detector import detectors

RATES = {"dying": {"recall": [0.9, 0.8, 0.95], "false_alarms": [0.02, 0.0, 0.1], "configurations": 120}}


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / error_rates.FILE).write_text(json.dumps(RATES))
    monkeypatch.setattr(error_rates.resources, "files", lambda package: tmp_path)


@pytest.mark.usefixtures("packaged")
def test_rates_of_a_measured_detector() -> None:
    rates = error_rates.error_rates("dying")
    assert rates == error_rates.ErrorRates((0.9, 0.8, 0.95), (0.02, 0.0, 0.1), 120)
    assert error_rates.as_text(rates.recall) == "0.90 [0.80, 0.95]"


@pytest.mark.usefixtures("packaged")
def test_a_detector_that_is_not_in_the_file_is_unmeasured() -> None:
    assert error_rates.error_rates("vanishing") is None


def test_without_a_file_no_detector_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_rates.resources, "files", lambda package: tmp_path)
    assert error_rates.error_rates("dying") is None


def test_packaged_rates_are_of_known_detectors_and_inside_their_intervals() -> None:
    for name in error_rates._packaged():
        rates = error_rates.error_rates(name)
        assert name in detectors and rates is not None and rates.configurations > 0
        for value, low, high in (rates.recall, rates.false_alarms):
            assert 0 <= low <= value <= high <= 1
