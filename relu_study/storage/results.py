"""Results folders in memory, as `relu_study.load` returns them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from relu_study.errors import UserError

if TYPE_CHECKING:
    import xarray

    from relu_study.storage.declaration import StudyManifest


@dataclass
class Results:
    """A results folder in memory: `runs` (one row per run) and `summary` (one row per configuration, metric, site and epoch).

    `params` maps run_id to final parameters, if the training call kept them. `manifest` is the declaration with its provenance.
    """

    folder: Path
    runs: pd.DataFrame
    summary: pd.DataFrame
    read_curves: pd.DataFrame | None = None
    params: dict[str, Any] = field(default_factory=dict)
    manifest: StudyManifest | None = None

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

    def to_xarray(self) -> xarray.Dataset:
        """The results as an xarray Dataset with the dimensions config, seed, epoch and site.

        Each metric is a variable with its unit, range, better direction, definition and source as attributes. A metric of the
        whole network has no dimension site. NaN: no measurement of this seed, epoch or site, an empty metric, or a nonfinite run.
        `status`, `run_id`, `first_bad_epoch` and the `reason` of crashed runs have the dimensions config and seed. A seed that a
        configuration does not have is "not requested". Coordinates of config are `config_id` (indexed), experiment, arm, target,
        the varied factors, the options and `probe_examples`. Without raw/, each run has its last epoch only, as the attribute
        `epochs` says.

        Raises:
            UserError: xarray is not installed, these are no results of a study, or a metric has the name of a coordinate.
        """
        from relu_study.storage.xarray_dataset import dataset

        return dataset(self)


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
