"""Validation, declaration and plan of a draw study."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from relu_study.components.registry import activations, initializers, statistics
from relu_study.engine import check_functions, draw_block
from relu_study.engine.draw_plan import Block, DrawPlan
from relu_study.engine.plan import shard_tiles
from relu_study.errors import UserError, nearest
from relu_study.report import cell_report
from relu_study.report.claim_rows import undecidable_rows
from relu_study.runner.machine import Machine
from relu_study.runner.prepare import Planned, Request
from relu_study.runner.provenance import sources
from relu_study.storage.declaration import parse_cell_declaration
from relu_study.storage.resume import FolderState
from relu_study.storage.schema import CELL_COLUMNS
from relu_study.study.draw_study import Draws, DrawStudy, blocks_of, cell_id
from relu_study.study.shard import Shard

Cell = dict[str, Any]
RequestedCells = list[tuple[Draws, str, Cell]]  # experiment, label, cell


def request_draws(study: DrawStudy, machine: Machine) -> Request[DrawPlan]:
    """Check every cell of a draw study and return its request. Compiles nothing."""
    requested = [
        (experiment, label, _cell(study, experiment, label)) for experiment in study.experiments for label in experiment.cells
    ]
    checked: dict[Any, Any] = {}  # cells share the checks of their entries
    for _, _, cell in requested:
        check_functions.check_drawn(cell, checked)
    declaration = build_draw_declaration(study, requested)
    cell_report.check(parsed := parse_cell_declaration(declaration))
    provenance = {**machine.host, "own": sources(_entries(requested))}
    ids = {(cell["cell_id"], *block) for cell in declaration["cells"] for block in blocks_of(cell["draws"])}
    return Request(declaration, provenance, ids, functools.partial(_plan, requested, machine), undecidable_rows(parsed))


def _plan(requested: RequestedCells, machine: Machine, state: FolderState, shard: Shard | None) -> Planned[DrawPlan]:
    """Return the plan of the missing blocks of a shard, the widths of all cohorts, and the number of stored draws."""
    widths, platform = dict(state.widths), machine.platform
    blocks = _blocks(requested, widths, platform)
    if shard is not None:
        blocks = shard_tiles([(block, block.cohort, draw_block.seconds(block)) for block in blocks], shard)
    missing = [block for block in blocks if (block.cohort, block.first, block.count) not in state.stored]
    # The most expensive blocks come first, so no device waits for one at the end.
    plan = DrawPlan(sorted(missing, key=lambda block: -block.cost), machine.devices, platform)
    return plan, widths, sum(block.count for block in blocks) - sum(block.count for block in missing)


def _blocks(requested: RequestedCells, widths: dict[str, int], platform: str) -> list[Block]:
    """Return the blocks of all cells, each block once. Adds the widths of new cohorts to `widths`."""
    blocks: dict[tuple[str, int, int], Block] = {}
    for experiment, _, cell in requested:
        cohort, cost = cell_id(experiment.statistic, cell), statistics[experiment.statistic].cost(cell)
        width = widths.setdefault(cohort, draw_block.width(cost, platform))
        factors = tuple(sorted(cell.items()))
        for first, count in blocks_of(experiment.draws):
            blocks[cohort, first, count] = Block(cohort, width, experiment.statistic, factors, first, count, cost)
    return list(blocks.values())


def _cell(study: DrawStudy, experiment: Draws, label: str) -> Cell:
    """Return the cell of a label. Raises UserError with study, cell and experiment if it is invalid."""
    try:
        cell = statistics[experiment.statistic].cell(**experiment.cells[label])
    except UserError as error:
        raise UserError(f"study {study.name}, cell {label!r} of {experiment.name}: {error}") from None
    if taken := set(cell) & set(CELL_COLUMNS):
        raise UserError(f"factor {min(taken)!r} of statistic {experiment.statistic!r} is a column of cells.csv. Rename it.")
    return cell


def _entries(requested: RequestedCells) -> dict[str, Any]:
    """Return the registered entries that these cells name: statistics, activations and initialisers."""
    entries = {f"statistic {experiment.statistic}": statistics[experiment.statistic] for experiment, _, _ in requested}
    names = {value for _, _, cell in requested for value in cell.values() if isinstance(value, str)}
    for registry in (activations, initializers):
        entries |= {f"{registry.kind} {name}": registry[name] for name in names if name in registry}
    return entries


def build_draw_declaration(study: DrawStudy, requested: RequestedCells) -> dict[str, Any]:
    """Return the complete declaration of a draw study as plain data, with the theory of every cell.

    With the stored sums, it is the only input of the report.
    """
    declaration = study.declaration()
    declaration["cells"] = [_cell_declaration(experiment, label, cell) for experiment, label, cell in requested]
    factors = dict.fromkeys(factor for entry in declaration["cells"] for factor in (*entry["factors"], *entry["along"]))
    declaration["factors"] = list(factors)
    names = dict.fromkeys(experiment.statistic for experiment, _, _ in requested)
    declaration["numbers"] = {name: {k: asdict(number) for k, number in statistics[name].numbers.items()} for name in names}
    return json.loads(json.dumps(declaration, default=list))  # JSON turns tuples and ranges into lists


def _cell_declaration(experiment: Draws, label: str, cell: Cell) -> dict[str, Any]:
    """Return the declaration of a cell. Raises UserError if its draw or its theory is invalid."""
    statistic = statistics[experiment.statistic]
    draw_block.check(experiment.statistic, cell)
    theory = {number: {k: _json_number(v) for k, v in asdict(t).items()} for number, t in statistic.theory(cell).items()}
    if unknown := set(theory) - set(statistic.numbers):
        raise nearest(min(unknown), statistic.numbers, f"number in the theory of {experiment.statistic}")
    return {
        "experiment": experiment.name,
        "label": label,
        "statistic": experiment.statistic,
        "cell_id": cell_id(experiment.statistic, cell),
        "factors": cell,
        "draws": experiment.draws,
        "along": {factor: [_python_number(v) for v in values] for factor, values in statistic.along(cell).items()},
        "theory": theory,
    }


def _python_number(value: Any) -> Any:
    """Return a NumPy scalar as a number of Python. Other values stay."""
    return value.item() if isinstance(value, np.generic) else value


def _json_number(values: ArrayLike) -> Any:
    """Return a number or an array as JSON, rounded to twelve significant digits. NaN becomes None."""
    array = np.asarray(values, np.float64)
    if array.ndim:
        return [_json_number(value) for value in array]
    return None if np.isnan(array) else float(f"{float(array):.12g}")
