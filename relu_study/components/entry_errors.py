"""One-line errors of registered entries, with file and line, and detection of out-of-memory errors."""

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

# Texts in XLA's out-of-memory messages. YNNPACK, which computes products on CPUs, reports only a failed operation.
OOM_MESSAGES = ("resource_exhausted", "out of memory", "out_of_memory", "bad_alloc", "ynnpack operation failed")
TRACEBACK_HINT = " (--traceback shows the whole error)."
MAX_CHARACTERS = 200  # of an exception's first line
PATHS = sysconfig.get_paths()
INSTALLED = tuple({str(Path(PATHS[name]).resolve()) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
PACKAGE = str(Path(__file__).resolve().parents[1]) + os.sep


def out_of_memory_reason(error: BaseException) -> str:
    """Return the first line of an out-of-memory error. Empty for any other error."""
    if isinstance(error, MemoryError):
        return f"MemoryError: {error}" if str(error) else "MemoryError"
    text = str(error).strip()
    if isinstance(error, RuntimeError) and any(message in text.lower() for message in OOM_MESSAGES):
        return text.partition("\n")[0]
    return ""


@contextlib.contextmanager
def calling(what: str, entry: Any = None) -> Iterator[None]:
    """Raise an exception of an entry as a one-line UserError with file and line. Keeps the cause.

    Out-of-memory errors pass, because the caller may continue with less memory.

    Args:
      what: the entry in messages.
      entry: the entry's function. Its definition is named if no line of the user's code is known.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if out_of_memory_reason(error):
            raise
        place = _callback_place(error) or _traceback_place(error) or _definition_place(entry)
        raise UserError(f"{what} raises {_summary(error)}{_place_and_action(place)}{TRACEBACK_HINT}") from error


@contextlib.contextmanager
def entry_errors() -> Iterator[None]:
    """Raise an exception of a user's code as a one-line UserError with file and line. Other exceptions pass."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        place = _callback_place(error) if _is_from_xla(error) else _traceback_place(error)
        if not place or out_of_memory_reason(error):
            raise
        raise UserError(f"a study's own code raises {_summary(error)}{_place_and_action(place)}{TRACEBACK_HINT}") from error


def _is_from_xla(error: BaseException) -> bool:
    return type(error).__name__ == "JaxRuntimeError"


def _place_and_action(place: str) -> str:
    """Return the end of a message: the place of the error, then the action."""
    return f"{place}. Correct it there" if place else ". Correct it, or register another entry"


def _summary(error: BaseException) -> str:
    """Return the type and the first line of an exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if _is_from_xla(error) and lines:  # XLA puts the message of a callback's exception last
        return lines[-1][:MAX_CHARACTERS]
    return type(error).__name__ + (f": {lines[0][:MAX_CHARACTERS]}" if lines else "")


def _is_user_file(filename: str) -> bool:
    """Return whether a file belongs neither to this package, nor to Python, nor to an installed package."""
    path = str(Path(filename).resolve())
    return not filename.startswith("<") and not path.startswith((PACKAGE, *INSTALLED)) and "site-packages" not in path


def _traceback_place(error: BaseException) -> str:
    """Return the innermost line of the user's code in a traceback. Empty if there is none."""
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if _is_user_file(_source_file(frame.f_code, frame.f_globals))
    ]
    return f" ({frames[-1][0]}, line {frames[-1][1]})" if frames else ""


def _source_file(code: Any, names: Mapping[str, Any]) -> str:
    """Return the file of a frame. Code without a file, as generated code, belongs to the file of its module.

    Code typed at a prompt counts as a user's file.
    """
    if not code.co_filename.startswith("<"):
        return code.co_filename
    module = sys.modules.get(str(names.get("__name__", "__main__")).partition(".")[0])
    return getattr(module, "__file__", None) or ("<frozen>" if "frozen" in code.co_filename else "prompt")


def _callback_place(error: BaseException) -> str:
    """Return the place of an exception inside a callback. XLA reports the callback's traceback as text."""
    if not _is_from_xla(error):
        return ""
    frames = [(file, line) for file, line in re.findall(r'File "([^"]+)", line (\d+)', str(error)) if _is_user_file(file)]
    return f" ({frames[-1][0]}, line {frames[-1][1]})" if frames else ""


def _definition_place(entry: Any) -> str:
    """Return the first line of a user's function. Empty for any other entry."""
    code = getattr(entry, "__code__", None)
    return f" ({code.co_filename}, line {code.co_firstlineno})" if code is not None and _is_user_file(code.co_filename) else ""
