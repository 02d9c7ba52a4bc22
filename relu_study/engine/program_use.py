"""Use of compiled programs by the unfinished tiles: a program is evicted after the last tile that requires it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from relu_study.engine.work import Work

TRIM_INTERVAL = 10.0  # seconds between calls of malloc_trim, which takes some milliseconds


class ProgramUse:
    """The number of unfinished tiles that require each program."""

    def __init__(self, work: Work[Any, Any]) -> None:
        self.work, self.last_trim = work, time.monotonic()
        self.remaining = Counter(key for tile in work.tiles for key in work.required_programs(tile))

    def add(self, tiles: Sequence[Any]) -> None:
        """Count new tiles."""
        self.remaining.update(key for tile in tiles for key in self.work.required_programs(tile))

    def finish(self, tile: Any) -> None:
        """Release the programs of a finished tile, and return free memory to the system from time to time."""
        if self.release([tile]) or time.monotonic() - self.last_trim > TRIM_INTERVAL:
            _malloc_trim()
            self.last_trim = time.monotonic()

    def free(self, tiles: Sequence[Any]) -> None:
        """Evict all programs of these tiles at once, since memory is short."""
        self.release(tiles, immediately=True)
        gc.collect()
        _malloc_trim()

    def release(self, tiles: Sequence[Any], immediately: bool = False) -> bool:
        """Evict the programs that no later tile requires, or all of these tiles if `immediately`; whether any was evicted."""
        keys = Counter(key for tile in tiles for key in self.work.required_programs(tile))
        self.remaining.subtract(keys)
        unused = [key for key in keys if immediately or not self.remaining[key]]
        for key in unused:
            self.work.evict(key)
        return bool(unused)


def _malloc_trim() -> None:
    # glibc keeps the memory that the compiler has freed: about 40 MiB per program and device.
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
