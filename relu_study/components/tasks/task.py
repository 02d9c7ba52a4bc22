"""Registered tasks: `task(spec)` returns a `Task`, a data source with its Signature.

Training programs depend only on the Signature.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from relu_study.components.options import Scalar, check_declared, filled
from relu_study.components.registry import tasks
from relu_study.errors import UserError
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
      table: all rows (x, y) that runs share; a device stores them once, and no program calls `sample`. None: `sample` draws them.
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
    """A metric of one task: a number of the network from its predictions and the targets on a set of examples."""

    function: Callable[[Float[Array, "N *O"], Shaped[Array, "N *T"]], Float[Array, ""]]
    unit: str
    direction: str  # which is better: lower | higher | none
    text: str
    source: str = ""
    low: float | None = None
    high: float | None = None
    of: str = "labels"  # or "numbers": the kind of the targets

    def declared(self) -> dict[str, Any]:
        """Return the metric as plain data for the manifest."""
        properties = {name: getattr(self, name) for name in ("unit", "direction", "low", "high")}
        return {**properties, "sites": False, "text": self.text, "source": self.source}


def declared_metrics(signature: Signature) -> dict[str, dict[str, Any]]:
    """Return the metrics of a task as plain data for the manifest: on the probe set, and as `val_...` on the validation rows."""
    entries = {name: METRICS[name].declared() for name in signature.metrics}
    return entries | {f"val_{name}": {**entry, "text": f"{entry['text']} {ON_VALIDATION}"} for name, entry in entries.items()}


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


def _hits(prediction: Float[Array, "N *O"], y: Shaped[Array, "N *T"]) -> tuple[Bool[Array, " M"], Float[Array, "M C"]]:
    """Return whether each example or position is classified rightly, and its one-hot class."""
    if not jnp.issubdtype(y.dtype, jnp.integer) and prediction.shape[-1] == 1:
        label, classes = (y > 0.5)[..., 0].astype(jnp.int32), 2
        right = (prediction > 0)[..., 0] == label
    else:
        label, classes = labels(y), prediction.shape[-1]
        right = jnp.argmax(prediction, axis=-1) == label
    return right.reshape(-1), jax.nn.one_hot(label.reshape(-1), classes, dtype=prediction.dtype)


def labels(y: Shaped[Array, "N *T"]) -> Int[Array, "N *P"]:
    """Return targets of several classes as class numbers."""
    return y if jnp.issubdtype(y.dtype, jnp.integer) else jnp.argmax(y, axis=-1)


def balanced_accuracy(prediction: Float[Array, "N *O"], y: Shaped[Array, "N *T"]) -> Float[Array, ""]:
    """Return the mean over the classes of y of the share of their examples that is classified rightly."""
    right, one_hot = _hits(prediction, y)
    examples = jnp.sum(one_hot, axis=0)
    recall = right.astype(one_hot.dtype) @ one_hot / jnp.maximum(examples, 1)
    return jnp.sum(recall) / jnp.sum(examples > 0)


def top5_accuracy(prediction: Float[Array, "N *O"], y: Shaped[Array, "N *T"]) -> Float[Array, ""]:
    """Return the share of examples whose class is among the five largest logits. Among equal logits the first count.

    Every position of a sequence counts.
    """
    label = labels(y)[..., None]
    own = jnp.take_along_axis(prediction, label, axis=-1)
    # Comparisons with NaN are false, so a class with the logit NaN is never among the five.
    not_above = (prediction < own) | ((prediction == own) & (jnp.arange(prediction.shape[-1]) >= label))
    return jnp.mean(jnp.sum(~not_above, axis=-1) < 5, dtype=prediction.dtype)


def r2(prediction: Float[Array, "N *O"], y: Float[Array, "N *O"]) -> Float[Array, ""]:
    """Return the mean over outputs of 1 - sum (prediction - y)^2 / sum (y - mean y)^2, with sums over examples.

    A constant target gives 1 if the prediction equals it, else 0.
    """
    error = jnp.sum((prediction - y) ** 2, axis=0)
    total = jnp.sum((y - jnp.mean(y, axis=0)) ** 2, axis=0)
    constant = jnp.max(y, axis=0) == jnp.min(y, axis=0)
    return jnp.mean(jnp.where(constant, (error == 0).astype(error.dtype), 1 - error / jnp.where(constant, 1, total)))


ON_VALIDATION = "Here of the validation rows instead of the probe set."
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
    "balanced_accuracy": TaskMetric(
        balanced_accuracy,
        "fraction",
        "higher",
        "Mean over classes of the share of their examples that is classified rightly. Only classes of the examples count.",
        source='Brodersen, Ong, Stephan & Buhmann 2010, "The balanced accuracy and its posterior distribution", ICPR',
        low=0,
        high=1,
    ),
    "top5_accuracy": TaskMetric(
        top5_accuracy,
        "fraction",
        "higher",
        "Share of examples whose class is among the five largest logits.",
        source="one minus the top-5 error of Russakovsky et al. 2015, arXiv 1409.0575",
        low=0,
        high=1,
    ),
    "r2": TaskMetric(
        r2,
        "fraction of variance",
        "higher",
        "1 minus the squared error as a share of the variance of the targets, as a mean over outputs. The mean target scores 0.",
        source='Wright 1921, "Correlation and causation", Journal of Agricultural Research 20',
        high=1,
        of="numbers",
    ),
}


@dataclass(frozen=True, eq=False)
class TaskEntry:
    """A registered task. A call with a spec builds its `Task`.

    The function gets the number of rows and the options of the spec, or else their defaults here.
    """

    name: str
    function: Callable[[RunSpec], Task]
    rows: int | None = None  # of a spec with the default of RunSpec; None: that default
    options: Mapping[str, Scalar] = field(default_factory=dict)  # its options with their defaults
    traced: tuple[str, ...] = ()  # options that `sample` takes as arrays, by name

    def __call__(self, spec: RunSpec) -> Task:
        if spec.task != self.name:
            spec = spec.replace(task=self.name)
        if self.rows is not None and spec.rows == ROWS:
            spec = spec.replace(rows=self.rows)
        built = self.function(filled(spec) if self.options else spec)
        if not self.traced or not isinstance(built, Task):
            return built
        if built.table is not None:
            raise UserError(
                f"task {self.name!r} has a table, so no sample takes its option {self.traced[0]!r}. Leave traced out."
            )
        defaults = {name: float(self.options[name]) for name in self.traced}  # constants of the programs of runs that set none

        def sample(key: Any, phase: Any, **given: Any) -> Any:
            return built.sample(key, phase, **{**defaults, **given})

        sample.drawn_by = built.sample  # type: ignore[attr-defined]  # the user's code, for checks
        return replace(built, sample=sample)


ROWS = RunSpec.rows  # the default of the field


def task(name: str, *, rows: Any = None, options: Any = None, traced: Any = ()) -> Callable[[Any], Any]:
    """Return a decorator that registers `build(spec)` as a task, and returns it unchanged. `build` returns a `Task`.

    Args:
      rows: the number of rows of runs that set none.
      options: factors of this task, with their defaults. `spec.option(name)` contains a value.
      traced: options that are numbers and only change the rows. `sample(key, phase, name=value)` gets them as arrays, and all
        their values share one program.

    Raises:
      UserError: for a number of rows below 2. Also for options that are no dictionary of names and defaults, or whose names
        have another meaning already.
    """
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int | np.integer) or rows < 2):
        raise UserError(f"task {name!r} has rows={rows!r}. Give a whole number of at least 2.")

    def register(function: Any) -> Any:
        declared = check_declared("task", name, options or {}, traced)
        tasks.add(name, TaskEntry(name, function, None if rows is None else int(rows), declared, tuple(traced)))
        return function

    return register
