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

Place = tuple[str, int, int]  # cell_id, first draw, number of draws


def write_block(folder: Path, place: Place, sums: Sums, provenance: Mapping[str, Any]) -> Path:
    """Store one block under `folder`/raw, in a file named after its draws. Returns the path."""
    cell_id, first, count = place
    path = folder / "raw" / _name(*place)
    header = {"cell_id": cell_id, "first": first, "count": count, "provenance": json.dumps(provenance, sort_keys=True)}
    write_arrays(path, {**sums, **{name: np.array(value) for name, value in header.items()}})
    return path


def _name(cell_id: str, first: int, count: int) -> str:
    return f"block-{cell_id}-{first}-{count}.npz"


def read_block(path: Path, whole: bool = True) -> tuple[Place, dict[str, Any], Sums]:
    """Read and check one stored block.

    Args:
        path: The block file. Its checksum and its name are always checked.
        whole: Whether to read the sums as well.

    Returns:
        (cell_id, first draw, number of draws), the provenance, and the sums by name (empty unless `whole`).

    Raises:
        CorruptFileError: the file differs from the stored block.
    """
    try:
        raw = CheckedNpz(path)
        place = str(raw["cell_id"]), int(raw["first"]), int(raw["count"])
        if path.name != (expected := _name(*place)):
            raise ValueError(f"its draws belong to {expected}")
        if not is_provenance(provenance := strict_json(str(raw["provenance"]))):
            raise ValueError("its provenance is invalid")
        sums = {name: raw[name] for name in raw if whole and ":" in name}
        if invalid := [name for name, values in sums.items() if not _is_valid(name, values, place[2])]:
            raise ValueError(f"its {invalid[0]} does not fit {place[2]} draws")
    except UNREADABLE as error:
        raise CorruptFileError(path, "is not a readable block", error, RERUN_HINT) from None
    return place, provenance, sums


def _is_valid(name: str, values: np.ndarray, draws: int) -> bool:
    if name.startswith(("n:", "bins:")):
        return values.dtype.kind in "iu" and bool(((values >= 0) & (values <= draws)).all())
    return values.dtype.kind == "f" and not (name.startswith("m2:") and (values < 0).any())


def block_paths(folder: Path) -> list[Path]:
    """Return the paths of all stored blocks of a results folder, sorted by name."""
    return sorted((folder / "raw").glob("block-*.npz"))


def stored_blocks(folder: Path, damaged: list[CorruptFileError] | None = None) -> dict[Place, dict[str, Any]]:
    """Return the provenance of every stored block, with its file name under `file`.

    Corrupt blocks are appended to `damaged`. Without `damaged` the first one is raised (CorruptFileError).
    """
    stored = {}
    for path in block_paths(folder):
        try:
            place, provenance, _ = read_block(path, whole=False)
            stored[place] = provenance | {"file": path.name}
        except CorruptFileError as error:
            if damaged is None:
                raise
            damaged.append(error)
    return stored
