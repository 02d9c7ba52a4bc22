"""The sites of a model as a printed table and as HTML."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from relu_study.diagnosis.finding import Finding

WIDTH = 100  # of a printed table, in characters
HEADERS = {
    "site": "site",
    "activation": "activation",
    "units": "units",
    "n": "n",
    "dead_fraction": "dead",
    "nearly_dead_fraction": "nearly\ndead",
    "always_on_fraction": "always\non",
    "saturated_fraction": "satu-\nrated",
    "dormant_fraction": "dor-\nmant",
    "zero_gradient_fraction": "zero\ngrad",
    "post_mean": "post\nmean",
    "post_std": "post\nstd",
    "grad_norm": "grad\nnorm",
    "zero_entries": "zero\nentry",
}
FULL = {"satu-\nrated": "saturated", "dor-\nmant": "dormant", "zero\ngrad": "zero gradient", "zero\nentry": "zero entries"}
NEEDS = {
    "always_on_fraction": "an activation with an identity piece",
    "saturated_fraction": "a smooth activation",
    "zero_gradient_fraction": "y and loss",
    "grad_norm": "y and loss",
}
SHARES = tuple(name for name in HEADERS if name.endswith("_fraction") or name == "zero_entries")
TEXTS = ("site", "activation")
NO_SITES = "no nonlinearity follows a product with a parameter or a convolution."
LONGEST_ACTIVATION = 15
LISTED_SITES, LISTED_UNITS = 8, 12  # in the list of dead units


def as_text(units: pd.DataFrame, sites: pd.DataFrame, findings: Sequence[Finding] = ()) -> str:
    """Return the sites as a table of at most 100 columns. Examples, dead units, columns left out and findings follow."""
    if sites.empty:
        return f"No sites: {NO_SITES}"
    columns = _shown(sites)
    cells = {name: [entry(name, value) for value in sites[name]] for name in columns}
    numbers = [name for name in columns if name not in TEXTS]
    left = WIDTH - sum(1 + _width([*HEADERS[name].split("\n"), *cells[name]]) for name in numbers) - len(TEXTS)
    cells["activation"] = [_folded(text, LONGEST_ACTIVATION) for text in cells["activation"]]
    left -= _width([HEADERS["activation"], *(line for text in cells["activation"] for line in text.split("\n"))])
    cells["site"] = [_folded(text, left) for text in cells["site"]]
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(HEADERS[name], justify="left" if name in TEXTS else "right", no_wrap=True, vertical="bottom")
    for row in zip(*cells.values(), strict=True):
        table.add_row(*map(Text, row))
    console = Console(width=WIDTH, color_system=None, force_terminal=False, force_jupyter=False)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().rstrip().split("\n")]
    lines.insert(max(HEADERS[name].count("\n") for name in columns) + 1, "─" * _width(lines))
    return "\n".join([*lines, "", *(textwrap.fill(note, WIDTH) for note in [*notes(units, sites), *finding_lines(findings)])])


def as_html(units: pd.DataFrame, sites: pd.DataFrame, findings: Sequence[Finding] = ()) -> str:
    """Return the table as HTML."""
    if sites.empty:
        return f"<p>No sites: {NO_SITES}</p>"
    shown = pd.DataFrame({_title(name): [entry(name, value) for value in sites[name]] for name in _shown(sites)})
    return shown.to_html(index=False, border=0) + "".join(
        f"<p>{html.escape(note)}</p>" for note in [*notes(units, sites), *finding_lines(findings)]
    )


def notes(units: pd.DataFrame, sites: pd.DataFrame) -> list[str]:
    """Return the lines below the table: the dead units by site, and the columns without an entry."""
    lines = [f"n = {sites['n'].iloc[0]:,} examples."] if sites["n"].nunique() == 1 else []
    dead = units[units["dead"].fillna(False).astype(bool)]
    by_site = {str(site): list(rows["unit"]) for site, rows in dead.groupby("site", sort=False)}
    unknown = int(units["dead"].isna().sum())
    if unknown < len(units):
        lines.append(f"Dead units: {_listed(by_site)}." if by_site else "No dead units.")
    if unknown:
        lines.append(f"Units without a measurement: {unknown:,}. They have a nonfinite entry, or no example reaches them.")
    absent = [name for name in HEADERS if name != "n" and name not in _shown(sites)]
    if absent:
        needs = NEEDS if unknown < len(units) else {}
        reasons = [f"{_title(name)}{f' (needs {needs[name]})' if name in needs else ''}" for name in absent]
        lines.append(f"Not measurable at any site: {', '.join(reasons)}.")
    return lines


def finding_lines(findings: Sequence[Finding]) -> list[str]:
    """Return one line for each finding, at most eight, and the advice of each problem once."""
    lines = [f"Finding: {finding.problem}: {finding.evidence}." for finding in findings[:LISTED_SITES]]
    if len(findings) > LISTED_SITES:
        lines.append(f"And {len(findings) - LISTED_SITES} more findings.")
    return lines + list(dict.fromkeys(finding.advice for finding in findings))


def entry(name: str, value: Any) -> str:
    """Return the text of a table's cell: shares in percent, other numbers with two or three digits."""
    if pd.isna(value):
        return "<NA>"
    if name in SHARES:
        return _percent(float(value))
    return f"{value:.2g}" if isinstance(value, float) else f"{value:,}" if name in ("units", "n") else str(value)


def _percent(share: float) -> str:
    if share in (0, 1):
        return "0" if share == 0 else "100%"
    if not 0.001 <= share < 0.9995:
        return "<0.1%" if share < 0.5 else ">99.9%"
    return f"{100 * share:.1f}%"


def _shown(sites: pd.DataFrame) -> list[str]:
    """Return the columns in which some site has a value; n is a column only where it differs."""
    kept = (*TEXTS, "units", "dead_fraction", *(("n",) if sites["n"].nunique() > 1 else ()))
    return [name for name in HEADERS if name in kept or (name != "n" and not sites[name].isna().all())]


def _width(texts: Sequence[str]) -> int:
    return max(map(len, texts))


def _folded(text: str, width: int) -> str:
    """Return a name in lines of at most `width`, broken after a dot or before a bracket where possible."""
    lines = [""]
    for part in re.findall(r"[(\[]?[^.(\[]*\.?", text):
        if len(lines[-1] + part) > width and lines[-1]:
            lines.append("")
        lines[-1] += part
    return "\n".join(piece for line in lines for piece in textwrap.wrap(line, max(width, 1)))


def _title(name: str) -> str:
    header = HEADERS[name]
    return FULL.get(header, header.replace("\n", " "))


def _listed(by_site: Mapping[str, list[int]]) -> str:
    """Return "conv2: 0, 1, 2; dense: 5", with at most eight sites of twelve units."""
    parts = []
    for site, units in list(by_site.items())[:LISTED_SITES]:
        more = f" and {len(units) - LISTED_UNITS:,} more" if len(units) > LISTED_UNITS else ""
        parts.append(f"{site}: {', '.join(map(str, units[:LISTED_UNITS]))}{more}")
    left = len(by_site) - LISTED_SITES
    return "; ".join(parts) + (f"; and {left} more sites" if left > 0 else "")
