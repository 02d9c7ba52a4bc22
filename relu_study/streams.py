"""What a person reads on a stream that is not UTF-8: plain substitutes for letters that its encoding lacks."""

from __future__ import annotations

import codecs
import contextlib
import logging
import os
import shlex
import sys
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

SUBSTITUTES = {
    **{"±": "+-", "≈": "~", "◦": "o", "•": "*", "†": "+", "→": "->", "←": "<-", "∞": "inf", "≠": "!=", "≤": "<=", "≥": ">="},
    **{"\N{MINUS SIGN}": "-", "\N{HYPHEN}": "-", "\N{EN DASH}": "-", "\N{EM DASH}": "-", "…": "...", "·": "."},
    **{"\N{MULTIPLICATION SIGN}": "x", "\N{LEFT SINGLE QUOTATION MARK}": "'", "\N{RIGHT SINGLE QUOTATION MARK}": "'"},
    **{"\N{LEFT DOUBLE QUOTATION MARK}": '"', "\N{RIGHT DOUBLE QUOTATION MARK}": '"'},
}
OF_LIBRARIES = (  # warnings of JAX on matters that this package has decided, as patterns of their texts
    "Explicitly requested dtype",  # of a user's entry: its numbers become those of the precision in use
    "Some donated buffers were not usable",
    "Error (reading|writing) persistent compilation cache entry",  # another process is writing it: the program is compiled
)
PLAIN = "relu_study.plain"
PRINTED: Any = {
    **{"precision": 8, "threshold": 1000, "edgeitems": 3, "linewidth": 75, "suppress": False, "nanstr": "nan", "infstr": "inf"},
    **{"formatter": None, "sign": "-", "floatmode": "maxprec", "legacy": False},
}


@contextlib.contextmanager
def numpy_defaults() -> Iterator[None]:
    """NumPy's settings as they first are, as a context or a decorator: a user's own stop no function of ours."""
    with np.errstate(divide="warn", over="warn", invalid="warn", under="ignore"), np.printoptions(**PRINTED):
        yield


def quiet() -> None:
    """Keep warnings of libraries from a person who can do nothing about them; one who sets Python's -W sees them all."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # of XLA and absl, read when they are imported


@contextlib.contextmanager
def no_library_warnings() -> Iterator[None]:
    """Leave out warnings of libraries that a user can do nothing about; a user's own stay, as all do with Python's -W."""
    with warnings.catch_warnings():
        for text in () if sys.warnoptions else OF_LIBRARIES:
            warnings.filterwarnings("ignore", text)
        yield


def substitute(letter: str) -> str:
    """ASCII for one letter: its substitute, the letter without its accents, or its number."""
    if letter in SUBSTITUTES:
        return SUBSTITUTES[letter]
    bare = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return bare or letter.encode("ascii", "backslashreplace").decode()


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    if all("\udc80" <= letter <= "\udcff" for letter in letters):  # bytes of a file's name, as the system gave them
        return bytes(ord(letter) - 0xDC00 for letter in letters), error.end
    return "".join(map(substitute, letters)), error.end


codecs.register_error(PLAIN, _plain)


def use_utf8() -> None:
    """Start the command once more where the system's own encoding cannot name every file, with the streams as they are.

    Without this a POSIX locale refuses files of names in most scripts.
    """
    if os.name == "posix" and not sys.flags.utf8_mode and codecs.lookup(sys.getfilesystemencoding()).name != "utf-8":
        environment = {"PYTHONIOENCODING": sys.stdout.encoding, **os.environ}
        os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]], environment)


def as_typed(words: Sequence[str]) -> str:
    """A command as text that a file can hold, also where a word has bytes that are no text."""
    return shlex.join(words).encode("utf-8", "backslashreplace").decode()


def write_plainly(*streams: Any) -> None:
    """Make streams substitute what their encoding lacks; without any, the process's own two."""
    for stream in streams or (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=PLAIN)
