"""Atomic writes into a results folder, and one-line errors for refused writes."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from relu_study.errors import UserError

DERIVED = ("tables", "figures", "tensorboard")  # folders that `report` derives from raw/
REPLAYS = "replays"  # of single runs: the default folder of `relu-study replay`
FOLDERS = ("raw", *DERIVED, REPLAYS)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)  # errors of permissions
HINTS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Free space on the disk"),
    **dict.fromkeys(FORBIDDEN, "Make it writable"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.EISDIR), "Move away the file or folder at this path"),
    errno.ENOENT: "Restore its folder",
    errno.EFBIG: "Raise the file size limit",
}
_OTHER_HINT = "Remove the cause"


class WriteError(UserError, OSError):
    """A path that cannot be written, with the reason and an action."""

    def __init__(self, path: Path, reason: str, hint: str = _OTHER_HINT):
        self.path, self.reason, self.hint = path, reason, hint
        super().__init__(f"cannot write {path}: {reason}. {hint}, then run the same command again")


@contextlib.contextmanager
def wrap_os_errors(path: Path) -> Iterator[None]:
    """Raise an OSError of writing `path` as a one-line WriteError."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        if error.errno in FORBIDDEN:  # name the nearest existing path, since only that one can be made writable
            path = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
        raise WriteError(path, error.strerror or str(error), HINTS.get(error.errno or 0, _OTHER_HINT)) from error


def process_tag(pid: int, host: str) -> str:
    """Return the tag of a process in the names of its temporary files: `HOST-PID`."""
    return f"{host}-{pid}"


@contextlib.contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Create a temporary file next to `path`. The caller writes and renames it.

    The file is removed on exit if it was not renamed. Its name contains `process_tag`, which identifies the leftovers of a
    killed writer. A missing folder of `path` is created, but not its parents, so a deleted results folder does not reappear.

    Raises:
        WriteError: the folder or the file cannot be written.
    """
    with wrap_os_errors(path.parent):
        path.parent.mkdir(exist_ok=True)
    with wrap_os_errors(path):
        tag = process_tag(os.getpid(), socket.gethostname())
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.{tag}.", suffix=".tmp")
        try:
            os.close(handle)
            os.chmod(name, 0o644)
            yield Path(name)
        finally:
            with contextlib.suppress(OSError):  # renamed, or an error that must not hide the error of the write
                os.unlink(name)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file through a temporary file and a rename. Readers never see a partial file. Raises WriteError."""
    with temporary_file(path) as unfinished:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)


def make_dirs(folder: Path) -> None:
    """Create a folder and its missing parents. Raises WriteError."""
    with wrap_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def check_writable(folder: Path) -> None:
    """Create a results folder, and raise WriteError if any of its folders or files cannot be written."""
    make_dirs(folder)
    existing = [folder / name for name in FOLDERS if os.path.lexists(folder / name)]
    for directory in (folder, *existing):
        with wrap_os_errors(directory), tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            file.write(b"0")  # a full disk fails only on a write
    for path in folder.iterdir():
        if path.suffix in (".csv", ".json", ".md", ".html") and path.is_dir():
            raise WriteError(path, os.strerror(errno.EISDIR), HINTS[errno.EISDIR])


def check_creatable(folder: Path) -> None:
    """Raise WriteError if a folder or a file in it cannot be created. Creates nothing."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    with wrap_os_errors(folder), tempfile.TemporaryFile(dir=nearest, buffering=0) as file:
        file.write(b"0")


def check_exists(folder: Path) -> None:
    """Raise WriteError if a results folder lost its manifest, since a recreated folder would be incomplete."""
    if not (folder / "manifest.json").is_file():
        raise WriteError(folder, "the folder or its manifest.json has disappeared", "Restore it")
