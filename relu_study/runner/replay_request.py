"""The requested part of a replay: a stored run and a moment of it. No JAX."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from relu_study.errors import UserError
from relu_study.storage.stored_run import StoredRun, find_run, first_deaths
from relu_study.study.epochs import epoch_number

ONSET = "onset"


@dataclass(frozen=True)
class ReplayRequest:
    """A stored run, the moment of it to look at, and the epochs to measure before and after the moment.

    `around` is an epoch, or "onset": the first death of a unit, or else the first nonfinite epoch.
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
    def needs_masks(self) -> bool:
        """Whether the moment depends on dead masks that are not stored."""
        return self.around == ONSET and self.run.tile is None

    def span(self, tile: dict[str, np.ndarray] | None = None) -> tuple[float, float]:
        """Return the first and the last epoch of the window. `tile` has the numbers of the run, if they are not stored.

        Raises:
            UserError: no unit died and the run stayed finite.
        """
        if not isinstance(self.around, str):
            return self.around - self.window, self.around + self.window
        tile = self.run.tile if tile is None else tile
        assert tile is not None
        before, after = first_deaths(tile) or self._nonfinite(tile)
        return min(before, after - self.window), after + self.window

    def _nonfinite(self, tile: dict[str, np.ndarray]) -> tuple[float, float]:
        bad, epochs = float(tile["first_bad_epoch"][0]), tile["epoch"]
        if math.isnan(bad):
            raise UserError(
                f"run {self.run.run_id} has no onset: no unit died between two measurements, and the run stayed finite. "
                f"Give an epoch between 0 and {self.run.spec.epochs:g} with --around."
            )
        before = epochs[epochs < bad]
        return float(before[-1]) if len(before) else bad, bad


def _exact(number: float) -> str:
    """Return a number as text, different for different numbers."""
    short = f"{number:g}"
    return short if float(short) == number else repr(float(number))


def replay_request(folder: str | Path, run_id: str, around: Any, window: Any) -> ReplayRequest:
    """Find a stored run and check the moment to look at.

    Raises:
        UserError: the folder, the run id, the moment or the window is not valid, or there is no onset.
    """
    is_number = isinstance(window, int | float | np.number) and not isinstance(window, bool)
    if not is_number or not 0 < window < math.inf:
        raise UserError(f"the window is {window!r}. Give a finite number of epochs above 0.")
    run = find_run(Path(folder).expanduser(), run_id)
    epochs = run.spec.epochs
    if around != ONSET:
        number = epoch_number(around)
        if number is None or not 0 <= number <= epochs:
            raise UserError(f"the moment is {around!r}. Give 'onset', or an epoch between 0 and {epochs:g}.")
        around = float(number)
    if not epochs:
        raise UserError(f"run {run_id} has 0 epochs, so it has no step to replay. Choose a run that was trained.")
    request = ReplayRequest(run, around, float(window))
    if not request.needs_masks:
        request.span()
    return request
