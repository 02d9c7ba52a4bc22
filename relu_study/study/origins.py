"""The origin of a value: an installed package with its version, the standard library, or a user's own code."""

from __future__ import annotations

import functools
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import BuiltinFunctionType, CodeType, ModuleType
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parents[1]  # the package
STDLIB = Path(sysconfig.get_paths()["stdlib"]).resolve()
ATOMS = (type(None), bool, int, float, complex, str, bytes, range, slice, type(...), type(NotImplemented))
HEAP = 1 << 9  # the flag of types that are made while a program runs


def opaque(kind: type) -> bool:
    """Whether a type is written in C and hides its state. Only a class statement leaves a `__dict__` or slots."""
    if not kind.__flags__ & HEAP:
        return True
    return not {"__dict__", "__weakref__", "__slots__"} & vars(kind).keys() and not any(
        {"__dict__", "__slots__"} & vars(base).keys() and base.__flags__ & HEAP for base in kind.__mro__[1:]
    )


def _compiled(kind: type) -> bool:
    """Whether a type is written in C. A class in code without a module has the module `builtins`."""
    return opaque(kind) and (kind.__module__ != "builtins" or not kind.__flags__ & HEAP)


def _is_builtin(value: Any) -> bool:
    return isinstance(value, BuiltinFunctionType) or type(value).__name__ in ("nb_func", "nb_method")  # functions of jaxlib


def is_plain(value: Any) -> bool:
    """Whether a value is a plain number or text, or a module."""
    return type(value) in ATOMS or isinstance(value, ModuleType)


def installed(value: Any) -> str | None:
    """The name and version of an object from an installed package; None for all other objects."""
    if isinstance(value, ModuleType):
        return package(value.__name__, getattr(value, "__file__", None))
    module = getattr(value, "__module__", None) or ("numpy" if isinstance(value, np.ufunc) else None)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if isinstance(value, BuiltinFunctionType) and not isinstance(value.__self__, (ModuleType, type(None))):
        return None  # the method of an object
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return None
    code = getattr(value, "__code__", None)
    home = sys.modules.get(module)
    file = getattr(home, "__file__", None) or getattr(sys.modules.get(module.partition(".")[0]), "__file__", None)
    found = package(module, file)  # not the file of the code: a package's decorator leaves the name of a user's function
    if found is None or (isinstance(code, CodeType) and package(module, code.co_filename) is None):
        return None
    there: Any = home
    for step in name.split("."):
        there = getattr(there, step, None)
    if there is value or _is_builtin(value) or (isinstance(value, type) and _compiled(value)):
        return f"{found} {module}.{name}"
    return None


@functools.cache
def package(module: str, file: str | None) -> str | None:
    """An installed package with its version; the standard library counts by Python's version, this package by its engine's."""
    top = module.partition(".")[0]
    if file is None:
        return f"python {sys.version_info[0]}.{sys.version_info[1]}" if top in {"builtins", *sys.stdlib_module_names} else None
    path = Path(file).resolve()
    if path.is_relative_to(HERE):
        return "relu_study"
    if {"site-packages", "dist-packages"} & {*path.parts, *Path(file).parts}:
        try:
            return f"{top} {version(top)}"
        except (PackageNotFoundError, ValueError):  # ValueError: a function without a module
            return f"{top} {getattr(sys.modules.get(top), '__version__', '')}"
    return f"python {sys.version_info[0]}.{sys.version_info[1]}" if path.is_relative_to(STDLIB) or "<frozen" in file else None
