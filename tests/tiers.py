"""Which cases of a test belong to which tier."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def fast(cases: Iterable[Any], *of: Any) -> list[Any]:
    """All cases; those that are not named are of the slow tier."""
    every = list(cases)
    assert all(case in every for case in of)
    return [
        case if case in of else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in every
    ]
