"""Failures of registered entries in one line with file and line, and errors that report a lack of memory."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from relu_study.errors import UserError

# Signs of exhausted memory in XLA's messages. Its products on a CPU (YNNPACK) give no reason.
OOM_MESSAGES = ("resource_exhausted", "out of memory", "out_of_memory", "bad_alloc", "ynnpack operation failed")
WHOLE = " (--traceback shows the whole error)."
SHOWN = 200  # characters of an exception's first line
PATHS = sysconfig.get_paths()
INSTALLED = tuple({str(Path(PATHS[name]).resolve()) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
PACKAGE = str(Path(__file__).resolve().parents[1]) + os.sep


def out_of_memory_reason(error: BaseException) -> str:
    """The one-line reason of an out-of-memory error. Empty for any other error."""
    if isinstance(error, MemoryError):
        return f"MemoryError: {error}" if str(error) else "MemoryError"
    text = str(error).strip()
    if isinstance(error, RuntimeError) and any(sign in text.lower() for sign in OOM_MESSAGES):
        return text.partition("\n")[0]
    return ""


@contextlib.contextmanager
def calling(what: str, entry: Any = None) -> Iterator[None]:
    """Raise an exception of an entry, `what` in messages, as a UserError of one line with file and line. Keeps the cause."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if out_of_memory_reason(error):
            raise
        raise UserError(
            f"{what} raises {_summary(error)}{_correct(_callback(error) or _place(error) or _definition(entry))}{WHOLE}"
        ) from error


@contextlib.contextmanager
def entry_errors() -> Iterator[None]:
    """Raise an exception of a user's code as a UserError of one line with file and line. Other exceptions pass."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        from_xla = type(error).__name__ == "JaxRuntimeError"
        place = "" if out_of_memory_reason(error) else _callback(error) if from_xla else _place(error)
        if not place:
            raise
        raise UserError(f"a study's own code raises {_summary(error)}{_correct(place)}{WHOLE}") from error


def _correct(place: str) -> str:
    """The place and the action of a message."""
    return f"{place}. Correct it there" if place else ". Correct it, or register another entry"


def _summary(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if type(error).__name__ == "JaxRuntimeError" and lines:  # an exception inside a callback: its own text is the last line
        return lines[-1][:SHOWN]
    return type(error).__name__ + (f": {lines[0][:SHOWN]}" if lines else "")


def _own(filename: str) -> bool:
    """Whether a file belongs to the user: neither to this package nor to Python or an installed package."""
    path = str(Path(filename).resolve())
    return not filename.startswith("<") and not path.startswith((PACKAGE, *INSTALLED)) and "site-packages" not in path


def _place(error: BaseException) -> str:
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if _own(_source(frame.f_code, frame.f_globals))
    ]
    return f" ({frames[-1][0]}, line {frames[-1][1]})" if frames else ""


def _source(code: Any, names: Mapping[str, Any]) -> str:
    """The file of a frame. Code without a file (a prompt, generated code) belongs to the file of its module."""
    if not code.co_filename.startswith("<"):
        return code.co_filename
    module = sys.modules.get(str(names.get("__name__", "__main__")).partition(".")[0])
    return getattr(module, "__file__", None) or ("<frozen>" if "frozen" in code.co_filename else "prompt")


def _callback(error: BaseException) -> str:
    """The place of an exception inside a callback: XLA reports it as text with Python's traceback in it."""
    if type(error).__name__ != "JaxRuntimeError":
        return ""
    frames = [(file, line) for file, line in re.findall(r'File "([^"]+)", line (\d+)', str(error)) if _own(file)]
    return f" ({frames[-1][0]}, line {frames[-1][1]})" if frames else ""


def _definition(entry: Any) -> str:
    code = getattr(entry, "__code__", None)
    return f" ({code.co_filename}, line {code.co_firstlineno})" if code is not None and _own(code.co_filename) else ""
