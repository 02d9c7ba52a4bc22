"""Strict reading and writing of the CSV files of a results folder."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from relu_study.errors import UserError
from relu_study.storage.checksums import UNREADABLE, CorruptFileError, check_sum
from relu_study.storage.declaration import Declaration, StudyManifest
from relu_study.storage.schema import COLUMNS, REASON
from relu_study.storage.tile_identity import number_type
from relu_study.study.run_spec import FIELDS, RunSpec

CONFIG_FIELDS = tuple(name for name in FIELDS if name != "seed")
_KINDS = {"str": "str", "int": "int64", "float": "float64"}
DTYPES = {f.name: _KINDS[str(f.type)] for f in dataclasses.fields(RunSpec) if f.name in FIELDS}
_STRING_COLUMNS = ("run_id", "config_id", "status", "experiment", "metric", "site", REASON)


def option_dtypes(declaration: Declaration) -> dict[str, str]:
    """Return the dtype of each option's column: Int64, float64, boolean, or str for texts and mixed values."""
    specs = declaration.specs.values()
    return {name: _dtype({type(spec[name]) for spec in specs if name in spec}) for name in declaration.options}


def _dtype(kinds: set[type]) -> str:
    if kinds == {bool}:
        return "boolean"
    if kinds and kinds <= {int, float}:
        return "Int64" if kinds == {int} else "float64"
    return "str"


def csv_text(frame: pd.DataFrame, options: Collection[str] = ()) -> str:
    """Return a frame as CSV text. A number has nine digits, which are exact for float32. NaN is empty.

    RunSpec fields, `options` and float64 metrics of runs have all their digits.
    """
    exact = [name for name in CONFIG_FIELDS if name in frame and DTYPES[name] == "float64"]
    if "run_id" in frame:
        exact += [name for name in map(str, frame) if "/" in name and frame[name].dtype == np.float64]
    texts = {name: [_exact_text(value) for value in frame[name]] for name in exact}
    texts |= {name: [_exact_text(v) if isinstance(v, float) else v for v in frame[name]] for name in options if name in frame}
    return frame.assign(**texts).to_csv(index=False, float_format="%.9g", lineterminator="\n")


def read_runs(folder: Path, manifest: StudyManifest) -> pd.DataFrame:
    """Read runs.csv.

    Raises:
        UserError: its runs or metrics differ from the declared ones.
        CorruptFileError: it is corrupt, or its checksum does not match.
    """
    path, seeds, options = folder / "runs.csv", manifest.declaration.seeds_of, option_dtypes(manifest.declaration)
    frame, content = _parsed(path, numbers=number_type(manifest.provenance), options=options)
    num_declared = sum(seeds.values())
    is_declared = frame["seed"] < frame["config_id"].map(seeds).fillna(0)
    if len(frame) != num_declared or not is_declared.all() or frame.duplicated(["config_id", "seed"]).any():
        raise UserError(
            f"{path} has {int(is_declared.sum()):,} of the {num_declared:,} runs declared in manifest.json: it is truncated or "
            f"out of date. Restore it, or rebuild it with 'relu-study report {folder}'."
        )
    _require_columns(frame.columns, manifest.declaration.columns, path)
    check_sum(path, content)
    return frame


def read_summary(folder: Path, manifest: StudyManifest) -> pd.DataFrame:
    """Read summary.csv. Raises UserError and CorruptFileError like `read_csv`."""
    path = folder / "summary.csv"
    frame, content = _parsed(path, options=option_dtypes(manifest.declaration))
    check_sum(path, content)
    return frame


def _require_columns(columns: Collection[str], needed: Iterable[str], path: Path) -> None:
    """Raise UserError if a CSV file lacks a needed column."""
    missing = [name for name in needed if name not in columns]
    if missing:
        raise UserError(
            f"{path} has no column {missing[0]}: it is corrupt or of another relu-study version. Restore it, "
            f"or rebuild it with 'relu-study report {path.parent}'."
        )


def read_csv(path: Path, string_columns: Iterable[str] = (), numbers: Any = np.float32) -> pd.DataFrame:
    """Read a CSV file of a results folder with the dtypes of its writer. Options are read as text.

    Args:
        path: The CSV file.
        string_columns: Text columns besides those common to all files.
        numbers: The dtype of the metrics in runs.csv.

    Raises:
        UserError: the file or one of its columns is missing.
        CorruptFileError: it is corrupt, or its checksum does not match.
    """
    frame, content = _parsed(path, string_columns, numbers)
    check_sum(path, content)
    return frame


def _parsed(
    path: Path, string_columns: Iterable[str] = (), numbers: Any = np.float32, options: Mapping[str, str] | None = None
) -> tuple[pd.DataFrame, bytes]:
    """Return the frame and the bytes of a CSV file, before its checksum is checked: errors of form are more precise.

    `options` are the dtypes of the options, which the file must have.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is missing. Rebuild it with 'relu-study report {path.parent}', which needs {path.parent / 'raw'}."
        )
    try:
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            raise ValueError("its last line is truncated")
        header = pd.read_csv(io.BytesIO(content), nrows=0).columns
        dtypes = _dtypes(header, (*string_columns, *_options(path.stem, header)), numbers)
        dtypes |= {name: dtype for name, dtype in (options or {}).items() if name in header}
        with np.errstate(invalid="raise", over="raise"):  # refuse numbers that overflow their dtype
            frame = pd.read_csv(io.BytesIO(content), dtype=dtypes, keep_default_na=False, na_values=[""])
        texts = [name for name, dtype in dtypes.items() if dtype == "str"]
        only_numbers(frame, texts)
    except UNREADABLE as error:
        hint = f"restore it, or rebuild it with 'relu-study report {path.parent}'"
        raise CorruptFileError(path, "is corrupt", error, hint) from None
    _require_columns(frame.columns, (*COLUMNS.get(path.stem, string_columns), *(options or ())), path)
    return frame.assign(**{name: frame[name].fillna("") for name in texts}), content


def _options(stem: str, header: Iterable[str]) -> list[str]:
    """Return the columns of options in the header of runs.csv or summary.csv."""
    if stem not in ("runs", "summary"):
        return []
    return [name for name in header if name not in (*COLUMNS[stem], REASON) and "/" not in name]


def _dtypes(header: Collection[str], string_columns: Iterable[str], numbers: Any) -> dict[str, Any]:
    """Return the dtypes of the columns in a CSV file's header, as its writer had them. Other columns contain numbers."""
    dtypes: dict[str, Any] = {"epoch": "float64", "certified_revived": "Int64"} | DTYPES
    dtypes |= dict.fromkeys((*_STRING_COLUMNS, *string_columns), "str")
    if "run_id" in header:
        dtypes |= {"probe_examples": "Int64"} | {name: numbers for name in header if "/" in name}
    return {name: dtype for name, dtype in dtypes.items() if name in header}


def only_numbers(frame: pd.DataFrame, string_columns: Collection[str]) -> None:
    """Raise ValueError if a column besides `string_columns` contains a value that is not a number."""
    for name in frame if len(frame) else ():
        if name not in string_columns and not pd.api.types.is_numeric_dtype(frame[name]):
            raise ValueError(f"its column {name} has a value that is not a number")


def _exact_text(value: Any) -> str:
    """Return a number in nine digits if they are exact, else in all digits: a run_id is a hash of exact fields."""
    if isinstance(value, str) or math.isnan(value):
        return ""
    text = f"{value:.9g}"
    return text if float(text) == value else repr(value)
