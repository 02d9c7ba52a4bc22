"""Fingerprints of syntax and types that differ between Python versions, and fingerprints under strict warning filters."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any, Literal

import pytest
from test_entry_kinds import loaded

from relu_study.study.fingerprint import fingerprint

TYPING = "import typing\n"
# The first Python version, the source, its replaced text, the replacement.
TYPES = {
    "type variable": (
        (3, 11),
        TYPING + "T = typing.TypeVar('T', bound=int)\ndef entry(x): return T.__bound__(x)",
        "=int",
        "=float",
    ),
    "generic class": (
        (3, 11),
        TYPING + "T = typing.TypeVar('T')\nclass A(typing.Generic[T]): k = 2\ndef entry(x): return A.k",
        "2",
        "3",
    ),
    "specification": (
        (3, 11),
        TYPING + "P = typing.ParamSpec('P')\nclass A(typing.Generic[P]): k = 2\ndef entry(): return A.k",
        "2",
        "3",
    ),
    "class": ((3, 12), "class A[T: int]: pass\ndef entry(): return A.__type_params__[0].__bound__", "int", "float"),
    "several": ((3, 12), "class A[T: int, *S, **P]: k = 2\ndef entry(): return A.k", "2", "3"),
    "undefined bound": ((3, 12), "class A[T: undefined]: k = 2\ndef entry(): return A.k", "2", "3"),
    "function": ((3, 12), "def entry[T: int](x: T): return T.__bound__(x)", "int", "float"),
    "method": ((3, 12), "class A:\n  def f[T](self, x: T): return x * 2\ndef entry(x): return A().f(x)", "2", "3"),
    "alias": ((3, 12), "type X = int\ndef entry(x): return X.__value__(x)", "int", "float"),
    "generic alias": ((3, 12), "type X[T] = list[T]\ndef entry(): return X[int]", "list", "dict"),
    "recursive alias": ((3, 12), "type X = list[X] | int\ndef entry(): return X.__value__", "int", "float"),
    "default": ((3, 13), "class A[T = int]: pass\ndef entry(): return A.__type_params__[0].__default__", "int", "float"),
}


@pytest.mark.parametrize("how", ["file", "prompt"])
@pytest.mark.parametrize("kind", TYPES)
def test_type_parameters_and_aliases_count(kind: str, how: str, tmp_path: Path) -> None:
    version, source, old, new = TYPES[kind]
    if sys.version_info < version:
        pytest.skip(f"syntax of Python {version[0]}.{version[1]}")
    first = loaded(source, tmp_path / "one", how)
    assert "unverified" not in first and "unverifiable" not in first
    assert loaded(source.replace(old, new), tmp_path / "one", how)["whole"] != first["whole"]
    assert loaded("# a comment\n\n" + source, tmp_path / "two", how) == first


# Sources with a warning at the reading of `entry`.
WARNED = {
    "iterator": "import itertools\nR = itertools.count(2)\ndef entry(): return next(R)",
    "cycle": "import itertools\nR = itertools.cycle([2])\ndef entry(): return next(R)",
    "escape": "def entry(): return '\\d', 2",
    "comparison": "def entry(x): return x is 2",
    "attribute": "import types, warnings\nM = types.ModuleType('old')\ndef late(name):\n"
    "  if name != 'k': raise AttributeError(name)\n  warnings.warn('old', DeprecationWarning)\n  return 2\n"
    "M.__getattr__ = late\ndef entry(): return M.k",
}


def filtered(source: str, folder: Path, action: Literal["error", "ignore"]) -> dict[str, str]:
    """The fingerprint of `entry` under a warning filter. The module itself loads without warnings."""
    folder.mkdir(exist_ok=True)
    path = folder / "warned.py"
    path.write_text(source)
    names: dict[str, Any] = {"__name__": "typed"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(source, str(path), "exec", dont_inherit=True), names)
        warnings.simplefilter(action)
        return fingerprint(names["entry"])


@pytest.mark.parametrize("kind", WARNED)
def test_warning_filters_change_no_fingerprint(kind: str, tmp_path: Path) -> None:
    strict = filtered(WARNED[kind], tmp_path / "one", "error")
    assert "unverified" not in strict and "unverifiable" not in strict
    assert filtered(WARNED[kind], tmp_path / "two", "ignore") == strict
    assert filtered(WARNED[kind].replace("2", "3"), tmp_path / "one", "error")["whole"] != strict["whole"]
