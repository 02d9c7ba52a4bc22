"""Inputs and targets from .npz files, .csv files and data frames."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import Shaped

from relu_study.errors import UserError, nearest

FORMS = (".npz", ".csv", ".csv.gz")


def read_file(what: str, path: str | PurePath, y: Any, inputs: str) -> tuple[Any, Any]:
    """Return the inputs and targets of a file: two arrays of an .npz file, or a data frame and the name of a column.

    Raises:
      UserError: for a missing or damaged file, another kind of file, and a missing array.
    """
    name = str(path)
    if not name.endswith(FORMS):
        raise UserError(f"{what}: {name!r} is no .npz or .csv file. Give the path of one, or arrays.")
    if name.endswith(".npz"):
        return _arrays(what, name, y, inputs)
    if not isinstance(y, str):
        raise UserError(f"{what}: y is {str(y)[:60]}. Give the name of the target's column in {name!r}, y='label'.")
    import pandas as pd  # slow to import

    try:
        return pd.read_csv(name), y
    except OSError as error:
        raise _unreadable(what, name, error) from None
    except (ValueError, EOFError) as error:  # errors of the parser are ValueErrors
        raise UserError(
            f"{what}: {name!r} is no .csv file ({_first_line(error)}). Give columns under one line of names."
        ) from None


def _arrays(what: str, name: str, y: Any, inputs: str) -> tuple[Any, Any]:
    y = "y" if y is None else y
    try:
        with np.load(name, allow_pickle=False) as file:
            wanted = (inputs, y) if isinstance(y, str) else (inputs,)
            for array in wanted:
                if array not in file.files:
                    raise nearest(array, file.files, f"array of {name}")
            return file[inputs], (file[y] if isinstance(y, str) else y)
    except OSError as error:
        raise _unreadable(what, name, error) from None
    except Exception as error:  # zipfile.BadZipFile, or a ValueError for arrays of Python objects
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{what}: {name!r} cannot be read ({_first_line(error)}). Save it with numpy.savez, as numbers."
        ) from None


def _unreadable(what: str, name: str, error: OSError) -> UserError:
    return UserError(
        f"{what}: the file {name!r} cannot be read ({error.strerror or _first_line(error)}). Give the path of a file."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:80].rstrip(". ")


def is_table(values: Any) -> bool:
    """Whether a value is a data frame of pandas."""
    return hasattr(values, "iloc") and hasattr(values, "columns")


def table_column(what: str, table: Any, name: str) -> Any:
    """Return a column of a data frame. Raises UserError if there is none of this name."""
    if name not in table.columns:
        raise nearest(name, [str(column) for column in table.columns], f"column of {what}")
    return table[name]


def table_inputs(what: str, table: Any, without: str | None = None) -> Shaped[np.ndarray, "n D"]:
    """Return the columns of a data frame as one array of numbers, `without` the column of the target."""
    if without is not None and without not in table.columns:
        raise nearest(without, [str(column) for column in table.columns], f"column of {what}")
    columns = [table[name] for name in table.columns if name != without]
    for column in columns:
        if not is_numeric(column):
            raise UserError(f"{what}: column {str(column.name)!r} has dtype {column.dtype}. Give numbers, or drop the column.")
    if not columns:
        raise UserError(f"{what}: the data frame has no column of inputs. Give at least one.")
    return np.column_stack([numeric(column) for column in columns])


def is_numeric(column: Any) -> bool:
    """Whether a column of a data frame has numbers or booleans."""
    return getattr(getattr(column, "dtype", None), "kind", "O") in "biuf"


def numeric(column: Any) -> Shaped[np.ndarray, " n"]:
    """Return a column of numbers: floats if it has missing values, which become NaN."""
    kind = "f" if column.isna().any() else column.dtype.kind
    dtype = {"b": np.bool_, "i": np.int64, "u": np.uint64, "f": np.float64}[kind]
    return np.asarray(column.to_numpy(dtype=dtype, na_value=np.nan) if kind == "f" else column.to_numpy(dtype=dtype))
