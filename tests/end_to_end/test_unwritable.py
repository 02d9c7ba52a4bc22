"""Full disks and unwritable or deleted folders: one clear line, no partial files, and the same bytes after resuming.

System calls are patched to fail as on such a disk. `test_disk_errors.py` has real disks, limits and permissions.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from small_draw_study import study as coins
from small_study import base
from tiers import tiered

from relu_study.engine import scheduler
from relu_study.errors import UserError
from relu_study.report.report import report
from relu_study.report.tensorboard.event_files import EVENT_FILE
from relu_study.runner import run
from relu_study.runner.callback import Callback
from relu_study.storage import atomic_write, block_files, configurations, resume, tile_files
from relu_study.storage.manifest import read_manifest, write_manifest
from relu_study.study.outputs import Figure, Table
from relu_study.study.study import Experiment, Study, grid

# One program and three tiles: a length touches no program, and a tile has one length.
study = Study(
    "lengths", "Lengths", "Does it go on?", [Experiment("main", grid(base, epochs=(1, 2, 3)))], seeds=2,
    metrics=("val_loss",), tables=[Table("main", "Loss.", ("main",), ("val_loss",))],
    figures=[Figure("main", "Loss.", "curves", ("main",), metrics=("val_loss",))],
)  # fmt: skip
draws = replace(coins, experiments=coins.experiments[:1], claims=(), tables=(), figures=())


class Trained(Callback):
    """A callback that counts stored tiles. `then` runs after the first."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.tiles: list[Any] = []
        self.then = then

    def on_tile_end(self, tile: Any, *_: Any) -> None:
        self.tiles.append(tile)
        if len(self.tiles) == 1:
            self.then()


def contents(folder: Path) -> dict[str, bytes]:
    """Return all derived files and tiles, without the manifest, which contains times."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp") or ".half-written" in path.name]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "lengths"
    run.run(study, folder)
    return folder


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Check that no scheduler thread survives an error."""
    before = set(threading.enumerate())
    yield
    assert not {t for t in set(threading.enumerate()) - before if "work" in t.name}


def refusing(call: str, code: int, after: int = 0, only: str = "") -> Callable[..., Any]:
    """Return a system call that fails with `code` from the `after`-th call on a file whose name contains `only`."""
    real = {"rename": os.replace, "create": tempfile.mkstemp}[call]
    seen = 0

    def refuse(*args: Any, **words: Any) -> Any:
        nonlocal seen
        name = str(args[-1] if call == "rename" else words["prefix"])
        seen += only in name
        if only in name and seen > after:
            raise OSError(code, os.strerror(code), name)
        return real(*args, **words)

    return refuse


def refuse(patch: pytest.MonkeyPatch, call: str, code: int, after: int = 0, only: str = "") -> None:
    module, name = {"rename": (os, "replace"), "create": (tempfile, "mkstemp")}[call]
    patch.setattr(module, name, refusing(call, code, after, only))


WAYS = {
    "ENOSPC": ("rename", r"raw/tile-\w+.npz: No space left on device. Free space on the disk"),
    "EDQUOT": ("rename", r"raw/tile-\w+.npz: Disk quota exceeded. Free space on the disk"),
    "EROFS": ("create", "raw: Read-only file system. Make it writable"),  # existing and possible files
    "EACCES": ("create", "raw: Permission denied. Make it writable"),
    "EIO": ("create", r"raw/tile-\w+.npz: Input/output error. Remove the cause"),
}


@pytest.mark.parametrize("name", tiered(WAYS, "ENOSPC"))
def test_failed_tile_write_stops_the_study_and_it_resumes(name: str, whole: Path, tmp_path: Path) -> None:
    (call, said), folder, first, second = WAYS[name], tmp_path / "cut", Trained(), Trained()
    with pytest.MonkeyPatch.context() as patch:
        refuse(patch, call, getattr(errno, name), after=1, only="tile-")
        with pytest.raises(atomic_write.WriteError, match=rf"cannot write {folder}/{said}, then run the same"):
            run.run(study, folder, callback=first)
    (kept,) = tile_files.tile_paths(folder)
    assert len(first.tiles) == 1 and not leftovers(folder) and not list(folder.glob("*.csv"))
    assert read_manifest(folder)["counts"] == {"ok": 2, "nonfinite": 0, "interrupted": 4}
    before = kept.stat().st_mtime_ns
    run.run(study, folder, callback=second)
    assert len(second.tiles) == 2 and kept.stat().st_mtime_ns == before and contents(folder) == contents(whole)


def test_first_error_is_reported_when_later_writes_fail(tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tile_files, "write_tile", lambda *_: refuse(patch, "create", errno.ENOSPC) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.run(study, folder)
        with pytest.raises(atomic_write.WriteError, match=r"manifest\.json: No space left"):
            write_manifest(folder, {})
    assert read_manifest(folder)["counts"] == {}, "as it was begun"


@pytest.mark.parametrize("declared", tiered([study, draws], draws), ids=["train", "draw"])
def test_deleted_folder_is_not_created_again(declared: Any, tmp_path: Path) -> None:
    (folder, away), again = (tmp_path / name for name in ("sweep", "away")), Trained()
    go = run.run if declared is study else run.run_draws
    with pytest.raises(
        atomic_write.WriteError, match=f"cannot write {folder}: the folder or its manifest.json has disappeared.*Restore it"
    ):
        go(declared, folder, callback=Trained(lambda: folder.rename(away)))
    assert not folder.exists() and not leftovers(away)
    away.rename(folder)
    stored = len([*tile_files.tile_paths(folder), *block_files.block_paths(folder)])
    go(declared, folder, callback=again)
    assert stored == 1 and len([*tile_files.tile_paths(folder), *block_files.block_paths(folder)]) == len(again.tiles) + 1
    go(declared, tmp_path / "whole")
    assert contents(folder) == contents(tmp_path / "whole")


def test_folder_deleted_during_the_report_is_not_created_again(whole: Path, tmp_path: Path) -> None:
    folder = copytree(whole, tmp_path / "sweep")
    with pytest.MonkeyPatch.context() as patch:
        real = configurations.collect
        patch.setattr("relu_study.report.report.collect", lambda *a, **k: (real(*a, **k), folder.rename(tmp_path / "away"))[0])
        with pytest.raises(atomic_write.WriteError, match="Restore it"):
            report(folder)
    left = {name: there for name, there in contents(tmp_path / "away").items() if not name.startswith("raw/.")}  # its lock
    assert left == contents(whole) and not folder.exists()


PLACES = {
    "a file for a folder": (lambda folder: (folder / "tables").write_text("x"), "tables: Not a directory. Move away"),
    "a file for TensorBoard": (lambda folder: (folder / "tensorboard").write_text("x"), "tensorboard: Not a directory. Move"),
    "a broken link": (lambda folder: (folder / "raw").symlink_to(folder / "nowhere"), "raw: File exists. Move away"),
    "a folder for a file": (lambda folder: (folder / "runs.csv").mkdir(), r"runs\.csv: Is a directory. Move away"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("declared", [study, draws], ids=["train", "draw"])
def test_conflicting_file_is_named_before_compilation(declared: Any, place: str, tmp_path: Path) -> None:
    put, said = PLACES[place]
    manifest = {"format": 1, "study": declared.name, "provenance": {"own": {}}, "widths": {}, "declaration": {}}
    write_manifest(tmp_path, manifest)
    put(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "finished", lambda *_: pytest.fail("it began"))
        with pytest.raises(atomic_write.WriteError, match=said):
            (run.run if declared is study else run.run_draws)(declared, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == before and read_manifest(tmp_path)["widths"] == {}


def test_output_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(atomic_write.WriteError, match="notes/sweep/raw: Not a directory"):
        run.run(study, tmp_path / "notes" / "sweep")
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize("name", ["runs.csv", "verdicts.csv", "main.tex", "main.svg", "report.html", EVENT_FILE])
def test_failed_report_keeps_every_file_complete(name: str, whole: Path, tmp_path: Path) -> None:
    folder = copytree(whole, tmp_path / "sweep")
    for path in folder.rglob(EVENT_FILE):
        path.write_bytes(b"")  # what has not changed is not written
    before = contents(folder)
    with pytest.MonkeyPatch.context() as patch:
        refuse(patch, "rename", errno.ENOSPC, only=name)
        with pytest.raises(
            UserError, match=r"cannot write .*: No space left on device. Free space on the disk, then run the same command"
        ):
            report(folder)
    there = contents(folder)
    assert not leftovers(folder) and there.keys() == before.keys()
    assert all(there[path] in (before[path], contents(whole)[path]) for path in there)
    report(folder)
    assert contents(folder) == contents(whole)


def test_failed_block_write_stops_the_study_and_it_resumes(tmp_path: Path) -> None:
    folder, first, second = tmp_path / "cut", Trained(), Trained()
    with pytest.MonkeyPatch.context() as patch:
        refuse(patch, "rename", errno.ENOSPC, after=2, only="block-")
        with pytest.raises(atomic_write.WriteError, match=r"raw/block-\S+.npz: No space left on device. Free space on the disk"):
            run.run_draws(draws, folder, callback=first)
    assert len(first.tiles) == len(block_files.block_paths(folder)) == 2 and not leftovers(folder)
    run.run_draws(draws, folder, callback=second)
    run.run_draws(draws, tmp_path / "whole", callback=(all_of := Trained()))
    assert len(first.tiles) + len(second.tiles) == len(all_of.tiles) and contents(folder) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_unmovable_clone_stays_a_results_folder(whole: Path, tmp_path: Path) -> None:
    folder = copytree(whole, tmp_path / "sweep", ignore=lambda *_: ["raw", "tensorboard"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume.shutil, "move", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only file system")))
        with pytest.raises(atomic_write.WriteError, match="earlier-1: Read-only"):
            run.run(study, folder)
    run.run(study, folder)
    assert {name: there for name, there in contents(folder).items() if "earlier" not in name} == contents(whole)
