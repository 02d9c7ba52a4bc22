"""One stored run of a results folder: its spec, its provenance, and its numbers in raw/ or runs.csv. No JAX."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from relu_study.errors import UserError, nearest
from relu_study.storage.checksums import CorruptFileError, one_line, strict_json
from relu_study.storage.configurations import Configuration
from relu_study.storage.csv_files import csv_text, read_runs
from relu_study.storage.declaration import StudyManifest, read_declared
from relu_study.storage.frames import runs_frame
from relu_study.storage.provenance import check_provenance
from relu_study.storage.statuses import STORED
from relu_study.storage.tile_files import HISTOGRAM, TileArrays, identified, reading, tile_arrays, tile_paths
from relu_study.study.run_spec import RunSpec

SERIES = ("metric:", "dead:", "certified_dead:")
NUMBERS = (*SERIES, "status", "first_bad_epoch", "constant_loss")  # of one run, one row per run


@dataclass(frozen=True)
class StoredRun:
    """A run of a results folder.

    `tile` has the arrays of the run's tile in raw/, cut to this run; None in a clone. `row` is its row of runs.csv, by column;
    None before a report. At least one is not None.
    """

    folder: Path
    manifest: StudyManifest
    run_id: str
    config_id: str
    spec: RunSpec
    provenance: Mapping[str, Any]  # with the cohort and the width, as far as they are stored
    tile: TileArrays | None
    row: Mapping[str, str] | None

    @property
    def first_bad_epoch(self) -> float:
        """The first nonfinite epoch; NaN for a finite run."""
        if self.tile is not None:
            return float(self.tile["first_bad_epoch"][0])
        assert self.row is not None
        return float(self.row["first_bad_epoch"] or "nan")

    def check_equal(self, numbers: TileArrays) -> None:
        """Compare the numbers of a repeated run with the stored ones, bit for bit. `numbers` has this run in its first row.

        Raises:
            UserError: a number differs. The message names the first one with its epoch.
        """
        if self.tile is not None:
            _check_tile(self, self.tile, numbers)
        if self.row is not None:
            _check_row(self, self.row, row_of(self, numbers))


def find_run(folder: Path, run_id: str) -> StoredRun:
    """Return a stored run of the results folder of a training study.

    Raises:
        UserError: the folder, its declaration or the run id is not valid, or the run is not finished.
        CorruptFileError: the run's tile or runs.csv is corrupt.
    """
    manifest = read_declared(folder)
    declaration = manifest.declaration
    run_ids = {run: (config, seed) for config in declaration.specs for seed, run in enumerate(declaration.run_ids(config))}
    if run_id not in run_ids:
        raise nearest(run_id, run_ids, f"run of {folder}")
    config_id, seed = run_ids[run_id]
    spec = next(entry.run_spec for entry in declaration.configurations if entry.config_id == config_id).replace(seed=seed)
    provenance, tile = _tile_of(folder, run_id, manifest)
    row = _row_of_csv(folder, run_id, manifest)
    if tile is None and row is None:
        raise UserError(
            f"run {run_id} of {folder} is not stored: its tile in raw/ is missing, and runs.csv has no numbers of it. "
            "Run the study to its end."
        )
    return StoredRun(folder, manifest, run_id, config_id, spec, provenance, tile, row)


def _tile_of(folder: Path, run_id: str, manifest: StudyManifest) -> tuple[Mapping[str, Any], TileArrays | None]:
    """Return the provenance of a run, and its part of its tile; the manifest's provenance and None without a tile."""
    corrupt: CorruptFileError | None = None  # it may have this run
    for path in tile_paths(folder):
        try:
            with reading(path):
                raw = identified(path)
                runs = raw["run_id"].tolist()
                if run_id not in runs:
                    continue
                tile = tile_arrays(raw, leave_out=(HISTOGRAM, "param:"))
                provenance = strict_json(str(tile["provenance"]))
        except CorruptFileError as error:
            corrupt = corrupt or error
            continue
        check_provenance(path, provenance, provenance.get("cohort", ""), manifest)
        row = runs.index(run_id)
        return provenance, {name: a[row : row + 1] if name.startswith(NUMBERS) else a for name, a in tile.items()}
    if corrupt is not None:
        raise corrupt
    return manifest.provenance, None


def _row_of_csv(folder: Path, run_id: str, manifest: StudyManifest) -> Mapping[str, str] | None:
    """Return the finished run's row of runs.csv by column, or None without one."""
    if not (folder / "runs.csv").is_file():
        return None
    read_runs(folder, manifest)  # checks the file
    for row in csv.DictReader(io.StringIO((folder / "runs.csv").read_text(encoding="utf-8"))):
        if row["run_id"] == run_id:
            return row if row["status"] in STORED else None
    return None


def dead_masks(tile: Mapping[str, np.ndarray]) -> dict[str, Bool[np.ndarray, "E U"]]:
    """Return the dead masks by site of the first run of a tile."""
    return {
        name.removeprefix("dead:"): np.unpackbits(bits[0], axis=-1, count=int(tile[f"units:{name[5:]}"])).astype(bool)
        for name, bits in tile.items()
        if name.startswith("dead:")
    }


def first_deaths(tile: Mapping[str, np.ndarray]) -> tuple[float, float] | None:
    """Return the last measured epoch before the first death of a unit, and the first one after it; None without a death.

    Measurements of a nonfinite run are not read.
    """
    epochs, bad = tile["epoch"], float(tile["first_bad_epoch"][0])
    finite = ~(epochs >= bad)  # no epoch is >= NaN
    masks = [mask[finite] for mask in dead_masks(tile).values()]
    deaths = np.zeros(max(int(finite.sum()) - 1, 0), bool)
    for mask in masks:
        deaths |= (mask[1:] & ~mask[:-1]).any(axis=1)
    if not deaths.any():
        return None
    at = int(deaths.argmax())
    return float(epochs[at]), float(epochs[at + 1])


# ---------------------------------------------------------------------------------------- comparison


def row_of(run: StoredRun, numbers: TileArrays) -> dict[str, str]:
    """Return the row of runs.csv, by column, of a repeated run with these numbers."""
    values: dict[str, Float[np.ndarray, "1 E"]] = {
        name.removeprefix("metric:"): array[:1] for name, array in numbers.items() if name.startswith("metric:")
    }
    repeated = Configuration(
        config_id=run.config_id,
        spec=run.manifest.declaration.specs[run.config_id],
        num_requested=1,
        run_ids=[run.run_id],
        seeds=np.array([run.spec.seed]),
        epochs=numbers["epoch"],
        status=numbers["status"][:1],
        first_bad_epoch=numbers["first_bad_epoch"][:1],
        probe_examples=int(numbers["probe_examples"]),
        values=values,
    )
    frame = runs_frame({run.config_id: repeated}, run.manifest)
    text = csv_text(frame[frame["run_id"] == run.run_id], run.manifest.declaration.options)
    return next(csv.DictReader(io.StringIO(text)))


def _check_tile(run: StoredRun, stored: TileArrays, numbers: TileArrays) -> None:
    for name in ("epoch", *(name for name in stored if name.startswith(NUMBERS))):
        one, other = stored[name], numbers.get(name, np.zeros(0))
        other = other if name == "epoch" else other[:1]
        if np.array_equal(one, other, equal_nan=one.dtype.kind == "f"):
            continue
        place = name.replace("metric:", "")
        if one.shape != other.shape or not name.startswith(SERIES):
            raise _differs(run, place, one.tolist(), other.tolist())
        same = (one == other) | ((one != one) & (other != other))
        at = int(np.argwhere(~same.reshape(len(one[0]), -1).all(axis=1))[0, 0])
        raise _differs(run, f"{place} at epoch {stored['epoch'][at]:g}", one[0, at].tolist(), other[0, at].tolist())


def _check_row(run: StoredRun, stored: Mapping[str, str], repeated: Mapping[str, str]) -> None:
    for name, text in stored.items():
        if repeated.get(name) != text:
            raise _differs(run, f"{name} in runs.csv", text, repeated.get(name, ""))


def _differs(run: StoredRun, place: str, stored: Any, repeated: Any) -> UserError:
    return UserError(
        f"the replay of run {run.run_id} differs from {run.folder}: {place} is {one_line(stored)} there and {one_line(repeated)} "
        "here. Nothing was written. Run the study again on this machine, and replay its run."
    )
