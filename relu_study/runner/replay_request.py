"""The requested part of a replay: a stored run and a moment of it. No JAX."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from relu_study.diagnosis.diagnose import diagnose
from relu_study.diagnosis.finding import Finding
from relu_study.diagnosis.tiles import history_of
from relu_study.errors import UserError
from relu_study.storage.stored_run import StoredRun, find_run, first_deaths
from relu_study.study.epochs import epoch_number

ONSET, DEATH = "onset", "death"


@dataclass(frozen=True)
class ReplayRequest:
    """A stored run, the moment of it to look at, and the epochs to measure before and after the moment.

    `around` is an epoch; "onset", that of the run's first finding; or "death", the first death of a unit or else the first
    nonfinite epoch.
    """

    run: StoredRun
    around: float | str
    window: float

    @property
    def name(self) -> str:
        """The name of the folder of its files: `onset`, `epoch-7`, `epoch-7-window-0.5`."""
        moment = self.around if isinstance(self.around, str) else f"epoch-{_exact(self.around)}"
        return moment if self.window == 1 else f"{moment}-window-{_exact(self.window)}"

    @property
    def needs_numbers(self) -> bool:
        """Whether the moment depends on measurements that are not stored."""
        return isinstance(self.around, str) and self.run.tile is None

    def span(self, tile: dict[str, np.ndarray] | None = None) -> tuple[float, float]:
        """Return the first and the last epoch of the window. `tile` has the numbers of the run, if they are not stored.

        Raises:
            UserError: an onset without a finding, or a death where no unit died and the run stayed finite.
        """
        if not isinstance(self.around, str):
            return self.around - self.window, self.around + self.window
        tile = self.run.tile if tile is None else tile
        assert tile is not None
        moments = self._onset(tile) if self.around == ONSET else self._death(tile)
        if moments is None:
            raise UserError(self._without_moment(tile))
        before, after = moments
        return min(before, after - self.window), after + self.window

    def finding(self, tile: dict[str, np.ndarray] | None = None) -> Finding | None:
        """Return the finding of the run with the earliest onset; None without one. `tile` is that of `span`."""
        tile = self.run.tile if tile is None else tile
        assert tile is not None
        (findings,) = diagnose(history_of(tile, total_epochs=float(self.run.spec.epochs)))
        return min(findings, key=lambda finding: finding.onset, default=None)

    def _onset(self, tile: dict[str, np.ndarray]) -> tuple[float, float] | None:
        """Return the last measured epoch before the onset, and the onset; None without a finding."""
        finding = self.finding(tile)
        return None if finding is None else _with_earlier(tile, finding.onset)

    def _death(self, tile: dict[str, np.ndarray]) -> tuple[float, float] | None:
        """Return the last measured epoch before the first death, and that of the death; None without one."""
        bad = float(tile["first_bad_epoch"][0])
        return first_deaths(tile) or (None if math.isnan(bad) else _with_earlier(tile, bad))

    def _without_moment(self, tile: dict[str, np.ndarray]) -> str:
        """Return the error of a run without the requested moment, with the nearest alternatives."""
        epoch = f"an epoch between 0 and {self.run.spec.epochs:g} with --around"
        if self.around == ONSET:
            problem = "has no finding, so it has no onset: no problem holds at the end of its measurements"
            other = self._death(tile)
            near = "" if other is None else f"--around death (epoch {other[1]:g}), or "
        else:
            problem = "has no death: no unit died between two measurements, and the run stayed finite"
            finding = self.finding(tile)
            near = "" if finding is None else f"--around onset ({finding.problem}, epoch {finding.onset:g}), or "
        return f"run {self.run.run_id} {problem}. Give {near}{epoch}."


def _with_earlier(tile: dict[str, np.ndarray], epoch: float) -> tuple[float, float]:
    """Return the last measured epoch before this one, and this one; at the first measurement, this one twice."""
    before = tile["epoch"][tile["epoch"] < epoch]
    return float(before[-1]) if len(before) else epoch, epoch


def _exact(number: float) -> str:
    """Return a number as text, different for different numbers."""
    short = f"{number:g}"
    return short if float(short) == number else repr(float(number))


def replay_request(folder: str | Path, run_id: str, around: Any, window: Any) -> ReplayRequest:
    """Find a stored run and check the moment to look at.

    Raises:
        UserError: the folder, the run id, the moment or the window is not valid, or there is no such moment.
    """
    is_number = isinstance(window, int | float | np.number) and not isinstance(window, bool)
    if not is_number or not 0 < window < math.inf:
        raise UserError(f"the window is {window!r}. Give a finite number of epochs above 0.")
    run = find_run(Path(folder).expanduser(), run_id)
    epochs = run.spec.epochs
    if around not in (ONSET, DEATH):
        number = epoch_number(around)
        if number is None or not 0 <= number <= epochs:
            raise UserError(f"the moment is {around!r}. Give 'onset', 'death', or an epoch between 0 and {epochs:g}.")
        around = float(number)
    if not epochs:
        raise UserError(f"run {run_id} has 0 epochs, so it has no step to replay. Choose a run that was trained.")
    request = ReplayRequest(run, around, float(window))
    if not request.needs_numbers:
        request.span()
    return request
