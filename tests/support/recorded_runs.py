"""Histories of recorded metrics for tests, by hand or from the post of sparse but healthy networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from relu_study.diagnosis.history import History

NAN = float("nan")


def recorded(
    sites: Mapping[str, list[Any]] | None = None,
    network: Mapping[str, Any] | None = None,
    first_bad: int | None = None,
    constant_loss: Any = NAN,
    total_epochs: float | None = None,
    units: Mapping[str, int] | None = None,
) -> History:
    """Return a history. `sites` has one list of values per site for each metric, `network` one list of values.

    From index `first_bad` on, the metrics are NaN. Epochs are 0, 1, 2, ...
    """
    metrics = {f"{name}/all": np.array(values, float) for name, values in (network or {}).items()}
    for name, columns in (sites or {}).items():
        metrics |= {f"{name}/site_{i}": np.array(values, float) for i, values in enumerate(columns, 1)}
    shape = next(iter(metrics.values())).shape
    finite = np.ones(shape, bool)
    if first_bad is not None:
        finite[..., first_bad:] = False
    count = max(len(columns) for columns in (sites or {"": []}).values())
    return History(
        epochs=np.arange(float(shape[-1])),
        sites=tuple(f"site_{i}" for i in range(1, count + 1)),
        metrics={name: np.where(finite, values, NAN) for name, values in metrics.items()},
        finite=finite,
        constant_loss=np.broadcast_to(np.array(constant_loss, float), shape[:-1]).copy(),
        total_epochs=float(shape[-1] - 1) if total_epochs is None else total_epochs,
        units=units or {},
    )
