"""Imports inside code objects: statements and constant calls of importlib, with the modules that they name."""

from __future__ import annotations

import builtins
import dis
import importlib
import importlib.util
import itertools
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from types import CodeType
from typing import Any, NamedTuple

CALLS = {"import_module", "__import__"}
CALLABLES = (importlib.import_module, builtins.__import__)
LOADERS = {
    "spec_from_file_location",
    "spec_from_loader",
    "run_path",
    "run_module",
    "SourceFileLoader",
    "exec_module",
    "find_module",
}
SILENT = {"EXTENDED_ARG", "CACHE", "PUSH_NULL", "PRECALL", "NOP"}  # instructions without an effect on a name
KEYWORDS = ((), ("name",), ("package",), ("name", "package"))


class Import(NamedTuple):
    """One import: a module, the names of its from-list, and the number of leading dots."""

    module: str
    names: tuple[str, ...] = ()
    level: int = 0

    def absolute(self, package: str) -> str:
        """The full name of the module for code of `package`. Raises ImportError if the dots leave the package."""
        return importlib.util.resolve_name("." * self.level + self.module, package)


def imports(code: CodeType, known: Mapping[str, Any] | None = None) -> tuple[list[Import], list[str]]:
    """The imports of one code object, and the names of calls with an argument that is no constant text.

    `known` are the globals of the code: they tell other names of `importlib.import_module`.
    """
    steps = _steps(code)
    calls = CALLS | {name for name in code.co_names if any((known or {}).get(name) is call for call in CALLABLES)}
    calls |= {after.argval for step, after in itertools.pairwise(steps) if _renamed(step, after)}
    found: dict[Import, None] = {}
    unknown: dict[str, None] = {}
    for at, step in enumerate(steps):
        if step.opname == "IMPORT_NAME":
            found[Import(step.argval, tuple(steps[at - 1].argval or ()), steps[at - 2].argval)] = None
        elif not step.opname.startswith("LOAD_") or step.opname == "LOAD_CONST":
            continue
        elif step.argval in LOADERS:
            unknown[step.argval] = None
        elif step.argval in calls:
            called = _called(code, steps[at + 1 :], step.argval)
            if called is None:
                unknown[step.argval] = None
            else:
                found[called] = None
    return list(found), list(unknown)


def _steps(code: CodeType) -> list[dis.Instruction]:
    """Return the instructions with an effect on a name, one name each: Python 3.13 stores and loads two names in one."""
    steps = [step for step in dis.get_instructions(code) if step.opname not in SILENT]
    return [part for step in steps for part in _parts(step)]


def _parts(step: dis.Instruction) -> list[dis.Instruction]:
    """Split an instruction with two names, such as STORE_FAST_LOAD_FAST, into one instruction per name."""
    opnames = re.findall("(?:LOAD|STORE)_FAST", step.opname)
    if len(opnames) != 2 or not isinstance(step.argval, tuple):
        return [step]
    return [step._replace(opname=opname, argval=name) for opname, name in zip(opnames, step.argval, strict=True)]


def _renamed(step: dis.Instruction, after: dis.Instruction) -> bool:
    return step.opname == "IMPORT_FROM" and step.argval in CALLS and after.opname.startswith("STORE_")


def _called(code: CodeType, steps: list[dis.Instruction], name: str) -> Import | None:
    """The import of a call whose arguments begin at the first step; None for arguments that only the call decides."""
    count = next((i for i, s in enumerate(steps) if s.opname not in ("LOAD_CONST", "LOAD_GLOBAL", "LOAD_NAME")), len(steps))
    given, after = steps[:count], steps[count : count + 2]
    if after and after[0].opname == "KW_NAMES":  # Python 3.11 and 3.12
        keywords, after = code.co_consts[after[0].arg or 0], after[1:]
    elif given and after and after[0].opname == "CALL_KW":  # since Python 3.13 the names are the last constant
        keywords, given = given[-1].argval, given[:-1]
    else:
        keywords = ()
    if keywords not in KEYWORDS:
        return None
    if not given or not after or not after[0].opname.startswith("CALL") or after[0].arg != len(given):
        return None
    module, *package = given
    if module.opname != "LOAD_CONST" or not isinstance(module.argval, str):
        return None
    level = len(module.argval) - len(module.argval.lstrip("."))
    if not level:
        return Import(module.argval) if not package or name != "__import__" else None
    if len(package) != 1 or name == "__import__":
        return None
    if package[0].argval in ("__package__", "__name__"):
        return Import(module.argval[level:], (), level)
    if package[0].opname != "LOAD_CONST" or not isinstance(package[0].argval, str):
        return None
    try:
        return Import(Import(module.argval[level:], (), level).absolute(package[0].argval))
    except ImportError:
        return None


def package_of(known: Mapping[str, Any]) -> str:
    """The package of a module, from its globals: the start of its relative imports."""
    if known.get("__package__") is not None:
        return str(known["__package__"])
    name = str(known.get("__name__", ""))
    return name if "__path__" in known else name.rpartition(".")[0]


def located(name: str) -> ModuleSpec | None:
    """The specification of a module, loaded or not; None where no module has this name."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        return importlib.util.spec_from_file_location(name, file) if isinstance(file, str) else None


def parents(name: str) -> Iterator[str]:
    """A dotted name with the packages before it, outermost first: Python runs each of them."""
    steps = name.split(".")
    for count in range(1, len(steps) + 1):
        yield ".".join(steps[:count])


def submodules(spec: ModuleSpec, names: tuple[str, ...]) -> list[str]:
    """The names of a from-list that are modules of a package; a star may name all of them."""
    if spec.submodule_search_locations is None:
        return []
    there = sorted(module.name for module in pkgutil.iter_modules(list(spec.submodule_search_locations)))
    wanted = there if "*" in names else [name for name in names if name in there or located(f"{spec.name}.{name}")]
    return [f"{spec.name}.{name}" for name in wanted]
