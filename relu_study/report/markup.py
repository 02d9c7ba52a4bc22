"""Numbers, names and tables as Markdown and LaTeX."""

from __future__ import annotations

import contextlib
import math
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pandas as pd

from relu_study.storage.csv_files import csv_text

_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$"}
    | {"±": r"$\pm$", "†": r"$^\dagger$", "≈": r"$^{\approx}$", "◦": r"$^{\circ}$", "•": r"$^{\bullet}$"}
)
_CAPITAL = ("GAMMA", "DELTA", "THETA", "LAMBDA", "XI", "PI", "SIGMA", "UPSILON", "PHI", "PSI", "OMEGA")
_GREEK = (*_CAPITAL, *("ALPHA", "BETA", "EPSILON", "ZETA", "ETA", "IOTA", "KAPPA", "MU", "NU", "RHO", "TAU", "CHI"))
_SYMBOLS = {"≤": "le", "≥": "ge", "≠": "ne", "→": "to", "∞": "infty", "\N{MINUS SIGN}": "-"}  # no letters in a stock TeX
STYLER = {  # pandas' defaults for LaTeX output
    **{f"styler.format.{name}": None for name in ("thousands", "na_rep", "escape", "formatter")},
    **{"styler.format.decimal": ".", "styler.format.precision": 6, "styler.sparse.index": True, "styler.sparse.columns": True},
    **{"styler.latex.environment": None, "styler.latex.hrules": False, "styler.render.encoding": "utf-8"},
    **{"styler.latex.multirow_align": "c", "styler.latex.multicol_align": "r"},
}
NEAR, BETTER, WORSE = "≈", "◦", "•"  # marks of a table entry


@dataclass(frozen=True)
class RenderedTable:
    """A table as text: rows, bold (row, column) positions, number of left-aligned columns, and the note below it."""

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold: set[tuple[int, int]]
    left: int
    note: str


def table_files(name: str, frame: pd.DataFrame, shown: RenderedTable, options: Collection[str] = ()) -> dict[str, str]:
    """Return the texts of a table's files, by suffix: the frame as CSV, and the rendered table as Markdown and LaTeX.

    `options` are the columns of the frame with the values of options.
    """
    return {"csv": csv_text(frame, options), "md": markdown_table(shown), "tex": latex_table(shown, f"tab:{name}")}


def format_mean_ci(mean: float, half: float) -> str:
    """Return a mean and its half width, both to the second digit of the half width: "0.312 ± 0.043".

    Sizes outside [1e-3, 1e5) have an exponent: "(1.20 ± 0.15)e-05". Without a half width (NaN) the mean has three digits.
    """
    size = max(abs(mean), 0 if math.isnan(half) else half)
    if math.isnan(half) or not math.isfinite(size):
        return f"{mean:.3g}"
    if size > 0 and not 1e-3 <= size < 1e5:
        exponent = math.floor(math.log10(size))
        return f"({format_mean_ci(mean / 10**exponent, half / 10**exponent)})e{exponent:+03d}"
    if half == 0:
        return f"{mean:.4g} ± 0"
    digits = min(max(1 - math.floor(math.log10(half)), 0), 6)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun in singular or plural: "1 run", "1,200 runs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def markdown_text(text: str) -> str:
    """Return text with Markdown's special characters escaped."""
    marks = r"[\\`*|]|<(?=[\w/!?])|\](?=[(\[])|(?<!\w)_|_(?!\w)"
    return re.sub(marks, lambda found: f"\\{found.group()}", text.replace("\n", " "))


def markdown_grid(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Return a Markdown table. The first `left` columns are left-aligned, the others right-aligned."""
    rule = ["---" if i < left else "---:" for i in range(len(headers))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (headers, rule, *rows))


def markdown_table(shown: RenderedTable) -> str:
    """Return caption, table and note as Markdown."""
    rows = [
        [f"**{markdown_text(text)}**" if (k, i) in shown.bold else markdown_text(text) for i, text in enumerate(row)]
        for k, row in enumerate(shown.rows)
    ]
    grid = markdown_grid([markdown_text(header) for header in shown.headers], rows, shown.left)
    return f"**{markdown_text(shown.caption)}**\n\n{grid}\n\n{markdown_text(shown.note)}\n"


def latex_text(text: str) -> str:
    """Return text for LaTeX: special characters escaped, minus signs and exponents in math mode."""
    text = re.sub(r"^(?=[\[*])", "{}", " ".join(text.split()))  # LaTeX parses [ and * at the start of a row
    text = re.sub(rf"(?<=[\d\])]) (?=[{NEAR}{BETTER}{WORSE}])", "", text)  # superscript marks follow their number directly
    text = re.sub(r"(?<![\w$])-(?=\d)", "$-$", text.translate(_LATEX))
    text = re.sub(r"[^\x00-\xff]", lambda found: _symbol(found[0]), text)
    return re.sub(r"(?<=[\d)])e([+-]\d\d+)\b", lambda found: rf"$\times 10^{{{int(found[1])}}}$", text)


def _symbol(letter: str) -> str:
    """Return a Greek letter or sign in math mode, and any other letter unchanged."""
    alphabet, _, name = unicodedata.name(letter, "").partition(" LETTER ")
    name = name.replace("LAMDA", "LAMBDA")  # Unicode's spelling
    if alphabet == "GREEK SMALL" and name in _GREEK:
        return f"$\\{name.lower()}$"
    if alphabet == "GREEK CAPITAL" and name in _CAPITAL:
        return f"$\\{name.capitalize()}$"
    sign = _SYMBOLS.get(letter, "")
    return f"$\\{sign}$" if sign.isalpha() else sign or letter


def latex_table(shown: RenderedTable, label: str) -> str:
    """Return a LaTeX table with caption, note and label. It needs only the package booktabs."""
    cells = [
        [rf"\textbf{{{latex_text(text)}}}" if (k, i) in shown.bold else latex_text(text) for i, text in enumerate(row)]
        for k, row in enumerate(shown.rows)
    ]
    caption = f"{latex_text(shown.caption)}{'' if shown.caption.endswith(('.', '?', '!')) else '.'} {latex_text(shown.note)}"
    with contextlib.ExitStack() as stack:
        for name, value in STYLER.items():  # independent of a user's pandas options
            stack.enter_context(pd.option_context(name, value))
        style = pd.DataFrame(cells, columns=[latex_text(header) for header in shown.headers]).style.hide(axis="index")
        return style.to_latex(
            hrules=True,
            caption=caption,
            label=label,
            position="tbp",
            position_float="centering",
            column_format="l" * shown.left + "r" * (len(shown.headers) - shown.left),
        )
