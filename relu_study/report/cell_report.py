"""Derived files of a draw study: cells.csv, verdicts, tables, figures and the report page."""

from __future__ import annotations

import io
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from relu_study.errors import UserError, nearest
from relu_study.report.conditions import select
from relu_study.report.html import html
from relu_study.report.page import draw_page
from relu_study.report.tables.cell_tables import cell_tables
from relu_study.report.verdicts import assign_verdicts, empty_row
from relu_study.stats.hypothesis_tests import counted_test, normal_test
from relu_study.stats.numpy_defaults import numpy_defaults
from relu_study.storage.atomic_write import check_exists, write_atomically
from relu_study.storage.block_files import block_paths
from relu_study.storage.cell_frames import cells_frame
from relu_study.storage.checksums import SUMS, UNREADABLE, CorruptFileError, check_sum, sentence, sums_of
from relu_study.storage.csv_files import csv_text, only_numbers
from relu_study.storage.declaration import CellDeclaration, check_sections, read_declared_cells
from relu_study.storage.quantities import QuantityInfo
from relu_study.storage.schema import CELL_COLUMNS as OF_CELLS
from relu_study.storage.schema import COLUMNS
from relu_study.storage.statuses import AGAIN, OOM_HINT, listed, reasons_text
from relu_study.study.claims import CellClaim

Row = dict[str, Any]


def report_draws(folder: Path) -> tuple[list[str], dict[str, set[str]]]:
    """Derive every file of a draw study's results folder, with the same bytes each time. A clone keeps its cells.csv.

    Returns:
        Lines about missing draws, and the names of the written tables and figures.
    """
    manifest, messages = read_declared_cells(folder), []
    declaration = manifest.declaration
    check(declaration)
    path = folder / "cells.csv"
    if block_paths(folder) or (listed(vars(manifest)) and not path.is_file()):
        frame = cells_frame(folder, manifest)
        write_atomically(path, csv_text(frame).encode())
        write_atomically(folder / SUMS, sums_of(folder, [path.name]).encode())  # omits verdicts.csv until it is rewritten
        cells = frame["cell_id"].nunique()
        if missing := incomplete_cells(frame, declaration):
            messages.append(f"{missing} of {cells:,} cells lack draws. Run the study again.")
        if oom := manifest.oom:
            messages.append(f"{len(oom):,} of these cells did not fit in memory. {sentence(OOM_HINT)}")
        if crashed := manifest.crashed:
            messages.append(f"{len(crashed):,} of these cells crashed ({reasons_text(crashed.values())}). {sentence(AGAIN)}")
    elif not path.is_file():
        raise UserError(f"{folder} has neither raw/ nor cells.csv, so there is nothing to report. Run the study again.")
    else:
        messages.append(f"{folder / 'raw'} has no blocks, as in a clone. cells.csv stays unchanged.")
    frame = read_cells(path, declaration)
    rows = answer(declaration, frame)
    verdicts = pd.DataFrame(rows, columns=list(COLUMNS["verdicts"]))
    write_atomically(folder / "verdicts.csv", csv_text(verdicts).encode())
    if (folder / SUMS).exists():
        write_atomically(folder / SUMS, sums_of(folder).encode())
    written: dict[str, set[str]] = {"tables": set(), "figures": set()}
    for name, texts in cell_tables(declaration, frame).items():
        written["tables"].add(name)
        for suffix, text in texts.items():
            write_atomically(folder / "tables" / f"{name}.{suffix}", text.encode())
    if declaration.figures:
        written["figures"] = _draw(folder, declaration, frame)
    check_exists(folder)
    text = draw_page(folder, manifest, frame, rows)
    write_atomically(folder / "report.md", text.encode())
    write_atomically(folder / "report.html", html(text, declaration.title, folder).encode())
    return messages, written


def _draw(folder: Path, declaration: CellDeclaration, frame: pd.DataFrame) -> set[str]:
    """Draw the declared figures with values, and return their names."""
    from relu_study.report.figures import canvas  # at first use: importing Matplotlib takes half a second
    from relu_study.report.figures.cell_figures import arranged

    names = set()
    for figure in declaration.figures:
        if (picture := arranged(figure, select(frame, figure.where), declaration.numbers)) is not None:
            names.add(figure.name)
            for kind, content in canvas.render(picture).items():
                write_atomically(folder / "figures" / f"{figure.name}.{kind}", content)
    return names


def incomplete_cells(frame: pd.DataFrame, declaration: CellDeclaration) -> int:
    """Return the number of cells in cells.csv that lack draws."""
    return frame.loc[frame["draws"] < _requested_draws(frame, declaration), "cell_id"].nunique()


def _requested_draws(frame: pd.DataFrame, declaration: CellDeclaration) -> pd.Series:
    draws = {(c.experiment, c.label): c.draws for c in declaration.cells}
    return pd.Series([draws[key] for key in zip(frame["experiment"], frame["cell"], strict=True)], index=frame.index)


def read_cells(path: Path, declaration: CellDeclaration) -> pd.DataFrame:
    """Read cells.csv.

    Raises:
        UserError: the file is missing.
        CorruptFileError: it is truncated, lacks a column or a row, or its checksum does not match.
    """
    dtypes = dict.fromkeys(_text_columns(declaration), "str")
    hint = f"restore it, or rebuild it with 'relu-study report {path.parent}'"
    if not path.is_file():
        raise UserError(f"{path} is missing. {sentence(f'{hint}, which needs {path.parent}/raw')}")
    try:
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            raise ValueError("its last line is truncated")
        with np.errstate(invalid="raise", over="raise"):  # refuse numbers that overflow their dtype
            frame = pd.read_csv(io.BytesIO(content), dtype=dtypes, keep_default_na=False, na_values=[""])  # type: ignore[arg-type]
        missing = [name for name in (*OF_CELLS, *declaration.factors) if name not in frame]
        if missing:
            raise ValueError(f"it has no column {missing[0]}")
        only_numbers(frame, dtypes)
        frame = frame.assign(**{name: frame[name].fillna("") for name in OF_CELLS[:4]})
        _check_rows(frame, declaration)
    except UNREADABLE as error:
        raise CorruptFileError(path, "is corrupt", error, hint) from None
    check_sum(path, content)
    return frame


def _text_columns(declaration: CellDeclaration) -> list[str]:
    texts = [f for f in declaration.factors if any(isinstance(c.factors.get(f), str) for c in declaration.cells)]
    return [*OF_CELLS[:4], "number", *texts]


def _check_rows(frame: pd.DataFrame, declaration: CellDeclaration) -> None:
    """Raise ValueError unless cells.csv has each declared number of each cell once per value of its factor."""
    declared: Counter[tuple[str, ...]] = Counter()
    for cell in declaration.cells:
        for name, number in declaration.numbers[cell.statistic].items():
            declared[cell.experiment, cell.label, cell.statistic, cell.cell_id, name] += cell.size(number)
    stored = Counter(frame[[*OF_CELLS[:4], "number"]].itertuples(index=False, name=None))
    if stored != declared:
        rows = (stored & declared).total()
        raise ValueError(
            f"it has {rows:,} of the {declared.total():,} rows declared in manifest.json, and {len(frame) - rows:,} others"
        )


@numpy_defaults()
def load_cells(folder: str | Path) -> pd.DataFrame:
    """Read the results of a draw study: one row per cell, number, and value of the number's factor.

    Raises:
        UserError: manifest.json or cells.csv is missing or corrupt.
    """
    folder = Path(folder).expanduser()
    return read_cells(folder / "cells.csv", read_declared_cells(folder).declaration)


def answer(declaration: CellDeclaration, frame: pd.DataFrame) -> list[Row]:
    """Return the rows of verdicts.csv. `CellClaim` documents the comparison, `verdicts.evaluate_claims` the verdict."""
    return assign_verdicts([_measured(claim, declaration, frame) for claim in declaration.claims])


def _measured(claim: CellClaim, declaration: CellDeclaration, frame: pd.DataFrame) -> Row:
    number, against = _about(claim, declaration), claim.against
    cell = _row(claim, claim.cell, number.along, frame)
    value, error = float(against) if not isinstance(against, str) else math.nan, 0.0
    if against == "theory":
        value, error = float(cell["theory"]), float(np.nan_to_num(cell["theory_se"]))
    elif isinstance(against, str):
        other = _row(claim, against, number.along, frame)
        value, error = float(other["estimate"]), float(other["std"] / math.sqrt(other["n"]))
    n, estimate, direction = int(cell["n"]), float(cell["estimate"]), claim.direction
    margin = claim.margin * (abs(value) if claim.relative else 1.0)
    row = empty_row(claim.claim, claim.statement) | {"metric": claim.number, "direction": direction, "margin": margin, "n": n}
    row["site"] = "all" if claim.at is None else f"{number.along}={claim.at:g}"
    named = claim.experiment if claim.cell == "all" else claim.cell
    row["contrast"] = f"{named} vs {against if isinstance(against, str) else f'{against:g}'}"
    if not math.isfinite(estimate) or not math.isfinite(value) or n < 2:
        return row | {"verdict": "not testable", "reason": "not testable because it was not drawn, or is not defined"}
    if number.share and error == 0:
        result = counted_test(round(estimate * n), n, value, direction, margin)
    else:
        result = normal_test(estimate - value, math.hypot(float(cell["std"]) / math.sqrt(n), error), n, direction, margin)
    row |= {name: result[name] for name in ("effect", "ci_lo", "ci_hi")}
    return row | {"p": min(result["p"], result["p_refute"])}


def _about(claim: CellClaim, declaration: CellDeclaration) -> QuantityInfo:
    statistic = next(e.statistic for e in declaration.experiments if e.name == claim.experiment)
    numbers = declaration.numbers[statistic]
    if claim.number not in numbers:
        raise nearest(claim.number, numbers, f"number in claim {claim.claim}")
    return numbers[claim.number]


def _row(claim: CellClaim, label: str, along: str, frame: pd.DataFrame) -> pd.Series:
    rows = frame[(frame["experiment"] == claim.experiment) & (frame["cell"] == label) & (frame["number"] == claim.number)]
    if claim.at is not None:
        rows = rows[rows[along] == claim.at]
    assert len(rows) == 1, f"claim {claim.claim}: {len(rows)} rows for {label}"
    return rows.iloc[0]


def check(declaration: CellDeclaration) -> None:
    """Raise UserError for a table, figure, claim or section with an unknown name. Needs no results."""
    columns = [*OF_CELLS, *declaration.factors]
    for table in declaration.tables:
        for name in filter(None, (*table.columns.values(), table.along, table.sort)):
            if name not in columns:
                raise nearest(name, columns, f"column of table {table.name}")
    for figure in declaration.figures:
        for name in filter(None, (figure.rows, figure.cols, figure.by, figure.column)):
            if name not in columns:
                raise nearest(name, columns, f"column of figure {figure.name}")
    texts = _text_columns(declaration)
    no_rows = pd.DataFrame({name: pd.Series(dtype="str" if name in texts else "float64") for name in columns})
    for where in [table.where + table.shown for table in declaration.tables] + [figure.where for figure in declaration.figures]:
        select(no_rows, where)
    for claim in declaration.claims:
        along = _about(claim, declaration).along
        labels = {c.label: c for c in declaration.cells if c.experiment == claim.experiment}
        for label in (claim.cell, *([claim.against] if claim.against not in ("theory",) else [])):
            if isinstance(label, str) and label not in labels:
                raise nearest(label, labels, f"cell of {claim.experiment} in claim {claim.claim}")
        values = labels[claim.cell].along.get(along, ())
        if (claim.at is None) == bool(along) or (along and claim.at not in values):
            have = f"{along} in {', '.join(f'{v:g}' for v in values[:8])}..." if along else "no factor along it"
            raise UserError(f"claim {claim.claim}: {claim.number} has {have}, and `at` is {claim.at}. Change `at`.")
    check_sections(declaration)
