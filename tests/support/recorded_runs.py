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


def sparse_but_healthy(active: int, examples: int = 100, units: int = 50, measurements: int = 6) -> History:
    """Return the record of a one-site ReLU network in which each unit is active on `active` of 100 examples.

    The units take turns, so that no unit is dead. The metrics follow their definitions, one entry at a time.
    """
    post = np.zeros((examples, units))
    for unit in range(units):
        for turn in range(active):
            post[(unit * active + turn) % examples, unit] = 1.0
    on = [int(np.count_nonzero(post[:, unit])) for unit in range(units)]
    mean = [float(np.mean(post[:, unit])) for unit in range(units)]
    values = {
        "zero_entries": np.count_nonzero(post == 0) / post.size,
        "dead_fraction": sum(count == 0 for count in on) / units,
        "nearly_dead_fraction": sum(0 < count < examples / 100 for count in on) / units,
        "silent_fraction": sum(count == 0 for count in on) / units,
        "dormant_fraction": sum(m <= 0.025 * np.mean(mean) for m in mean) / units,
        "quiet_fraction": sum(np.percentile(np.abs(post[:, unit]), 95) < 1e-5 for unit in range(units)) / units,
        "post_mean": float(np.mean(post)),
    }
    sites = {name: [[value] * measurements] for name, value in values.items()}
    sites |= {"zero_gradients": [[0.0] * measurements], "grad_norm": [[0.1] * measurements]}
    loss = [2.0 ** -(k + 1) for k in range(measurements)]
    network = {"train_loss": loss, "zero_gradients": [0.0] * measurements}
    return recorded(sites, network, constant_loss=0.5, units={"site_1": units})
