"""Output in any locale: UTF-8 file names, and ASCII substitutes for characters that a stream cannot encode."""

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
    """Hide warnings of libraries, unless Python's -W is set."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA and absl read it on import


def substitute(character: str) -> str:
    """ASCII for one character: its substitute, the character without accents, or its escaped code point."""
    if character in SUBSTITUTES:
        return SUBSTITUTES[character]
    stripped = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return stripped or character.encode("ascii", "backslashreplace").decode()


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    if all("\udc80" <= character <= "\udcff" for character in characters):  # undecodable bytes of a file name
        return bytes(ord(character) - 0xDC00 for character in characters), error.end
    return "".join(map(substitute, characters)), error.end


codecs.register_error(PLAIN, _plain)


def use_utf8() -> None:
    """Restart the command in UTF-8 mode if the file system encoding is not UTF-8. The encodings of the streams stay.

    Otherwise the C and POSIX locales refuse most non-ASCII file names.
    """
    if os.name == "posix" and not sys.flags.utf8_mode and codecs.lookup(sys.getfilesystemencoding()).name != "utf-8":
        environment = {"PYTHONIOENCODING": sys.stdout.encoding, **os.environ}
        os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]], environment)


def as_typed(words: Sequence[str]) -> str:
    """A command as valid UTF-8 text, with undecodable bytes escaped."""
    return shlex.join(words).encode("utf-8", "backslashreplace").decode()


def write_plainly(*streams: Any) -> None:
    """Make streams (default: stdout and stderr) substitute characters that they cannot encode."""
    for stream in streams or (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=PLAIN)
