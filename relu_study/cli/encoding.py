"""What a person reads on a stream that is not UTF-8: plain substitutes for letters that its encoding lacks."""

from __future__ import annotations

import codecs
import logging
import os
import shlex
import sys
import unicodedata
import warnings
from collections.abc import Sequence
from typing import Any

SUBSTITUTES = {
    **{"±": "+-", "≈": "~", "◦": "o", "•": "*", "†": "+", "→": "->", "←": "<-", "∞": "inf", "≠": "!=", "≤": "<=", "≥": ">="},
    **{"\N{MINUS SIGN}": "-", "\N{HYPHEN}": "-", "\N{EN DASH}": "-", "\N{EM DASH}": "-", "…": "...", "·": "."},
    **{"\N{MULTIPLICATION SIGN}": "x", "\N{LEFT SINGLE QUOTATION MARK}": "'", "\N{RIGHT SINGLE QUOTATION MARK}": "'"},
    **{"\N{LEFT DOUBLE QUOTATION MARK}": '"', "\N{RIGHT DOUBLE QUOTATION MARK}": '"'},
}
PLAIN = "relu_study.plain"


def quiet() -> None:
    """Keep warnings of libraries from a person who can do nothing about them; one who sets Python's -W sees them all."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # of XLA and absl, read when they are imported


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
