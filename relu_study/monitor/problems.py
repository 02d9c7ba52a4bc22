"""Findings of a monitored training, the callbacks they go to, and the problems that stop it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from relu_study.diagnosis.detector import PROBLEMS, detectors
from relu_study.diagnosis.diagnose import OURS
from relu_study.diagnosis.finding import MemberFinding
from relu_study.diagnosis.live import LiveDiagnosis
from relu_study.errors import UserError, nearest
from relu_study.storage.monitor_log import MonitorInfo

LOSS, TRAIN_LOSS = "loss/all", "train_loss/all"  # of the monitor, of the detectors


class Problems:
    """The findings after each measurement of one monitor."""

    def __init__(self, info: MonitorInfo, stop_on: str | Iterable[str], total_steps: float | None):
        """Begin without a measurement. Raises UserError for an unknown problem, or one that cannot be judged."""
        self.stop_on = _checked(stop_on, info, total_steps)
        self._series = info.series
        units = {site.name: site.units for site in info.sites}
        self._diagnosis = LiveDiagnosis(list(units), units, info.members, math.inf if total_steps is None else total_steps)
        self._stopped = np.zeros(info.members, bool)
        self._callbacks: list[Callable[[MemberFinding], Any]] = []
        self._new: deque[MemberFinding] = deque()
        self.findings: tuple[MemberFinding, ...] = ()

    @property
    def should_stop(self) -> bool:
        """Whether every member has had a problem of `stop_on`."""
        return bool(self._stopped.all())

    def on_problem(self, callback: Callable[[MemberFinding], Any]) -> None:
        """Call back for later new findings."""
        self._callbacks.append(callback)

    def add(self, step: int, values: Float[np.ndarray, "M V"], finite: Bool[np.ndarray, " M"]) -> None:
        """Judge the members after a measurement of a later step than the last. `values` has a column for each of the series."""
        named = dict(zip(self._series, values.T, strict=True))
        named[TRAIN_LOSS] = named.pop(LOSS, np.full(len(values), np.nan))
        self._new.extend(self._diagnosis.add(step, named, finite))
        self.findings = tuple(self._diagnosis.findings())
        for problem in self.stop_on:
            self._stopped |= self._diagnosis.sick(problem)

    def call_back(self) -> None:
        """Pass new findings to the callbacks. An error of a callback is raised; later findings wait for the next call."""
        while self._new:
            finding = self._new.popleft()
            for callback in self._callbacks:
                callback(finding)

    def rewind(self, step: int) -> None:
        """Forget the measurements from a step on, and a stop."""
        self._diagnosis.rewind(step)
        self._stopped[:] = False
        self._new.clear()
        self.findings = ()


def _checked(stop_on: str | Iterable[str], info: MonitorInfo, total_steps: float | None) -> tuple[str, ...]:
    """Return the problems that stop a training. Raises UserError."""
    if total_steps is not None and not total_steps > 0:
        raise UserError(f"total_steps={total_steps!r} is no length of training. Pass a number of steps above 0.")
    names = (stop_on,) if isinstance(stop_on, str) else tuple(stop_on)
    measured = {name.partition("/")[0] for name in (TRAIN_LOSS if name == LOSS else name for name in info.series)}
    for name in names:
        if name not in PROBLEMS:
            raise nearest(name, PROBLEMS, "problem")
        rules = [detectors[rule] for rule in OURS if detectors[rule].problem == name]
        missing = sorted({metric for rule in rules for metric in rule.requires} - measured)
        if missing and name != "exploding":  # a nonfinite model is seen without a loss too
            raise UserError(
                f"stop_on={name!r} needs {' and '.join(missing)}, which are not measured. "
                "Pass targets and loss, and a model with sites."
            )
        if name == "not_learning" and total_steps is None:
            raise UserError("stop_on='not_learning' needs the length of training. Pass it with total_steps=.")
    return names
