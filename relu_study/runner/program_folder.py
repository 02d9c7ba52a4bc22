"""The folder of compiled programs of this processor, these sources and these libraries, for `engine.stored_programs`."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
import zlib
from pathlib import Path

from relu_study.engine.jax_settings import processor_hash
from relu_study.storage.atomic_write import write_atomically

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
TRACED = ("components", "diagnosis", "engine", "stats", "study", "watch")  # the folders that the engine imports
DAYS = 30  # after its last use a folder of another version is deleted


class ProgramFolder:
    """Programs as files, compressed and with a checksum. A folder that cannot be written stays as it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> bytes | None:
        """The bytes of this name; None if there are none, or if they are damaged."""
        with contextlib.suppress(OSError, zlib.error):
            return zlib.decompress((self.folder / name).read_bytes())
        return None

    def put(self, name: str, content: bytes) -> None:
        """Store bytes through a temporary file and a rename."""
        with contextlib.suppress(OSError):
            write_atomically(self.folder / name, zlib.compress(content, 1))


def cache_folder(home: Path) -> Path:
    """Return the folder of JAX's cache in `home`, and delete those of other versions that no one has used for a month."""
    folder = home / f"xla-{processor_hash()}-{_version() or 'edited'}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(folder)
        for other in home.glob("xla-*"):
            if time.time() - other.stat().st_mtime > DAYS * 24 * 3600:
                shutil.rmtree(other, ignore_errors=True)
    return folder


def program_folder(cache: Path) -> ProgramFolder | None:
    """Return the stored programs in a cache folder; None if a library is installed in place, since its sources may change."""
    return ProgramFolder(cache / "programs") if _version() else None


@functools.cache
def _version() -> str | None:
    """The hash of the sources that programs are traced from, and of the versions of the libraries; None if one is edited."""
    root = Path(__file__).parent.parent
    hashed = hashlib.sha256(platform.python_version().encode())
    for library in LIBRARIES:
        distribution = importlib.metadata.distribution(library)
        if json.loads(distribution.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable"):
            return None
        hashed.update(f"{library} {distribution.version} ".encode())
    sources = [root / "errors.py", *(path for name in TRACED for path in sorted((root / name).rglob("*.py")))]
    for path in sources:
        hashed.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return hashed.hexdigest()[:8] if len(sources) > len(TRACED) else None
