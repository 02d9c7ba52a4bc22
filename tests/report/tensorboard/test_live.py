"""TensorBoard files during a sweep: complete configurations have them, others do not."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from known_results import planted_folder
from small_study import study

from relu_study import Experiment, RunSpec, Study, grid
from relu_study.engine.plan import Tile
from relu_study.errors import UserError
from relu_study.report.report import report
from relu_study.report.tensorboard import live
from relu_study.report.tensorboard.event_files import EVENT_FILE, run_names, write_events
from relu_study.report.tensorboard.live import Live
from relu_study.runner import run as runner
from relu_study.runner.callback import Callback
from relu_study.storage import configurations, tile_files
from relu_study.storage.declaration import parse_manifest, read_declared
from relu_study.storage.manifest import read_manifest


@pytest.fixture
def freely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing takes any time: the files do not depend on the speed of this machine."""
    monkeypatch.setattr(live, "FREE_SECONDS", math.inf)


def files(folder: Path) -> dict[str, bytes]:
    root = folder / "tensorboard"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# --------------------------------------------------------------------------------- tile by tile


@pytest.fixture
def sweep(tmp_path: Path) -> tuple[dict[str, Any], Path, list[Path]]:
    """An empty folder with a manifest, and tiles that are stored one after the other."""
    whole = planted_folder(tmp_path / "whole", seeds=3)
    folder = tmp_path / "sweep"
    (folder / "raw").mkdir(parents=True)
    return read_manifest(whole), folder, tile_files.tile_paths(whole)


def put(tile: Path, folder: Path) -> tuple[Path, list[str]]:
    path = Path(shutil.copy(tile, folder / "raw"))
    return path, [str(run) for run in tile_files.read_tile(path, ("run_id",))["run_id"]]


def complete(folder: Path, manifest: dict[str, Any]) -> set[str]:
    """The names of the configurations whose three runs are all stored."""
    parsed = parse_manifest(manifest)
    stored = configurations.collect(folder, parsed)
    return {run_names(parsed)[config_id] for config_id, c in stored.items() if len(c.run_ids) == 3}


@pytest.mark.usefixtures("freely")
def test_file_exists_once_the_last_run_is_stored(sweep: Any) -> None:
    manifest, folder, tiles = sweep
    watched, numbers = Live(folder, manifest), []
    assert list((folder / "tensorboard").iterdir()) == []
    for tile in tiles:
        watched.tile(*put(tile, folder))
        shown = {path.parent.name for path in (folder / "tensorboard").rglob(EVENT_FILE)}
        assert shown == complete(folder, manifest)
        numbers.append(len(shown))
    assert numbers[-1] == 20 and len(set(numbers)) > 5 and len(watched.shown) == 20
    during = files(folder)
    whole = parse_manifest(manifest)
    write_events(whole, configurations.collect(folder, whole, histograms=True), folder)
    assert files(folder) == during, "the same bytes as when all is written at once"


@pytest.mark.usefixtures("freely")
def test_batch_reads_only_the_tiles_of_its_runs(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, folder, tiles = sweep
    read: list[set[Path]] = []
    whole = configurations.collect

    def counted(*words: Any, paths: set[Path], **options: Any) -> Any:
        read.append(paths)
        return whole(*words, paths=paths, **options)

    monkeypatch.setattr(live, "collect", counted)
    watched = Live(folder, manifest)
    for tile in tiles:
        watched.tile(*put(tile, folder))
    assert len(read) > 5 and max(map(len, read)) < len(tiles) / 2


def test_slow_writing_waits_for_its_time_share(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, folder, tiles = sweep
    now, writings = [0.0], []

    def slow(*_: Any) -> None:
        writings.append(now[0])
        now[0] += 10

    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(live, "write_events", slow)
    watched = Live(folder, manifest)
    for tile in tiles:
        watched.tile(*put(tile, folder))
        now[0] += 60
    watched.write()
    watched.write()
    *during, last = writings
    assert 1 < len(during) < len(tiles) and last == now[0] - 10
    assert all(10 * i <= live.FREE_SECONDS + live.MAX_TIME_SHARE * when for i, when in enumerate(during, 1) if i > 1)


def test_runs_of_earlier_processes_are_shown(sweep: Any) -> None:
    manifest, folder, tiles = sweep
    for tile in tiles[:-1]:
        put(tile, folder)
    watched = Live(folder, manifest)
    watched.tile(*put(tiles[-1], folder))
    assert len(files(folder)) == 20


# ------------------------------------------------------------------------------------- for real

BASE = RunSpec(rows=300, batch_size=32, epochs=1, width=4)
# 48 runs of one program, in two tiles, and 16 of another.
FOUR = Study(
    name="four",
    title="Four configurations",
    text="Which are done?",
    seeds=16,
    metrics=("val_loss",),
    experiments=[Experiment("main", grid(BASE, learning_rate=[0.001, 0.01, 0.1]) | {"wider": BASE.replace(width=5)})],
)


class Looks(Callback):
    """Compares the files with the complete configurations after each stored tile."""

    def __init__(self, folder: Path, study: Study) -> None:
        self.folder, self.stop = folder, False
        self.missing = {name: {run.run_id for run in study.runs() if run.config_id == name} for name in ids(study)}
        self.seen: list[int] = []

    def on_tile_end(self, tile: Tile, *_: Any) -> None:
        for runs in self.missing.values():
            runs -= {run.run_id for run in tile.runs}
        names = run_names(read_declared(self.folder))
        shown = {path.parent.name for path in (self.folder / "tensorboard").rglob(EVENT_FILE)}
        assert shown == {names[config_id] for config_id, left in self.missing.items() if not left}
        self.seen.append(len(shown))
        if self.stop and 0 < len(shown) < 4:
            raise KeyboardInterrupt


def ids(study: Study) -> list[str]:
    return list(dict.fromkeys(run.config_id for run in study.runs()))


@pytest.mark.slow
@pytest.mark.usefixtures("freely")
def test_complete_configurations_are_shown_and_equal_the_report(tmp_path: Path) -> None:
    callback, everything = Looks(tmp_path / "four", FOUR), replace(FOUR, metrics=())
    runner.run(everything, tmp_path / "four", callback=callback)
    assert len(FOUR.runs()) == 64 and len(callback.seen) == 3 and callback.seen[0] < 2 and callback.seen[-1] == 4
    during = files(tmp_path / "four")
    shutil.rmtree(tmp_path / "four" / "tensorboard")
    report(tmp_path / "four")
    assert files(tmp_path / "four") == during and len(during) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("freely")
def test_interrupted_sweep_shows_complete_configurations_only(tmp_path: Path) -> None:
    callback = Looks(tmp_path / "four", FOUR)
    callback.stop = True
    with pytest.raises(KeyboardInterrupt):
        runner.run(FOUR, tmp_path / "four", callback=callback)
    half = files(tmp_path / "four")
    stored = configurations.collect(tmp_path / "four")
    names = run_names(read_declared(tmp_path / "four"))
    assert {Path(name).parent.name for name in half} == {names[c] for c, found in stored.items() if len(found.run_ids) == 16}
    assert 0 < len(half) < 4
    runner.run(FOUR, tmp_path / "four")
    assert len(whole := files(tmp_path / "four")) == 4 and {name: whole[name] for name in half} == half


@pytest.mark.slow
def test_single_seeds_of_a_sweep(tmp_path: Path) -> None:
    runner.run(study, tmp_path / "small", per_seed=True)
    during = files(tmp_path / "small")
    assert len(during) == 3 + 9
    report(tmp_path / "small", per_seed=True)
    assert files(tmp_path / "small") == during
    runner.run(study, tmp_path / "small")
    assert len(files(tmp_path / "small")) == 3


def test_too_many_single_seeds_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="501 single-seed runs"):
        runner.run(study, tmp_path / "many", seeds=167, per_seed=True)
    assert not (tmp_path / "many").exists()
    planted_folder(tmp_path / "planted", seeds=26)
    with pytest.raises(UserError, match="520 single-seed runs"):
        report(tmp_path / "planted", per_seed=True)
    assert {path.name for path in (tmp_path / "planted").iterdir()} == {"manifest.json", "raw"}
