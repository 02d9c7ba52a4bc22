"""Tasks by name: `task(spec) -> Task`, what a run is fed. Training programs see only its Signature."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from relu_study.components.registry import tasks

Sample = Callable[[Key[Array, ""], Int[Array, ""] | int], tuple[Float[Array, "n D"], Float[Array, "n O"]]]


class Signature(NamedTuple):
    """The shape of a task: all that a training program knows of it.

    `loss` is a name of `LOSSES`: `squared_error` (`mse`), `cross_entropy` (`ce`), or `bce` for one logit, d_out = 1.
    """

    train_rows: int
    val_rows: int
    d_in: int
    d_out: int
    loss: str = "squared_error"
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A data source. `sample(key, phase)` draws all rows, the training rows first.

    The next `val_rows` rows validate, and further rows are not read. Equal keys give equal rows. Targets of
    `cross_entropy` are one-hot rows or integer labels from 0, as a vector or a column.
    `box` is the (low, high) that every input coordinate keeps to, or None; with `phases` > 1 the
    data change over time and a run's epochs are shared out evenly among the phases. `fixed` says that
    all seeds read the same rows, as those of a table; no note reports it then.
    """

    signature: Signature
    sample: Sample
    box: Sequence[float] | None = None
    phases: int = 1
    fixed: bool = False

    def __post_init__(self) -> None:
        if self.box is not None:
            with contextlib.suppress(TypeError, ValueError):  # no two numbers: `entries.check_task` refuses it by name
                object.__setattr__(self, "box", tuple(float(end) for end in self.box))


def squared_error(prediction: Float[Array, "B O"], y: Float[Array, "B O"]) -> Float[Array, ""]:
    """Mean over examples and outputs of (prediction - y)^2."""
    return jnp.mean((prediction - y) ** 2)


def cross_entropy(prediction: Float[Array, "B O"], y: Float[Array, "B O"]) -> Float[Array, ""]:
    """Mean over examples of -sum_o y_o log softmax(prediction)_o, in nats: predictions are log odds, y rows are one-hot.

    The best constant's loss is the entropy of the classes, log O where they are equally many. `constant` compares the log
    odds' variance with that of y, which is below 1: odds that move by less than about a hundredth say nothing.
    """
    return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(prediction), axis=-1))


def binary_cross_entropy(prediction: Float[Array, "B 1"], y: Float[Array, "B 1"]) -> Float[Array, ""]:
    """Mean over examples of log(1 + exp(z)) - y z, in nats: the prediction z is one log odds, y is 0 or 1."""
    return jnp.mean(jax.nn.softplus(prediction) - y * prediction)


LOSSES = {
    "squared_error": squared_error,
    "mse": squared_error,
    "cross_entropy": cross_entropy,
    "ce": cross_entropy,
    "bce": binary_cross_entropy,
}
LABELLED = ("cross_entropy", "ce", "bce")  # losses of classes


def is_labels(signature: Signature, shape: tuple[int, ...]) -> bool:
    """Are targets of this shape one label an example, and not a row of d_out numbers?"""
    return signature.loss in LABELLED and (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1))


def targets(signature: Signature, y: Shaped[Array | np.ndarray, "n ..."]) -> Float[Array, "n O"]:
    """Targets as floats, a row an example: integer labels of several classes become one-hot.

    A label that is no whole number from 0 to d_out - 1 becomes a row of NaN, so that its run is reported as nonfinite.
    """
    y = jnp.asarray(y, jnp.result_type(float))
    if not is_labels(signature, y.shape):
        return y
    label = y.reshape(-1, 1)
    if signature.d_out == 1:
        return label
    classes = jnp.arange(signature.d_out, dtype=label.dtype)
    known = (label >= 0) & (label < signature.d_out) & (label == jnp.round(label))
    return jnp.where(known, (label == classes).astype(label.dtype), jnp.nan)


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


def accuracy(prediction: Float[Array, "N O"], y: Float[Array, "N O"]) -> Float[Array, ""]:
    """Share of examples whose class has the largest log odds; of equal ones the first counts.

    One column is the log odds of class 1 against class 0.
    """
    if prediction.shape[-1] == 1:
        return jnp.mean((prediction > 0) == (y > 0.5))
    return jnp.mean(jnp.argmax(prediction, axis=-1) == jnp.argmax(y, axis=-1))


def trained(prediction: Float[Array, "N O"], y: Float[Array, "N O"]) -> Float[Array, ""]:
    """1 where the accuracy is above a half."""
    return (accuracy(prediction, y) > 0.5).astype(prediction.dtype)


METRICS = {
    "accuracy": TaskMetric(accuracy, "fraction", "higher", "Share of the probe set that is classified rightly.", low=0, high=1),
    "trained": TaskMetric(
        trained,
        "0 or 1",
        "higher",
        "1 where more than half of the probe set is classified rightly.",
        source="after Rister & Rubin 2020, arXiv 2007.06192; the threshold of 50 % is ours",
        low=0,
        high=1,
    ),
}

task = tasks.register
