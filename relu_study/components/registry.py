"""Registries: every component of a study by name.

An entry registers itself where it is defined (`@activation("relu")`). The command line, the plan, the conformance tests and the
docs read only these registries. A registry imports the suite's own modules of its kind at its first use.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

from relu_study.errors import UserError, nearest

replaced = 0  # entries registered anew, as in a notebook: what was compiled before them is stale


class Registry:
    """Names of one kind, each with the function that builds it."""

    def __init__(self, kind: str, home: str):
        self.kind = kind
        self._home: str | None = f"relu_study.components.{home}"
        self._entries: dict[str, Any] = {}

    def load(self) -> None:
        """Import the suite's own entries of this kind; a package is imported with all its modules."""
        if self._home is not None:
            home, self._home = self._home, None  # the modules imported here register their entries: no second import
            module = importlib.import_module(home)
            for child in pkgutil.iter_modules(getattr(module, "__path__", ())):
                importlib.import_module(f"{home}.{child.name}")

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
        self.load()
        if name not in self._entries:
            raise nearest(name, self._entries, self.kind)
        return self._entries[name]

    def __contains__(self, name: str) -> bool:
        self.load()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self.load()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        self.load()
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


activations = Registry("activation", "activations")
initializers = Registry("initializer", "initializers")
optimizers = Registry("optimizer", "optimizers")
networks = Registry("network", "networks")
tasks = Registry("task", "tasks")
metrics = Registry("metric", "metrics")
statistics = Registry("statistic", "untrained")
REGISTRIES = (activations, initializers, optimizers, networks, tasks, metrics, statistics)
