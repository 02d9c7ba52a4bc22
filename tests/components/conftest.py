"""Fixtures of the components' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from relu_study.components.registry import optimizers


@pytest.fixture
def restored_optimizers() -> Iterator[None]:
    """Restore the registered optimisers after a test."""
    before = dict(optimizers._entries)
    yield
    optimizers._entries.clear()
    optimizers._entries.update(before)
