"""Fixtures of the engine's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from relu_study.components.registry import REGISTRIES
from relu_study.engine import compilation


@pytest.fixture
def restored_registries() -> Iterator[None]:
    """Restore the registries after a test. Drop the compiled programs, which are cached by name."""
    before = [dict(registry._entries) for registry in REGISTRIES]
    yield
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry._entries = entries
    compilation.clear()
