"""One compilation for all tests of a file that monitor the same function."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from monitored import shared_programs


@pytest.fixture(autouse=True, scope="package")
def shared_program() -> Iterator[None]:
    with shared_programs():
        yield
