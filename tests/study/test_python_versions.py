"""Fingerprints under strict warning filters, because newer Python versions warn more."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import pytest
from relu_study.study.fingerprint import fingerprint

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
