"""The results folder: tiles and the manifest in, configurations and DataFrames out. NumPy and files only.

A tile file holds, for R runs that were trained together over E measured epochs:

- `run_id`, `spec` (JSON of `RunSpec.changed()`), `status` (ok | nonfinite), `first_bad_epoch` (NaN: none): R each;
- `epoch`: E; `probe_examples`: one number; `provenance`: JSON of all that the numbers depend on besides the specs;
- `metric:NAME/SITE`: R x E, float32, NaN where the metric is empty;
- `dead:SITE`, `certified_dead:SITE`: R x E x ceil(U / 8) packed bits, and `units:SITE` = U;
- `histogram:KIND:SITE`: R x E x 65 counts, KIND pre, post or gradient: `relu_study.bins` has the bins.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from relu_study.registry import UserError
from relu_study.spec import RunSpec

FORMAT = 1
NEEDED = ("run_id", "spec", "epoch", "status", "first_bad_epoch", "probe_examples", "provenance")
HISTOGRAM = "histogram:"
UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
Tile = dict[str, np.ndarray]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: to a temporary name beside it, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_tile(folder: Path, tile: Tile) -> Path:
    """Store one tile under `folder`/raw, named by the runs it holds."""
    name = hashlib.sha256("".join(sorted(tile["run_id"])).encode()).hexdigest()[:12]
    path = folder / "raw" / f"tile-{name}.npz"
    write_arrays(path, tile)
    return path


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays, compressed, whole or not at all."""
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())


def read_tile(path: Path, names: Collection[str] | None = None, leave_out: str | tuple[str, ...] = ()) -> Tile:
    """One stored tile, or the named arrays of it; a damaged file is named, with the way out.

    What begins with `leave_out` is not read.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            missing = [name for name in NEEDED if name not in data.files]
            if missing:
                raise ValueError(f"it has no {missing[0]}")
            tile = {name: data[name] for name in names or data.files if not name.startswith(leave_out)}
    except UNREADABLE as error:
        raise UserError(f"{path} is not a readable tile ({error}); move it away and run the study again") from None
    return tile


def tile_paths(folder: Path) -> list[Path]:
    """Every stored tile of a results folder, in name order."""
    return sorted((folder / "raw").glob("tile-*.npz"))


def stored_runs(folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """run_id -> (status, provenance) of every run that has a stored tile."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in tile_paths(folder):
        tile = read_tile(path, ("run_id", "status", "provenance"))
        made = json.loads(str(tile["provenance"]))
        found.update((str(run), (str(status), made)) for run, status in zip(tile["run_id"], tile["status"], strict=True))
    return found


def stored_params(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """run_id -> final parameters by name, of every run that was trained with them kept."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for tile in _tiles(tile_paths(folder)):
        params = {name.removeprefix("param:"): values for name, values in tile.items() if name.startswith("param:")}
        if params:
            found.update(
                (str(run), {name: values[row] for name, values in params.items()}) for row, run in enumerate(tile["run_id"])
            )
    return found


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write `manifest.json`, keys in the order given."""
    write_atomically(folder / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a results folder; a folder without one is refused."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is no results folder: it has no manifest.json; make one with 'relu-study run STUDY --out {folder}'"
        )
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != FORMAT:
            raise UserError(f"{path} has format {manifest['format']!r}, this relu-study reads format {FORMAT}")
        for name in ("study", "provenance", "widths", "declaration"):
            manifest[name]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is garbled ({error!r}); restore it or run the study into a new folder") from None
    return manifest


def seeds_of(declaration: Mapping[str, Any]) -> dict[str, int]:
    """config_id -> its seeds; an earlier version declared one number for all of them."""
    return {entry["config_id"]: entry.get("seeds", declaration["seeds"]) for entry in declaration["configurations"]}


@dataclass
class Configuration:
    """All stored runs of one configuration, one row a run, in seed order.

    `values["metric/site"]` is n x E; `dead[site]` and `certified_dead[site]` are n x E x U (certified: absent where empty).
    """

    config_id: str
    spec: dict[str, Any]  # every RunSpec field but the seed
    wanted: int  # runs the study asks for
    run_ids: list[str]
    seeds: np.ndarray
    epochs: np.ndarray
    status: np.ndarray
    first_bad_epoch: np.ndarray
    probe_examples: int
    values: dict[str, np.ndarray] = field(default_factory=dict)
    dead: dict[str, np.ndarray] = field(default_factory=dict)
    certified_dead: dict[str, np.ndarray] = field(default_factory=dict)
    histograms: dict[str, np.ndarray] = field(default_factory=dict)  # "pre:site_1" -> E x 65 counts, all its runs together

    @property
    def sites(self) -> list[str]:
        return list(self.dead)


def collect(
    folder: Path,
    manifest: dict[str, Any] | None = None,
    only: Collection[str] | None = None,
    histograms: bool = False,
    paths: Iterable[Path] | None = None,
    runs: Collection[str] | None = None,
) -> dict[str, Configuration]:
    """The stored runs that the manifest asks for, by configuration, in declared order.

    Configurations without a stored run are left out, and all but those of `only`; each run counts once. With `histograms`
    those of a configuration's runs are read too and added up. `paths`: the tiles to read, where it is known which; else all.
    `runs`: the run_ids that are asked for, where it is not all; no other counts as missing.
    """
    manifest = manifest or read_manifest(folder)
    wanted: dict[str, tuple[str, int]] = {}  # run_id -> config_id, seed
    specs: dict[str, dict[str, Any]] = {}
    for entry in manifest["declaration"]["configurations"]:
        if only is None or entry["config_id"] in only:
            specs[entry["config_id"]] = entry["spec"]
    seeds = seeds_of(manifest["declaration"])
    for config_id, spec in specs.items():
        for seed in range(seeds[config_id]):
            run_id = RunSpec(**spec, seed=seed).run_id
            if runs is None or run_id in runs:
                wanted[run_id] = (config_id, seed)
    asked = Counter(config_id for config_id, _ in wanted.values())
    rows: dict[str, list[tuple[int, Tile, int]]] = {}
    counted: dict[str, dict[str, np.ndarray]] = {}
    some = None if only is None and runs is None else wanted
    for tile in _tiles(tile_paths(folder) if paths is None else sorted(paths), histograms, some):
        counts = {name.removeprefix(HISTOGRAM): tile.pop(name) for name in list(tile) if name.startswith(HISTOGRAM)}
        for row, run in enumerate(tile["run_id"]):
            if (place := wanted.pop(str(run), None)) is not None:
                rows.setdefault(place[0], []).append((place[1], tile, row))
                _add(counted.setdefault(place[0], {}), {name: values[row] for name, values in counts.items()})
    return {
        config_id: _configuration(config_id, spec, asked[config_id], rows[config_id], counted[config_id])
        for config_id, spec in specs.items()
        if config_id in rows
    }


def _add(sums: dict[str, np.ndarray], counts: dict[str, np.ndarray]) -> None:
    for name, values in counts.items():
        sums[name] = sums.get(name, 0) + values.astype(np.int64)


def _tiles(paths: Iterable[Path], histograms: bool = False, of: Mapping[str, Any] | None = None) -> Iterator[Tile]:
    for path in paths:
        if of is not None and not any(str(run) in of for run in read_tile(path, ("run_id",))["run_id"]):
            continue
        yield read_tile(path, leave_out=() if histograms else HISTOGRAM)  # the bulk of a tile, and no table needs it


def _configuration(
    config_id: str, spec: dict[str, Any], wanted: int, rows: list[tuple[int, Tile, int]], histograms: dict[str, np.ndarray]
) -> Configuration:
    rows.sort(key=lambda r: r[0])
    first = rows[0][1]

    def stack(name: str) -> np.ndarray:
        return np.stack([tile[name][row] for _, tile, row in rows])

    def bits(kind: str) -> dict[str, np.ndarray]:
        sites = [name.removeprefix("units:") for name in first if name.startswith("units:")]
        return {
            site: np.unpackbits(stack(f"{kind}:{site}"), axis=-1, count=int(first[f"units:{site}"])).astype(bool)
            for site in sites
            if f"{kind}:{site}" in first
        }

    return Configuration(
        config_id=config_id,
        spec=spec,
        wanted=wanted,
        run_ids=[str(tile["run_id"][row]) for _, tile, row in rows],
        seeds=np.array([seed for seed, _, _ in rows]),
        epochs=first["epoch"],
        status=stack("status"),
        first_bad_epoch=stack("first_bad_epoch"),
        probe_examples=int(first["probe_examples"]),
        values={name.removeprefix("metric:"): stack(name) for name in first if name.startswith("metric:")},
        dead=bits("dead"),
        certified_dead=bits("certified_dead"),
        histograms=histograms,
    )
