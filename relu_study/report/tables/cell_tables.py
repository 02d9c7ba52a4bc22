"""Tables of a draw study: rows of cells.csv under chosen headers, and the depths up to which a number stays small."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from relu_study.report.conditions import select
from relu_study.report.markup import RenderedTable, format_mean_ci, table_files
from relu_study.storage.declaration import CellDeclaration
from relu_study.study.outputs import CellTable

MOST = 200  # rows in Markdown and LaTeX; the CSV file has all


def cell_tables(declaration: CellDeclaration, frame: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Return name -> {"csv", "md", "tex"} of every declared table, from the frame of cells.csv."""
    tables = {}
    for table in declaration.tables:
        rows = select(frame[frame["experiment"].isin(table.experiments)], table.where)
        rows = rows.sort_values(table.sort, kind="stable", na_position="first") if table.sort else rows
        whole = _levels(rows, table) if table.levels else _renamed(rows, table)
        kept = whole if table.levels else _renamed(select(rows, table.shown), table)
        note = f"The CSV file has all {len(whole):,} rows." if len(whole) > min(len(kept), MOST) else ""
        shown = RenderedTable(
            table.caption,
            list(kept.columns),
            [[_text(value) for value in row] for row in kept.head(MOST).itertuples(index=False)],
            set(),
            sum(1 for name in kept if not pd.api.types.is_numeric_dtype(kept[name])),
            note,
        )
        tables[table.name] = table_files(table.name, whole, shown)
    return tables


def _renamed(rows: pd.DataFrame, table: CellTable) -> pd.DataFrame:
    return pd.DataFrame({header: rows[column] for header, column in table.columns.items()}).reset_index(drop=True)


def _levels(rows: pd.DataFrame, table: CellTable) -> pd.DataFrame:
    lines = []
    for _, cell in rows.groupby(["experiment", "cell_id"], sort=False):
        cell = cell.sort_values(table.along)
        line: dict[str, Any] = {}
        for header, column in table.columns.items():
            if cell[column].dtype == object or cell[column].nunique() == 1:
                line[header] = cell[column].iloc[0]
                continue
            for level in table.levels:
                line[f"{header} at {100 * level:g} %"] = _last_below(cell[table.along], cell[column], level)
        lines.append(line)
    return pd.DataFrame(lines)


def _last_below(along: pd.Series, values: pd.Series, level: float) -> float | str:
    """Return the last integer place up to which the values stay at most `level`: ">N" if all do, NaN if none does.

    Between two places log(1 - value) is interpolated linearly, which is exact for a constant rate of loss. Cells without a place
    or a value are left out.
    """
    known = along.notna() & values.notna()
    x, y = along[known].to_numpy(float), values[known].to_numpy(float)
    if not len(x):
        return math.nan
    above = np.flatnonzero(y > level)
    if not len(above):
        return f">{x[-1]:g}"
    if above[0] == 0:
        return math.nan
    (x0, y0), (x1, y1) = ((x[i], y[i]) for i in (above[0] - 1, above[0]))
    if y1 >= 1:
        return math.floor(x0)
    share = (math.log1p(-level) - math.log1p(-y0)) / (math.log1p(-y1) - math.log1p(-y0))
    return math.floor(x0 + share * (x1 - x0) + 1e-9)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or math.isnan(value):
        return "-"
    value = float(value) + 0.0  # no -0
    return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e9 else format_mean_ci(value, math.nan)
