"""Fingerprints of every kind of dependency of a function: a changed dependency counts, moved code does not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from entry_kinds import kinds
from paths import ROOT
from tiers import tiered

from relu_study.study.fingerprint import fingerprint

KINDS = kinds()
LOADS = ("file", "prompt", "no module", "main")


def loaded(source: str, folder: Path, how: str) -> dict[str, str]:
    """The fingerprint of `entry` in a module from a file, or in code without one."""
    if how == "file":
        folder.mkdir(exist_ok=True)
        path = folder / "kind_of_test.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("kind_of_test", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["kind_of_test"] = module
        try:
            exec(
                compile(source, str(path), "exec", dont_inherit=True), vars(module)
            )  # not by the loader, which may read stale bytecode
            return fingerprint(module.entry)
        finally:
            del sys.modules["kind_of_test"]
    names: dict[str, Any] = {"prompt": {"__name__": "typed"}, "no module": {}, "main": {"__name__": "__main__"}}[how]
    exec(compile(source, "<prompt>", "exec", dont_inherit=True), names)
    return fingerprint(names["entry"])


@pytest.mark.parametrize("how", tiered(LOADS, "file"))
@pytest.mark.parametrize("kind", KINDS)
def test_changed_dependency_counts_and_moved_code_does_not(kind: str, how: str, tmp_path: Path) -> None:
    source, old, new = KINDS[kind]
    if "__name__]" in source and how != "file":
        pytest.skip("code without a module cannot name it")
    assert old in source
    first = loaded(source, tmp_path / "one", how)
    assert "unverifiable" not in first
    assert loaded(source.replace(old, new), tmp_path / "one", how)["whole"] != first["whole"]
    assert loaded("# a comment\n\n\n" + source, tmp_path / "two", how) == first


ALL = """
import json, sys, tempfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_entry_kinds import KINDS, loaded
folder = Path(tempfile.mkdtemp())
print(json.dumps({name: loaded(source, folder, "file") for name, (source, _, _) in KINDS.items()}, sort_keys=True))
"""


@pytest.mark.slow
def test_every_process_agrees_about_every_kind() -> None:
    said = set()
    for seed in ("1", "2"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")]),
        }
        command = [sys.executable, "-c", ALL, str(Path(__file__).parent)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        said.add(done.stdout)
    assert len(said) == 1


FILES = {
    "text": "P = str(data_file('d.csv'))\ndef entry(): return np.loadtxt(P)",
    "path": "P = pathlib.Path(data_file('d.csv'))\ndef entry(): return np.loadtxt(P)",
    "closure": "def made(p): return lambda: np.loadtxt(p)\nentry = made(data_file('d.csv'))",
    "default": "def entry(p=data_file('d.csv')): return np.loadtxt(p)",
    "in a dict": "C = {'p': data_file('d.csv')}\ndef entry(): return np.loadtxt(C['p'])",
    "method": "class K:\n  def __call__(self): return np.loadtxt(data_file('d.csv'))\nentry = K()",
    "state": "class K:\n  def __init__(self): self.p = data_file('d.csv')\n"
    "  def __call__(self): return np.loadtxt(self.p)\nentry = K()",
    "cached": "@functools.cache\ndef f(): return np.loadtxt(data_file('d.csv'))\ndef entry(): return f()",
    "partial": "f = functools.partial(np.loadtxt, data_file('d.csv'))\ndef entry(): return f()",
    "nested": "def entry():\n  def g(): return np.loadtxt(data_file('d.csv'))\n  return g()",
    "mapped": "def entry(): return list(map(data_file, ['d.csv']))",
    "helper": "def get(name): return data_file(name)\ndef entry(): return np.loadtxt(get('d.csv'))",
}


@pytest.mark.parametrize("kind", FILES)
def test_data_file_counts_by_content(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def of(content: str) -> dict[str, str]:
        Path("d.csv").write_text(content)
        names: dict[str, Any] = {"__name__": "typed"}
        head = "import functools, pathlib\nimport numpy as np\nfrom relu_study import data_file\n"
        exec(compile(head + FILES[kind], str(tmp_path / "typed.py"), "exec", dont_inherit=True), names)
        names["entry"]()
        return fingerprint(names["entry"])

    first = of("1\n")
    assert of("2\n")["whole"] != first["whole"] and of("1\n") == first
