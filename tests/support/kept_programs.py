"""Fixtures for fewer compilations: programs are kept for all studies of a test file, or only one device is used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import pytest

from relu_study.engine import compilation, draw_block
from relu_study.engine.program_use import ProgramUse


@pytest.fixture(scope="module", autouse=True)
def kept_programs() -> Iterator[None]:
    """Evict programs that do not fit in memory, and no others. `test_scheduler.py` tests all evictions."""
    release = ProgramUse.release

    def keep(self: Any, tiles: Any, immediately: bool = False) -> bool:
        return immediately and release(self, tiles, immediately)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgramUse, "release", keep)
        yield
    compilation.clear()
    draw_block.draw_program.clear()


@pytest.fixture(scope="module")
def one_device() -> Iterator[None]:
    """Train and draw on the first device, so that each program is compiled once."""
    devices = jax.devices
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *backend: devices(*backend)[:1])
        yield
