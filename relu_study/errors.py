"""Errors for users: one printable line that names the problem, the most similar valid names, and the action."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_NAMES = 40  # maximum of listed names per error


class UserError(Exception):
    """An invalid request. The message names the invalid value, the most similar valid names, and the action.

    `str(error)` is always one printable line.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    """Return the text with unprintable characters escaped, so line breaks too."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nearest(name: str, names: Iterable[str], kind: str) -> UserError:
    """Return the error for an unknown `name` of a `kind`, with up to three similar `names`, or else all of them."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    if close:
        action = f"Did you mean {', '.join(close)}?"
    elif names:
        rest = [f"and {len(names) - MAX_NAMES} more"] if len(names) > MAX_NAMES else []
        action = f"Choose one of {', '.join([*names[:MAX_NAMES], *rest])}."
    else:
        action = "There is none."
    return UserError(f"unknown {kind} {name!r}. {action}")
