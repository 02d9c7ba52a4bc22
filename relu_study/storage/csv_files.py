"""The CSV files of a results folder: written and read strictly."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from relu_study.errors import UserError
from relu_study.storage.checksums import UNREADABLE, CorruptFileError, check_sum
from relu_study.storage.manifest import seeds_of
from relu_study.storage.schema import COLUMNS
from relu_study.storage.tile_identity import number_type
from relu_study.study.run_spec import FIELDS, RunSpec

CONFIG_FIELDS = tuple(name for name in FIELDS if name != "seed")
DTYPES = {f.name: {"str": "str", "int": "int64", "float": "float64"}[str(f.type)] for f in dataclasses.fields(RunSpec)}
_STRING_COLUMNS = ("run_id", "config_id", "status", "experiment", "metric", "site")


def csv_text(frame: pd.DataFrame) -> str:
    """A frame as CSV: nine digits (a float32 survives), RunSpec fields and a run's doubles exact, NaN empty."""
    exact = {name: [_shortest(v) for v in frame[name]] for name in CONFIG_FIELDS if name in frame and DTYPES[name] == "float64"}
    if "run_id" in frame:
        exact |= {
            name: [_shortest(v) for v in frame[name]]
            for name in map(str, frame)
            if "/" in name and frame[name].dtype == np.float64
        }
    return frame.assign(**exact).to_csv(index=False, float_format="%.9g", lineterminator="\n")


def read_runs(folder: Path, manifest: dict[str, Any]) -> pd.DataFrame:
    """runs.csv, refused where its runs or its metrics are not those that the manifest declares, or it was changed."""
    path, declaration = folder / "runs.csv", manifest["declaration"]
    frame, read = _parsed(path, numbers=number_type(manifest["provenance"]))
    seeds = seeds_of(declaration)
    wanted = sum(seeds.values())
    found = frame["seed"] < frame["config_id"].map(seeds).fillna(0)
    if len(frame) != wanted or not found.all() or frame.duplicated(["config_id", "seed"]).any():
        raise UserError(
            f"{path} has {int(found.sum()):,} of the {wanted:,} runs that manifest.json declares: it is cut off, or of another "
            f"time; restore it, or make it with 'relu-study report {folder}'"
        )
    _has(frame.columns, declaration["columns"], path)
    check_sum(path, read)
    return frame


def _has(found: Collection[str], needed: Iterable[str], path: Path) -> None:
    missing = [name for name in needed if name not in found]
    if missing:
        raise UserError(
            f"{path} has no column {missing[0]}: it is garbled, or another version wrote it; restore it, "
            f"or make it with 'relu-study report {path.parent}'"
        )


def read_csv(path: Path, string_columns: Iterable[str] = (), numbers: Any = np.float32) -> pd.DataFrame:
    """A CSV file of a results folder, with the types it was written with; a missing or changed one is named, with the way out.

    `string_columns` are columns of text besides those that every file has; `numbers` is the type of the metrics of runs.csv.
    """
    frame, read = _parsed(path, string_columns, numbers)
    check_sum(path, read)
    return frame


def _parsed(path: Path, string_columns: Iterable[str] = (), numbers: Any = np.float32) -> tuple[pd.DataFrame, bytes]:
    """A CSV file and the bytes it was read from. What is wrong with its form is said first: it says more than a checksum."""
    if not path.is_file():
        raise UserError(f"{path} is missing; make it with 'relu-study report {path.parent}', which needs {path.parent / 'raw'}")
    kinds: dict[str, Any] = (
        {"epoch": "float64", "certified_revived": "Int64"} | DTYPES | dict.fromkeys((*_STRING_COLUMNS, *string_columns), "str")
    )
    try:
        read = path.read_bytes()
        if not read.endswith(b"\n"):
            raise ValueError("its last line is cut off")
        header = pd.read_csv(io.BytesIO(read), nrows=0).columns
        if "run_id" in header:
            kinds |= {"probe_examples": "Int64"} | {name: numbers for name in header if "/" in name}
        kinds = {name: kind for name, kind in kinds.items() if name in header}
        with np.errstate(invalid="raise", over="raise"):  # a number too great for its column is not made another one
            frame = pd.read_csv(io.BytesIO(read), dtype=kinds, keep_default_na=False, na_values=[""])
        only_numbers(frame, [name for name, kind in kinds.items() if kind == "str"])
    except UNREADABLE as error:
        hint = f"restore it, or make it with 'relu-study report {path.parent}'"
        raise CorruptFileError(path, "is garbled", error, hint) from None
    _has(frame.columns, COLUMNS.get(path.stem, string_columns), path)
    string_columns = [name for name, kind in kinds.items() if kind == "str"]
    return frame.assign(**{name: frame[name].fillna("") for name in string_columns}), read


def only_numbers(frame: pd.DataFrame, string_columns: Collection[str]) -> None:
    """ValueError where a column besides `string_columns` holds what is no number; one without any rows holds nothing."""
    for name in frame if len(frame) else ():
        if name not in string_columns and not pd.api.types.is_numeric_dtype(frame[name]):
            raise ValueError(f"its column {name} holds what is no number")


def _shortest(value: Any) -> str:
    if isinstance(value, str) or math.isnan(value):
        return ""
    # Nine digits where they say it all; a field must come back as the number that its run_id was made from.
    return text if float(text := f"{value:.9g}") == value else repr(value)
