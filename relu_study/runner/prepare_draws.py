"""Validation, declaration and plan of a draw study."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from relu_study.components.registry import activations, initializers, statistics
from relu_study.engine import check_functions, draw_block
from relu_study.engine.draw_plan import Block, DrawPlan
from relu_study.engine.plan import shard_tiles
from relu_study.errors import UserError, nearest
from relu_study.report import cell_report
from relu_study.runner.prepare import Planned, Request
from relu_study.runner.provenance import host, sources
from relu_study.storage.declaration import parse_cell_declaration
from relu_study.storage.resume import FolderState
from relu_study.storage.schema import CELL_COLUMNS
from relu_study.study.draw_study import Draws, DrawStudy, blocks_of, cell_id
from relu_study.study.shard import Shard

Cell = dict[str, Any]
Requested = list[tuple[Draws, str, Cell]]  # experiment, label, cell


def request_draws(study: DrawStudy) -> Request[DrawPlan]:
    """Check every cell of a draw study. Compiles nothing."""
    requested = [
        (experiment, label, _cell(study, experiment, label)) for experiment in study.experiments for label in experiment.cells
    ]
    checked: dict[Any, Any] = {}
    for _, _, cell in requested:
        check_functions.check_drawn(cell, checked)
    declaration = build_draw_declaration(study, requested)
    cell_report.check(parse_cell_declaration(declaration))
    provenance = {**host(), "own": sources(_entries(requested))}
    ids = {(cell["cell_id"], *block) for cell in declaration["cells"] for block in blocks_of(cell["draws"])}
    return Request(declaration, provenance, ids, functools.partial(_plan, requested))


def _plan(requested: Requested, state: FolderState, shard: Shard | None) -> Planned[DrawPlan]:
    widths, platform = dict(state.widths), jax.devices()[0].platform
    blocks: dict[tuple[str, int, int], Block] = {}
    for experiment, _, cell in requested:
        name, cost = cell_id(experiment.statistic, cell), statistics[experiment.statistic].cost(cell)
        width = widths.setdefault(name, draw_block.width(cost, platform))
        for first, count in blocks_of(experiment.draws):
            factors = tuple(sorted(cell.items()))
            blocks[name, first, count] = Block(name, width, experiment.statistic, factors, first, count, cost)
    part = list(blocks.values())
    if shard is not None:
        part = shard_tiles([(block, block.cohort, draw_block.seconds(block)) for block in part], shard)
    todo = [block for block in part if (block.cohort, block.first, block.count) not in state.stored]
    plan = DrawPlan(sorted(todo, key=lambda block: -block.cost), len(jax.devices()), platform)
    return plan, widths, sum(block.count for block in part) - sum(block.count for block in todo)


def _cell(study: DrawStudy, experiment: Draws, label: str) -> Cell:
    try:
        cell = statistics[experiment.statistic].cell(**experiment.cells[label])
    except UserError as error:
        raise UserError(f"study {study.name}, cell {label!r} of {experiment.name}: {error}") from None
    if taken := set(cell) & set(CELL_COLUMNS):
        raise UserError(f"statistic {experiment.statistic!r} has a factor {min(taken)!r}, a column of cells.csv; rename it")
    return cell


def _entries(requested: Requested) -> dict[str, Any]:
    """All registered entries that these cells name."""
    entries = {f"statistic {experiment.statistic}": statistics[experiment.statistic] for experiment, _, _ in requested}
    for value in {value for _, _, cell in requested for value in cell.values() if isinstance(value, str)}:
        entries |= {f"{registry.kind} {value}": registry[value] for registry in (activations, initializers) if value in registry}
    return entries


def build_draw_declaration(study: DrawStudy, requested: Requested) -> dict[str, Any]:
    """The complete declaration of a draw study as plain data, with the theory of every cell; the only input of its report."""
    declaration = study.declaration()
    declaration["cells"], declaration["factors"] = [], []
    for experiment, label, cell in requested:
        name, entry = cell_id(experiment.statistic, cell), statistics[experiment.statistic]
        draw_block.check(experiment.statistic, cell)
        along = {factor: [_plain(v) for v in values] for factor, values in entry.along(cell).items()}
        theory = {number: {k: _listed(v) for k, v in asdict(t).items()} for number, t in entry.theory(cell).items()}
        if unknown := set(theory) - set(entry.numbers):
            raise nearest(min(unknown), entry.numbers, f"number in the theory of {experiment.statistic}")
        declaration["cells"].append(
            {
                **{"experiment": experiment.name, "label": label, "statistic": experiment.statistic, "cell_id": name},
                **{"factors": cell, "draws": experiment.draws, "along": along, "theory": theory},
            }
        )
        declaration["factors"] += [factor for factor in (*cell, *along) if factor not in declaration["factors"]]
    names = dict.fromkeys(experiment.statistic for experiment, _, _ in requested)
    declaration["numbers"] = {name: {k: asdict(number) for k, number in statistics[name].numbers.items()} for name in names}
    return json.loads(json.dumps(declaration, default=list))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _listed(values: ArrayLike) -> Any:
    """A number or list of numbers for JSON, rounded to twelve digits; NaN is None."""
    array = np.asarray(values, np.float64)
    if array.ndim:
        return [_listed(value) for value in array]
    return None if np.isnan(array) else float(f"{float(array):.12g}")
