"""Histories from the arrays of a tile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from relu_study.diagnosis.history import History

METRIC, UNITS, CONSTANT_LOSS = "metric:", "units:", "constant_loss"


def history_of(
    arrays: Mapping[str, Any],
    total_epochs: float | None = None,
) -> History:
    """Return the record of the R runs of a tile. `History.of_run` selects some of them, for example those of a configuration.

    Without a recorded train loss its values are NaN, so that nonfinite runs are found in any case.

    Args:
      arrays: the arrays of a tile by name: `epoch`, `first_bad_epoch`, R x E arrays such as `metric:dead_fraction/site_1`, and
        `units:site_1`, nearest the input first. Without `constant_loss` it is unknown. Other arrays are ignored.
      total_epochs: the planned length of training. None: the last measured epoch.
    """
    epochs, first_bad = np.asarray(arrays["epoch"], float), np.asarray(arrays["first_bad_epoch"], float)
    units = {name.removeprefix(UNITS): int(values) for name, values in arrays.items() if name.startswith(UNITS)}
    metrics = {name.removeprefix(METRIC): values for name, values in arrays.items() if name.startswith(METRIC)}
    metrics.setdefault("train_loss/all", np.full((len(first_bad), len(epochs)), np.nan))
    return History(
        epochs=epochs,
        sites=tuple(units),
        metrics=metrics,
        finite=~(epochs >= first_bad[:, None]),  # NaN: never nonfinite
        constant_loss=np.asarray(arrays.get(CONSTANT_LOSS, np.full(first_bad.shape, np.nan)), float),
        total_epochs=float(epochs[-1]) if total_epochs is None else total_epochs,
        units=units,
    )
