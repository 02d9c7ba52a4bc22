"""Tasks by name: `task(spec) -> Task`, what a run is fed. Training programs see only its Signature."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from relu_study.registry import tasks

Sample = Callable[[Key[Array, ""], Int[Array, ""] | int], tuple[Float[Array, "n D"], Float[Array, "n O"]]]


class Signature(NamedTuple):
    """The shape of a task: all that a training program knows of it."""

    train_rows: int
    val_rows: int
    d_in: int
    d_out: int
    loss: str = "squared_error"
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A data source. `sample(key, phase)` draws all rows, the training rows first.

    `box` is the (low, high) that every input coordinate keeps to, or None; with `phases` > 1 the
    data change over time and a run's epochs are shared out evenly among the phases.
    """

    signature: Signature
    sample: Sample
    box: tuple[float, float] | None = None
    phases: int = 1


def squared_error(prediction: Float[Array, "B O"], y: Float[Array, "B O"]) -> Float[Array, ""]:
    """Mean over examples and outputs of (prediction - y)^2."""
    return jnp.mean((prediction - y) ** 2)


LOSSES = {"squared_error": squared_error}


@dataclass(frozen=True)
class TaskMetric:
    """A metric of a task's own: a number of the whole network from predictions and targets on the probe set."""

    function: Callable[[Float[Array, "N O"], Float[Array, "N O"]], Float[Array, ""]]
    unit: str
    direction: str  # which is better: lower | higher | none
    text: str
    source: str = ""
    low: float | None = None
    high: float | None = None

    def declared(self) -> dict[str, Any]:
        """What the manifest says of it."""
        said = {name: getattr(self, name) for name in ("unit", "direction", "low", "high")}
        return {**said, "sites": False, "text": self.text, "source": self.source}


METRICS: dict[str, TaskMetric] = {}

task = tasks.register

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
