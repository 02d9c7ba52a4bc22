"""Tile files: atomic writing and checked reading."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from relu_study.stats.histogram_bins import POWERS
from relu_study.storage.atomic_write import make_dirs, write_atomically
from relu_study.storage.checksums import UNREADABLE, CheckedNpz, CorruptFileError, strict_json, with_archive_checksum
from relu_study.storage.tile_identity import check_arrays, check_identity, same_run, tile_name

NEEDED = ("run_id", "spec", "epoch", "status", "first_bad_epoch", "probe_examples", "provenance")
HISTOGRAM = "histogram:"
RERUN_HINT = "move it away and run the study again"
TileArrays = dict[str, np.ndarray]
Stored = dict[str, tuple[str, dict[str, Any]]]  # run_id -> status, provenance


def write_tile(folder: Path, tile: TileArrays) -> Path:
    """Store one tile under `folder`/raw, in a file named after its runs. Returns the path."""
    path = folder / "raw" / tile_name(tile["run_id"])
    write_arrays(path, tile)
    return path


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays atomically as a compressed .npz file with a checksum."""
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    make_dirs(path.parent)
    write_atomically(path, with_archive_checksum(content.getvalue()))


def read_tile(path: Path, names: Collection[str] | None = None, leave_out: str | tuple[str, ...] = ()) -> TileArrays:
    """Read and check one stored tile.

    Args:
        path: The tile file. Its checksum, run ids and name are always checked.
        names: The arrays to read (default: all).
        leave_out: Prefixes of arrays to skip.

    Raises:
        CorruptFileError: the file differs from the stored tile.
    """
    with reading(path):
        return tile_arrays(identified(path), names, leave_out)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn read errors into a CorruptFileError with the path."""
    try:
        yield
    except UNREADABLE as error:
        raise CorruptFileError(path, "is not a readable tile", error, RERUN_HINT) from None


def identified(path: Path) -> CheckedNpz:
    """Return an open tile file whose name and runs match."""
    raw = CheckedNpz(path)
    for name in NEEDED:
        if name not in list(raw):
            raise ValueError(f"it has no {name}")
    check_identity(path.name, raw["run_id"], raw["spec"])
    return raw


def tile_arrays(raw: CheckedNpz, names: Collection[str] | None = None, leave_out: str | tuple[str, ...] = ()) -> TileArrays:
    """Return the arrays of a tile file, with their shapes checked."""
    tile = {name: raw[name] for name in names or raw if not name.startswith(leave_out)}
    check_arrays(tile, len(raw["run_id"]), raw["epoch"])
    return tile


def tile_paths(folder: Path) -> list[Path]:
    """Return the paths of all stored tiles of a results folder, sorted by name."""
    return sorted((folder / "raw").glob("tile-*.npz"))


def stored_runs(folder: Path, damaged: list[CorruptFileError] | None = None) -> Stored:
    """Return run_id -> (status, provenance with its file name under `file`) for every stored run.

    Corrupt tiles are appended to `damaged` and their runs left out. Two tiles with different numbers of one run are both
    corrupt. Without `damaged` the first error is raised (CorruptFileError).
    """
    stored: dict[Path, Stored] = {}
    tile_of_run: dict[str, Path] = {}  # run_id -> its tile
    errors: dict[Path, CorruptFileError] = {}
    for path in tile_paths(folder):
        try:
            tile = read_tile(path, ("run_id", "status", "provenance"))
        except CorruptFileError as error:
            errors[path] = error
            continue
        provenance = strict_json(str(tile["provenance"])) | {"file": path.name}
        statuses = zip(tile["run_id"], tile["status"], strict=True)
        stored[path] = {str(run): (str(status), provenance) for run, status in statuses}
        for run in stored[path]:
            if (other := tile_of_run.setdefault(run, path)) != path:
                errors |= {error.path: error for error in disagreement(run, other, path)}
    if errors and damaged is None:
        raise next(iter(errors.values()))
    (damaged if damaged is not None else []).extend(errors.values())
    return {run: entry for path, runs in stored.items() if path not in errors for run, entry in runs.items()}


def disagreement(run: str, *paths: Path) -> list[CorruptFileError]:
    """Return one error for each of two tiles that contain different numbers of a run, or none if they agree."""
    one, other = (read_tile(path, leave_out=(HISTOGRAM, "param:")) for path in paths)
    if same_run(one, _row(one, run), other, _row(other, run)):
        return []
    reasons = (f"it and {other.name} have different numbers of run {run}" for other in reversed(paths))
    return [
        CorruptFileError(path, "is not a readable tile", reason, RERUN_HINT) for path, reason in zip(paths, reasons, strict=True)
    ]


def _row(tile: TileArrays, run: str) -> int:
    return tile["run_id"].tolist().index(run)


def stored_bins(folder: Path) -> str | None:
    """Return "histogram_bins" in the provenance of the first readable tile, or None without one."""
    for path in tile_paths(folder):
        with contextlib.suppress(CorruptFileError):
            return str(strict_json(str(read_tile(path, ("provenance",))["provenance"])).get("histogram_bins", POWERS))
    return None
