"""Sparse but healthy networks: most entries are 0, and no unit is dead."""

from __future__ import annotations

import numpy as np

from relu_study.diagnosis.history import History

ACTIVE = (25, 4)  # examples of 100 on which a unit is active: 75 % and 96 % zero entries


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
    dead = sum(count == 0 for count in on) / units
    of_site = {
        "zero_entries": np.count_nonzero(post == 0) / post.size,
        "dead_fraction": dead,
        "nearly_dead_fraction": sum(0 < count < examples / 100 for count in on) / units,
        "silent_fraction": dead,
        "dormant_fraction": sum(m <= 0.025 * np.mean(mean) for m in mean) / units,
        "quiet_fraction": sum(np.percentile(np.abs(post[:, unit]), 95) < 1e-5 for unit in range(units)) / units,
        "post_mean": float(np.mean(post)),
        "zero_gradients": 0.0,
        "grad_norm": 0.1,
    }
    metrics = {f"{name}/site_1": np.full(measurements, float(value)) for name, value in of_site.items()}
    metrics |= {f"{name}/all": np.full(measurements, float(of_site[name])) for name in ("dead_fraction", "zero_gradients")}
    metrics["train_loss/all"] = 2.0 ** -np.arange(1.0, measurements + 1)
    return History(
        epochs=np.arange(float(measurements)),
        sites=("site_1",),
        metrics=metrics,
        finite=np.ones(measurements, bool),
        constant_loss=np.array(0.5),
        total_epochs=measurements - 1.0,
        units={"site_1": units},
    )
