"""Block files of a draw study."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from relu_study.stats.streaming_moments import Sums
from relu_study.storage.checksums import UNREADABLE, CheckedNpz, CorruptFileError, strict_json
from relu_study.storage.provenance import is_provenance
from relu_study.storage.tile_files import RERUN_HINT, write_arrays

Place = tuple[str, int, int]  # cell_id, first draw, how many


def write_block(folder: Path, place: Place, sums: Sums, provenance: Mapping[str, Any]) -> Path:
    """Store one block under `folder`/raw, named by the draws it holds."""
    cell_id, first, count = place
    path = folder / "raw" / _name(*place)
    about = {"cell_id": cell_id, "first": first, "count": count, "provenance": json.dumps(provenance, sort_keys=True)}
    write_arrays(path, {**sums, **{name: np.array(value) for name, value in about.items()}})
    return path


def _name(cell_id: str, first: int, count: int) -> str:
    return f"block-{cell_id}-{first}-{count}.npz"


def read_block(path: Path, whole: bool = True) -> tuple[Place, dict[str, Any], Sums]:
    """Where a stored block belongs, what it depends on, and its sums (if `whole`); one that is not what was stored is Damaged.

    The whole file is checked in any case, and that its draws are those of its name.
    """
    try:
        raw = CheckedNpz(path)
        place = str(raw["cell_id"]), int(raw["first"]), int(raw["count"])
        if path.name != (own := _name(*place)):
            raise ValueError(f"it is another block: its draws are those of {own}")
        if not is_provenance(made := strict_json(str(raw["provenance"]))):
            raise ValueError("it does not say how it was made")
        sums = {name: raw[name] for name in raw if whole and ":" in name}
        if odd := [name for name, values in sums.items() if not _can_be(name, values, place[2])]:
            raise ValueError(f"its {odd[0]} cannot be that of {place[2]} draws")
    except UNREADABLE as error:
        raise CorruptFileError(path, "is not a readable block", error, RERUN_HINT) from None
    return place, made, sums


def _can_be(name: str, values: np.ndarray, draws: int) -> bool:
    if name.startswith(("n:", "bins:")):
        return values.dtype.kind in "iu" and bool(((values >= 0) & (values <= draws)).all())
    return values.dtype.kind == "f" and not (name.startswith("m2:") and (values < 0).any())


def block_paths(folder: Path) -> list[Path]:
    """Every stored block of a results folder, in name order."""
    return sorted((folder / "raw").glob("block-*.npz"))


def stored_blocks(folder: Path, damaged: list[CorruptFileError] | None = None) -> dict[Place, dict[str, Any]]:
    """The provenance of every stored block, with the name of its `file`.

    Those that cannot be believed are added to `damaged`; without it the first one is raised.
    """
    found = {}
    for path in block_paths(folder):
        try:
            place, made, _ = read_block(path, whole=False)
            found[place] = made | {"file": path.name}
        except CorruptFileError as error:
            if damaged is None:
                raise
            damaged.append(error)
    return found
