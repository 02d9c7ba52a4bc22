"""The results folder: tiles and the manifest in, configurations and DataFrames out. NumPy and files only.

A tile file holds, for R runs that were trained together over E measured epochs:

- `run_id`, `spec` (JSON of `RunSpec.changed()`), `status` (ok | nonfinite), `first_bad_epoch` (NaN: none): R each;
- `epoch`: E; `probe_examples`: one number; `provenance`: JSON of all that the numbers depend on besides the specs;
- `metric:NAME/SITE`: R x E, float32 (float64 where JAX ran so), NaN where the metric is empty;
- `dead:SITE`, `certified_dead:SITE`: R x E x ceil(U / 8) packed bits, and `units:SITE` = U;
- `histogram:KIND:SITE`: R x E x 65 counts, KIND pre, post or gradient: `relu_study.bins` has the bins;
- `bins:KIND:SITE`: [low, high], float64, the range of a histogram with linear bins; without it the bins are powers of two.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from relu_study import locks
from relu_study.bins import POWERS
from relu_study.identity import check_alike, check_arrays, check_identity, check_made, same_run, tile_name
from relu_study.registry import UserError
from relu_study.seals import UNREADABLE, Damaged, Raw, contained, parsed, sealed, with_checksum, without_checksum
from relu_study.spec import RunSpec
from relu_study.writes import make, write_atomically

FORMAT = 2  # of manifest.json; 1 had no checksum
NEEDED = ("run_id", "spec", "epoch", "status", "first_bad_epoch", "probe_examples", "provenance")
HISTOGRAM = "histogram:"
UNFIT = "free memory or take a larger device, and run the study again, which tries them anew"
KINDS: tuple[tuple[str, Any], ...] = (("study", str), ("provenance", dict), ("widths", dict), ("declaration", (dict, type(None))))
AGAIN = "move it away and run the study again"
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
    make(path.parent)
    write_atomically(path, sealed(content.getvalue()))


def read_tile(path: Path, names: Collection[str] | None = None, leave_out: str | tuple[str, ...] = ()) -> Tile:
    """One stored tile, or the named arrays of it; what is not the tile that was stored is Damaged, with the way out.

    The whole file is checked in any case, and that its runs are those of its specs and of its name. What begins with `leave_out`
    is not read.
    """
    with _reading(path):
        return _arrays(_identified(path), names, leave_out)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        raise Damaged(path, "is not a readable tile", error, AGAIN) from None


def _identified(path: Path) -> Raw:
    raw = Raw(path)
    for name in NEEDED:
        if name not in list(raw):
            raise ValueError(f"it has no {name}")
    check_identity(path.name, raw["run_id"], raw["spec"])
    return raw


def _arrays(raw: Raw, names: Collection[str] | None = None, leave_out: str | tuple[str, ...] = ()) -> Tile:
    tile = {name: raw[name] for name in names or raw if not name.startswith(leave_out)}
    check_arrays(tile, len(raw["run_id"]), raw["epoch"])
    return tile


def tile_paths(folder: Path) -> list[Path]:
    """Every stored tile of a results folder, in name order."""
    return sorted((folder / "raw").glob("tile-*.npz"))


def stored_runs(folder: Path, damaged: list[Damaged] | None = None) -> Stored:
    """run_id -> (status, provenance with the name of its `file`) of every run that has a stored tile.

    Tiles that cannot be believed are added to `damaged`, and their runs left out; without it the first one is raised. Of two
    tiles with different numbers of one run neither is believed.
    """
    found: dict[Path, Stored] = {}
    lies: dict[str, Path] = {}  # run_id -> its tile
    wrong: dict[Path, Damaged] = {}
    for path in tile_paths(folder):
        try:
            tile = read_tile(path, ("run_id", "status", "provenance"))
        except Damaged as error:
            wrong[path] = error
            continue
        made = parsed(str(tile["provenance"])) | {"file": path.name}
        found[path] = {str(run): (str(status), made) for run, status in zip(tile["run_id"], tile["status"], strict=True)}
        for run in found[path]:
            if (other := lies.setdefault(run, path)) != path:
                wrong |= {error.path: error for error in _disagree(run, other, path)}
    if wrong and damaged is None:
        raise next(iter(wrong.values()))
    (damaged if damaged is not None else []).extend(wrong.values())
    return {run: about for path, runs in found.items() if path not in wrong for run, about in runs.items()}


def _disagree(run: str, *paths: Path) -> list[Damaged]:
    """What is wrong with two tiles that hold one run; nothing where they say the same of it."""
    one, other = (read_tile(path, leave_out=(HISTOGRAM, "param:")) for path in paths)
    if same_run(one, _row(one, run), other, _row(other, run)):
        return []
    said = (f"it and {other.name} hold different numbers of run {run}" for other in reversed(paths))
    return [Damaged(path, "is not a readable tile", reason, AGAIN) for path, reason in zip(paths, said, strict=True)]


def _row(tile: Tile, run: str) -> int:
    return tile["run_id"].tolist().index(run)


def stored_bins(folder: Path) -> str | None:
    """The provenance "histogram_bins" of the stored tiles, that of the first readable one; None where there is none."""
    for path in tile_paths(folder):
        with contextlib.suppress(Damaged):
            return str(parsed(str(read_tile(path, ("provenance",))["provenance"])).get("histogram_bins", POWERS))
    return None


def stored_params(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """run_id -> final parameters by name, of every run that was trained with them kept."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for _, tile in _tiles(tile_paths(folder)):
        params = {name.removeprefix("param:"): values for name, values in tile.items() if name.startswith("param:")}
        if params:
            found.update(
                (str(run), {name: values[row] for name, values in params.items()}) for row, run in enumerate(tile["run_id"])
            )
    return found


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write `manifest.json` with its checksum, keys in the order given, and make its folder; it holds finite numbers alone."""
    try:
        said = with_checksum(manifest)
    except ValueError as error:
        raise UserError(f"study {manifest['study']} declares what manifest.json cannot hold: {error}") from None
    make(folder)
    write_atomically(folder / "manifest.json", (json.dumps(said, indent=1) + "\n").encode())


def amend_manifest(folder: Path, seconds: Mapping[str, float], **entries: Any) -> None:
    """Add time to the manifest as it stands by now, whoever else has written it meanwhile, and replace some of its entries."""
    with locks.gate(folder):
        manifest = read_manifest(folder)
        spent = manifest["timing"] | {name: round(manifest["timing"].get(name, 0.0) + more, 2) for name, more in seconds.items()}
        write_manifest(folder, {**manifest, "timing": spent, **entries})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a results folder without its checksum; a folder without one is refused, and one that links lead out of.

    A manifest that is not what was written is Damaged; one of format 1 has no checksum.
    """
    path = folder / "manifest.json"
    if folder.is_dir():
        contained(folder)
    if not path.is_file():
        raise UserError(
            f"{folder} is no results folder: it has no manifest.json; make one with 'relu-study run STUDY --out {folder}'"
        )
    try:
        manifest = parsed(path.read_bytes())
        if manifest["format"] not in (1, FORMAT):
            raise UserError(
                f"{path} has format {manifest['format']!r}, this relu-study reads format {FORMAT} and those before it"
            )
        manifest = without_checksum(manifest, needed=manifest["format"] > 1)
        for name, kind in KINDS:
            if not isinstance(manifest[name], kind):
                raise ValueError(f"its {name} cannot be read")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        way_out = "restore it or run the study into a new folder, or again into this one, whose raw/ may tell what is lost"
        raise Damaged(path, "is garbled", reason, way_out) from None
    return dict(manifest)


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
    bins: dict[str, tuple[float, float]] = field(default_factory=dict)  # "post:site_1" -> its range, where its bins are linear

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
    lies: dict[str, Path] = {}  # run_id -> its tile
    some = None if only is None and runs is None else set(wanted)
    for path, tile in _tiles(tile_paths(folder) if paths is None else sorted(paths), histograms, some):
        made = parsed(str(tile["provenance"]))
        check_made(path, made, made.get("cohort", ""), manifest)
        counts = {name.removeprefix(HISTOGRAM): tile.pop(name) for name in list(tile) if name.startswith(HISTOGRAM)}
        for row, run in enumerate(map(str, tile["run_id"])):
            if (other := lies.setdefault(run, path)) != path and (wrong := _disagree(run, other, path)):
                raise wrong[0]
            if (place := wanted.pop(run, None)) is not None:
                rows.setdefault(place[0], []).append((place[1], tile, row))
                with _reading(path):
                    check_alike(rows[place[0]][0][1], tile)
                _add(counted.setdefault(place[0], {}), {name: values[row] for name, values in counts.items()})
    return {
        config_id: _configuration(config_id, spec, asked[config_id], rows[config_id], counted[config_id])
        for config_id, spec in specs.items()
        if config_id in rows
    }


def _add(sums: dict[str, np.ndarray], counts: dict[str, np.ndarray]) -> None:
    for name, values in counts.items():
        sums[name] = sums.get(name, 0) + values.astype(np.int64)


def _tiles(paths: Iterable[Path], histograms: bool = False, of: Collection[str] | None = None) -> Iterator[tuple[Path, Tile]]:
    for path in paths:
        with _reading(path):
            raw = _identified(path)
            if of is not None and not any(run in of for run in raw["run_id"].tolist()):
                continue
            tile = _arrays(raw, leave_out=() if histograms else HISTOGRAM)  # the bulk of a tile, and no table needs it
        yield path, tile


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
        bins={
            name: (float(first[f"bins:{name}"][0]), float(first[f"bins:{name}"][1]))
            for name in histograms
            if f"bins:{name}" in first
        },
    )
