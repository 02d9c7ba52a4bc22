"""Aggregation of stored blocks of draws into the rows of cells.csv. No JAX."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import special

from relu_study.stats import intervals
from relu_study.stats.streaming_moments import BINS, Sums, merge, quantiles
from relu_study.storage.block_files import Place, block_paths, read_block
from relu_study.storage.checksums import CorruptFileError
from relu_study.storage.declaration import CellDeclaration, CellManifest, DeclaredCell
from relu_study.storage.provenance import check_provenance
from relu_study.storage.quantities import Theory
from relu_study.storage.schema import CELL_COLUMNS
from relu_study.storage.tile_files import RERUN_HINT
from relu_study.study.draw_study import blocks_of

LEVELS = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


def collect_sums(folder: Path, manifest: CellManifest) -> dict[tuple[str, int], tuple[int, Sums]]:
    """Return (number of stored draws, their merged sums) for each (cell_id, declared draws).

    Blocks are merged in the order of their draws, so the sums have the same bits each time.

    Raises:
        CorruptFileError: a block differs from the stored one, or lacks sums of its cell.
        UserError: the provenance of a block differs from the manifest.
    """
    paths: dict[Place, Path] = {}
    for path in block_paths(folder):
        place, provenance, _ = read_block(path, whole=False)
        check_provenance(path, provenance, place[0], manifest)
        paths[place] = path
    collected: dict[tuple[str, int], tuple[int, Sums]] = {}
    declaration = manifest.declaration
    for name, cell in {(cell.cell_id, cell.draws): cell for cell in declaration.cells}.items():
        sums: Sums = {}
        stored = 0
        for first, count in blocks_of(cell.draws):
            if (path_of_block := paths.get((name[0], first, count))) is not None:
                part = read_block(path_of_block)[2]
                _check_sums(path_of_block, part, cell, declaration)
                merge(sums, part)
                stored += count
        collected[name] = stored, sums
    return collected


def _check_sums(path: Path, sums: Sums, cell: DeclaredCell, declaration: CellDeclaration) -> None:
    """Raise CorruptFileError if a block lacks a sum of its cell, or a sum has another length than its factor."""
    for name, number in declaration.numbers[cell.statistic].items():
        size = (cell.size(number),) if number.along else ()
        shapes = {**dict.fromkeys((f"n:{name}", f"sum:{name}", f"m2:{name}"), size), f"bins:{name}": (*size, BINS)}
        for key, shape in shapes.items():
            if sums[key].shape != shape if key in sums else not key.startswith("bins:") or number.spread:
                raise CorruptFileError(
                    path, "is not a readable block", f"its {key} does not fit the cell {cell.label}", RERUN_HINT
                )


def cells_frame(folder: Path, manifest: CellManifest) -> pd.DataFrame:
    """Return the rows of cells.csv: one row for each cell, number, and value of the number's factor.

    `draws` counts the stored draws, `n` those with a defined number, and `estimate` is the mean over these n. Its 95 % interval
    is Wilson's for a share and the t interval otherwise. z = (estimate - theory) / se, where se includes the standard error of
    the theory. For a share, se is the standard error under the theory. With se = 0, z is 0 for equal values and infinite
    otherwise.
    """
    declaration, sums = manifest.declaration, collect_sums(folder, manifest)
    parts = [part for cell in declaration.cells for part in _rows(cell, declaration, *sums[cell.cell_id, cell.draws])]
    order = [*CELL_COLUMNS[:4], *declaration.factors, *CELL_COLUMNS[4:]]
    frame = pd.concat([pd.DataFrame(part) for part in parts], ignore_index=True).reindex(columns=order)
    return _with_z(_joined(frame, declaration), declaration)


def _rows(cell: DeclaredCell, declaration: CellDeclaration, stored: int, sums: Sums) -> Iterator[dict[str, Any]]:
    head = {"experiment": cell.experiment, "cell": cell.label, "statistic": cell.statistic, "cell_id": cell.cell_id}
    for name, number in declaration.numbers[cell.statistic].items():
        along, size = {number.along: cell.along[number.along]} if number.along else {}, cell.size(number)
        n = np.broadcast_to(sums.get(f"n:{name}", 0), size).astype(np.int64)
        values = {"number": [name] * size, "draws": [stored] * size, "n": n, **_estimated(name, number.share, n, sums)}
        if number.spread and f"bins:{name}" in sums:
            levels = quantiles(sums[f"bins:{name}"], number.spread, list(LEVELS.values())).reshape(size, len(LEVELS))
            values |= dict(zip(LEVELS, levels.T, strict=True))
        theory = cell.theory.get(name, Theory())
        for column, value in zip(("theory", "theory_se", "lower", "upper"), vars(theory).values(), strict=True):
            values[column] = np.broadcast_to(np.array(value, np.float64), size)
        yield {**head, **{k: [v] * size for k, v in cell.factors.items() if k not in along}, **along, **values}


def _estimated(name: str, share: bool, n: np.ndarray, sums: Sums) -> dict[str, Float[np.ndarray, " size"]]:
    total, m2 = (np.broadcast_to(sums.get(f"{kind}:{name}", math.nan), len(n)) for kind in ("sum", "m2"))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(n > 0, total / n, np.nan)
        std = np.where(n > 1, np.sqrt(m2 / np.maximum(n - 1, 1)), np.nan)
        half = special.stdtrit(np.maximum(n - 1, 1), 0.975) * std / np.sqrt(n)
    lo, hi = intervals.wilson(total, n) if share else (mean - half, mean + half)
    return {"estimate": mean, "ci_lo": lo, "ci_hi": hi, "std": std}


def _joined(frame: pd.DataFrame, declaration: CellDeclaration) -> pd.DataFrame:
    """Fill the theory of each experiment that takes the estimates of another experiment as its theory."""
    for experiment in declaration.experiments:
        if not experiment.theory:
            continue
        rows, other = frame["experiment"] == experiment.name, frame[frame["experiment"] == experiment.theory]
        both = [f for f in declaration.factors if other[f].notna().any() and frame.loc[rows, f].notna().any()]
        keys = ["number", *both]
        estimates = other.drop_duplicates(keys).set_index(keys)[["estimate", "std", "n"]]
        theory = estimates.reindex(pd.MultiIndex.from_frame(frame.loc[rows, keys]))
        frame.loc[rows, "theory"] = theory["estimate"].to_numpy()
        frame.loc[rows, "theory_se"] = (theory["std"] / np.sqrt(theory["n"])).to_numpy()
    return frame


def _with_z(frame: pd.DataFrame, declaration: CellDeclaration) -> pd.DataFrame:
    share = np.array([declaration.numbers[s][n].share for s, n in zip(frame["statistic"], frame["number"], strict=True)])
    theory, error, n = (frame[name].to_numpy(np.float64) for name in ("theory", "theory_se", "n"))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        variance = np.where(share, np.clip(theory * (1 - theory), 0, None), frame["std"].to_numpy(np.float64) ** 2) / n
        se = np.sqrt(variance + np.nan_to_num(error) ** 2)
        difference = frame["estimate"].to_numpy(np.float64) - theory
        z = np.where((difference == 0) & (se == 0), 0.0, difference / se)
    return frame.assign(theory_se=np.where(np.isnan(theory), np.nan, error), z=z)
