"""What is to be drawn before anything is: a draw study checked, declared and cut into blocks around what is stored already."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from relu_study.components.entry_errors import entry_errors
from relu_study.components.registry import activations, initializers, statistics
from relu_study.engine import check_functions, draw_block
from relu_study.engine.draw_plan import Block, DrawPlan
from relu_study.engine.jax_settings import pinned
from relu_study.engine.plan import shard_tiles
from relu_study.errors import UserError, nearest
from relu_study.report import cell_report
from relu_study.runner.prepare import store_begun
from relu_study.runner.provenance import host, sources, with_digest
from relu_study.storage import block_files
from relu_study.storage.resume import FolderState, read_folder_state
from relu_study.storage.schema import CELL_COLUMNS
from relu_study.study.draw_study import Draws, DrawStudy, blocks_of, cell_id
from relu_study.study.shard import Shard

Cell = dict[str, Any]
Asked = list[tuple[Draws, str, Cell]]  # experiment, label, cell


@dataclass(frozen=True)
class DrawJob:
    """A draw study at its size, with all that its numbers will depend on."""

    study: DrawStudy
    provenance: dict[str, Any]
    widths: dict[str, int]
    plan: DrawPlan
    stored: int  # draws
    declaration: dict[str, Any]
    folder_state: FolderState
    shard: Shard | None = None


@entry_errors()
@pinned()
def prepare_draws(
    study: DrawStudy, folder: Path | None, hint: str = "name another folder with --out", shard: Shard | None = None
) -> DrawJob:
    """Check every cell of a draw study and cut what is not yet stored in `folder` into blocks. Nothing compiles.

    Of a `shard` only its own part counts, stored or not.
    """
    asked = [
        (experiment, label, _cell(study, experiment, label)) for experiment in study.experiments for label in experiment.cells
    ]
    seen: dict[Any, Any] = {}
    for _, _, cell in asked:
        check_functions.check_drawn(cell, seen)
    declaration = _declared(study, asked)
    cell_report.check(declaration)
    made = {**host(), "own": sources(_brought(asked))}
    identified = [(experiment.draws, cell_id(experiment.statistic, cell)) for experiment, _, cell in asked]
    whole = {(name, first, count) for draws, name in identified for first, count in blocks_of(draws)}
    made = with_digest(made) if store_begun(folder) else made
    before = read_folder_state(study.name, folder, made, block_files.stored_blocks, whole, hint)
    widths, platform = dict(before.widths), jax.devices()[0].platform
    wanted: dict[tuple[str, int, int], Block] = {}
    for (experiment, _, cell), (draws, name) in zip(asked, identified, strict=True):
        cost = statistics[experiment.statistic].cost(cell)
        wide = widths.setdefault(name, draw_block.width(cost, platform))
        for first, count in blocks_of(draws):
            factors = tuple(sorted(cell.items()))
            wanted[name, first, count] = Block(name, wide, experiment.statistic, factors, first, count, cost)
    mine = (
        list(wanted.values())
        if shard is None
        else shard_tiles([(b, b.cohort, draw_block.seconds(b)) for b in wanted.values()], shard)
    )
    todo = [block for block in mine if (block.cohort, block.first, block.count) not in before.stored]
    plan = DrawPlan(sorted(todo, key=lambda block: -block.cost), len(jax.devices()), platform)
    stored = sum(block.count for block in mine) - sum(block.count for block in todo)
    return DrawJob(study, made, widths, plan, stored, declaration, before, shard)


def _cell(study: DrawStudy, experiment: Draws, label: str) -> Cell:
    try:
        cell = statistics[experiment.statistic].cell(**experiment.cells[label])
    except UserError as error:
        raise UserError(f"study {study.name}, cell {label!r} of {experiment.name}: {error}") from None
    if taken := set(cell) & set(CELL_COLUMNS):
        raise UserError(f"statistic {experiment.statistic!r} has a factor {min(taken)!r}, a column of cells.csv; rename it")
    return cell


def _brought(asked: Asked) -> dict[str, Any]:
    """Every entry that these cells name."""
    found = {f"statistic {experiment.statistic}": statistics[experiment.statistic] for experiment, _, _ in asked}
    for value in {value for _, _, cell in asked for value in cell.values() if isinstance(value, str)}:
        found |= {f"{known.kind} {value}": known[value] for known in (activations, initializers) if value in known}
    return found


def _declared(study: DrawStudy, asked: Asked) -> dict[str, Any]:
    """The whole declaration as plain data, with what theory says of every cell: all that a report will ever know of the study."""
    said = study.declaration()
    said["cells"], said["factors"] = [], []
    for experiment, label, cell in asked:
        name, entry = cell_id(experiment.statistic, cell), statistics[experiment.statistic]
        draw_block.check(experiment.statistic, cell)
        along = {factor: [_plain(v) for v in values] for factor, values in entry.along(cell).items()}
        theory = {number: {k: _listed(v) for k, v in asdict(t).items()} for number, t in entry.theory(cell).items()}
        if unknown := set(theory) - set(entry.numbers):
            raise nearest(min(unknown), entry.numbers, f"number in the theory of {experiment.statistic}")
        said["cells"].append(
            {
                **{"experiment": experiment.name, "label": label, "statistic": experiment.statistic, "cell_id": name},
                **{"factors": cell, "draws": experiment.draws, "along": along, "theory": theory},
            }
        )
        said["factors"] += [factor for factor in (*cell, *along) if factor not in said["factors"]]
    names = dict.fromkeys(experiment.statistic for experiment, _, _ in asked)
    said["numbers"] = {name: {k: asdict(number) for k, number in statistics[name].numbers.items()} for name in names}
    return json.loads(json.dumps(said, default=list))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _listed(values: ArrayLike) -> Any:
    """A number or a list of numbers for JSON, to twelve digits; None is NaN."""
    array = np.asarray(values, np.float64)
    if array.ndim:
        return [_listed(value) for value in array]
    return None if np.isnan(array) else float(f"{float(array):.12g}")
