"""Who writes a results folder: one process, or the shards of one study, each its own part. Files only.

Every writer holds a lock on a file of its own under raw/. The operating system lets go of it when the process ends, however it
ends: what a dead one left is taken over without asking. Beside the lock stands who holds it, for those it turns away. Writers
come, go and write the manifest one at a time, behind a gate: a lock that is held for milliseconds.

The locks are those of `flock` (on Windows `LockFileEx`), so they are as good as the file system's. Local ones and Ceph,
GPFS and BeeGFS (where its locks are switched on) keep them for all machines; NFS does as well (Linux, version 4: through the
server, which takes back the locks of a machine that died after a lease of some 90 seconds). Lustre does where it is mounted
with `flock`; with `localflock` each machine knows its own locks alone, and then nothing keeps two machines apart; without either
it has none, and a folder there is refused.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from relu_study.errors import UserError
from relu_study.storage.atomic_write import FOLDERS, process_tag, wrap_os_errors
from relu_study.storage.checksums import refuse_escaping_links
from relu_study.study.shard import Shard

LOCK_TIMEOUT_S = 60.0  # seconds to wait at the gate, where a thousand shards may come at once
_LOCKLESS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")


class Writer(NamedTuple):
    """A process that writes a results folder, all of it or one shard of its study."""

    pid: int
    host: str
    since: str
    shard: Shard | None = None

    def __str__(self) -> str:
        part = f"shard {self.shard}, " if self.shard else ""
        return f"{part}process {self.pid} on host {self.host} since {self.since}"


@contextlib.contextmanager
def writer_lock(
    folder: Path, shard: Shard | None = None, hint: str = "wait for it, or name another folder with --out"
) -> Iterator[None]:
    """Be the one that writes a results folder, or a shard of its study; a folder that is taken is refused (UserError).

    Shards of one cut work beside each other, each once. What is made of the folder for the lock's sake alone goes again.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file; name a folder with --out")
    if folder.is_dir():
        refuse_escaping_links(folder)
    made = [path for path in (folder / "raw", folder, *folder.parents) if not path.exists()]
    lock = _lock(_place(folder, shard), 0)
    with wrap_os_errors(folder), manifest_mutex(folder):
        for other in _writers(folder):
            _check_compatible(folder, shard, other, hint)
        lock.acquire()
        me = Writer(os.getpid(), socket.gethostname(), time.strftime("%Y-%m-%d %H:%M:%S"))
        _note(_place(folder, shard)).write_text(json.dumps(me._asdict()))
    try:
        yield
    finally:
        if (folder / "raw").is_dir():  # else the folder is gone, and the lock with it
            with contextlib.suppress(OSError, UserError), manifest_mutex(folder):
                _note(_place(folder, shard)).unlink(missing_ok=True)
                _place(folder, shard).unlink(missing_ok=True)
                if not _writers(folder):
                    (folder / "raw" / ".gate").unlink(missing_ok=True)
        lock.release()
        with contextlib.suppress(OSError):  # where something is in them, they stay
            for path in made:
                path.rmdir()


@contextlib.contextmanager
def manifest_mutex(folder: Path) -> Iterator[None]:
    """Do alone what takes a moment: among all writers of a folder, on all machines, one at a time is in here."""
    with wrap_os_errors(folder / "raw"):
        (folder / "raw").mkdir(parents=True, exist_ok=True)
    lock = _lock(folder / "raw" / ".gate", LOCK_TIMEOUT_S)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder} is being written by others and gave no way in for {LOCK_TIMEOUT_S:g} s; try again") from None
    except OSError as error:
        if error.errno in _LOCKLESS:
            raise UserError(f"{folder} is on a file system without locks ({error.strerror}); name a folder on another") from None
        raise
    try:
        yield
    finally:
        lock.release()


def other_writers(folder: Path, shard: Shard | None) -> list[Writer]:
    """The writers at work in a folder beside that of all or of a shard. For those behind the gate."""
    return _writers(folder, _place(folder, shard))


def _writers(folder: Path, but: Path | None = None) -> list[Writer]:
    # The locks of dead ones are cleared away.
    found = []
    for path in sorted((folder / "raw").glob(".writer*.lock")):
        if path == but:
            continue
        lock = _lock(path, 0)
        try:
            lock.acquire()
        except Timeout:
            found.append(_writer(path))
        else:
            _note(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            lock.release()
    return found


def remove_stale_temporaries(folder: Path, shard: Shard | None) -> None:
    """Remove the temporary files of writers that are gone: of all that do not work beside this shard now."""
    with manifest_mutex(folder):
        alive = [f".{process_tag(other.pid, other.host)}." for other in other_writers(folder, shard)]
        for path in temporaries(folder):
            if not any(mark in path.name for mark in alive):
                path.unlink(missing_ok=True)


def temporaries(folder: Path) -> list[Path]:
    """The files of a results folder that were not written to their end, or are being written."""
    within = (path for name in FOLDERS for path in (folder / name).rglob(".*.tmp"))
    return [path for path in (*folder.glob(".*.tmp"), *within) if _TEMPORARY.fullmatch(path.name)]


def is_fresh(folder: Path) -> bool:
    """Does a folder hold nothing, or only what a writer leaves that was killed before it had written anything?

    What it had put away before, in earlier-N, is none of its own.
    """
    own = (path for path in folder.glob("*") if not (path.is_dir() and path.name.startswith("earlier-")))
    files = (path for one in own for path in (one, *one.rglob("*")) if not path.is_dir())
    return all(_TEMPORARY.fullmatch(path.name) or path.name.startswith((".gate", ".writer")) for path in files)


def _check_compatible(folder: Path, shard: Shard | None, other: Writer, hint: str) -> None:
    if shard is None and other.shard:
        raise UserError(
            f"{folder} is being written by {other}; wait until all {other.shard.of} shards are done, then run it whole"
        )
    if shard and other.shard and shard.of != other.shard.of:
        raise UserError(
            f"{folder} is being written by {other}; shard {shard} cuts the study otherwise and would train the same runs: "
            f"start the shards of {other.shard.of} until all of them are done"
        )
    if shard is None or other.shard in (None, shard):
        raise UserError(f"{folder} is being written by {other}; {hint}")


def _place(folder: Path, shard: Shard | None) -> Path:
    return folder / "raw" / (f".writer-{shard.number}-of-{shard.of}.lock" if shard else ".writer.lock")


def _note(lock: Path) -> Path:
    return lock.with_suffix(".json")


def _lock(path: Path, patience: float) -> FileLock:
    # A lock that falls back to the mere presence of a file would outlive a holder that dies on another machine.
    return FileLock(path, timeout=patience, thread_local=False, fallback_to_soft=False)


def _writer(lock: Path) -> Writer:
    cut = re.fullmatch(r"\.writer-(\d+)-of-(\d+)\.lock", lock.name)
    shard = Shard(int(cut[1]), int(cut[2])) if cut else None
    try:
        said = json.loads(_note(lock).read_text())
        return Writer(int(said["pid"]), str(said["host"]), str(said["since"]), shard)
    except (OSError, ValueError, KeyError, TypeError):  # the disk was full
        return Writer(0, "unknown", "a while", shard)
