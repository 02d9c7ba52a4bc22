"""Results folders in memory, as `relu_study.load` returns them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from relu_study.errors import UserError


@dataclass
class Results:
    """A results folder in memory: `runs` (one row per run) and `summary` (one row per configuration, metric, site and epoch).

    `params` maps run_id to final parameters, if the training call kept them.
    """

    folder: Path
    runs: pd.DataFrame
    summary: pd.DataFrame
    read_curves: pd.DataFrame | None = None
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def curves(self) -> pd.DataFrame:
        """Every measurement, with columns run_id, config_id, seed, metric, site, epoch, value.

        Values are float32, or float64 under JAX's double precision. NaN means empty or nonfinite.

        Raises:
            UserError: the folder has no raw/.
        """
        if self.read_curves is None:
            raise UserError(f"curves need {self.folder / 'raw'}, which a clone does not have. Run the study again.")
        return self.read_curves


@dataclass(kw_only=True)
class MonitorResults(Results):
    """The folder of a monitored training in memory.

    `runs` has one row a member: its status at the last measurement, the step and the place where it first went nonfinite, and its
    last value of every metric. `summary` has one row a metric, site and step, over members. `units` has one row a unit: born
    dead, the steps of its first death and revival, its number of deaths, and whether it is dead at the last measurement. `events`
    has one row a change of a unit or a member.
    """

    units: pd.DataFrame
    events: pd.DataFrame

    @property
    def curves(self) -> pd.DataFrame:
        """Every measurement, with columns step, member, metric, site, value. NaN means empty or nonfinite."""
        assert self.read_curves is not None
        return self.read_curves
