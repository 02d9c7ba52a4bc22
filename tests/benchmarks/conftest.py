"""The task and optimisers of the benchmark of detectors are registered only during its own tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from detector_parts.tasks import OPTIMIZERS

from relu_study.components.registry import optimizers, tasks

OWN = [(tasks, "faulty"), *((optimizers, f"frozen_{name}") for name in OPTIMIZERS)]
ENTRIES = [(registry, name, registry._entries.pop(name)) for registry, name in OWN]


@pytest.fixture
def registered() -> Iterator[None]:
    for registry, name, entry in ENTRIES:
        registry.add(name, entry)
    yield
    for registry, name, _ in ENTRIES:
        registry._entries.pop(name)
