"""Registries of components: activations, initialisers, optimisers, networks, tasks, metrics and statistics by name.

A decorator registers an entry at its definition (`@activation("relu")`). The command line, the plan, the conformance tests
and the docs read only these registries. A registry imports the package's modules of its kind on first use.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

from relu_study.errors import UserError, nearest


class Registry:
    """Entries of one kind by name.

    `version`, shared by all registries, counts replaced entries, as in a notebook. Programs compiled before a replacement are
    stale.
    """

    version = 0

    def __init__(self, kind: str, *modules: str):
        self.kind = kind
        self._modules = modules  # none once imported
        self._entries: dict[str, Any] = {}

    def load(self) -> None:
        """Import the package's entries of this kind, with all modules of a subpackage."""
        modules, self._modules = self._modules, ()  # first: modules imported here call the registry again
        try:
            for name in modules:
                path = f"relu_study.components.{name}"
                module = importlib.import_module(path)
                for child in pkgutil.iter_modules(getattr(module, "__path__", ())):
                    importlib.import_module(f"{path}.{child.name}")
        except BaseException:
            self._modules = modules  # the next use reports the same error
            raise

    def registered(self) -> dict[str, Any]:
        """Return the entries so far, without an import."""
        return dict(self._entries)

    def add(self, name: str, entry: Any) -> None:
        """Register `entry` under `name`.

        An entry of the same origin (module and qualified name) replaces the old one.

        Raises:
          UserError: if the name is no string, or belongs to an entry of another origin.
        """
        if not isinstance(name, str):
            raise UserError(f"a name of {self.kind} must be a string, not {name!r}. Put a name in the decorator's brackets")
        old = self._entries.get(name)
        if old is not None and _origin(old) != _origin(entry):
            raise UserError(f"{self.kind} {name!r} is registered already, by {_origin(old)}. Choose another name")
        Registry.version += old is not None and old is not entry
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
        """Return a decorator that adds an entry and returns it unchanged."""

        def decorate(entry: Any) -> Any:
            self.add(name, entry)
            return entry

        return decorate


def function_of(entry: Any) -> Any:
    """Return the user's function behind an entry, or the entry itself."""
    return getattr(entry, "function", getattr(entry, "draw", entry))


def ours(entry: Any) -> bool:
    """Whether the package itself defines this entry."""
    return str(getattr(function_of(entry), "__module__", "")).startswith("relu_study.")


def _origin(entry: Any) -> str:
    """Return the module and qualified name of an entry; a partial's of its function, a callable object's of its class."""
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
networks = Registry("network", "networks", "architectures")
tasks = Registry("task", "tasks")
metrics = Registry("metric", "metrics")
statistics = Registry("statistic", "untrained")
OPTIONAL = (networks, tasks, optimizers, activations)  # kinds whose entries may declare options
REGISTRIES = (activations, initializers, optimizers, networks, tasks, metrics, statistics)
