"""A draw study's results folder as one run of a tracker, with its cells as a table."""

from __future__ import annotations

from pathlib import Path

from relu_study.report.cell_report import incomplete_cells, read_cells
from relu_study.report.exports.attachments import overall_verdicts
from relu_study.report.exports.stored_study import whole_run
from relu_study.report.exports.tracker import ExportedRun
from relu_study.report.verdicts import TEXTS
from relu_study.storage.csv_files import read_csv
from relu_study.storage.declaration import read_declared_cells


def draw_run(folder: Path) -> ExportedRun:
    """Return the run of a draw study: cells, tables, figures, verdicts, and the counts of finished and unfinished cells.

    A cell is a row of numbers with no curve, so a run for each cell would have nothing to plot.

    Raises:
        UserError: a derived file is missing.
        CorruptFileError: a file is corrupt.
    """
    manifest = read_declared_cells(folder)
    declaration = manifest.declaration
    cells = read_cells(folder / "cells.csv", declaration)
    verdicts = read_csv(folder / "verdicts.csv", TEXTS)
    unfinished = incomplete_cells(cells, declaration)
    return whole_run(
        folder,
        manifest,
        sizes={"cells": cells["cell_id"].nunique(), "draws": sum(cell.draws for cell in declaration.cells)},
        complete=not unfinished,
        summary={"cells/unfinished": unfinished, **overall_verdicts(verdicts)},
        tables={"verdicts": verdicts, "cells": cells},
    )
