"""Tables, figures and verdicts of a results folder, as every destination takes them."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from relu_study.report.exports.tracker import Scalar
from relu_study.storage.declaration import CellDeclaration, Declaration, output_names

MORE_TABLES = ("units", "health")  # CSV files that a study's run has as tables, besides the declared ones


def table_frames(
    folder: Path, declaration: Declaration | CellDeclaration, more: Mapping[str, pd.DataFrame]
) -> dict[str, pd.DataFrame]:
    """Return the declared tables that the folder has, the frames in `more`, and the CSV files of units and findings."""
    declared = {name: folder / "tables" / f"{name}.csv" for name in output_names(declaration)["tables"]}
    files = declared | {name: folder / f"{name}.csv" for name in MORE_TABLES}
    frames = {name: _frame(path) for name, path in files.items() if path.is_file()}
    return {**frames, **{name if name not in frames else f"{name}.csv": frame for name, frame in more.items()}}


def figure_files(folder: Path, declaration: Declaration | CellDeclaration) -> dict[str, Path]:
    """Return the declared figures that the folder has, as PNG files."""
    files = {name: folder / "figures" / f"{name}.png" for name in output_names(declaration)["figures"]}
    return {name: path for name, path in files.items() if path.is_file()}


def missing_outputs(folder: Path, declaration: Declaration | CellDeclaration) -> list[str]:
    """Return the declared tables and figures that the folder lacks, as paths in it."""
    suffixes = {"tables": "csv", "figures": "png"}
    paths = [f"{kind}/{name}.{suffixes[kind]}" for kind, names in output_names(declaration).items() for name in names]
    return [path for path in paths if not (folder / path).is_file()]


def overall_verdicts(verdicts: pd.DataFrame) -> dict[str, Scalar]:
    """Return verdict/CLAIM -> the overall verdict of each claim."""
    overall = verdicts[verdicts["contrast"] == "overall"]
    return {f"verdict/{claim}": str(text) for claim, text in zip(overall["claim"], overall["verdict"], strict=True)}


def scalars(values: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return the texts and finite numbers in `values`; others are left out."""
    plain = {name: value for name, value in values.items() if isinstance(value, (str, bool, int, float))}
    return {name: value for name, value in plain.items() if not (isinstance(value, float) and not math.isfinite(value))}


def _frame(path: Path) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(path.read_bytes()), keep_default_na=False, na_values=[""])
