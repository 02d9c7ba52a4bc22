"""Files that only grow: each append is whole or absent."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from relu_study.storage.atomic_write import WriteError, wrap_os_errors


class AppendFile:
    """A file with appended blocks of bytes. A block that a full disk cuts is removed before the next append."""

    def __init__(self, path: Path):
        self.path = path
        self.size = path.stat().st_size if path.exists() else 0

    def append(self, block: bytes) -> None:
        """Append a block. Raises WriteError if that fails; the file then ends before the block.

        A file that another program shortened is not written.
        """
        with wrap_os_errors(self.path):
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
            try:
                if (size := os.fstat(handle).st_size) < self.size:
                    raise WriteError(self.path, "another program removed or shortened it", "Restore it")
                if size > self.size:
                    os.ftruncate(handle, self.size)
                os.lseek(handle, self.size, os.SEEK_SET)
                try:
                    _write_all(handle, block)
                except OSError:
                    with contextlib.suppress(OSError):
                        os.ftruncate(handle, self.size)
                    raise
            finally:
                os.close(handle)
        self.size += len(block)

    def cut(self, size: int) -> None:
        """Remove all bytes from `size` on. Raises WriteError."""
        with wrap_os_errors(self.path):
            if self.path.exists():
                os.truncate(self.path, size)
        self.size = size


def _write_all(handle: int, block: bytes) -> None:
    written = 0
    while written < len(block):
        written += os.write(handle, block[written:])
