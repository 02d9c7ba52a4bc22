"""Tasks by name: `task(spec) -> Task`, a data source with its Signature. Training programs depend only on the Signature."""

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
from relu_study.study.run_spec import RunSpec

Sample = Callable[[Key[Array, ""], Int[Array, ""] | int], tuple[Float[Array, "n D"], Float[Array, "n O"]]]


class Signature(NamedTuple):
    """The sizes, the loss and the metrics of a task: everything a training program depends on.

    `loss` is a name of `LOSSES`: `squared_error` (`mse`), `cross_entropy` (`ce`), or `bce` for one logit, d_out = 1.
    `metrics` are names of `METRICS`. An input is a vector of d_in floats, unless `input_shape` says otherwise; d_in is then
    its number of entries. Likewise an output, with `output_shape`.
    """

    train_rows: int
    val_rows: int
    d_in: int
    d_out: int
    loss: str = "squared_error"
    metrics: tuple[str, ...] = ()
    input_shape: tuple[int, ...] = ()  # of an image or a sequence; (): a vector
    input_dtype: str = "float"  # or an integer dtype, such as "int32" for tokens
    output_shape: tuple[int, ...] = ()  # of a prediction for each position, classes last; (): a vector

    @property
    def inputs(self) -> jax.ShapeDtypeStruct:
        """The shape and dtype of one input."""
        dtype = jnp.result_type(float) if self.input_dtype == "float" else jnp.dtype(self.input_dtype)
        return jax.ShapeDtypeStruct(self.input_shape or (self.d_in,), dtype)

    @property
    def outputs(self) -> jax.ShapeDtypeStruct:
        """The shape and dtype of one output."""
        return jax.ShapeDtypeStruct(self.output_shape or (self.d_out,), jnp.result_type(float))


@dataclass(frozen=True)
class Task:
    """A data source.

    Args:
      sample: `sample(key, phase)` returns all rows (x, y): the training rows, then the validation rows. Further rows are
        ignored. Equal keys give equal rows. Targets of `cross_entropy` are one-hot rows, or integer labels from 0 as a
        vector or a column.
      box: bounds (low, high) on every input coordinate, or None.
      phases: number of phases of data that change over time. A run's epochs are divided evenly among them.
      fixed: all seeds intentionally share the same rows, for example the rows of a table. No note reports it then.
      table: all rows (x, y) that runs share; a device stores them once. None: `sample` draws them.
      split: `split(key, phase)` returns the row numbers of a run in its table: training rows, then validation rows.
    """

    signature: Signature
    sample: Sample
    box: Sequence[float] | None = None
    phases: int = 1
    fixed: bool = False
    table: tuple[Any, Any] | None = None
    split: Callable[..., Int[Array, " n"]] | None = None

    def __post_init__(self) -> None:
        if self.box is not None:
            with contextlib.suppress(TypeError, ValueError):  # not two numbers: the check of the task reports it with its name
                object.__setattr__(self, "box", tuple(float(end) for end in self.box))


def rows_of(spec: RunSpec) -> int:
    """Return the rows of a run: the default of its task, where the spec leaves the field at its default."""
    own = getattr(tasks[spec.task], "rows", None)
    return own if own is not None and spec.rows == RunSpec.rows else spec.rows


def squared_error(prediction: Float[Array, "B *O"], y: Float[Array, "B *O"]) -> Float[Array, ""]:
    """Return the mean over examples and outputs of (prediction - y)^2."""
    return jnp.mean((prediction - y) ** 2)


def cross_entropy(prediction: Float[Array, "B *O"], y: Shaped[Array, "B *T"]) -> Float[Array, ""]:
    """Return the mean over examples of -sum_o y_o log softmax(prediction)_o, in nats. Predictions are logits, y is one-hot.

    Labels y, integers, are the mean over examples and positions of -log softmax(prediction)_y, NaN where one is no class.

    The best constant's loss is the entropy of the classes, log O for balanced ones. The metric `constant` compares the
    variance of the logits with the variance of y, which is below 1. Logits that vary by less than about 0.01 count as constant.
    """
    log_p = jax.nn.log_softmax(prediction)
    if not jnp.issubdtype(y.dtype, jnp.integer):
        return -jnp.mean(jnp.sum(y * log_p, axis=-1))
    valid = (y >= 0) & (y < log_p.shape[-1])
    chosen = jnp.take_along_axis(log_p, jnp.where(valid, y, 0)[..., None], axis=-1)[..., 0]
    return -jnp.mean(jnp.where(valid, chosen, jnp.nan))


def binary_cross_entropy(prediction: Float[Array, "B 1"], y: Float[Array, "B 1"]) -> Float[Array, ""]:
    """Return the mean over examples of log(1 + exp(z)) - y z, in nats. The prediction z is one logit, y is 0 or 1."""
    return jnp.mean(jax.nn.softplus(prediction) - y * prediction)


LOSSES = {
    "squared_error": squared_error,
    "mse": squared_error,
    "cross_entropy": cross_entropy,
    "ce": cross_entropy,
    "bce": binary_cross_entropy,
}
LABELLED = ("cross_entropy", "ce", "bce")  # losses of classifiers


def is_labels(signature: Signature, shape: tuple[int, ...]) -> bool:
    """Whether targets of this shape are labels, one per example or position, instead of rows of numbers."""
    if signature.output_shape:
        return signature.loss in LABELLED and tuple(shape[1:]) == signature.output_shape[:-1]
    return signature.loss in LABELLED and (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1))


def targets(signature: Signature, y: Shaped[Array | np.ndarray, "n ..."]) -> Shaped[Array, "n ..."]:
    """Return targets as floats, one row per example. Integer labels of several classes become one-hot.

    A label that is no integer from 0 to d_out - 1 becomes a row of NaN: its run is then nonfinite. Labels of positions remain
    integers.
    """
    if signature.output_shape and is_labels(signature, jnp.shape(y)) and jnp.issubdtype(jnp.asarray(y).dtype, jnp.integer):
        return jnp.asarray(y, jnp.int32)
    y = jnp.asarray(y, jnp.result_type(float))
    if not is_labels(signature, y.shape):
        return y
    label = y.reshape(-1, 1)
    if signature.d_out == 1:
        return label
    classes = jnp.arange(signature.d_out, dtype=label.dtype)
    valid = (label >= 0) & (label < signature.d_out) & (label == jnp.round(label))
    return jnp.where(valid, (label == classes).astype(label.dtype), jnp.nan)


@dataclass(frozen=True)
class TaskMetric:
    """A metric of one task: a number of the network from its predictions and the targets on the probe set."""

    function: Callable[[Float[Array, "N *O"], Shaped[Array, "N *T"]], Float[Array, ""]]
    unit: str
    direction: str  # which is better: lower | higher | none
    text: str
    source: str = ""
    low: float | None = None
    high: float | None = None

    def declared(self) -> dict[str, Any]:
        """Return the metric as plain data for the manifest."""
        properties = {name: getattr(self, name) for name in ("unit", "direction", "low", "high")}
        return {**properties, "sites": False, "text": self.text, "source": self.source}


def accuracy(prediction: Float[Array, "N *O"], y: Shaped[Array, "N *T"]) -> Float[Array, ""]:
    """Return the share of examples whose class has the largest logit. Among equal logits the first counts.

    A single column is the logit of class 1 against class 0. Every position of a sequence counts.
    """
    if jnp.issubdtype(y.dtype, jnp.integer):
        return jnp.mean(jnp.argmax(prediction, axis=-1) == y, dtype=prediction.dtype)
    if prediction.shape[-1] == 1:
        return jnp.mean((prediction > 0) == (y > 0.5))
    return jnp.mean(jnp.argmax(prediction, axis=-1) == jnp.argmax(y, axis=-1))


def trained(prediction: Float[Array, "N O"], y: Float[Array, "N O"]) -> Float[Array, ""]:
    """Return 1 if the accuracy is above 0.5, else 0."""
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
