"""Recorded metrics of one or many runs, measurement by measurement."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from relu_study.errors import UserError


@dataclass(frozen=True, eq=False)
class History:
    """Metrics of runs with the same sites and epochs. Leading axes are any number of runs; a single run has none.

    Metrics have keys such as "dead_fraction/site_1" and "train_loss/all": those of tiles without "metric:".
    """

    epochs: Float[np.ndarray, "E"]
    sites: tuple[str, ...]  # nearest the input first
    metrics: Mapping[str, Float[np.ndarray, "*runs E"]]
    finite: Bool[np.ndarray, "*runs E"]  # False from the first nonfinite measurement on; the metrics are NaN there
    constant_loss: Float[np.ndarray, "*runs"]  # loss of the best constant prediction; NaN: unknown
    total_epochs: float  # planned length of training
    units: Mapping[str, int] = field(default_factory=dict)  # number of units by site, if known
    clock: str = "epoch"  # unit of `epochs` in messages, for example step; "": one moment, without a time

    def __post_init__(self) -> None:
        for name, values in self.metrics.items():
            if values.shape != self.finite.shape:
                raise UserError(
                    f"metric {name!r} has shape {values.shape}, but `finite` has {self.finite.shape}. Give both the axes runs, E"
                )

    @property
    def runs(self) -> tuple[int, ...]:
        """Shape of the leading axes."""
        return self.finite.shape[:-1]

    def __len__(self) -> int:
        """Return the number of measurements, E."""
        return self.finite.shape[-1]

    def has(self, name: str) -> bool:
        """Whether a metric is recorded for any site or for `all`."""
        return any(f"{name}/{site}" in self.metrics for site in (*self.sites, "all"))

    def by_site(self, name: str) -> Float[np.ndarray, "*runs E L"]:
        """Return a metric by site; NaN where a site or the metric is absent."""
        columns = [self._column(f"{name}/{site}") for site in self.sites]
        return np.stack(columns, axis=-1) if columns else np.empty((*self.finite.shape, 0))

    def overall(self, name: str) -> Float[np.ndarray, "*runs E"]:
        """Return a metric of the whole network, `all`; NaN where it is absent."""
        return self._column(f"{name}/all")

    def latest(self, values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Return values at the last finite measurement of each run: "*runs E" to "*runs", "*runs E L" to "*runs L".

        NaN for a run without a finite measurement.
        """
        return self._at(values, self._last())

    def middle(self, values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Return values halfway to the last finite measurement, as `latest`. The index is rounded down."""
        return self._at(values, self._last() // 2)

    def later_half(self) -> Bool[np.ndarray, "*runs E"]:
        """Return which measurements are in the later half of each run's finite ones. Of n, the first n // 2 are not."""
        place = np.cumsum(self.finite, axis=-1)
        return self.finite & (place > self.finite.sum(axis=-1, keepdims=True) // 2)

    def until(self, count: int) -> History:
        """Return the first `count` measurements."""
        return dataclasses.replace(
            self,
            epochs=self.epochs[:count],
            metrics={name: values[..., :count] for name, values in self.metrics.items()},
            finite=self.finite[..., :count],
        )

    def of_run(self, index: Any) -> History:
        """Return the runs at `index` of the leading axes, for example `of_run(3)` or `of_run((0, 2))`."""
        return dataclasses.replace(
            self,
            metrics={name: values[index] for name, values in self.metrics.items()},
            finite=self.finite[index],
            constant_loss=np.asarray(self.constant_loss[index]),
        )

    def flat(self) -> History:
        """Return the same runs on one leading axis. A single run has length 1 there."""
        shape = (-1, len(self)) if len(self) else (int(np.prod(self.runs, dtype=int)), 0)
        return dataclasses.replace(
            self,
            metrics={name: values.reshape(shape) for name, values in self.metrics.items()},
            finite=self.finite.reshape(shape),
            constant_loss=self.constant_loss.reshape(-1),
        )

    def _column(self, key: str) -> Float[np.ndarray, "*runs E"]:
        values = self.metrics.get(key)
        return np.full(self.finite.shape, np.nan) if values is None else np.asarray(values, np.float64)

    def _last(self) -> Int[np.ndarray, "*runs"]:
        """Return the index of the last finite measurement of each run, or of the last one if none is finite."""
        return np.asarray(len(self) - 1 - np.argmax(self.finite[..., ::-1], axis=-1)) if len(self) else np.zeros(self.runs, int)

    def _at(self, values: Float[np.ndarray, "..."], index: Int[np.ndarray, "*runs"]) -> Float[np.ndarray, "..."]:
        """Return values at one measurement per run; NaN for a run without a finite one."""
        axis = len(self.runs)
        if not len(self):
            return np.full(self.runs + values.shape[axis + 1 :], np.nan)
        ones = (1,) * (values.ndim - axis - 1)
        found = np.take_along_axis(values, index.reshape(*self.runs, 1, *ones), axis=axis).squeeze(axis)
        return np.where(self.finite.any(axis=-1).reshape(*self.runs, *ones), found, np.nan)
