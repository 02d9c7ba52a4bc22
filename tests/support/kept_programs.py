"""Compiled programs kept for all studies of a test file, since many of its tests run the same study."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from relu_study.engine import compilation, draw_block, scheduler


@pytest.fixture(scope="module", autouse=True)
def kept_programs() -> Iterator[None]:
    """Evict programs that do not fit in memory, and no others. `test_scheduler.py` tests all evictions."""
    release = scheduler._Scheduler._release_programs

    def keep(self: Any, tiles: Any, immediately: bool = False) -> bool:
        return immediately and release(self, tiles, immediately)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler._Scheduler, "_release_programs", keep)
        yield
    compilation.clear()
    draw_block.draw_program.clear()
