"""How a results folder is written: each file whole or not at all, and what the system refuses in one clear line."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from relu_study.errors import UserError

DERIVED = ("tables", "figures", "tensorboard")  # the folders of what is made from raw/
FOLDERS = ("raw", *DERIVED)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
HINTS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room"),
    **dict.fromkeys(FORBIDDEN, "make it writable"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.EISDIR), "move away what stands in its place"),
    errno.ENOENT: "bring its folder back",
    errno.EFBIG: "raise the limit on the size of a file",
}


class WriteError(UserError, OSError):
    """What cannot be written, why, and what to do before the same command is given again."""

    def __init__(self, path: Path, reason: str, hint: str = "mend that"):
        super().__init__(f"cannot write {path}: {reason}; {hint}, then give the same command again")


@contextlib.contextmanager
def wrap_os_errors(path: Path) -> Iterator[None]:
    """Whatever the system refuses while `path` is written is one clear line (`Unwritable`)."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        if error.errno in FORBIDDEN:  # what is not there yet cannot be made writable: its folder can
            path = next(one for one in (path, *path.parents) if os.path.lexists(one))
        raise WriteError(path, error.strerror or str(error), HINTS.get(error.errno or 0, "mend that")) from error


def process_tag(pid: int, host: str) -> str:
    """What a process puts into the names of its temporary files."""
    return f"{host}-{pid}"


@contextlib.contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """A new file beside `path` to be written and then renamed; else it goes. Its name says whose it is, should its writer die.

    Its folder is made where that of the folder is there: what has vanished meanwhile does not come back with one file in it.
    """
    with wrap_os_errors(path.parent):
        path.parent.mkdir(exist_ok=True)
    with wrap_os_errors(path):
        mine = process_tag(os.getpid(), socket.gethostname())
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.{mine}.", suffix=".tmp")
        try:
            os.close(handle)
            os.chmod(name, 0o644)
            yield Path(name)
        finally:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                os.unlink(name)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all (`Unwritable`): to a temporary name beside it, then renamed."""
    with temporary_file(path) as unfinished:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)


def make_dirs(folder: Path) -> None:
    """Make a folder and those above it, where they are not there."""
    with wrap_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def check_writable(folder: Path) -> None:
    """Make a results folder, or refuse (`Unwritable`) one in which not all can be written that a study will write."""
    make_dirs(folder)
    for place in (folder, *(folder / name for name in FOLDERS if os.path.lexists(folder / name))):
        with wrap_os_errors(place), tempfile.TemporaryFile(dir=place, buffering=0) as file:
            file.write(b"0")
    for path in (path for path in folder.iterdir() if path.suffix in (".csv", ".json", ".md", ".html") and path.is_dir()):
        raise WriteError(path, os.strerror(errno.EISDIR), HINTS[errno.EISDIR])


def check_exists(folder: Path) -> None:
    """Refuse (`Unwritable`) a results folder that has gone since its manifest was written: it would be made anew, with holes."""
    if not (folder / "manifest.json").is_file():
        raise WriteError(folder, "the folder is gone, or its manifest.json is", "bring it back as it was")
