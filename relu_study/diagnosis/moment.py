"""Findings of a single measurement, one for each sick site."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from relu_study.diagnosis.detector import detectors
from relu_study.diagnosis.diagnose import OURS, finding_of
from relu_study.diagnosis.finding import Finding
from relu_study.diagnosis.history import History


def findings_of_moment(units: Mapping[str, int], metrics: Mapping[str, float]) -> list[Finding]:
    """Return the findings at one moment, by site in the order of `units`. Rules that compare measurements abstain.

    First flag and onset are 0, and the evidence names no time.

    Args:
      units: the number of units by site, nearest the input first.
      metrics: values by name, for example "dead_fraction/conv1". NaN: unknown.
    """
    history = History(
        epochs=np.zeros(1),
        sites=tuple(units),
        metrics={name: np.array([value], np.float64) for name, value in metrics.items()},
        finite=np.ones(1, bool),
        constant_loss=np.array(math.nan),
        total_epochs=math.inf,
        units=dict(units),
        clock="",
    )
    places: list[tuple[int, Finding]] = []
    for detector in (detectors[name] for name in OURS):
        (score, by_site), shares = detector.read(history), detector.shares(history)
        for place in np.flatnonzero(by_site >= detector.threshold).tolist():
            only = np.where(np.arange(len(by_site)) == place, by_site, np.nan)
            places.append((place, finding_of(detector, history, float(by_site[place]), only, shares, 0.0, 0.0)))
        if np.isnan(by_site).all() and score >= detector.threshold:
            places.append((-1, finding_of(detector, history, float(score), by_site, shares, 0.0, 0.0)))
    return [finding for _, finding in sorted(places, key=lambda entry: entry[0])]
