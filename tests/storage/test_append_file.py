"""An append is whole or absent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from relu_study.errors import UserError
from relu_study.storage.append_file import AppendFile


def test_appends_follow_each_other_and_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old")
    file = AppendFile(path)
    file.append(b"+one")
    file.append(b"+two")
    assert path.read_bytes() == b"old+one+two" and file.size == 11
    file.cut(3)
    assert AppendFile(path).size == 3


@pytest.mark.parametrize("written", [0, 1, 3])
def test_a_failed_append_leaves_nothing(written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, write, left = AppendFile(tmp_path / "log"), os.write, [written]
    file.append(b"first")

    def until_full(handle: int, block: Any) -> int:
        if not left[0]:
            raise OSError(28, os.strerror(28))
        left[0] -= 1
        return write(handle, bytes(block)[:1])

    with monkeypatch.context() as full:
        full.setattr(os, "write", until_full)
        with pytest.raises(UserError, match="No space left on device"):
            file.append(b"second")
    assert (tmp_path / "log").read_bytes() == b"first"
    file.append(b"second")
    assert (tmp_path / "log").read_bytes() == b"firstsecond"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        AppendFile(tmp_path / "missing" / "log").append(b"x")
