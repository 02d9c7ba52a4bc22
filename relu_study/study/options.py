"""Options of a RunSpec: own factors of a network, task, optimiser or activation, as sorted pairs of a name and a JSON scalar."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from relu_study.errors import UserError

Scalar = str | int | float | bool
Options = tuple[tuple[str, Scalar], ...]

LARGEST = 2**53  # larger whole numbers have no exact float
RESERVED = frozenset(  # columns of the CSV files and of tables, and names of conditions
    {
        *("options", "seed", "arm", "experiment", "run_id", "config_id", "status", "reason", "first_bad_epoch", "probe_examples"),
        *("metric", "site", "epoch", "n", "n_finite", "mean", "ci_lo", "ci_hi", "std", "median", "iqm", "min", "max"),
        *("best", "near", "pairs", "difference", "difference_lo", "difference_hi", "improvement", "p", "p_corrected"),
    }
)


def normalized(options: Any, fields: Collection[str]) -> Options:
    """Return options (a mapping or pairs) sorted by name, with values as Python scalars. A whole float becomes an int.

    Raises:
      UserError: a name is invalid, reserved, repeated or one of `fields`, or a value is no finite scalar.
    """
    pairs = [_pair(pair) for pair in (options.items() if isinstance(options, Mapping) else _iterated(options))]
    names = [name for name, _ in pairs]
    for name in names:
        _check_name(name, fields)
        if names.count(name) > 1:
            raise UserError(f"option {name} is set twice. Leave one out")
    return tuple(sorted((name, scalar(name, value)) for name, value in pairs))


def could_be_option(name: str) -> bool:
    """Whether a name that is no RunSpec field can be that of an option."""
    return name.isidentifier() and name not in RESERVED


def scalar(name: str, value: Any) -> Scalar:
    """Return the value of an option as a Python scalar. NumPy scalars and arrays without axes are converted.

    Raises:
      UserError: for another type, NaN, infinity, an empty text or a whole number of 2^53 or more.
    """
    if not isinstance(value, (str, numbers.Number)) and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, str):
        if not value or not value.isprintable():
            raise UserError(f"option {name} is {value!r}, which is no printable text. Give it a name")
        return str(value)
    if isinstance(value, bool):
        return value
    if not isinstance(value, numbers.Real):
        raise UserError(f"option {name} must be a text, a number or a truth value, not {value!r}. Give one value")
    if isinstance(value, numbers.Integral):
        if abs(whole := int(value)) >= LARGEST:
            raise UserError(f"option {name} is {whole}, and the limit is 2^53. Give a smaller number")
        return whole
    number = float(value)
    if not math.isfinite(number):
        raise UserError(f"option {name} must be finite, not {number}. Give a finite number")
    return int(number) if number.is_integer() and abs(number) < LARGEST else number


def _iterated(options: Any) -> list[Any]:
    if isinstance(options, str) or not isinstance(options, Iterable):
        raise UserError(f"options must be a mapping, not {options!r}. Write options={{'channels': 32}}")
    return list(options)


def _pair(pair: Any) -> tuple[Any, Any]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise UserError(f"an option must be a name with a value, not {pair!r}. Write options={{'channels': 32}}")
    return pair[0], pair[1]


def _check_name(name: Any, fields: Collection[str]) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise UserError(f"{name!r} cannot be the name of an option. Use letters, digits and _")
    if name in fields:
        raise UserError(f"{name} is a RunSpec field, so no option can have its name. Set the field, or rename the option")
    if name in RESERVED:
        raise UserError(f"{name} is a column of the results, so no option can have its name. Rename the option")
