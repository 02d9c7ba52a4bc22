"""Fixtures of the engine's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from relu_study.components.registry import REGISTRIES
from relu_study.engine import compilation, flights, scheduler


@pytest.fixture
def restored_registries() -> Iterator[None]:
    """Restore the registries after a test. Drop the compiled programs, which are cached by name."""
    before = [dict(registry._entries) for registry in REGISTRIES]
    yield
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry._entries = entries
    compilation.clear()


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits of the scheduler, and no time to compile."""
    monkeypatch.setattr(scheduler, "PLACES_POLL", 0.02)
    monkeypatch.setattr(scheduler, "IDLE_POLL", 0.02)
    monkeypatch.setattr(flights, "COMPILE_SECONDS", 0.0)
