"""Checks of the user's tasks against their contract, before anything compiles.

The package's entries are exempt at run time (`ours`). A test calls the same checks for them.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import time
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relu_study.components import random_keys, random_streams
from relu_study.components.entry_errors import calling
from relu_study.components.registry import tasks
from relu_study.components.tasks.task import LABELLED, LOSSES, METRICS, Signature, Task, is_labels
from relu_study.engine import check_tables
from relu_study.errors import UserError, nearest
from relu_study.study.run_spec import RunSpec

CLOCKS = {"time", "time_ns", "now", "utcnow", "today", "monotonic", "perf_counter"}
INTEGERS = ("int8", "int16", "int32", "uint8", "uint16", "uint32")  # dtypes of tokens
DRAWN = 16  # maximum of phases whose rows are drawn
TICK = 1.1  # seconds between two draws: a clock in whole seconds differs after them


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)


# ------------------------------------------------------------------------------------------- tasks


def check_task(spec: RunSpec) -> list[str]:
    """Raise UserError if a task breaks its contract. Return notes for the plan and the report.

    One `jax.eval_shape` of `sample` per phase checks shapes and dtypes. Eager draws check that equal keys give equal rows, that
    all inputs are in the box, and that the targets fit the loss. They cover up to 16 phases, with the first and the last.
    """
    name, own = spec.task, getattr(tasks[spec.task], "options", {})
    options = tuple((option, value) for option, value in spec.options if option in own)
    data_fields = RunSpec(rows=spec.rows, **dict(spec.marked("data")), options=options)
    task, rebuilt = (_built(name, one) for one in (spec, data_fields))
    check_declared(name, task)
    for field in ("signature", "box", "phases"):
        if (value := getattr(task, field)) != (other := getattr(rebuilt, field)):
            raise UserError(
                f"task {name!r}: its {field} depends on more than rows, target and inputs ({value} here, {other} without the "
                "other fields). Build it from these three fields and its own options only."
            )
    if task.table is not None or task.split is not None:
        check_tables.check_arrays(name, task, rebuilt)
        _check_values(name, task, *map(np.asarray, task.table or ()))
    for phase in range(task.phases):
        _check_shapes(name, task, phase)
    fixed = True
    for phase in sorted({round(i * (task.phases - 1) / (DRAWN - 1)) for i in range(DRAWN)}):
        first = _draw(name, task, 0, phase)
        if reads_clock(task.sample):
            time.sleep(TICK)
        for other in (task, rebuilt):
            if _draw(name, other, 0, phase) != first or not _repeats(other, phase):
                raise UserError(
                    f"task {name!r}: two draws with the same key give different rows. Draw all random numbers from the key, with "
                    "jax.random, not from NumPy, Python's state or a clock."
                )
        fixed = fixed and first == _draw(name, task, 1, phase)
    if task.fixed and not fixed:
        raise UserError(
            f"task {name!r} declares fixed=True, and two keys give different rows. Leave fixed out, or ignore the key."
        )
    if fixed and not task.fixed:
        return [
            f"task {name!r} gives two different keys the same rows: seeds differ only in weights and order. "
            "Declare Task(fixed=True) if this is intended."
        ]
    return []


def _built(name: str, spec: RunSpec) -> Task:
    with calling(f"task {name!r}"):
        task = tasks[name](spec)
    if not isinstance(task, Task):
        raise UserError(f"task {name!r} returns {type(task).__name__} {str(task)[:60]!r}. Return a relu_study.Task.")
    return task


def check_declared(name: str, task: Task) -> None:
    """Raise UserError if a field of a Task is wrong. Draws nothing."""
    s = task.signature
    if not isinstance(s, Signature):
        raise UserError(f"task {name!r}: signature must be a relu_study.Signature, not {type(s).__name__}")
    for field, least in (("train_rows", 0), ("val_rows", 0), ("d_in", 1), ("d_out", 1)):  # `cohorts.check` reports 0 rows
        if not _whole(getattr(s, field), least):
            raise UserError(f"task {name!r}: {field} must be a whole number of at least {least}, not {getattr(s, field)!r}")
    if not _whole(task.phases, 1):
        raise UserError(f"task {name!r}: phases must be a whole number of at least 1, not {task.phases!r}")
    if not callable(task.sample) or not _takes_two(task.sample):
        raise UserError(f"task {name!r}: sample must be a function sample(key, phase) -> (inputs, targets)")
    if not isinstance(task.fixed, bool):
        raise UserError(f"task {name!r}: fixed must be True or False, not {task.fixed!r}")
    if not isinstance(s.loss, str) or s.loss not in LOSSES:
        raise nearest(str(s.loss), LOSSES, f"loss of task {name!r}:")
    if not isinstance(s.metrics, tuple):
        raise UserError(f"task {name!r}: metrics must be a tuple of names, not {s.metrics!r}. Write metrics=('accuracy',).")
    for metric in s.metrics:
        if not isinstance(metric, str) or metric not in METRICS:
            raise nearest(str(metric), METRICS, f"metric of task {name!r}:")
    if s.loss in ("cross_entropy", "ce") and s.outputs.shape[-1] < 2:
        raise UserError(f"task {name!r}: {s.loss} needs an output for each of at least 2 classes, not d_out=1. Use loss='bce'.")
    if s.loss == "bce" and s.d_out != 1:
        raise UserError(f"task {name!r}: bce takes one logit, so d_out=1, not {s.d_out}. Use loss='ce' for several classes.")
    _check_declared_shapes(name, s)
    of_labels = [metric for metric in s.metrics if METRICS[metric].of == "labels"]
    if s.loss in LABELLED and (others := {*s.metrics} - {*of_labels}):
        raise UserError(f"task {name!r}: {min(others)} is a metric of numbers, and {s.loss} has labels. Leave the metric out.")
    if of_labels and s.d_out == 1 and s.loss != "bce":
        raise UserError(f"task {name!r}: {of_labels[0]} of one output needs a logit. Use loss='bce', or leave the metric out.")
    _check_box(name, task.box)


def _check_declared_shapes(name: str, s: Signature) -> None:
    for field, size, shape in (("input_shape", s.d_in, s.input_shape), ("output_shape", s.d_out, s.output_shape)):
        if not isinstance(shape, tuple) or not all(_whole(axis, 1) for axis in shape):
            raise UserError(f"task {name!r}: {field} must be a tuple of whole numbers of at least 1, not {shape!r}")
        if shape and math.prod(shape) != size:
            raise UserError(f"task {name!r}: {field}={shape} has {math.prod(shape)} entries, and its size is declared {size}.")
    if s.input_dtype != "float" and s.input_dtype not in INTEGERS:
        raise nearest(str(s.input_dtype), ("float", *INTEGERS), f"input_dtype of task {name!r}:")


def _check_box(name: str, box: Any) -> None:
    if box is None:
        return
    is_pair = isinstance(box, tuple) and len(box) == 2 and all(isinstance(end, float) for end in box)
    with np.errstate(over="ignore"):  # an end beyond the range of float32 becomes infinite
        finite = is_pair and np.isfinite(np.asarray(box, jnp.result_type(float))).all()
    if not finite or box[0] > box[1]:
        raise UserError(f"task {name!r}: box must be two finite numbers (low, high) with low <= high, not {box!r}. Correct it.")


def _check_shapes(name: str, task: Task, phase: int) -> None:
    s = task.signature
    with calling(f"sample of task {name!r}"):
        sampled = jax.eval_shape(lambda key: task.sample(key, phase), random_streams.stream(0, "data", phase))
    if not isinstance(sampled, tuple | list) or len(sampled) != 2 or not all(hasattr(part, "shape") for part in sampled):
        returned = f"{len(sampled)} values" if isinstance(sampled, tuple | list) else f"one {type_name(sampled)}"
        raise UserError(f"task {name!r}: sample returns {returned}. Return two arrays, (inputs, targets).")
    x, y = sampled
    rows, at = s.train_rows + s.val_rows, f" in phase {phase}" if phase else ""
    for part, what in ((x, "inputs"), (y, "targets")):
        if not any(jnp.issubdtype(part.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
            raise UserError(f"task {name!r}: the {what} have dtype {part.dtype}{at}. Return real numbers.")
    labels = is_labels(s, y.shape)
    if s.input_dtype != "float" and not jnp.issubdtype(x.dtype, jnp.integer):
        raise UserError(f"task {name!r}: the inputs have dtype {x.dtype}{at}, and its Signature declares {s.input_dtype}.")
    sides = ((x, "inputs", s.inputs, s.input_shape, "d_in"), (y, "targets", s.outputs, s.output_shape, "d_out"))
    for part, what, row, declared, field in sides:
        columns = getattr(s, field)
        if declared and not (labels and what == "targets") and part.shape[1:] != row.shape:
            raise UserError(
                f"task {name!r}: sample returns {what} of shape {part.shape}{at}, and its Signature declares "
                f"{what[:-1].replace('target', 'output')}_shape={declared}. Correct one of them."
            )
        if not declared and not (labels and what == "targets") and not (len(part.shape) == 2 and part.shape[1] == columns):
            action = "Give a column, y[:, None]." if len(part.shape) == 1 and columns == 1 else "Correct one of them."
            raise UserError(
                f"task {name!r}: sample returns {what} of shape {part.shape}{at}, and its Signature declares {field}={columns}: "
                f"{rows} x {columns} is expected. {action}"
            )
        if part.shape[0] < rows:
            raise UserError(
                f"task {name!r}: sample returns {part.shape[0]} rows of {what}{at}, fewer than the {s.train_rows} training and "
                f"{s.val_rows} validation rows of its Signature. Declare fewer rows."
            )
    if x.shape[0] != y.shape[0]:
        raise UserError(
            f"task {name!r}: sample returns {x.shape[0]} inputs and {y.shape[0]} targets{at}. Return equally many of each."
        )


def _takes_two(function: Callable[..., Any]) -> bool:
    """Whether a function accepts two arguments by position. True for compiled code without a signature."""
    try:
        inspect.signature(function).bind(None, None)
    except ValueError:
        return True
    except TypeError:
        return False
    return True


def type_name(value: Any) -> str:
    """The name of a returned value in messages: "array", or the name of its type."""
    return "array" if hasattr(value, "shape") else type(value).__name__


def _draw(name: str, task: Task, seed: int, phase: int) -> str:
    """The digest of the rows that a seed draws. Raises UserError for wrong values."""
    if task.table is not None:
        return check_tables.drawn(name, task, seed, phase)
    sample, key = task.sample, random_streams.stream(seed, "data", phase)
    while hasattr(sample, "__wrapped__") and hasattr(sample, "lower"):  # a jitted function's trace would hide Python's state
        sample = sample.__wrapped__
    with calling(f"sample of task {name!r}"):
        x, y = (np.asarray(part) for part in sample(key, phase))
    _check_indices(name, sample, key, phase)
    _check_values(name, task, x, y)
    return hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()


def _check_values(name: str, task: Task, x: np.ndarray, y: np.ndarray) -> None:
    """Check that inputs are in the task's box, and that targets fit its loss."""
    numbers = x.astype(jnp.result_type(float))
    known = numbers[~np.isnan(numbers)]
    check_inside(name, task.box, known.min(initial=np.inf), known.max(initial=-np.inf))
    s = task.signature
    if s.loss in LABELLED:
        _check_targets(name, s, y)


def _repeats(task: Task, phase: int) -> bool:
    draw = task.sample if task.split is None else task.split
    return random_keys.repeats(lambda key: draw(key, phase), random_streams.stream(0, "data", phase))


def check_inside(name: str, box: Sequence[float] | None, least: Any, most: Any) -> None:
    """Raise UserError if inputs between `least` and `most` leave the box of their task."""
    if box is None or least > most:
        return
    low, high = np.asarray(box, jnp.result_type(float))  # in the precision of the bounds
    if least < low or most > high:
        raise UserError(
            f"task {name!r}: drawn inputs are in [{least:g}, {most:g}], outside its box {box}. "
            "Declare a box that contains them, or box=None."
        )


def _check_targets(name: str, s: Signature, y: np.ndarray) -> None:
    """Check the targets of a classification loss: labels, 0 or 1, or rows of probabilities. NaN shows in the run's status."""
    known, classes = y[~np.isnan(y)] if y.dtype.kind == "f" else y, s.outputs.shape[-1]
    if s.loss == "bce":
        if known.size and (known.min() < 0 or known.max() > 1):
            raise UserError(f"task {name!r}: targets of bce are in [{known.min():g}, {known.max():g}]. Give 0 or 1.")
    elif is_labels(s, y.shape):
        if known.size and (known.min() < 0 or known.max() > classes - 1 or (known != np.round(known)).any()):
            raise UserError(
                f"task {name!r}: labels of {s.loss} are in [{known.min():g}, {known.max():g}]. Give whole numbers from 0 to "
                f"{classes - 1}, {'d_out' if not s.output_shape else 'classes'} - 1."
            )
    elif known.size and (known.min() < 0 or np.nanmax(np.abs(y.astype(float).sum(axis=-1) - 1)) > 1e-3):
        raise UserError(f"task {name!r}: target rows of {s.loss} are no probabilities. Give one-hot rows or integer labels.")


def _check_indices(name: str, sample: Callable[..., Any], key: Any, phase: int) -> None:
    """Raise UserError for an index beyond the end of the user's arrays, which JAX clips silently."""
    from jax.experimental import checkify

    try:
        error, _ = checkify.checkify(lambda key: sample(key, phase), errors=checkify.index_checks)(key)
    except Exception:  # checkify does not support this sample; the plain draw has succeeded
        return
    if message := error.get():
        raise UserError(
            f"task {name!r}: sample reads beyond the end of an array ({message.splitlines()[0].rstrip('. ')}). Draw fewer rows."
        )


def reads_clock(function: Any) -> bool:
    """Whether the code of a function names a clock."""

    def names(code: CodeType) -> set[str]:
        return set(code.co_names).union(*(names(const) for const in code.co_consts if isinstance(const, CodeType)))

    code = getattr(inspect.unwrap(getattr(function, "drawn_by", function)), "__code__", None)
    return code is not None and bool(CLOCKS & names(code))
