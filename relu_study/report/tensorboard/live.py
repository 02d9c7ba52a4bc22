"""TensorBoard files written during a sweep, one configuration at a time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from relu_study.report.tensorboard.event_files import write_events
from relu_study.storage.atomic_write import wrap_os_errors
from relu_study.storage.configurations import collect
from relu_study.storage.declaration import parse_manifest
from relu_study.storage.tile_files import read_tile, tile_paths

FREE_SECONDS = 2.0  # writing time that needs no share of the sweep
MAX_TIME_SHARE = 0.03  # of the time since the sweep began, for writing beyond FREE_SECONDS


class Live:
    """TensorBoard files of a running sweep.

    A configuration is written when its last run is stored, with the same bytes that `report` writes. Writing takes at most
    FREE_SECONDS plus MAX_TIME_SHARE of the sweep's time. Above this limit, complete configurations wait for the next tile or for
    `write`. Each batch reads only the tiles of its runs. `shown` is the set of config_ids with up-to-date files.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], per_seed: bool = False) -> None:
        # Widths may change until a cohort's first tile is stored, so they are not checked here: storing a tile checks them.
        self.folder, self.manifest, self.per_seed = folder, replace(parse_manifest(manifest), widths={}), per_seed
        self.shown: set[str] = set()
        self._began, self._spent, self._last = time.monotonic(), 0.0, 0.0
        self._ready: list[str] = []
        self._missing: dict[str, set[str]] = {}  # config_id -> its missing run_ids
        self._tile_paths: dict[str, set[Path]] = {}  # config_id -> the tiles of its runs
        self._config_of_run: dict[str, str] = {}  # run_id -> config_id
        declaration = self.manifest.declaration
        for config_id in declaration.specs:
            runs = set(declaration.run_ids(config_id))
            self._missing[config_id], self._tile_paths[config_id] = runs, set()
            self._config_of_run |= dict.fromkeys(runs, config_id)
        with wrap_os_errors(folder / "tensorboard"):
            (folder / "tensorboard").mkdir(exist_ok=True)  # TensorBoard can start before the first event
        for path in tile_paths(folder):
            self._stored(path, read_tile(path, ("run_id",))["run_id"])

    def tile(self, path: Path, runs: Iterable[str]) -> None:
        """Record a stored tile with these run_ids, and write the configurations that it completes."""
        self._stored(path, runs)
        if self._ready and self._spent + self._last <= FREE_SECONDS + MAX_TIME_SHARE * (time.monotonic() - self._began):
            self.write()

    def write(self) -> None:
        """Write every complete configuration that is not written yet."""
        if not self._ready:
            return
        began = time.monotonic()
        ready, paths = self._ready, set().union(*(self._tile_paths.pop(config_id) for config_id in self._ready))
        configurations = collect(self.folder, self.manifest, only=ready, histograms=True, paths=paths)
        write_events(self.manifest, configurations, self.folder, self.per_seed)
        self.shown.update(ready)
        self._ready = []
        self._last = time.monotonic() - began
        self._spent += self._last

    def _stored(self, path: Path, runs: Iterable[str]) -> None:
        for run in map(str, runs):
            if (config_id := self._config_of_run.pop(run, None)) is not None:
                self._tile_paths[config_id].add(path)
                self._missing[config_id].discard(run)
                if not self._missing[config_id]:
                    self._ready.append(config_id)
