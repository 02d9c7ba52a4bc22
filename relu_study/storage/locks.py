"""Writer locks of a results folder: one process, or the shards of one study. No JAX.

Each writer locks its own file under raw/. The operating system releases the lock when the process ends, even after a crash, so
stale locks are taken over silently. A JSON file next to the lock names its owner for error messages. Writers start, stop and
write the manifest one at a time, under a mutex that is locked for milliseconds.

The locks use `flock` (`LockFileEx` on Windows), so they depend on the file system:

- Local file systems, Ceph, GPFS and BeeGFS (with locks enabled) share locks between machines.
- NFS version 4 on Linux does too. Its server releases the locks of a dead machine after a lease of about 90 seconds.
- Lustre does if mounted with `flock`. With `localflock`, locks hold within one machine only, and two machines are not kept
  apart. With neither option there are no locks, and the folder is refused.
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
from relu_study.storage.checksums import refuse_escaping_links, sentence
from relu_study.study.shard import Shard

LOCK_TIMEOUT_S = 60.0  # wait for the mutex: a thousand shards may start at once
_LOCKLESS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")


class Writer(NamedTuple):
    """A process that writes a results folder or one shard of its study."""

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
    """Lock a results folder, or one shard of its study, for writing.

    Different shards of the same partition may write at the same time. Folders created only for the lock are removed on exit.

    Args:
        folder: The results folder. It is created if missing.
        shard: The shard to write (None: the whole study).
        hint: The action to suggest if another process has the lock.

    Raises:
        UserError: another process writes the folder, or its file system has no locks.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file. Name a folder with --out.")
    if folder.is_dir():
        refuse_escaping_links(folder)
    created = [path for path in (folder / "raw", folder, *folder.parents) if not path.exists()]
    lock = _lock(_lock_path(folder, shard), 0)
    with wrap_os_errors(folder), manifest_mutex(folder):
        for other in _writers(folder):
            _check_compatible(folder, shard, other, hint)
        lock.acquire()
        owner = Writer(os.getpid(), socket.gethostname(), time.strftime("%Y-%m-%d %H:%M:%S"))
        _owner_path(_lock_path(folder, shard)).write_text(json.dumps(owner._asdict()))
    try:
        yield
    finally:
        if (folder / "raw").is_dir():  # otherwise the folder and its locks were deleted
            with contextlib.suppress(OSError, UserError), manifest_mutex(folder):
                _owner_path(_lock_path(folder, shard)).unlink(missing_ok=True)
                _lock_path(folder, shard).unlink(missing_ok=True)
                if not _writers(folder):
                    (folder / "raw" / ".gate").unlink(missing_ok=True)
        lock.release()
        with contextlib.suppress(OSError):  # folders with contents stay
            for path in created:
                path.rmdir()


@contextlib.contextmanager
def manifest_mutex(folder: Path) -> Iterator[None]:
    """Run a short critical section: one at a time among all writers of a folder, on all machines."""
    with wrap_os_errors(folder / "raw"):
        (folder / "raw").mkdir(parents=True, exist_ok=True)
    lock = _lock(folder / "raw" / ".gate", LOCK_TIMEOUT_S)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder} is being written by others and stayed locked for {LOCK_TIMEOUT_S:g} s. Try again.") from None
    except OSError as error:
        if error.errno in _LOCKLESS:
            raise UserError(
                f"{folder} is on a file system without locks ({error.strerror}). Name a folder on another file system."
            ) from None
        raise
    try:
        yield
    finally:
        lock.release()


def other_writers(folder: Path, shard: Shard | None) -> list[Writer]:
    """Return the running writers of a folder other than this one's. Call it under `manifest_mutex`."""
    return _writers(folder, _lock_path(folder, shard))


def _writers(folder: Path, ignored: Path | None = None) -> list[Writer]:
    """Return the running writers, and remove the locks of dead ones."""
    writers = []
    for path in sorted((folder / "raw").glob(".writer*.lock")):
        if path == ignored:
            continue
        lock = _lock(path, 0)
        try:
            lock.acquire()
        except Timeout:
            writers.append(_writer(path))
        else:
            _owner_path(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            lock.release()
    return writers


def remove_stale_temporaries(folder: Path, shard: Shard | None) -> None:
    """Remove the temporary files of dead writers, but not those of other running ones."""
    with manifest_mutex(folder):
        running = [f".{process_tag(other.pid, other.host)}." for other in other_writers(folder, shard)]
        for path in temporaries(folder):
            if not any(tag in path.name for tag in running):
                path.unlink(missing_ok=True)


def temporaries(folder: Path) -> list[Path]:
    """Return the temporary files of a results folder."""
    nested = (path for name in FOLDERS for path in (folder / name).rglob(".*.tmp"))
    return [path for path in (*folder.glob(".*.tmp"), *nested) if _TEMPORARY.fullmatch(path.name)]


def is_fresh(folder: Path) -> bool:
    """Whether a folder contains only locks and temporary files, as after a writer killed at its start.

    The archives `earlier-N` do not count.
    """
    entries = (path for path in folder.glob("*") if not (path.is_dir() and path.name.startswith("earlier-")))
    files = (path for entry in entries for path in (entry, *entry.rglob("*")) if not path.is_dir())
    return all(_TEMPORARY.fullmatch(path.name) or path.name.startswith((".gate", ".writer")) for path in files)


def _check_compatible(folder: Path, shard: Shard | None, other: Writer, hint: str) -> None:
    if shard is None and other.shard:
        raise UserError(
            f"{folder} is being written by {other}. Wait until all {other.shard.of} shards are done, then run the whole study."
        )
    if shard and other.shard and shard.of != other.shard.of:
        raise UserError(
            f"{folder} is being written by {other}. Shard {shard} partitions the study differently and would train the same "
            f"runs; use shards i/{other.shard.of} until all are done."
        )
    if shard is None or other.shard in (None, shard):
        raise UserError(f"{folder} is being written by {other}. {sentence(hint)}")


def _lock_path(folder: Path, shard: Shard | None) -> Path:
    return folder / "raw" / (f".writer-{shard.number}-of-{shard.of}.lock" if shard else ".writer.lock")


def _owner_path(lock: Path) -> Path:
    return lock.with_suffix(".json")


def _lock(path: Path, timeout_s: float) -> FileLock:
    # No fallback to lock files: the file of a process that died on another machine would stay.
    return FileLock(path, timeout=timeout_s, thread_local=False, fallback_to_soft=False)


def _writer(lock: Path) -> Writer:
    parts = re.fullmatch(r"\.writer-(\d+)-of-(\d+)\.lock", lock.name)
    shard = Shard(int(parts[1]), int(parts[2])) if parts else None
    try:
        owner = json.loads(_owner_path(lock).read_text())
        return Writer(int(owner["pid"]), str(owner["host"]), str(owner["since"]), shard)
    except (OSError, ValueError, KeyError, TypeError):  # for example written on a full disk
        return Writer(0, "unknown", "a while", shard)
