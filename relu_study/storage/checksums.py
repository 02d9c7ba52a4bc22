"""Seals: whether what is read of a results folder is what was written there, and lies there. Files and NumPy only.

A raw file (tile or block) carries the SHA-256 of its own bytes in the comment of its zip archive, manifest.json that of all it
says as its last entry, and SHA256SUMS, which `sha256sum -c` reads too, has those of the CSV files beside it. All that is read is
data: arrays without pickle, strict JSON, text.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import math
import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.lib import format as npy

from relu_study.errors import UserError

SUMS = "SHA256SUMS"
CHECKSUMMED = tuple(f"{name}.csv" for name in ("runs", "experiments", "summary", "units", "survival", "cells", "verdicts"))
UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, ArithmeticError, EOFError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)
MAX_UNPACKED = 1 << 30  # bytes: an archive that unpacks to more, and to over 100 times its own size, is none of ours
_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")
_DIGEST = 64  # hexadecimal digits
_EMPTY = b"\0\0"  # the length of a zip archive's comment, its last two bytes where it has none
_LENGTH = _DIGEST.to_bytes(2, "little")


class CorruptFileError(UserError):
    """A file of a results folder that is not what was written there: its `path`, what it is not, the `reason`, the way out."""

    def __init__(self, path: Path, what: str, reason: object, hint: str) -> None:
        self.path, self.reason = path, one_line(reason)
        super().__init__(f"{path} {what} ({self.reason}); {hint}")


def one_line(text: object) -> str:
    """Any text as one line of at most 300 characters."""
    line = " ".join(str(text).split()) or type(text).__name__
    return line if len(line) <= 300 else f"{line[:297]}..."


# ------------------------------------------------------------------------------------- where it lies


def refuse_escaping_links(folder: Path) -> None:
    """Refuse a results folder in which a link leads out of it: what is read and written there would lie elsewhere."""
    home = folder.resolve()
    todo = [str(folder)]
    while todo:
        with contextlib.suppress(OSError), os.scandir(todo.pop()) as entries:  # gone meanwhile, or not to be entered
            for entry in entries:
                if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(home):
                    raise UserError(
                        f"{one_line(entry.path)} is a link that leads out of {folder}; put what it leads to in its place"
                    )
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)


def content(path: Path) -> bytes:
    """The bytes of a file; what is no file (a folder, a pipe) is a ValueError."""
    if not path.is_file():
        raise ValueError("it is no file")
    return path.read_bytes()


def quarantine(folder: Path, path: Path) -> Path:
    """Move a file of a results folder into its damaged/, beside what may lie there already; where it is now."""
    away = folder / "damaged"
    away.mkdir(exist_ok=True)
    for name in itertools.chain([path.name], (f"{path.stem}-{n}{path.suffix}" for n in range(2, 10**6))):
        if not os.path.lexists(away / name):
            path.rename(away / name)
            return away / name
    raise UserError(f"{away} is full of {path.name}; clear it up")


# ----------------------------------------------------------------------------------------- raw files


def with_checksum(archive: bytes) -> bytes:
    """A zip archive with the SHA-256 of its bytes as its comment; NumPy reads it as before."""
    assert archive.endswith(_EMPTY)
    return archive[:-2] + _LENGTH + hashlib.sha256(archive).hexdigest().encode()


class CheckedNpz:
    """The arrays of a raw file by name, each unpacked when it is asked for; ValueError where its bytes are not those sealed."""

    def __init__(self, path: Path) -> None:
        raw = content(path)
        body, length, digest = raw[: -_DIGEST - 2], raw[-_DIGEST - 2 : -_DIGEST], raw[-_DIGEST:]
        if not raw:
            raise ValueError("it is empty")
        if length != _LENGTH or not re.fullmatch(rb"[0-9a-f]{64}", digest):
            raise ValueError("it ends without a checksum: it is cut off, foreign, or of an earlier version")
        whole = hashlib.sha256(body)
        whole.update(_EMPTY)
        if whole.hexdigest().encode() != digest:
            raise ValueError("its checksum is of other bytes")
        self._archive = zipfile.ZipFile(io.BytesIO(raw))
        self._members = {member.filename.removesuffix(".npy"): member for member in self._archive.infolist()}
        if (size := sum(member.file_size for member in self._members.values())) > max(MAX_UNPACKED, 100 * len(raw)):
            raise ValueError(f"it unpacks to {size:,} bytes")

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __getitem__(self, name: str) -> np.ndarray:
        """Not `np.load`, which makes room for whatever size an array says it has."""
        if name not in self._members:
            raise ValueError(f"it has no {name}")
        size = self._members[name].file_size
        with self._archive.open(self._members[name]) as file:
            if npy.read_magic(file) != (1, 0):
                raise ValueError(f"its {name} is of another format")
            shape, fortran, kind = npy.read_array_header_1_0(file)
            size -= file.tell()
            if kind.hasobject or min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize != size:
                raise ValueError(f"the size of its {name} is not that of its shape")
            data = bytearray(file.read(size + 1))
            if len(data) != size:
                raise ValueError(f"its {name} is cut off")
        found = np.frombuffer(data, kind) if size else np.empty(0, kind)
        return found.reshape(shape[::-1]).T if fortran else found.reshape(shape)


# ---------------------------------------------------------------------------------------------- JSON


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name[:40]} is no number")


def _real(digits: str) -> float:
    return value if math.isfinite(value := float(digits)) else _refused(digits)


def _whole(digits: str) -> int:
    return value if len(digits) < 20 and abs(value := int(digits)) < 2**63 else _refused(digits)


def strict_json(text: str | bytes) -> Any:
    """What JSON says: ValueError for NaN and infinities, for whole numbers of 2^63 and beyond, and where it is too deep."""
    try:
        return json.loads(text, parse_constant=_refused, parse_float=_real, parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def with_archive_checksum(said: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data with the checksum of all of it as its last entry; ValueError for numbers that are not finite."""
    plain = json.loads(json.dumps(said, allow_nan=False))
    return {**plain, "checksum": _checksum(plain)}


def without_checksum(said: dict[str, Any], needed: bool) -> dict[str, Any]:
    """The data alone; ValueError where the checksum was made of other data, or is `needed` and not there."""
    rest = {name: value for name, value in said.items() if name != "checksum"}
    if "checksum" not in said and needed:
        raise ValueError("it has no checksum")
    if said.get("checksum", found := _checksum(rest)) != found:
        raise ValueError("its checksum is of other values: it was changed")
    return rest


def _checksum(plain: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, ensure_ascii=False).encode()).hexdigest()  # ValueError: half a character


# --------------------------------------------------------------------------------------- CSV files


def sums_of(folder: Path, names: Iterable[str] = CHECKSUMMED) -> str:
    """What SHA256SUMS should say of these CSV files of a results folder, as far as they are there."""
    paths = [folder / name for name in names]
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths if path.is_file())


def check_sum(path: Path, read: bytes) -> None:
    """Refuse (Damaged) a CSV file of other bytes than SHA256SUMS beside it lists; without one there is nothing to say."""
    sums = path.parent / SUMS
    if not os.path.lexists(sums):
        return
    hint = f"restore it, or make it with 'relu-study report {path.parent}' where raw/ is"
    try:
        listed = _listed(content(sums).decode().splitlines())
    except (OSError, ValueError) as error:
        raise CorruptFileError(sums, "is garbled", error, hint) from None
    if path.name not in listed:
        raise CorruptFileError(sums, "is garbled", f"it does not list {path.name}", hint)
    if listed[path.name] != hashlib.sha256(read).hexdigest():
        raise CorruptFileError(path, f"is not the file that {SUMS} lists", "its checksum is another", hint)


def _listed(lines: Iterable[str]) -> dict[str, str]:
    listed: dict[str, str] = {}
    for line in lines:
        found = _LINE.fullmatch(line)
        if found is None or found[2] not in CHECKSUMMED or found[2] in listed:
            raise ValueError(f"it has the line {line!r}")
        listed[found[2]] = found[1]
    return listed
