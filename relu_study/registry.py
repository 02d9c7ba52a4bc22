"""Every named thing a run can be made of, and the error that names the nearest one.

An entry registers itself where it is written (`@activation("relu")`); the command line, the
plan, the conformance tests and the docs read these registries and nothing else.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

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


replaced = 0  # entries registered anew, as in a notebook: what was compiled before them is stale


class Registry:
    """Names of one kind, each with the function that builds it."""

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, Any] = {}

    def add(self, name: str, entry: Any) -> None:
        """Register `entry`; a second, different entry under one name is refused."""
        global replaced
        if not isinstance(name, str):
            raise UserError(f"a name of {self.kind} must be a string, not {name!r}; register with a name in brackets")
        old = self._entries.get(name)
        if old is not None and _origin(old) != _origin(entry):
            raise UserError(f"{self.kind} {name!r} is registered already, by {_origin(old)}; choose another name")
        replaced += old is not None and old is not entry
        self._entries[name] = entry

    def __getitem__(self, name: str) -> Any:
        if name not in self._entries:
            raise nearest(name, self._entries, self.kind)
        return self._entries[name]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def register(self, name: str) -> Callable[[Any], Any]:
        """Decorator form of `add`, for entries that are plain functions."""

        def keep(entry: Any) -> Any:
            self.add(name, entry)
            return entry

        return keep


def function_of(entry: Any) -> Any:
    """What an entry was written as: the function behind it, or itself."""
    return getattr(entry, "function", getattr(entry, "draw", entry))


def ours(entry: Any) -> bool:
    """Is this an entry of the package itself?"""
    return str(getattr(function_of(entry), "__module__", "")).startswith("relu_study.")


def _origin(entry: Any) -> str:
    """Where an entry was written. A partial is named by its function, a callable object by its class: neither has a name."""
    function = function_of(entry)
    if isinstance(function, functools.partial):
        return f"a partial of {_origin(function.func)}"
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None)
    if name is None:
        function, name = type(function), type(function).__qualname__
    return f"{getattr(function, '__module__', '?')}.{name}"


activations = Registry("activation")
initializers = Registry("initializer")
optimizers = Registry("optimizer")
networks = Registry("network")
tasks = Registry("task")
probes = Registry("metric")
remedies = Registry("remedy")
statistics = Registry("statistic")
