"""Fingerprints of user entries: hashes of code, defaults, closures, and of the globals, helpers and modules that they read.

Plain data and arrays count by value, installed packages by version. Other objects count by type and are listed as unverified.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import sys
import warnings
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePath
from types import CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np

from relu_study.errors import UserError
from relu_study.study.data_files import DataFile, opened_by
from relu_study.study.imports import Import, imports, located, package_of, parents, submodules
from relu_study.study.object_state import cell_content, is_slot, pickled_parts, slot_names, type_parameter
from relu_study.study.origins import ATOMS, installed, is_plain, opaque, package
from relu_study.study.source_text import chains, definition, module_text, nested

UNREAD: tuple[str, ...] = (
    "__module__",
    "__doc__",
    "__dict__",
    "__weakref__",
    "__annotations__",
    "__qualname__",
    "__firstlineno__",
)
UNREAD += ("__static_attributes__", "__wrapped_by__", "__name__", "__abstractmethods__", "_abc_impl", "__slotnames__")
UNREAD += ("fun_sourceinfo",)  # of a jitted function: its file and line
ANY_GLOBAL = {"globals", "eval", "exec", "modules", "__import__", "import_module"}  # names by which a function reads any global
STATEFUL = {"logging", "threading", "_thread", "io", "_io", "socket", "weakref", "_weakref", "subprocess", "asyncio", "tempfile"}
SAID = {"name", "text", "source", "unit", "direction", "low", "high", "theory", "check", "cost", "factors"}  # fields of entries
# Fields of later versions with their values in earlier ones, and kinds of entries that were plain functions in earlier versions:
# an entry that declares nothing new keeps its fingerprint.
LATER: dict[str, Any] = {"options": {}, "traced": (), "rows": None, "initializer": "glorot_uniform"}
WRAPPED = ("TaskEntry", "Network")
CONSTANTS = {"NotImplemented", "Ellipsis", "__debug__"}  # Python's own names of values
DIGITS = 12


def fingerprint(entry: Any) -> dict[str, str]:
    """The parts that an entry depends on, each with the hash of its own content; equal for equal definitions in any process."""
    reader = _Reader()
    reader.parts["entry"] = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a filter that raises would change the outcome
            said = reader.read(entry)
    except UserError:
        raise
    except Exception as error:  # an object of a user's may raise anything when it is read
        return {"unverifiable": f"{type(error).__name__} while it is read"}
    if said.startswith("unverified"):
        return {"unverifiable": f"{type(entry).__qualname__} has neither code nor state"}
    reader.parts["entry"] = _hashed(said)
    parts = {**reader.parts, "whole": _hashed(repr(sorted(reader.parts.items())))}
    return parts | ({"unverified": ", ".join(sorted(reader.unverified))} if reader.unverified else {})


def essence(entry: Any) -> Any:
    """The fields of an entry that move numbers: its texts, theory and costs move none."""
    if isinstance(entry, type) or not is_dataclass(entry) or not type(entry).__module__.startswith("relu_study."):
        return entry
    kept = {f.name: getattr(entry, f.name) for f in fields(entry) if f.name not in SAID}
    kept = {name: value for name, value in kept.items() if name not in LATER or value != LATER[name]}
    if [*kept] == ["function"] and type(entry).__name__ in WRAPPED:
        return kept["function"]
    return {name: {k: essence(v) for k, v in value.items()} if name == "numbers" else value for name, value in kept.items()}


def source_hash(function: Any) -> str | None:
    """The hash of the source text of a function, as earlier versions stored it."""
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:DIGITS]
    except (OSError, TypeError):
        return None


def _hashed(content: str) -> str:
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]


class _Reader:
    """One walk over all that an entry refers to; each function, class and global is one part."""

    def __init__(self) -> None:
        self.parts: dict[str, str] = {}
        self.unverified: set[str] = set()
        self.labels: dict[Any, str] = {}
        self.alive: list[Any] = []  # an id is one object's only while that object lives
        self.arrays: dict[int, str] = {}
        self.open: dict[int, int] = {}  # containers on the way to the current value

    def part(self, key: Any, owner: Any, name: str, content: Any) -> str:
        """The label of a part, which is read when it is met for the first time."""
        if key not in self.labels:
            label, number = name, 1
            while label in self.parts:
                label, number = f"{name}#{number + 1}", number + 1
            self.labels[key] = label
            self.parts[label] = ""
            self.alive.append(owner)
            self.parts[label] = _hashed(content())
        return f"<{self.labels[key]}>"

    def read(self, value: Any) -> str:
        """A value as text that is the same in every process."""
        if isinstance(value, DataFile):
            return f"file {value.digest()}"
        if isinstance(value, (str, PurePath)) and any(str(value) in paths for paths in opened_by.values()):
            return f"file {DataFile(value).digest()}"  # a data file's path as another type
        if isinstance(value, enum.Enum):
            return f"{self.read(type(value))}.{value.name}"
        if type(value) in ATOMS:
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, PurePath):
            return f"path {value}"
        if isinstance(value, (np.ndarray, np.generic)) or hasattr(type(value), "__array__"):
            return self._array(value)
        if isinstance(value, CodeType):
            return self.read(definition(value))
        if isinstance(value, np.dtype):
            return f"dtype {value.str} {value.name}"
        if value is np.random.mtrand._rand:
            return "the random state of NumPy"  # differs in every process
        if id(value) in self.open:
            return f"again {len(self.open) - self.open[id(value)]}"
        self.open[id(value)] = len(self.open)
        self.alive.append(value)
        try:
            return self._compound(value)
        finally:
            del self.open[id(value)]

    def _array(self, value: Any) -> str:
        if id(value) not in self.arrays:
            self.alive.append(value)
            try:
                array = np.asarray(value)
            except TypeError:  # a typed key of JAX
                array = np.asarray(sys.modules["jax"].random.key_data(value))
            if array.dtype.kind == "O":
                said = self.read(array.tolist())
            else:
                said = hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()
            extra = self.read([value.mask, value.fill_value]) if isinstance(value, np.ma.MaskedArray) else ""
            if hasattr(value, "iloc"):  # a table of pandas
                named = [np.asarray(getattr(value, name)) for name in ("index", "columns") if hasattr(value, name)]
                extra = self.read([named, getattr(value, "name", None), str(getattr(value, "dtypes", ""))])
            kind = f"{type(value).__name__} {array.dtype.name} {array.shape} {getattr(value, 'weak_type', '')}"
            self.arrays[id(value)] = f"array {kind} {said} {extra}"
        return self.arrays[id(value)]

    def _compound(self, value: Any) -> str:
        if type(value) in (list, tuple):
            return f"{type(value).__name__}[{', '.join(map(self.read, value))}]"
        if isinstance(value, Set) and type(value) in (set, frozenset):
            return f"{type(value).__name__}{{{', '.join(sorted(map(self.read, value)))}}}"
        if type(value) in (dict, MappingProxyType):
            return self._items(value)
        if isinstance(value, ModuleType):
            return self._module(value)
        if (name := installed(value)) is not None:
            return name
        if isinstance(value, FunctionType):
            return self.part(id(value), value, value.__qualname__, lambda: self._function(value))
        if isinstance(value, type):
            return self.part(id(value), value, value.__qualname__, lambda: self._class(value))
        if isinstance(value, MethodType):
            return f"method {self.read(value.__func__)} of {self.read(value.__self__)}"
        if isinstance(value, functools.partial):
            return f"partial {self.read(value.func)} {self.read(value.args)} {self.read(value.keywords)}"
        if isinstance(value, (bytearray, memoryview)):
            return f"{type(value).__name__} {bytes(value)!r}"
        if isinstance(value, (staticmethod, classmethod)):
            return f"{type(value).__name__} {self.read(value.__func__)}"
        if isinstance(value, property):
            return f"property {self.read((value.fget, value.fset, value.fdel))}"
        return self._object(value)

    def _items(self, value: Mapping[Any, Any]) -> str:
        return f"{{{', '.join(f'{self.read(k)}: {self.read(v)}' for k, v in value.items())}}}"

    def _module(self, module: ModuleType) -> str:
        if (name := installed(module)) is not None:
            return name
        members = {name: v for name, v in sorted(vars(module).items()) if not name.startswith("__")}
        return self.part(id(module), module, module.__name__, lambda: self._items(members))

    def _function(self, function: FunctionType) -> str:
        cells = {name: cell_content(c) for name, c in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)}
        said = [self.read(function.__code__), self.read(function.__defaults__), self.read(function.__kwdefaults__)]
        said += [self._items(cells), self._items(dict(sorted(vars(function).items())))]
        if package(function.__module__ or "", function.__code__.co_filename) is not None:
            return "\n".join(said)  # made by an installed package: its globals count by version
        for code in nested(function.__code__):
            said += [self._global(function, chain) for chain in chains(code)]
            said += self._imports(code, package_of(function.__globals__), function.__globals__)
            if ANY_GLOBAL.intersection(code.co_names):
                said.append(self._all_globals(function.__globals__))
            for path in opened_by.get((code.co_filename, code), ()):
                said.append(self.part(("file", path), path, f"data {Path(path).name}", DataFile(path).digest))
        return "\n".join(said)

    def _global(self, function: FunctionType, chain: tuple[str, ...]) -> str:
        """One global that a function reads; of a module, only the attribute that it reads."""
        names, known = chain, function.__globals__
        if names[0] not in known:
            known = getattr(function, "__builtins__", {})  # a study may add names to it, or replace some
            if names[0] not in known or names[0] in CONSTANTS or _standard(known[names[0]]):
                return f"{names[0]} is not a global"
        value, at = known[names[0]], 1
        while isinstance(value, ModuleType) and at < len(names) and hasattr(value, names[at]):
            if (name := installed(value)) is not None and not is_plain(getattr(value, names[at])):
                return f"{'.'.join(names[:at])} is {name}"
            known, value, at = vars(value), getattr(value, names[at]), at + 1
        name = ".".join(names[:at])
        if isinstance(value, (FunctionType, type, ModuleType)) or installed(value) is not None:
            return f"{name} is {self.read(value)}"
        return f"{name} is {self.part((id(known), names[at - 1]), known, name, lambda: self.read(value))}"

    def _all_globals(self, known: dict[str, Any]) -> str:
        """Every global of a module: which of them are read, only the call decides."""
        members = {name: value for name, value in sorted(known.items()) if not name.startswith("__")}
        return self.part(("globals", id(known)), known, "globals", lambda: self._items(members))

    def _imports(self, code: CodeType, package: str, known: Mapping[str, Any] | None = None) -> list[str]:
        """The modules that code of a package imports when it runs: their files count, loaded or not."""
        found, unknown = imports(code, known)
        self.unverified.update(f"a module loaded by {name}" for name in unknown)
        lines = [line for one in found for line in self._import(one, package)]
        return list(dict.fromkeys(lines))

    def _import(self, one: Import, home: str) -> list[str]:
        """The lines of one import: an installed package by version; a user's package with its parents and submodules."""
        try:
            name = one.absolute(home)
        except ImportError:
            self.unverified.add(f"module {'.' * one.level}{one.module}")
            return [f"import {'.' * one.level}{one.module} None"]
        lines: list[str] = []
        spec: ModuleSpec | None = None
        for step in parents(name):
            if (spec := located(step)) is None:
                return [*lines, self._unlocated(name)]
            if (version := _version(spec)) is not None:
                return [*lines, f"import {name} {version}"]
            lines.append(self._file(spec))
        for step in submodules(spec, one.names) if spec is not None else ():
            if (inner := located(step)) is not None:
                lines.append(self._file(inner))
        return lines

    def _unlocated(self, name: str) -> str:
        if (module := sys.modules.get(name)) is not None:
            return f"import {name} {self.read(module)}"
        self.unverified.add(f"module {name}")
        return f"import {name} None"

    def _file(self, spec: ModuleSpec) -> str:
        if spec.origin is None:  # a package without __init__.py runs no code
            return f"import {spec.name} None"
        file, name, home = spec.origin, spec.name, spec.parent or ""
        return self.part(("file", file), file, f"module {name}", lambda: self._text(file, home))

    def _text(self, file: str, home: str) -> str:
        """The text of a module, of the modules that it imports, and of its data files."""
        text, code = module_text(file)
        lines = [line for part in nested(code) for line in self._imports(part, home)] if code is not None else []
        opened = [path for (name, _), paths in opened_by.items() if name == file for path in paths]
        return "\n".join([text, *sorted(set(lines)), *(DataFile(path).digest() for path in opened)])

    def _class(self, cls: type) -> str:
        members = {name: v for name, v in sorted(vars(cls).items()) if name not in UNREAD and not is_slot(v)}
        return f"{[self.read(base) for base in cls.__bases__]} {self.read(type(cls))} {self._items(members)}"

    def _object(self, value: Any) -> str:
        """An instance: its class and its state."""
        kind = self.read(type(value))
        if type(value).__module__.partition(".")[0] in STATEFUL:
            self.unverified.add(type(value).__qualname__)
            return f"unverified {kind}"
        if (inner := type_parameter(value)) is not None:
            return f"object {kind} {self._items(inner)}"
        if (pickled := pickled_parts(value)) is not None:
            return f"object {kind} {self.read(pickled)}"
        fields = getattr(value, "_fields", None) or ()
        items = ""
        if isinstance(value, (list, tuple)):
            named = dict(zip(fields, value, strict=False)) if len(fields) == len(value) else dict(enumerate(value))
            items = self.read([v for name, v in named.items() if name not in UNREAD])
        if isinstance(value, dict):
            items = self._items(value)
        if isinstance(value, (set, frozenset)):
            items = f"{sorted(map(self.read, value))}"
        if isinstance(value, (int, float, complex, str, bytes)):
            plain = next(kind for kind in (int, float, complex, str, bytes) if isinstance(value, kind))
            items = f"{plain.__name__} {plain.__repr__(value)}"  # type: ignore[operator]
        state = dict(sorted(getattr(value, "__dict__", {}).items()))
        slots = [name for base in type(value).__mro__ for name in slot_names(base)]
        state |= {name: getattr(value, name) for name in sorted(slots) if hasattr(value, name) and name != "__weakref__"}
        if (wrapped := getattr(value, "__wrapped__", None)) is not None:
            state["__wrapped__"] = wrapped
        if type(value) is not object and not state and not items and opaque(type(value)):
            self.unverified.add(type(value).__qualname__)
            return f"unverified {kind}"
        return f"object {kind} {items} {self._items({n: v for n, v in state.items() if n not in UNREAD})}"


def _version(spec: ModuleSpec) -> str | None:
    """The version of an installed module; None for a user's own."""
    origin = None if spec.origin in ("built-in", "frozen") else spec.origin
    places = list(spec.submodule_search_locations or ())
    return package(spec.name, origin or (places[0] if places else None))


def _standard(value: Any) -> bool:
    """Whether a builtin is Python's own."""
    return installed(value) is not None or type(value).__module__ == "_sitebuiltins"
