"""User errors: one printable line that names the offender and the nearest valid names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHOWN = 40  # names in an error, at most


class UserError(Exception):
    """A request that cannot be carried out: names the offender, the nearest names, the way out; one line, whatever it quotes."""

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    """A text as one line that a terminal shows as it is: what is not printable is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nearest(name: str, names: Iterable[str], kind: str) -> UserError:
    """The error for an unknown `name` of a `kind`, with the nearest of the valid names."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    few = [*names[:SHOWN], *([f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else [])]
    hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(few) or 'none'}"
    return UserError(f"unknown {kind} {name!r}; {hint}")
