"""Tasks on tables of rows: inputs and targets that all runs share. A run reads them by row numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, Shaped

from relu_study.components.tasks.task import Signature, Task
from relu_study.errors import UserError, nearest
from relu_study.study.run_spec import RunSpec


@dataclass(frozen=True, eq=False)
class ArrayRows:
    """Rows of inputs and targets, and their split into training and validation rows.

    Args:
      x: inputs as vectors, images, sequences of vectors, or tokens.
      y: class numbers from 0, or numbers of a regression.
      classes: the number of classes; None for a regression.
      val: the share of validation rows, which each seed draws. Or the number of validation rows, the last ones for all seeds.
      tokens: whether the inputs are integers that the network reads as integers.
      metrics: names of metrics; None: the default ones.
      box: bounds of the raw inputs; None: their minimum and maximum.
      centre: the number that centred inputs subtract; None: the mean of each input.
    """

    x: Shaped[np.ndarray, "n ..."] = field(repr=False)
    y: Shaped[np.ndarray, "n ..."] = field(repr=False)
    classes: int | None = None
    val: float | int = 0.2
    tokens: bool = False
    metrics: tuple[str, ...] | None = None
    box: tuple[float, float] | None = None
    centre: float | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def fixed_rows(self) -> int:
        """The number of validation rows that all seeds share."""
        return self.val if isinstance(self.val, int) else 0

    def train_rows(self, rows: int) -> int:
        """Return the number of training rows among `rows` rows."""
        return rows - (self.fixed_rows or share_of(rows, self.val))

    def signature(self, rows: int) -> Signature:
        """Return the signature of a task with this number of rows."""
        train, shape = self.train_rows(rows), self.x.shape[1:]
        vectors = len(shape) == 1 and not self.tokens
        outputs = (*self.y.shape[1:], *([] if self.classes is None else [self.classes]))
        return Signature(
            train,
            rows - train,
            math.prod(shape),
            math.prod(outputs),
            loss="squared_error" if self.classes is None else "cross_entropy",
            metrics=default_metrics(self.classes) if self.metrics is None else self.metrics,
            input_shape=() if vectors else shape,
            input_dtype="int32" if self.tokens else "float",
            output_shape=outputs if len(outputs) > 1 else (),
        )


def share_of(rows: int, share: float) -> int:
    """Return the number of rows in a share of them, rounded up."""
    return math.ceil(share * rows - 1e-9)  # 0.1 * 30 is above 3 in floating point


def default_metrics(classes: int | None) -> tuple[str, ...]:
    """Return the metrics of a classification of so many classes, or of a regression."""
    if classes is None:
        return ("r2",)
    return ("accuracy", "balanced_accuracy", *(["top5_accuracy"] if classes > 5 else []))


def build(table: ArrayRows, spec: RunSpec) -> Task:
    """Return the task of a table of rows.

    With fewer rows than the table has, the seed draws them; fixed validation rows all remain. Centred inputs subtract the
    table's centre, or the mean of each input: over all rows, or over the training rows if the validation rows are fixed.

    Raises:
      UserError: for more rows than the table has, or no training rows. Also for another target, and centred tokens.
    """
    _check(table, spec)
    x, box = _inputs(table, spec.inputs == "centred")
    signature, split = table.signature(spec.rows), _split(table, spec.rows)

    def sample(key: Key[Array, ""], phase: Int[Array, ""] | int) -> tuple[Shaped[Array, "n ..."], Shaped[Array, "n ..."]]:
        chosen = split(key, phase)
        return jnp.asarray(x, signature.inputs.dtype)[chosen], jnp.asarray(table.y)[chosen]

    same = bool(table.fixed_rows) and spec.rows == len(table)
    return Task(signature, sample, None if signature.input_shape else box, fixed=same, table=(x, table.y), split=split)


def _check(table: ArrayRows, spec: RunSpec) -> None:
    if spec.target != "default":
        raise nearest(spec.target, ("default",), f"target of task {spec.task}")
    if spec.rows > len(table):
        raise UserError(f"task {spec.task} has {len(table)} rows, not rows={spec.rows}. Leave rows out, or set fewer.")
    if table.train_rows(spec.rows) < 1:
        least = (
            f"{table.fixed_rows} are validation rows" if table.fixed_rows else f"the share of validation rows is {table.val:g}"
        )
        raise UserError(f"task {spec.task} with rows={spec.rows} has no training rows, because {least}. Set more rows.")
    if table.tokens and spec.inputs == "centred":
        raise UserError(f"the inputs of task {spec.task} are tokens, which have no mean. Leave inputs='raw'.")


@functools.lru_cache(maxsize=16)
def _inputs(table: ArrayRows, centred: bool) -> tuple[Shaped[np.ndarray, "n ..."], tuple[float, float]]:
    """Return the inputs of a table, and their bounds."""
    x, box = table.x, table.box
    if centred:
        centre = x[: len(x) - table.fixed_rows].mean(axis=0, dtype=np.float64) if table.centre is None else table.centre
        x, box = (x - centre).astype(np.result_type(x.dtype, np.float32)), None
    return x, box or (float(x.min()), float(x.max()))


def _split(table: ArrayRows, rows: int) -> Callable[..., Int[Array, " n"]]:
    """Return `split(key, phase)`: the numbers of the training rows of a run, then of its validation rows."""
    total, fixed = len(table), table.fixed_rows

    def by_seed(key: Key[Array, ""], phase: Any) -> Int[Array, " n"]:
        return jax.random.permutation(key, total)[:rows]

    def whole(key: Key[Array, ""], phase: Any) -> Int[Array, " n"]:
        return jnp.arange(total)

    def fixed_validation(key: Key[Array, ""], phase: Any) -> Int[Array, " n"]:
        drawn = jax.random.permutation(key, total - fixed)[: rows - fixed]
        return jnp.concatenate([drawn, jnp.arange(total - fixed, total)])

    if not fixed:
        return by_seed
    return whole if rows == total else fixed_validation
