"""Tile files: written atomically, read back and checked."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from relu_study.stats.histogram_bins import POWERS
from relu_study.storage.atomic_write import make_dirs, write_atomically
from relu_study.storage.checksums import UNREADABLE, CheckedNpz, CorruptFileError, strict_json, with_checksum
from relu_study.storage.tile_identity import check_arrays, check_identity, same_run, tile_name

NEEDED = ("run_id", "spec", "epoch", "status", "first_bad_epoch", "probe_examples", "provenance")
HISTOGRAM = "histogram:"
OOM_HINT = "free memory or take a larger device, and run the study again, which tries them anew"
RERUN_HINT = "move it away and run the study again"
Tile = dict[str, np.ndarray]
Stored = dict[str, tuple[str, dict[str, Any]]]  # run_id -> status, provenance


def write_tile(folder: Path, tile: Tile) -> Path:
    """Store one tile under `folder`/raw, named by the runs it holds."""
    path = folder / "raw" / tile_name(tile["run_id"])
    write_arrays(path, tile)
    return path


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays, compressed and with their checksum, whole or not at all."""
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    make_dirs(path.parent)
    write_atomically(path, with_checksum(content.getvalue()))


def read_tile(path: Path, names: Collection[str] | None = None, leave_out: str | tuple[str, ...] = ()) -> Tile:
    """One stored tile, or the named arrays of it; what is not the tile that was stored is Damaged, with the way out.

    The whole file is checked in any case, and that its runs are those of its specs and of its name. What begins with `leave_out`
    is not read.
    """
    with reading(path):
        return tile_arrays(identified(path), names, leave_out)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors of an unreadable file into one that names it."""
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


def tile_arrays(raw: CheckedNpz, names: Collection[str] | None = None, leave_out: str | tuple[str, ...] = ()) -> Tile:
    """Return the arrays of a tile file, with their shapes checked."""
    tile = {name: raw[name] for name in names or raw if not name.startswith(leave_out)}
    check_arrays(tile, len(raw["run_id"]), raw["epoch"])
    return tile


def tile_paths(folder: Path) -> list[Path]:
    """Every stored tile of a results folder, in name order."""
    return sorted((folder / "raw").glob("tile-*.npz"))


def stored_runs(folder: Path, damaged: list[CorruptFileError] | None = None) -> Stored:
    """run_id -> (status, provenance with the name of its `file`) of every run that has a stored tile.

    Tiles that cannot be believed are added to `damaged`, and their runs left out; without it the first one is raised. Of two
    tiles with different numbers of one run neither is believed.
    """
    found: dict[Path, Stored] = {}
    tile_of_run: dict[str, Path] = {}  # run_id -> its tile
    wrong: dict[Path, CorruptFileError] = {}
    for path in tile_paths(folder):
        try:
            tile = read_tile(path, ("run_id", "status", "provenance"))
        except CorruptFileError as error:
            wrong[path] = error
            continue
        made = strict_json(str(tile["provenance"])) | {"file": path.name}
        found[path] = {str(run): (str(status), made) for run, status in zip(tile["run_id"], tile["status"], strict=True)}
        for run in found[path]:
            if (other := tile_of_run.setdefault(run, path)) != path:
                wrong |= {error.path: error for error in disagreement(run, other, path)}
    if wrong and damaged is None:
        raise next(iter(wrong.values()))
    (damaged if damaged is not None else []).extend(wrong.values())
    return {run: about for path, runs in found.items() if path not in wrong for run, about in runs.items()}


def disagreement(run: str, *paths: Path) -> list[CorruptFileError]:
    """What is wrong with two tiles that hold one run; nothing where they say the same of it."""
    one, other = (read_tile(path, leave_out=(HISTOGRAM, "param:")) for path in paths)
    if same_run(one, _row(one, run), other, _row(other, run)):
        return []
    said = (f"it and {other.name} hold different numbers of run {run}" for other in reversed(paths))
    return [
        CorruptFileError(path, "is not a readable tile", reason, RERUN_HINT) for path, reason in zip(paths, said, strict=True)
    ]


def _row(tile: Tile, run: str) -> int:
    return tile["run_id"].tolist().index(run)


def stored_bins(folder: Path) -> str | None:
    """The provenance "histogram_bins" of the stored tiles, that of the first readable one; None where there is none."""
    for path in tile_paths(folder):
        with contextlib.suppress(CorruptFileError):
            return str(strict_json(str(read_tile(path, ("provenance",))["provenance"])).get("histogram_bins", POWERS))
    return None
