"""User errors: one printable line with the offender and the nearest valid names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_NAMES = 40  # listed in one error


class UserError(Exception):
    """A request that cannot be carried out. The message names the offender, the nearest valid names and the action.

    `str(error)` is always one printable line.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    """Return the text as one line, with unprintable characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nearest(name: str, names: Iterable[str], kind: str) -> UserError:
    """Return the error for an unknown `name` of a `kind`, with up to three similar valid names."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    few = [*names[:MAX_NAMES], *([f"and {len(names) - MAX_NAMES} more"] if len(names) > MAX_NAMES else [])]
    hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(few) or 'none'}"
    return UserError(f"unknown {kind} {name!r}; {hint}")
