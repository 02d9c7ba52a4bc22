"""Checksums, strict JSON, and a check for symlinks out of the results folder. No JAX.

A raw file (tile or block) stores the SHA-256 of its bytes as the comment of its zip archive. manifest.json stores the checksum of
its entries as its last entry. SHA256SUMS lists the CSV files and is readable by `sha256sum -c`. Readers accept only data:
arrays without pickle, strict JSON and text.
"""

from __future__ import annotations

import contextlib
import functools
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
CHECKSUMMED = tuple(
    f"{name}.csv" for name in ("runs", "experiments", "summary", "units", "survival", "cells", "verdicts", "health")
)
UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, ArithmeticError, EOFError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)
MAX_UNPACKED = 1 << 30  # bytes: a larger unpacked size is refused if it also exceeds 100 times the archive's size
_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")
_DIGEST = 64  # hexadecimal digits
_EMPTY = b"\0\0"  # the last two bytes of a zip archive without a comment: the comment's length
_LENGTH = _DIGEST.to_bytes(2, "little")
_SIZES = 10  # bytes of an .npy member before its header: magic, version, and the length of the header


class CorruptFileError(UserError):
    """A file of a results folder whose contents differ from the written ones, with its `path` and the `reason`."""

    def __init__(self, path: Path, what: str, reason: object, hint: str) -> None:
        self.path, self.reason = path, one_line(reason)
        super().__init__(f"{path} {what} ({self.reason}). {sentence(hint)}")


def one_line(text: object) -> str:
    """Return any text as one line of at most 300 characters."""
    line = " ".join(str(text).split()) or type(text).__name__
    return line if len(line) <= 300 else f"{line[:297]}..."


def sentence(clause: str) -> str:
    """Return a clause as a sentence: with a capital letter and a full stop."""
    return f"{clause[:1].upper()}{clause[1:]}."


# ------------------------------------------------------------------------------------- paths


def refuse_escaping_links(folder: Path) -> None:
    """Raise UserError if a symlink in a results folder leads out of it: reads and writes would go elsewhere."""
    root = folder.resolve()
    pending = [str(folder)]
    while pending:
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:  # removed meanwhile, or without permission
            for entry in entries:
                if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(root):
                    raise UserError(f"{one_line(entry.path)} is a link that leads out of {folder}. Replace it by its target.")
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)


def content(path: Path) -> bytes:
    """Return the bytes of a regular file. Raises ValueError for anything else (a folder, a pipe)."""
    if not path.is_file():
        raise ValueError("it is not a regular file")
    return path.read_bytes()


def quarantine(folder: Path, path: Path) -> Path:
    """Move a file of a results folder into its damaged/, under a free name. Returns the new path."""
    target = folder / "damaged"
    target.mkdir(exist_ok=True)
    for name in itertools.chain([path.name], (f"{path.stem}-{n}{path.suffix}" for n in range(2, 10**6))):
        if not os.path.lexists(target / name):
            path.rename(target / name)
            return target / name
    raise UserError(f"{target} has no free name for {path.name}. Remove old files from it.")


# ----------------------------------------------------------------------------------------- raw files


def with_archive_checksum(archive: bytes) -> bytes:
    """Return a zip archive with the SHA-256 of its bytes as its comment. `np.load` still reads it."""
    assert archive.endswith(_EMPTY)
    return archive[:-2] + _LENGTH + hashlib.sha256(archive).hexdigest().encode()


class CheckedNpz:
    """Arrays of a raw file by name, each unpacked on access. Raises ValueError if the checksum does not match."""

    def __init__(self, path: Path) -> None:
        raw = content(path)
        body, length, digest = raw[: -_DIGEST - 2], raw[-_DIGEST - 2 : -_DIGEST], raw[-_DIGEST:]
        if not raw:
            raise ValueError("it is empty")
        if length != _LENGTH or not re.fullmatch(rb"[0-9a-f]{64}", digest):
            raise ValueError("it ends without a checksum: it is truncated, foreign, or of an earlier version")
        computed = hashlib.sha256(body)
        computed.update(_EMPTY)
        if computed.hexdigest().encode() != digest:
            raise ValueError("its checksum does not match its contents")
        self._archive = zipfile.ZipFile(io.BytesIO(raw))
        self._members = {member.filename.removesuffix(".npy"): member for member in self._archive.infolist()}
        if (size := sum(member.file_size for member in self._members.values())) > max(MAX_UNPACKED, 100 * len(raw)):
            raise ValueError(f"it unpacks to {size:,} bytes")

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __getitem__(self, name: str) -> np.ndarray:
        """Read one array. `np.load` is avoided because it allocates the size that the header declares."""
        if name not in self._members:
            raise ValueError(f"it has no {name}")
        declared = self._members[name].file_size
        with self._archive.open(self._members[name]) as file:
            member = file.read(declared + 1)
        if len(member) != declared:
            raise ValueError(f"its {name} is truncated")
        start = _SIZES + int.from_bytes(member[_SIZES - 2 : _SIZES], "little")
        if (header := _parsed(member[:start])) is None:
            raise ValueError(f"its {name} has another format")
        shape, fortran, dtype = header
        if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != declared - start:
            raise ValueError(f"the size of its {name} does not match its shape")
        values = np.frombuffer(bytearray(memoryview(member)[start:]), dtype) if declared > start else np.empty(0, dtype)
        return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)


@functools.lru_cache(maxsize=1024)  # the arrays of a study have few distinct headers, and parsing one takes 0.1 ms
def _parsed(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]] | None:
    """Return shape, order and dtype of an .npy header, or None if its version is not 1.0. Raises ValueError for other bytes."""
    file = io.BytesIO(header)
    return npy.read_array_header_1_0(file) if npy.read_magic(file) == (1, 0) else None


# ---------------------------------------------------------------------------------------------- JSON


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name[:40]} is not a valid number")


def _real(digits: str) -> float:
    return value if math.isfinite(value := float(digits)) else _refused(digits)


def _whole(digits: str) -> int:
    return value if len(digits) < 20 and abs(value := int(digits)) < 2**63 else _refused(digits)


def strict_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError for NaN, infinities, integers of 2^63 or more, and too deep nesting."""
    try:
        return json.loads(text, parse_constant=_refused, parse_float=_real, parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def with_checksum(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data with its checksum as the last entry. Raises ValueError for nonfinite numbers."""
    plain = json.loads(json.dumps(entries, allow_nan=False))
    return {**plain, "checksum": _checksum(plain)}


def without_checksum(entries: dict[str, Any], needed: bool) -> dict[str, Any]:
    """Return the data without its checksum. Raises ValueError if it does not match, or is `needed` and missing."""
    data = {name: value for name, value in entries.items() if name != "checksum"}
    if "checksum" not in entries and needed:
        raise ValueError("it has no checksum")
    if entries.get("checksum", computed := _checksum(data)) != computed:
        raise ValueError("its checksum does not match its entries: it was changed")
    return data


def _checksum(plain: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, ensure_ascii=False).encode()).hexdigest()  # ValueError for a lone surrogate


# --------------------------------------------------------------------------------------- CSV files


def sums_of(folder: Path, names: Iterable[str] = CHECKSUMMED) -> str:
    """Return the lines of SHA256SUMS for those of these CSV files that exist."""
    paths = [folder / name for name in names]
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths if path.is_file())


def check_sum(path: Path, read: bytes) -> None:
    """Raise CorruptFileError if the bytes of a CSV file do not match SHA256SUMS. Without SHA256SUMS nothing is checked."""
    sums = path.parent / SUMS
    if not os.path.lexists(sums):
        return
    hint = f"restore it, or rebuild it with 'relu-study report {path.parent}' if raw/ exists"
    try:
        listed = _listed(content(sums).decode().splitlines())
    except (OSError, ValueError) as error:
        raise CorruptFileError(sums, "is corrupt", error, hint) from None
    if path.name not in listed:
        raise CorruptFileError(sums, "is corrupt", f"it does not list {path.name}", hint)
    if listed[path.name] != hashlib.sha256(read).hexdigest():
        raise CorruptFileError(path, f"does not match {SUMS}", "its checksum differs", hint)


def _listed(lines: Iterable[str]) -> dict[str, str]:
    listed: dict[str, str] = {}
    for line in lines:
        fields = _LINE.fullmatch(line)
        if fields is None or fields[2] not in CHECKSUMMED or fields[2] in listed:
            raise ValueError(f"its line {line!r} is invalid")
        listed[fields[2]] = fields[1]
    return listed
