"""The folder of a worker's copies of a study's sources. It is locked while its process lives; abandoned ones are removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

PREFIX = "relu_study_worker_"
YOUNG = 60.0  # seconds in which a folder may not be locked yet


class SourceFolder:
    """A new folder of this process in the node's temporary folder. Removes those of processes that were killed."""

    def __init__(self) -> None:
        remove_abandoned()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
        self._lock = os.open(self.path, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system unlocks it when the process ends in any way

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)  # the lock stays until the process ends: `close` may be called twice


def remove_abandoned() -> None:
    """Remove the folders of processes that have ended without removing them."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # locked, removed meanwhile, or of another user
            if path.is_symlink() or time.time() - path.stat().st_mtime < YOUNG:
                continue
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)
