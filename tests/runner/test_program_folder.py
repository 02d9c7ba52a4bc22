"""The folder of compiled programs: one for each version of the sources and libraries, and no damaged program."""

from __future__ import annotations

import importlib.metadata
import os
import time
from pathlib import Path

import pytest

from relu_study.runner import program_folder
from relu_study.runner.program_folder import DAYS, ProgramFolder, cache_folder


@pytest.fixture(autouse=True)
def new_version() -> None:
    program_folder._version.cache_clear()


def test_bytes_come_back_and_damage_is_no_program(tmp_path: Path) -> None:
    folder = ProgramFolder(tmp_path / "programs")
    assert folder.get("one") is None
    folder.put("one", b"machine code" * 99)
    assert folder.get("one") == b"machine code" * 99
    path = tmp_path / "programs" / "one"
    content = path.read_bytes()
    path.write_bytes(content[:-2])
    assert folder.get("one") is None
    path.write_bytes(content[:-2] + b"00")
    assert folder.get("one") is None


def test_an_unwritable_folder_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    folder = ProgramFolder(tmp_path / "file" / "programs")
    folder.put("one", b"")
    assert folder.get("one") is None


def test_other_sources_and_libraries_have_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache_folder(tmp_path)
    assert cache_folder(tmp_path) == first and program_folder.program_folder(first) is not None
    source = tmp_path / "package" / "runner" / "program_folder.py"
    for name in program_folder.TRACED:
        (tmp_path / "package" / name).mkdir(parents=True)
        (tmp_path / "package" / name / "module.py").write_text("x = 1\n")
    (tmp_path / "package" / "errors.py").write_text("")
    monkeypatch.setattr(program_folder, "__file__", str(source))
    folders = [first]
    for text in ("x = 1\n", "x = 2\n"):
        (tmp_path / "package" / "engine" / "module.py").write_text(text)
        program_folder._version.cache_clear()
        folders.append(cache_folder(tmp_path))
    monkeypatch.setattr(program_folder, "LIBRARIES", ("jax", "optax"))
    program_folder._version.cache_clear()
    folders.append(cache_folder(tmp_path))
    assert len(set(folders)) == 4


def test_no_program_is_stored_beside_an_edited_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Edited(importlib.metadata.PathDistribution):
        def read_text(self, filename: object) -> str | None:
            return '{"url": "file:///optax", "dir_info": {"editable": true}}' if filename == "direct_url.json" else None

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Edited(tmp_path))
    assert program_folder.program_folder(cache_folder(tmp_path)) is None


def test_a_folder_that_no_one_uses_is_deleted(tmp_path: Path) -> None:
    old, recent = tmp_path / "xla-old", tmp_path / "xla-recent"
    for folder, days in ((old, DAYS + 1), (recent, DAYS - 1)):
        (folder / "programs").mkdir(parents=True)
        os.utime(folder, (time.time() - days * 24 * 3600,) * 2)
    used = cache_folder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"xla-recent", used.name}
    os.utime(used, (0, 0))
    assert cache_folder(tmp_path).stat().st_mtime > time.time() - 60, "the start of a process is a use"
