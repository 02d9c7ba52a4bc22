"""Writer locks: one process or the shards of one partition at a time, with the owner named in the error."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest
from paths import ROOT

from relu_study.cli import arguments
from relu_study.errors import UserError
from relu_study.report.report import report
from relu_study.storage import atomic_write, locks, manifest
from relu_study.study.shard import Shard

HOLDS = """
import sys, time
from pathlib import Path
from relu_study.storage import locks
from relu_study.study.shard import Shard
shard = Shard(int(sys.argv[2]), int(sys.argv[3])) if sys.argv[2:] else None
with locks.writer_lock(Path(sys.argv[1]), shard):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Any]:
    """Start processes that hold `tmp_path`/sweep, or a shard of it."""
    running: list[subprocess.Popen[str]] = []

    def hold(*shard: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDS, str(tmp_path / "sweep"), *map(str, shard)]
        running.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        assert running[-1].stdout is not None and running[-1].stdout.readline() == "held\n"
        return running[-1]

    yield hold
    for process in running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_second_writer_is_refused_with_the_owner(held: Any, tmp_path: Path) -> None:
    holder, folder = held(), tmp_path / "sweep"
    by = rf"is being written by process {holder.pid} on host {re.escape(socket.gethostname())} since \d{{4}}-\S+ \S+. Wait for it"
    with pytest.raises(UserError, match=by + ", or name another folder with --out"), locks.writer_lock(folder):
        pass
    with pytest.raises(UserError, match=by), locks.writer_lock(folder, Shard(1, 2)):
        pass
    manifest.write_manifest(folder, {"format": manifest.FORMAT, "study": "s", "provenance": {}, "widths": {}, "declaration": {}})
    with pytest.raises(UserError, match=by + r"\.$"):
        report(folder)


def test_lock_of_a_dead_process_is_taken_over(held: Any, tmp_path: Path) -> None:
    holder, folder = held(), tmp_path / "sweep"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert names(folder) == {"raw", "raw/.gate", "raw/.writer.lock", "raw/.writer.json"} and locks.is_fresh(folder)
    with locks.writer_lock(folder):
        assert not locks.other_writers(folder, None) and [w.pid for w in locks.other_writers(folder, Shard(1, 1))] == [
            os.getpid()
        ]
    assert names(folder) == {"raw"}, "nothing is left of either"


def test_shards_of_one_partition_write_concurrently(held: Any, tmp_path: Path) -> None:
    folder, one, _ = tmp_path / "sweep", held(1, 3), held(3, 3)
    with locks.writer_lock(folder, Shard(2, 3)), locks.manifest_mutex(folder):
        assert [w.shard for w in locks.other_writers(folder, Shard(2, 3))] == [Shard(1, 3), Shard(3, 3)]
    with (
        pytest.raises(UserError, match=rf"shard 1/3, process {one.pid} on host .*. Wait for it"),
        locks.writer_lock(folder, Shard(1, 3)),
    ):
        pass
    with (
        pytest.raises(UserError, match=r"shard 1/3, process .* Shard 1/4 partitions .*use shards i/3"),
        locks.writer_lock(folder, Shard(1, 4)),
    ):
        pass
    with pytest.raises(UserError, match=r"shard 1/3, process .*\. Wait until all 3 shards are done"), locks.writer_lock(folder):
        pass
    one.kill()
    one.wait()
    with locks.writer_lock(folder, Shard(1, 3)):
        pass


def test_only_temporary_files_of_dead_writers_are_removed(held: Any, tmp_path: Path) -> None:
    folder, alive, dead = tmp_path / "sweep", held(1, 3), held(2, 3)
    dead.kill()
    dead.wait()
    kept, host = set(), socket.gethostname()
    for place in ("", "raw", "tables", "figures", "tensorboard/relu@wave", "tensorboard/relu@wave/seed-000"):
        (folder / place).mkdir(parents=True, exist_ok=True)
        for pid in (dead.pid, alive.pid):
            (folder / place / f".runs.csv.{host}-{pid}.a1b2_3d4.tmp").write_text("half a")
        (folder / place / ".runs.csv.a1b2c3d4.tmp").write_text("of an earlier version")
        (folder / place / ".mine.tmp").write_text("somebody's own")
        kept |= {folder / place / f".runs.csv.{host}-{alive.pid}.a1b2_3d4.tmp", folder / place / ".mine.tmp"}
    with locks.writer_lock(folder, Shard(2, 3)):
        locks.remove_stale_temporaries(folder, Shard(2, 3))
    assert set(folder.rglob("*.tmp")) == kept
    alive.kill()
    alive.wait()
    with locks.writer_lock(folder):
        locks.remove_stale_temporaries(folder, None)
    assert {path.name for path in folder.rglob("*.tmp")} == {".mine.tmp"}


def test_temporary_file_names_its_process_and_is_removed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), atomic_write.temporary_file(tmp_path / "raw" / "tile.npz") as unfinished:
        assert locks.temporaries(tmp_path) == [unfinished]
        assert atomic_write.process_tag(os.getpid(), socket.gethostname()) in unfinished.name
        raise OSError("full")
    assert names(tmp_path) == {"raw"}


def test_refusal_creates_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bad"), locks.writer_lock(tmp_path / "a" / "sweep"):
        raise UserError("bad")
    (tmp_path / "own").mkdir()
    with pytest.raises(UserError, match="bad"), locks.writer_lock(tmp_path / "own"):
        raise UserError("bad")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"is a file\. Name a folder"), locks.writer_lock(tmp_path / "file"):
        pass
    assert names(tmp_path) == {"own", "file"}


def test_file_system_without_locks_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def lacks(self: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", lacks)
    said = r"file system without locks \(No locks available\). Name a folder on another"
    with pytest.raises(UserError, match=said), locks.writer_lock(tmp_path / "sweep"):
        pass


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "/", "1/", "1/0", "-1/2", "a/b", "1/2/3", "1.0/2", "²/3"])
@pytest.mark.parametrize("command", ["run", "plan"])
def test_invalid_shard_is_refused(command: str, shard: str, here: Any) -> None:
    status, _, said = here(command, "no_such_study", f"--shard={shard}")
    assert status == 2 and len(said.splitlines()) == 1 and shard in said and "1 <= I <= N" in said


def test_report_command_keeps_its_arguments() -> None:
    words = ["run", "s.py", "--shard", "2/8", "--seeds", "3", "--shard=2/8", "--out", "o"]
    assert arguments.strip_shard(words) == ["run", "s.py", "--seeds", "3", "--out", "o"]
