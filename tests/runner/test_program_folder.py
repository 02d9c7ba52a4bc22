"""The folder of compiled programs: one for each version of the sources and libraries, and no damaged program."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import relu_study
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


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of one module per traced folder and an installed library, imported a minute after they were written."""
    for name in program_folder.TRACED:
        (tmp_path / "package" / name).mkdir(parents=True)
        (tmp_path / "package" / name / "module.py").write_text("x = 1\n")
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "__init__.py").write_text("y = 1\n")
    monkeypatch.setattr(program_folder, "__file__", str(tmp_path / "package" / "runner" / "program_folder.py"))
    monkeypatch.setattr(program_folder, "LIBRARIES", (SimpleNamespace(__file__=str(tmp_path / "library" / "__init__.py")),))
    monkeypatch.setattr(relu_study, "IMPORTED", time.time() + 60)
    return tmp_path


def test_other_sources_and_libraries_have_other_folders(package: Path) -> None:
    first = cache_folder(package)
    assert cache_folder(package) == first and program_folder.program_folder(first) is not None
    folders = [first]
    for source in ("package/engine/module.py", "library/__init__.py"):  # an edit in place leaves the version as it is
        (package / source).write_text("x = 2\n")
        program_folder._version.cache_clear()
        folders.append(cache_folder(package))
    assert len(set(folders)) == 3


@pytest.mark.parametrize("source", ["package/components/module.py", "library/__init__.py"])
def test_no_program_is_stored_for_sources_newer_than_the_import(
    package: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """The modules of this process may be older than the sources that the hash would be taken from."""
    os.utime(package / source, (0, 0))  # as an installation that keeps the times of an archive
    monkeypatch.setattr(relu_study, "IMPORTED", (package / source).stat().st_ctime - 0.001)
    assert program_folder.program_folder(cache_folder(package)) is None


def test_after_an_edit_no_program_is_read_or_stored(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that are loaded again, as by autoreload, are newer than the hash of the folder."""
    folder = program_folder.program_folder(cache_folder(package))
    assert folder is not None
    folder.put("one", b"code")
    assert folder.get("one") == b"code"
    monkeypatch.setattr(relu_study, "IMPORTED", time.time() - 60)
    folder.put("two", b"code")
    assert folder.get("one") is None
    monkeypatch.setattr(relu_study, "IMPORTED", time.time() + 60)
    assert folder.get("one") == b"code" and folder.get("two") is None


def test_a_package_in_an_archive_stores_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "archive.zip").write_bytes(b"")
    monkeypatch.setattr(program_folder, "__file__", str(tmp_path / "archive.zip" / "relu_study" / "runner" / "program_folder.py"))
    assert program_folder.program_folder(cache_folder(tmp_path)) is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners of files")
def test_programs_that_other_users_can_write_are_not_read(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To read a program is to run code."""
    folder = cache_folder(package)
    assert program_folder.program_folder(folder) is not None
    folder.chmod(0o770)
    assert program_folder.program_folder(folder) is None
    folder.chmod(0o755)
    assert program_folder.program_folder(folder) is not None
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    assert program_folder.program_folder(folder) is None


def test_a_program_that_no_one_uses_is_deleted(package: Path) -> None:
    folder = program_folder.program_folder(cache_folder(package))
    assert folder is not None
    for name in ("old", "used"):
        folder.put(name, b"code")
        os.utime(folder.folder / name, (0, 0))
    assert folder.get("used") == b"code"
    for name, days in (("jit_old-cache", DAYS + 1), ("jit_recent-cache", DAYS - 1)):
        (folder.folder.parent / name).write_bytes(b"")
        os.utime(folder.folder.parent / name, (time.time() - days * 24 * 3600,) * 2)
    cache_folder(package)
    assert {path.name for path in folder.folder.parent.rglob("*")} == {"programs", "used", "jit_recent-cache"}


def test_a_folder_that_no_one_uses_is_deleted(tmp_path: Path) -> None:
    old, recent = tmp_path / "xla-old", tmp_path / "xla-recent"
    for folder, days in ((old, DAYS + 1), (recent, DAYS - 1)):
        (folder / "programs").mkdir(parents=True)
        os.utime(folder, (time.time() - days * 24 * 3600,) * 2)
    used = cache_folder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"xla-recent", used.name}
    os.utime(used, (0, 0))
    assert cache_folder(tmp_path).stat().st_mtime > time.time() - 60, "the start of a process is a use"
