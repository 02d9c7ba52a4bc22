"""Stored tiles grouped by configuration, as arrays of all runs. No JAX.

A tile file contains the arrays of R runs, trained together and measured at E epochs:

- `run_id`, `spec` (JSON of `RunSpec.changed()`), `status` (ok | nonfinite), `first_bad_epoch` (NaN: none): R each;
- `epoch`: E numbers; `probe_examples`: one number;
- `provenance`: JSON of the versions, settings and devices that determine the numbers together with the specs;
- `metric:NAME/SITE`: R x E, float32 (float64 under JAX's double precision), NaN for an empty metric;
- `dead:SITE`, `certified_dead:SITE`: R x E x ceil(U / 8) packed bits, and `units:SITE` = U;
- `histogram:KIND:SITE`: R x E x 65 counts in the bins of `relu_study.stats.histogram_bins`. KIND: pre, post or gradient;
- `bins:KIND:SITE`: [low, high], float64, the range of a histogram with linear bins (absent for powers of two).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from relu_study.storage.checksums import strict_json
from relu_study.storage.declaration import StudyManifest, read_declared
from relu_study.storage.provenance import check_provenance
from relu_study.storage.tile_files import HISTOGRAM, TileArrays, disagreement, identified, reading, tile_arrays, tile_paths
from relu_study.storage.tile_identity import check_alike


def stored_params(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return run_id -> {name: final parameters} for every run whose parameters are stored."""
    stored: dict[str, dict[str, np.ndarray]] = {}
    for _, tile in _tiles(tile_paths(folder)):
        params = {name.removeprefix("param:"): values for name, values in tile.items() if name.startswith("param:")}
        if params:
            for row, run in enumerate(tile["run_id"]):
                stored[str(run)] = {name: values[row] for name, values in params.items()}
    return stored


@dataclass
class Configuration:
    """All n stored runs of one configuration, one row per run, in seed order.

    `values["metric/site"]` has shape n x E. `dead[site]` and `certified_dead[site]` have shape n x E x U. A site without
    certified flags is absent from `certified_dead`. `num_requested` is the number of requested runs, stored or not.
    """

    config_id: str
    spec: Mapping[str, Any]  # every RunSpec field but the seed
    num_requested: int
    run_ids: list[str]
    seeds: np.ndarray
    epochs: np.ndarray
    status: np.ndarray
    first_bad_epoch: np.ndarray
    probe_examples: int
    values: dict[str, np.ndarray] = field(default_factory=dict)
    dead: dict[str, np.ndarray] = field(default_factory=dict)
    certified_dead: dict[str, np.ndarray] = field(default_factory=dict)
    histograms: dict[str, np.ndarray] = field(default_factory=dict)  # "pre:site_1" -> E x 65 counts, summed over runs
    bins: dict[str, tuple[float, float]] = field(default_factory=dict)  # "post:site_1" -> range of its linear bins
    constant_loss: np.ndarray | None = None  # loss of each run's best constant prediction; None: not stored

    @property
    def sites(self) -> list[str]:
        return list(self.dead)


def collect(
    folder: Path,
    manifest: StudyManifest | None = None,
    only: Collection[str] | None = None,
    histograms: bool = False,
    paths: Iterable[Path] | None = None,
    runs: Collection[str] | None = None,
) -> dict[str, Configuration]:
    """Return the stored runs of the manifest by config_id, in declared order.

    Configurations without a stored run are left out. A run in two tiles counts once.

    Args:
        folder: The results folder.
        manifest: Its manifest, if already read.
        only: The config_ids to collect (default: all).
        histograms: Whether to read the histograms and sum them over each configuration's runs.
        paths: The tiles to read (default: all).
        runs: The requested run_ids (default: all declared ones). Only these count in `num_requested`.

    Raises:
        CorruptFileError: a tile is corrupt, or two tiles disagree on a run.
        UserError: the provenance of a tile differs from the manifest.
    """
    manifest = manifest or read_declared(folder)
    requested: dict[str, tuple[str, int]] = {}  # run_id -> config_id, seed
    specs = {name: spec for name, spec in manifest.declaration.specs.items() if only is None or name in only}
    for config_id in specs:
        for seed, run_id in enumerate(manifest.declaration.run_ids(config_id)):
            if runs is None or run_id in runs:
                requested[run_id] = (config_id, seed)
    num_requested = Counter(config_id for config_id, _ in requested.values())
    subset = None if only is None and runs is None else set(requested)
    tiles = _tiles(tile_paths(folder) if paths is None else sorted(paths), histograms, subset)
    stored = _stored_rows(tiles, requested, manifest)
    return {
        config_id: _configuration(config_id, spec, num_requested[config_id], stored[config_id].rows, stored[config_id].histograms)
        for config_id, spec in specs.items()
        if config_id in stored
    }


@dataclass
class _StoredRows:
    """The stored runs of one configuration: (seed, tile, row in the tile) of each, and their summed histograms."""

    rows: list[tuple[int, TileArrays, int]] = field(default_factory=list)
    histograms: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, seed: int, tile: TileArrays, row: int, counts: dict[str, np.ndarray]) -> None:
        """Add one run of a tile. Raises ValueError if the tile has other epochs, metrics, sites or bins than the first tile."""
        self.rows.append((seed, tile, row))
        check_alike(self.rows[0][1], tile)
        for name, values in counts.items():
            self.histograms[name] = self.histograms.get(name, 0) + values[row].astype(np.int64)


def _stored_rows(
    tiles: Iterable[tuple[Path, TileArrays]], requested: Mapping[str, tuple[str, int]], manifest: Any
) -> dict[str, _StoredRows]:
    """Return the requested runs of the tiles by config_id, each run once. `requested` maps run_id to (config_id, seed).

    Raises:
        CorruptFileError: two tiles disagree on a run, or on the arrays of a configuration.
        UserError: the provenance of a tile differs from the manifest.
    """
    stored: dict[str, _StoredRows] = {}
    tile_of_run: dict[str, Path] = {}
    missing = dict(requested)
    for path, tile in tiles:
        provenance = strict_json(str(tile["provenance"]))
        check_provenance(path, provenance, provenance.get("cohort", ""), manifest)
        counts = {name.removeprefix(HISTOGRAM): tile.pop(name) for name in list(tile) if name.startswith(HISTOGRAM)}
        for row, run in enumerate(map(str, tile["run_id"])):
            first_path = tile_of_run.setdefault(run, path)
            if first_path != path and (errors := disagreement(run, first_path, path)):
                raise errors[0]
            if run in missing:  # not stored by an earlier tile
                config_id, seed = missing.pop(run)
                with reading(path):
                    stored.setdefault(config_id, _StoredRows()).add(seed, tile, row, counts)
    return stored


def _tiles(
    paths: Iterable[Path], histograms: bool = False, runs: Collection[str] | None = None
) -> Iterator[tuple[Path, TileArrays]]:
    """Yield each path and its tile. `runs` selects the tiles with at least one of these run_ids."""
    for path in paths:
        with reading(path):
            raw = identified(path)
            if runs is not None and not any(run in runs for run in raw["run_id"].tolist()):
                continue
            # Histograms are most of a tile's bytes, and no table needs them.
            tile = tile_arrays(raw, leave_out=() if histograms else HISTOGRAM)
        yield path, tile


def _configuration(
    config_id: str,
    spec: Mapping[str, Any],
    num_requested: int,
    rows: list[tuple[int, TileArrays, int]],
    histograms: dict[str, np.ndarray],
) -> Configuration:
    """Return a configuration from the (seed, tile, row in the tile) of each of its stored runs."""
    rows.sort(key=lambda stored: stored[0])
    first = rows[0][1]  # the tiles of a configuration have the same sites, epochs and bins

    def stack(name: str) -> np.ndarray:
        return np.stack([tile[name][row] for _, tile, row in rows])

    ranges = {name: first[f"bins:{name}"] for name in histograms if f"bins:{name}" in first}
    return Configuration(
        config_id=config_id,
        spec=spec,
        num_requested=num_requested,
        run_ids=[str(tile["run_id"][row]) for _, tile, row in rows],
        seeds=np.array([seed for seed, _, _ in rows]),
        epochs=first["epoch"],
        status=stack("status"),
        first_bad_epoch=stack("first_bad_epoch"),
        probe_examples=int(first["probe_examples"]),
        values={name.removeprefix("metric:"): stack(name) for name in first if name.startswith("metric:")},
        dead=_unpacked("dead", first, stack),
        certified_dead=_unpacked("certified_dead", first, stack),
        histograms=histograms,
        bins={name: (float(low), float(high)) for name, (low, high) in ranges.items()},
        constant_loss=stack("constant_loss") if all("constant_loss" in tile for _, tile, _ in rows) else None,
    )


def _unpacked(kind: str, tile: TileArrays, stack: Callable[[str], np.ndarray]) -> dict[str, np.ndarray]:
    """Return the flags of a kind by site, n x E x U, from the packed bits that `stack` returns. `tile` has the sites."""
    num_units = {name.removeprefix("units:"): int(tile[name]) for name in tile if name.startswith("units:")}
    return {
        site: np.unpackbits(stack(f"{kind}:{site}"), axis=-1, count=count).astype(bool)
        for site, count in num_units.items()
        if f"{kind}:{site}" in tile
    }
