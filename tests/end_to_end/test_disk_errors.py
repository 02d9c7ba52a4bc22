"""The command on real full and read-only disks: one line names the file, and the same command resumes.

The disks are a small tmpfs in a separate mount namespace. If the system allows none, the test is skipped, and a file size limit
replaces it. Root drops the capability to override permissions.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

STUDY = """
from relu_study import Experiment, Figure, RunSpec, Study, grid

arms = grid(RunSpec(rows=600, batch_size=32, width=8, initializer="he_normal"), epochs=(1, 2, 3))
figures = [Figure("main", "Loss.", "curves", ("main",), metrics=("val_loss",))]
study = Study("lengths", "Lengths", "Does it go on?", [Experiment("main", arms)], seeds=2, figures=figures)
"""
DOOR = "from relu_study.cli.commands import main; main()"
# `go` is the command; it keeps its exit status and what it says apart for each attempt.
SHELL = """
set -u
go() { "$PYTHON" -c "$DOOR" run lengths.py --out disk/sweep >$1.out 2>$1.err; echo $? >$1.status; find disk >$1.files; }
rep() { "$PYTHON" -c "$DOOR" report disk/sweep >$1.out 2>$1.err; echo $? >$1.status; }
"""


def attempt(script: str, place: Path, *before: str) -> None:
    """Run a shell script in `place`, which contains the study."""
    (place / "lengths.py").write_text(STUDY)
    (place / "disk").mkdir(exist_ok=True)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "DOOR": DOOR, "COLUMNS": "300"}
    # On one device the tiles take turns.
    env |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([*before, "sh", "-c", SHELL + script], cwd=place, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def refused(place: Path, name: str, said: str, command: str = "run") -> None:
    """Check that an attempt ended with one such line, exit status 2 and no leftovers."""
    err, status = ((place / f"{name}.{kind}").read_text() for kind in ("err", "status"))
    *progress, last = err.splitlines()
    assert status.strip() == "2" and re.fullmatch(said, last), err
    assert all(re.match(r"\d+/6 runs|not_learning: main|.*UserWarning|\s+warnings\.warn", line) for line in progress), err
    if command == "run":
        assert not re.search(r"\.tmp$|half-written", (place / f"{name}.files").read_text(), re.MULTILINE)


def finished(place: Path, name: str) -> None:
    assert (place / f"{name}.status").read_text().strip() == "0", (place / f"{name}.err").read_text()


def csvs(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in folder.glob("*.csv")}
    assert len(found) == 7
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    place = tmp_path_factory.mktemp("whole")
    attempt("go whole", place)
    finished(place, "whole")
    return csvs(place / "disk" / "sweep")


@pytest.fixture
def namespace() -> list[str]:
    """The command prefix that allows mounting a separate disk."""
    for words in (["unshare", "--map-root-user", "--mount"], ["unshare", "--mount"]):  # without rights, and with root's
        tried = [*words, "mount", "-t", "tmpfs", "none", str(ROOT)]
        if shutil.which("unshare") and not subprocess.run(tried, capture_output=True).returncode:
            return words
    pytest.skip("this system lets nobody mount a disk of their own")


GO_ON = r"run the same command again: relu-study run lengths\.py --out disk/sweep; {} finished runs are kept in disk/sweep"
LINE = r"relu-study: cannot write disk/sweep\S*: {}. {}, then " + GO_ON


@pytest.fixture
def bound(tmp_path: Path) -> Path:
    """A Python without the right to override permissions, also for root."""
    drop = "setpriv --bounding-set=-dac_override,-dac_read_search " if os.getuid() == 0 else ""
    path = tmp_path / "bound"
    path.write_text(f'#!/bin/sh\nexec {drop}{sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


def test_unwritable_folder_is_refused_before_compilation(tmp_path: Path, bound: Path) -> None:
    attempt("mkdir disk/sweep; chmod 555 disk/sweep; PYTHON=./bound; go fresh", tmp_path)
    refused(tmp_path, "fresh", LINE.format("Permission denied", "Make it writable", 0))
    assert len((tmp_path / "fresh.err").read_text().splitlines()) == 1 and not list((tmp_path / "disk" / "sweep").iterdir())


@pytest.mark.slow
def test_unwritable_tensorboard_folder_is_reported(whole: dict[str, bytes], tmp_path: Path, bound: Path) -> None:
    attempt(
        "go all; rm -r disk/sweep/tensorboard/*; chmod 555 disk/sweep/tensorboard; "
        "(PYTHON=./bound; rep report); (PYTHON=./bound; go cut); chmod 755 disk/sweep/tensorboard; rep again",
        tmp_path,
    )
    said = (
        r"relu-study: cannot write disk/sweep/tensorboard: Permission denied. "
        r"Make it writable, then run the same command again"
    )
    refused(tmp_path, "report", said, "report")
    refused(tmp_path, "cut", LINE.format("Permission denied", "Make it writable", 6))
    for name in ("all", "again"):
        finished(tmp_path, name)
    assert csvs(tmp_path / "disk" / "sweep") == whole and len(list(tmp_path.glob("disk/sweep/tensorboard/*/*"))) == 3


@pytest.mark.slow
def test_file_size_limit_is_reported(whole: dict[str, bytes], tmp_path: Path) -> None:
    """The manifest is below the limit, a tile is above it."""
    attempt("(ulimit -f 24; go cut); go again", tmp_path)
    refused(tmp_path, "cut", LINE.format("File too large", "Raise the file size limit", 0))
    finished(tmp_path, "again")
    assert csvs(tmp_path / "disk" / "sweep") == whole


@pytest.mark.slow
@pytest.mark.parametrize("size", ["4k", "20k", "64k", "128k", "192k", "256k"])
def test_full_disk_is_reported(size: str, whole: dict[str, bytes], tmp_path: Path, namespace: list[str]) -> None:
    """The disk is full before the manifest, or among tiles, TensorBoard files or tables."""
    script = f"""
mount -t tmpfs -o size={size} none disk
go cut
mount -o remount,size=64m disk
go again
mkdir out; cp -r disk/sweep out
"""
    attempt(script, tmp_path, *namespace)
    refused(tmp_path, "cut", LINE.format("No space left on device", "Free space on the disk", r"\d+"))
    finished(tmp_path, "again")
    assert csvs(tmp_path / "out" / "sweep") == whole


@pytest.mark.slow
def test_read_only_disk_is_reported(whole: dict[str, bytes], tmp_path: Path, namespace: list[str]) -> None:
    script = """
mount -t tmpfs none disk; mount -o remount,ro disk
go never
mount -o remount,rw disk; go all; mount -o remount,ro disk
go again; rep report
mount -o remount,rw disk
rep more
mkdir out; cp -r disk/sweep out
"""
    attempt(script, tmp_path, *namespace)
    refused(tmp_path, "never", LINE.replace(r"disk/sweep\S*:", "disk:").format("Read-only file system", "Make it writable", 0))
    refused(tmp_path, "again", LINE.format("Read-only file system", "Make it writable", 6))
    said = r"relu-study: cannot write disk/sweep: Read-only file system. Make it writable, then run the same command again"
    refused(tmp_path, "report", said, "report")
    finished(tmp_path, "all")
    finished(tmp_path, "more")
    assert csvs(tmp_path / "out" / "sweep") == whole
