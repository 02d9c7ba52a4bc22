"""Epochs of claims, tables and figures: "last", or a number of at least 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from relu_study.errors import UserError


def epoch_number(epoch: Any) -> float | None:
    """Return the number of an epoch, or None unless it is a finite number of at least 0, as a number or as text."""
    try:
        number = float(epoch)
    except (TypeError, ValueError):
        return None
    return number if 0 <= number < math.inf else None


def parse_epoch(epoch: Any, where: str, words: Sequence[str] = ("last",)) -> float | None:
    """Return the number of an epoch, or None for one of the words.

    Raises:
        UserError: the epoch is neither. `where` names its owner.
    """
    number = epoch_number(epoch)
    if number is None and epoch not in words:
        raise UserError(f"{where} has the epoch {epoch!r}. Use {', '.join(map(repr, words))} or a number of at least 0.")
    return number
