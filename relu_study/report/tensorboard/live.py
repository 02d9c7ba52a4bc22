"""TensorBoard during a sweep: a configuration's files are written as soon as its last run is stored."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from relu_study.report.tensorboard.event_files import write_events
from relu_study.storage.atomic_write import wrap_os_errors
from relu_study.storage.configurations import collect
from relu_study.storage.manifest import seeds_of
from relu_study.storage.tile_files import read_tile, tile_paths
from relu_study.study.run_spec import RunSpec

FREE = 2.0  # seconds of writing that nobody asks about
SHARE = 0.03  # of the time since the sweep began, which writing may take beyond them


class Live:
    """The TensorBoard files of a sweep under way.

    Those of complete configurations are written at once, as long as all this writing has taken less than FREE seconds or the
    SHARE of the sweep; else they wait for the next tile, or for `write`. A batch reads only the tiles that hold its runs. What is
    written is what `report` would write. `shown` has the configurations that are up to date.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], per_seed: bool = False) -> None:
        # A width may yet change, before its cohort's first tile: those that are stored have the right one.
        self.folder, self.manifest, self.per_seed = folder, {**manifest, "widths": {}}, per_seed
        self.shown: set[str] = set()
        self._began, self._spent, self._last = time.monotonic(), 0.0, 0.0
        self._ready: list[str] = []
        self._missing: dict[str, set[str]] = {}  # config_id -> its runs that are not stored yet
        self._lie: dict[str, set[Path]] = {}  # config_id -> the tiles that hold its runs
        self._of: dict[str, str] = {}  # run_id -> config_id
        declaration = manifest["declaration"]
        seeds = seeds_of(declaration)
        for config_id, spec in {entry["config_id"]: entry["spec"] for entry in declaration["configurations"]}.items():
            runs = {RunSpec(**spec, seed=seed).run_id for seed in range(seeds[config_id])}
            self._missing[config_id], self._lie[config_id] = runs, set()
            self._of |= dict.fromkeys(runs, config_id)
        with wrap_os_errors(folder / "tensorboard"):
            (folder / "tensorboard").mkdir(exist_ok=True)  # so that one can look before there is anything to see
        for path in tile_paths(folder):
            self._stored(path, read_tile(path, ("run_id",))["run_id"])

    def tile(self, path: Path, runs: Iterable[str]) -> None:
        """A tile with these runs was stored: write what is complete now."""
        self._stored(path, runs)
        if self._ready and self._spent + self._last <= FREE + SHARE * (time.monotonic() - self._began):
            self.write()

    def write(self) -> None:
        """Write every complete configuration that is not shown yet."""
        if not self._ready:
            return
        began = time.monotonic()
        ready, paths = self._ready, set().union(*(self._lie.pop(config_id) for config_id in self._ready))
        found = collect(self.folder, self.manifest, only=ready, histograms=True, paths=paths)
        write_events(self.manifest, found, self.folder, self.per_seed)
        self.shown.update(ready)
        self._ready = []
        self._last = time.monotonic() - began
        self._spent += self._last

    def _stored(self, path: Path, runs: Iterable[str]) -> None:
        for run in map(str, runs):
            if (config_id := self._of.pop(run, None)) is not None:
                self._lie[config_id].add(path)
                self._missing[config_id].discard(run)
                if not self._missing[config_id]:
                    self._ready.append(config_id)
