"""The folder of compiled programs of this processor, these sources and these libraries, for `engine.stored_programs`."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import shutil
import time
import zlib
from pathlib import Path

import flax
import jax
import jaxlib
import numpy as np
import optax

import relu_study
from relu_study.engine.jax_settings import processor_hash
from relu_study.storage.atomic_write import write_atomically

LIBRARIES = (jax, flax, optax)  # hashed by their sources; jaxlib and NumPy by their versions
TRACED = ("components", "diagnosis", "engine", "stats", "study", "watch")  # the folders that the engine imports
DAYS = 30  # after its last use a program, or a folder of another version, is deleted


class ProgramFolder:
    """Programs as files, compressed and with a checksum. A folder that cannot be written stays as it is.

    After an edit of the package's sources no program is read or stored: modules of this process may be older or newer.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> bytes | None:
        """The bytes of this name; None if there are none, or if they are damaged."""
        with contextlib.suppress(OSError, zlib.error):
            if not _edited(_sources(_package())):
                content = zlib.decompress((self.folder / name).read_bytes())
                with contextlib.suppress(OSError):
                    os.utime(self.folder / name)
                return content
        return None

    def put(self, name: str, content: bytes) -> None:
        """Store bytes through a temporary file and a rename."""
        with contextlib.suppress(OSError):
            if not _edited(_sources(_package())):
                write_atomically(self.folder / name, zlib.compress(content, 1))


def cache_folder(home: Path) -> Path:
    """Return the folder of JAX's cache in `home`, and delete programs and other folders that no one has used for a month.

    JAX's own files are deleted too: a program that JAX reads from them could not be stored again.
    """
    folder = home / f"xla-{processor_hash()}-{_version() or 'edited'}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(folder)
        for other in home.glob("xla-*"):
            if _old(other.stat().st_mtime):
                shutil.rmtree(other, ignore_errors=True)
        for file in folder.rglob("*"):
            if file.is_file() and _old(max(file.stat().st_mtime, file.stat().st_atime)):
                file.unlink()
    return folder


def program_folder(cache: Path) -> ProgramFolder | None:
    """Return the stored programs in a cache folder.

    None if the sources cannot be read, if they were edited after their import, or if other users can write the folder: a
    program is code.
    """
    return ProgramFolder(cache / "programs") if _version() and _private(cache) else None


@functools.cache
def _version() -> str | None:
    """The hash of all sources that programs are traced from, and of versions; None if a source is newer than the import."""
    hashed = hashlib.sha256(f"{platform.python_version()} {jaxlib.__version__} {np.__version__}".encode())
    with contextlib.suppress(OSError):
        libraries = [Path(str(library.__file__)).parent for library in LIBRARIES]
        by_root = {_package(): _sources(_package())} | {root: sorted(root.rglob("*.py")) for root in libraries}
        for root, sources in by_root.items():
            if not sources or _edited(sources):
                return None
            for path in sources:
                hashed.update(str(path.relative_to(root.parent)).encode() + path.read_bytes())
        return hashed.hexdigest()[:8]
    return None


def _package() -> Path:
    return Path(__file__).parent.parent


@functools.cache
def _sources(package: Path) -> list[Path]:
    """The package's sources that programs are traced from; none in an archive."""
    return [path for name in TRACED for path in sorted((package / name).rglob("*.py"))]


def _edited(sources: list[Path]) -> bool:
    """Whether a source has changed since the import of the package. An installation may set its time of change to the past."""
    return any(max(about.st_mtime, about.st_ctime) > relu_study.IMPORTED for about in map(os.stat, sources))


def _old(when: float) -> bool:
    return time.time() - when > DAYS * 24 * 3600


def _private(folder: Path) -> bool:
    """Whether only this user can write a folder."""
    with contextlib.suppress(OSError):
        about = folder.stat()
        return not hasattr(os, "getuid") or (about.st_uid == os.getuid() and not about.st_mode & 0o022)
    return False
