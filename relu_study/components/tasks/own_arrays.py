"""Tasks from a user's own arrays, data frames and files: `task_from_arrays`."""

from __future__ import annotations

import functools
import numbers
from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import Shaped

from relu_study.components.registry import tasks
from relu_study.components.tasks.array_files import is_numeric, is_table, numeric, read_file, table_column, table_inputs
from relu_study.components.tasks.array_rows import ArrayRows, build, share_of
from relu_study.components.tasks.task import TaskEntry
from relu_study.errors import UserError
from relu_study.study.data_files import given_file

MAX_FLOAT = float(np.finfo(np.float32).max)
LABEL_KINDS = "biuUS"  # NumPy's kinds of labels: booleans, integers, texts


def task_from_arrays(
    name: str,
    x: Any,
    y: Any = None,
    val: Any = 0.2,
    *,
    fixed: Any = False,
    tokens: Any = False,
    classes: Any = None,
    inputs: str = "x",
) -> TaskEntry:
    """Register a task on a user's own rows, and return it. All runs of a device share one copy of the rows.

    Labels (integers, booleans, texts or categories) mean classification: the loss is cross-entropy, and the sorted labels are
    the classes. Floats mean regression: the loss is the squared error. Integer inputs become floats, without a change of scale.

    Args:
      name: the name in `RunSpec(task=name)`.
      x: inputs as an array: vectors (n, D), images (n, H, W, C) or sequences (n, T, D). Or a data frame of numbers, or the path
        of an .npz or .csv file.
      y: targets as an array (n,) or (n, O). Or the name of a column of the data frame or .csv file; the other columns are
        inputs. Or the name of an array of the .npz file; None: "y".
      val: the share of validation rows, or a pair (x_val, y_val) of the same forms. With an .npz file, a pair may name arrays.
      fixed: all seeds share the validation rows, which are drawn once. Without it, each seed draws a split.
      tokens: x contains integers (n, T), which the network gets as int32.
      classes: the number of classes V of integer labels from 0. Labels of shape (n, T) are then labels of positions.
      inputs: the name of the inputs in an .npz file.

    Raises:
      UserError: for arrays of other shapes or dtypes, values that are not finite, unequal lengths, a single class, or too few
        rows. Also for a missing file, array or column, a wrong `val`, and validation labels without training rows.
    """
    what = f"task {name!r}"
    if not isinstance(fixed, bool) or not isinstance(tokens, bool):
        raise UserError(f"{what}: fixed and tokens must be True or False, not {fixed!r} and {tokens!r}")
    x_train, y_train = _read(what, x, y, inputs, tokens)
    if isinstance(val, tuple | list) and len(val) == 2:
        x_val, y_val = _read(f"{what}, validation", *_named_in(x, val, inputs), tokens)
        table = _with_validation(what, (x_train, y_train), (x_val, y_val), tokens, classes)
    elif isinstance(val, numbers.Real) and not isinstance(val, bool) and 0 < float(val) < 1:
        table = _with_share(what, (x_train, y_train), float(val), fixed, tokens, classes)
    else:
        raise UserError(f"{what} has val={str(val)[:60]}. Give a share between 0 and 1, or a pair (x_val, y_val).")
    entry = TaskEntry(name, functools.partial(build, table), rows=len(table))
    tasks.load()  # before, so that a name of the package is refused
    tasks.add(name, entry)
    return entry


def _named_in(x: Any, val: Any, inputs: str) -> tuple[Any, Any, str]:
    """Return the file or inputs, targets and name of the inputs of validation rows. Names belong to the file of x."""
    x_val, y_val = val
    named = isinstance(x, str | PurePath) and isinstance(x_val, str) and not x_val.endswith((".npz", ".csv", ".csv.gz"))
    return (x, y_val, x_val) if named else (x_val, y_val, inputs)


# ------------------------------------------------------------------------------------------- reading


def _read(what: str, x: Any, y: Any, inputs: str, tokens: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs and targets of one set of rows, checked by themselves."""
    if isinstance(x, str | PurePath):
        x, y = read_file(what, given_file(x), y, inputs)
    if is_table(x):
        if isinstance(y, str):
            x, y = table_inputs(what, x, without=y), table_column(what, x, y)
        else:
            x = table_inputs(what, x)
    if y is None or isinstance(y, str):
        raise UserError(f"{what}: y is {y!r}. Give an array of targets, or a name of a column of a data frame or .csv file.")
    x, y = _inputs(what, x, tokens), _targets(what, y)
    if len(x) != len(y):
        raise UserError(f"{what}: x has {len(x)} rows and y has {len(y)}. Give equally many of each.")
    return x, y


def _array(what: str, name: str, values: Any) -> Shaped[np.ndarray, "n ..."]:
    if np.ma.is_masked(values):
        raise UserError(f"{what}: {name} has masked values. Remove these rows, or fill them in.")
    try:
        array = np.array(values)  # a copy: later changes of the user's array change no run
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{what}: {name} is no array ({str(error).splitlines()[0][:80]}). Give rows of equal lengths.") from None
    if array.ndim == 0 or not array.size:
        raise UserError(f"{what}: {name} has shape {array.shape}. Give one row per example, and at least one number per row.")
    return array


def _inputs(what: str, values: Any, tokens: bool) -> Shaped[np.ndarray, "n ..."]:
    x = _array(what, "x", values)
    if x.dtype.kind not in "biuf":
        raise UserError(f"{what}: x has dtype {x.dtype}. Give numbers, for example x.astype(float).")
    if tokens:
        if x.dtype.kind not in "iu" or x.ndim != 2 or x.min() < 0 or x.max() > np.iinfo(np.int32).max:
            raise UserError(
                f"{what}: tokens are {x.dtype} of shape {x.shape} from {x.min():g}. Give whole numbers from 0 of shape (n, T)."
            )
        return x.astype(np.int32)
    if x.ndim == 1:
        raise UserError(f"{what}: x has shape {x.shape}. Give one row per example, such as x[:, None].")
    _check_finite(what, "x", x)
    return x.astype(np.float32) if x.dtype.kind == "b" else x


def _targets(what: str, values: Any) -> Shaped[np.ndarray, "n ..."]:
    """Return targets as floats of at least two axes, or as labels."""
    if str(getattr(values, "dtype", "")) == "category":
        values = [None if missing else str(value) for value, missing in zip(values, values.isna(), strict=True)]
    elif hasattr(values, "isna") and is_numeric(values):
        values = numeric(values)
    y = _array(what, "y", values)
    if y.dtype.kind in "OT":
        y = _texts(what, y)
    if y.dtype.kind not in f"f{LABEL_KINDS}":
        raise UserError(f"{what}: y has dtype {y.dtype}. Give floats for a regression, or integers or texts as labels.")
    if y.dtype.kind == "f":
        _check_finite(what, "y", y)
        return y[:, None] if y.ndim == 1 else y
    return y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y


def _texts(what: str, y: Shaped[np.ndarray, "n ..."]) -> Shaped[np.ndarray, "n ..."]:
    """Return labels of dtype object as texts."""
    kinds = {type(value) for value in y.ravel()}
    if kinds == {str}:
        return y.astype(str)
    others = sorted(kind.__name__ for kind in kinds - {str})
    missing = " A label is missing." if str in kinds and set(others) <= {"float", "NoneType", "NAType", "NaTType"} else ""
    raise UserError(f"{what}: y has dtype {y.dtype} with {', '.join(others)}.{missing} Give numbers, or a text for every row.")


def _check_finite(what: str, name: str, values: Shaped[np.ndarray, "n ..."]) -> None:
    if values.dtype.kind != "f":
        return
    wrong = ~(np.abs(values) <= MAX_FLOAT).reshape(len(values), -1).all(axis=1)  # of NaN the comparison is false
    if wrong.any():
        raise UserError(
            f"{what}: {wrong.sum()} rows of {name} have NaN, infinite or too large numbers, the first in row {wrong.argmax()}. "
            "Remove these rows, or fill them in."
        )


# ------------------------------------------------------------------------------------------- classes and split


def _with_share(what: str, train: Any, share: float, fixed: bool, tokens: bool, classes: Any) -> ArrayRows:
    x, y = train
    rows = len(x) - share_of(len(x), share)
    if rows < 1:
        raise UserError(f"{what}: {len(x)} rows with val={share:g} leave no training rows. Give more rows.")
    if fixed:
        order = np.random.RandomState(0).permutation(len(x))
        first, last = ((x[part], y[part]) for part in (order[:rows], order[rows:]))
        return _with_validation(what, first, last, tokens, classes)
    y, found = _numbered(what, y, classes, x)
    return _frozen(ArrayRows(x, y, found, share, tokens))


def _with_validation(what: str, train: Any, validation: Any, tokens: bool, classes: Any) -> ArrayRows:
    (x, y), (x_val, y_val) = train, validation
    for name, here, there in (("x", x, x_val), ("y", y, y_val)):
        is_regression, is_same = here.dtype.kind == "f", here.shape[1:] == there.shape[1:]
        if not is_same or (name == "y" and is_regression != (there.dtype.kind == "f")):
            raise UserError(
                f"{what}: {name} is {here.dtype} of shape {here.shape}, and its validation rows are {there.dtype} of shape "
                f"{there.shape}. Give rows of one kind."
            )
    y, found = _numbered(what, y, classes, x, y_val)
    return _frozen(ArrayRows(np.concatenate([x, x_val]), y, found, len(x_val), tokens))


def _frozen(table: ArrayRows) -> ArrayRows:
    table.x.setflags(write=False)
    table.y.setflags(write=False)
    return table


def _numbered(what: str, y: Any, classes: Any, x: Any, y_val: Any = None) -> tuple[np.ndarray, int | None]:
    """Return the targets of all rows, labels as class numbers, and the number of classes."""
    if y.dtype.kind == "f":
        if classes is not None:
            raise UserError(f"{what} has classes={classes!r}, and y has dtype {y.dtype}. Give integer labels, y.astype(int).")
        return (y if y_val is None else np.concatenate([y, y_val])), None
    if y.ndim > 1 and (classes is None or y.shape != x.shape[: y.ndim]):
        raise UserError(
            f"{what}: y has labels of shape {y.shape}. Give one label per row, such as y.argmax(axis=1) of one-hot rows, or "
            "classes=V with a label for each position of x."
        )
    if classes is not None:
        return _counted(what, y if y_val is None else np.concatenate([y, y_val]), classes)
    known = np.unique(y)
    if len(known) < 2:
        raise UserError(f"{what}: all {len(y)} labels are {known[0]!s}. Give rows of at least 2 classes.")
    if y_val is not None:
        if unseen := sorted(set(y_val.tolist()) - set(known.tolist()), key=str):
            raise _unseen(what, unseen)
        y = np.concatenate([y, y_val])
    return np.searchsorted(known, y).astype(np.int32), len(known)


def _counted(what: str, y: np.ndarray, classes: Any) -> tuple[np.ndarray, int]:
    """Return labels that are class numbers already."""
    if isinstance(classes, bool) or not isinstance(classes, int | np.integer) or classes < 2:
        raise UserError(f"{what} has classes={classes!r}. Give a whole number of at least 2.")
    if y.dtype.kind not in "biu" or y.min() < 0 or y.max() >= classes:
        least = f" from {y.min()} to {y.max()}" if y.dtype.kind in "biu" else ""
        raise UserError(f"{what} has classes={classes}, and labels {y.dtype}{least}. Give whole numbers from 0 to {classes - 1}.")
    return y.astype(np.int32), int(classes)


def _unseen(what: str, labels: list[Any]) -> UserError:
    names = ", ".join(map(str, labels[:5])) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")
    return UserError(f"{what}: labels of validation rows are no labels of training rows ({names}). Add training rows of them.")
