"""Data files of a study: paths whose content is part of a fingerprint."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path, PurePath
from types import CodeType, FrameType

from relu_study.errors import UserError

opened_by: dict[tuple[str, CodeType], dict[str, None]] = {}  # the data files of a function, by its file and code
read_for: dict[str, dict[str, None]] = {}  # calling file -> the files that it gave to functions of the package
moved: dict[str, str] = {}  # on a worker of a cluster: path on the driver -> path of the copy
other_folders: list[str] = []  # the current folder of the driver


class DataFile(str):
    """The path of a data file. A fingerprint counts its content, not its place."""

    __slots__ = ()

    def digest(self) -> str:
        """The hash of the content."""
        try:
            with open(self, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"data file {str(self)!r} cannot be read ({error.strerror}). Give the path of a file") from None


def data_file(path: str | PurePath) -> DataFile:
    """The path of a data file, with its content as a part of the fingerprint.

    A relative path starts at the current folder, or else at the folder of the calling Python file.
    """
    caller = sys._getframe(1)
    found = Path(path)
    if not found.is_absolute() and not found.exists():
        found = Path(caller.f_globals.get("__file__", ".")).parent / found
    found = _copy(path, found)
    if not found.is_file():
        raise UserError(f"no data file {str(path)!r}. Give the path of a file, absolute or from the folder of the study")
    opened_by.setdefault((caller.f_code.co_filename, caller.f_code), {})[str(found.resolve())] = None
    return DataFile(found.resolve())


def given_file(path: str | PurePath) -> Path:
    """The path of a file that user's code gives to a function of the package; on a worker of a cluster, that of its copy.

    Fingerprints do not count the file: the function's result is part of an entry.
    """
    found = _copy(path, Path(path))
    frame: FrameType | None = sys._getframe()
    while found.is_file() and frame is not None and (frame := frame.f_back) is not None:  # one caller is the user's file
        read_for.setdefault(frame.f_code.co_filename, {})[str(found.resolve())] = None
    return found


def _copy(path: str | PurePath, found: Path) -> Path:
    """The copy of a file of the driver; `found` if that is a file, or without a copy."""
    for folder in other_folders if not found.is_file() else ():
        found = Path(moved.get(os.path.normpath(os.path.join(folder, path)), found))
    return found
