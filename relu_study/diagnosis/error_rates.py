"""Measured error rates of detectors, from the packaged `error_rates.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

FILE = "error_rates.json"
UNMEASURED = "not measured"

Interval = tuple[float, float, float]  # value, low, high


@dataclass(frozen=True)
class ErrorRates:
    """Error rates of a detector on labelled runs that did not set its threshold, with 95 % intervals.

    `recall` is the share of sick runs that it flags, `false_alarms` the share of healthy ones, at any measurement.
    `configurations` counts those with a sick run.
    """

    recall: Interval
    false_alarms: Interval
    configurations: int


def error_rates(detector: str) -> ErrorRates | None:
    """Return the measured error rates of a detector; None: not measured."""
    entry = _packaged().get(detector)
    if entry is None:
        return None
    return ErrorRates(_interval(entry["recall"]), _interval(entry["false_alarms"]), int(entry["configurations"]))


def as_text(rate: Interval) -> str:
    """Return a rate with its interval, such as "0.94 [0.88, 0.97]"."""
    return f"{rate[0]:.2f} [{rate[1]:.2f}, {rate[2]:.2f}]"


def _packaged() -> dict[str, Any]:
    file = resources.files("relu_study.diagnosis").joinpath(FILE)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _interval(numbers: list[float]) -> Interval:
    value, low, high = map(float, numbers)
    return value, low, high
