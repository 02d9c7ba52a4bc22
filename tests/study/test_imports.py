"""Imports inside functions: a change of any module that they reach counts, and an import by a computed name is listed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relu_study.study.fingerprint import fingerprint

TREE = {
    "lone.py": "K = 2.0",
    "reads.py": "import lone\nK = lone.K",
    "calls.py": "import importlib\nK = importlib.import_module('lone').K",
    "pack/__init__.py": "ROOT = 2.0",
    "pack/sub.py": "K = 2.0",
    "pack/consts.py": "K = 2.0",
    "pack/deep.py": "from .consts import K",
    "pack/dotted.py": "from . import consts\nK = consts.K",
    "pack/late.py": "def k():\n    from . import consts\n    return consts.K",
    "pack/inner/__init__.py": "",
    "pack/inner/up.py": "from .. import consts\nK = consts.K",
    "pack/inner/far.py": "from ..consts import K",
    "pack/inner/both.py": "from pack.inner import far\nK = far.K",
    "stars/__init__.py": "__all__ = ['one']",
    "stars/one.py": "K = 2.0",
    "allof.py": "from stars import *\nK = one.K",
    "spaces/part.py": "K = 2.0",
}
# The body of a function, the changed file.
READS = {
    "module": ("import lone; return lone.K", "lone.py"),
    "module of a module": ("import reads; return reads.K", "lone.py"),
    "submodule of a from-list": ("from pack import sub; return sub.K", "pack/sub.py"),
    "renamed submodule": ("from pack import sub as s; return s.K", "pack/sub.py"),
    "one of two": ("from pack import consts, sub; return sub.K", "pack/sub.py"),
    "name of a submodule": ("from pack.sub import K; return K", "pack/sub.py"),
    "package of a submodule": ("import pack.sub; return pack.ROOT", "pack/__init__.py"),
    "relative import of a submodule": ("import pack.deep; return pack.deep.K", "pack/consts.py"),
    "relative submodule": ("from pack import dotted; return dotted.K", "pack/consts.py"),
    "two dots": ("from pack.inner import up; return up.K", "pack/consts.py"),
    "two dots and a name": ("from pack.inner.far import K; return K", "pack/consts.py"),
    "chain": ("import pack.inner.both as b; return b.K", "pack/consts.py"),
    "inside a function of a module": ("from pack.late import k; return k()", "pack/consts.py"),
    "constant call": ("import importlib; return importlib.import_module('lone').K", "lone.py"),
    "constant call of a submodule": ("import importlib; return importlib.import_module('pack.deep').K", "pack/consts.py"),
    "relative call": ("import importlib as i; return i.import_module('.deep', 'pack').K", "pack/consts.py"),
    "keyword": ("import importlib as i; return i.import_module(name='lone').K", "lone.py"),
    "keyword package": ("import importlib as i; return i.import_module('.deep', package='pack').K", "pack/consts.py"),
    "two keywords": ("import importlib as i; return i.import_module(name='.deep', package='pack').K", "pack/consts.py"),
    "renamed after a variable": ("from importlib import import_module as load; n = 1; return load('lone').K * n", "lone.py"),
    "builtin": ("return __import__('lone').K", "lone.py"),
    "renamed call": ("from importlib import import_module as load; return load('lone').K", "lone.py"),
    "global renamed call": ("return fetch('lone').K", "lone.py"),
    "call in a module": ("import calls; return calls.K", "lone.py"),
    "star": ("import allof; return allof.K", "stars/one.py"),
    "folder without a file": ("from spaces import part; return part.K", "spaces/part.py"),
    "nested": ("return (lambda: __import__('reads').K)()", "lone.py"),
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    forget(before)


def forget(before: set[str]) -> None:
    for name in set(sys.modules) - before:
        del sys.modules[name]


def typed(body: str) -> Any:
    names: dict[str, Any] = {"__name__": "typed"}
    exec(f"from importlib import import_module as fetch\ndef entry():\n    {body}\n", names)
    return names["entry"]


def changed(path: Path) -> None:
    path.write_text(path.read_text().replace("2.0", "3.0") if "2.0" in path.read_text() else "K = 3.0\n")


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("kind", READS)
def test_a_module_that_a_function_imports_counts(kind: str, loaded: bool, tree: Path) -> None:
    body, file = READS[kind]
    entry, before = typed(body), set(sys.modules)
    if loaded:
        assert entry() == 2.0
    first = fingerprint(entry)
    assert "unverified" not in first and "unverifiable" not in first and fingerprint(typed(body)) == first
    (tree / "lone.py").write_text("# a comment\n" + (tree / "lone.py").read_text())
    assert fingerprint(entry) == first
    changed(tree / file)
    forget(before)
    importlib.invalidate_caches()
    assert entry() == 3.0
    assert fingerprint(entry)["whole"] != first["whole"]


@pytest.mark.parametrize("kind", [kind for kind in READS if "call" not in kind and "builtin" not in kind])
def test_other_modules_do_not_count(kind: str, tree: Path) -> None:
    first = fingerprint(typed(READS[kind][0]))
    (tree / "pack" / "unread.py").write_text("K = 1\n")
    (tree / "calls.py").write_text("K = 1\n")
    assert fingerprint(typed(READS[kind][0])) == first


@pytest.mark.parametrize("way", ["from . import consts", "from .consts import K", "from .deep import K"])
def test_a_relative_import_inside_a_helper_counts(way: str, tree: Path) -> None:
    read = "consts.K" if "consts" in way.split()[-1] else "K"
    (tree / "pack" / "helps.py").write_text(f"def k():\n    {way}\n    return {read}\n")
    helps = importlib.import_module("pack.helps")
    names: dict[str, Any] = {"__name__": "typed", "helps": helps}
    exec("def entry(): return helps.k()", names)
    assert names["entry"]() == 2.0
    first = fingerprint(names["entry"])
    assert "unverified" not in first
    changed(tree / "pack" / "consts.py")
    assert fingerprint(names["entry"])["whole"] != first["whole"]


UNKNOWN = {
    "computed": ("import importlib; return importlib.import_module('lo' + str('ne'))", "import_module"),
    "a variable": ("n = 'lone'; return __import__(n)", "__import__"),
    "a kept function": ("import importlib; f = importlib.import_module; return f('lone')", "import_module"),
    "a passed function": ("from importlib import import_module as load; n = 'lone'; return map(load, n)", "load"),
    "two passed names": ("from importlib import import_module as load; n = 'lone'\n    return min(load, n)", "load"),
    "after a variable": ("from importlib import import_module as load; n = 'lone'; return load(n)", "load"),
    "other keywords": ("import importlib as i; return i.import_module(package='pack', name='.deep')", "import_module"),
    "a loader": (
        "import importlib.util as u; return u.spec_from_file_location('lone', 'lone.py')",
        "spec_from_file_location",
    ),
    "run as a script": ("import runpy; return runpy.run_path('lone.py')", "run_path"),
    "absent": ("import no_such_module", "no_such_module"),
    "absent relative": ("from . import no_such", "module ."),
    "in a module": ("import picks", "import_module"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_an_import_by_a_computed_name_is_listed(kind: str, tree: Path) -> None:
    (tree / "picks.py").write_text("import importlib, sys\nK = importlib.import_module(sys.argv[0])\n")
    body, name = UNKNOWN[kind]
    parts = fingerprint(typed(body))
    assert name in parts["unverified"] and "unverifiable" not in parts


def test_installed_modules_count_by_version() -> None:
    one, two = (fingerprint(typed(body)) for body in ("import jax.numpy as j; return j", "import jax; return jax"))
    assert "unverified" not in one | two and not any(part.startswith("module") for part in one | two)
