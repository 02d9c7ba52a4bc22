"""A Hugging Face dataset: the CSV files of a results folder with a card that names them."""

from __future__ import annotations

import inspect
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from relu_study.errors import UserError
from relu_study.report.cell_report import read_cells
from relu_study.report.exports.attachments import figure_files
from relu_study.report.markup import counted, markdown_grid, markdown_text
from relu_study.report.verdicts import TEXTS
from relu_study.storage.atomic_write import make_dirs, write_atomically
from relu_study.storage.csv_files import read_csv, read_runs, read_summary
from relu_study.storage.declaration import CellManifest, StudyManifest, is_of_draws, read_declared, read_declared_cells
from relu_study.storage.manifest import read_manifest

CARD = "README.md"
MARK = "<!-- written by relu-study export -->"  # only a card with this line is replaced
NEEDED = ("runs", "summary", "verdicts", "units", "survival")  # CSV files of a training study, the first is the default
MORE = ("experiments", "health")  # present in newer folders
OF_DRAWS = ("cells", "verdicts")
CONTENT = {
    "runs": "each run once: factors, status, metrics of its last epoch",
    "summary": "each metric's mean, 95 % interval and spread, by configuration, site and epoch",
    "verdicts": "each claim: effect, interval, margin, corrected p, verdict and reason",
    "units": "units born dead, died and revived, by configuration and site",
    "survival": "the survival of the units that were alive at the start",
    "experiments": "the configurations of each experiment",
    "health": "findings of detectors, by configuration",
    "cells": "each number of each cell: estimate, 95 % interval, theory and z score",
}
SIZES = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7))


def write_dataset(folder: Path, out: Path | None) -> list[str]:
    """Write a dataset card next to the CSV files of a results folder, or with copies of them into the folder `out`.

    The card is README.md: YAML with a configuration for each CSV file, then the statuses, verdicts and figures.

    Returns:
        Lines on the written files, and the command that uploads them.

    Raises:
        UserError: a CSV file is missing, or README.md is not a card of an earlier export.
        CorruptFileError: a file is corrupt.
    """
    draws = is_of_draws(read_manifest(folder))
    manifest = read_declared_cells(folder) if draws else read_declared(folder)
    needed = OF_DRAWS if draws else NEEDED
    files = [*needed, *(name for name in (() if draws else MORE) if (folder / f"{name}.csv").is_file())]
    frames = _checked(folder, manifest, files)
    place = out or folder
    if (place / CARD).exists() and MARK not in (place / CARD).read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{place / CARD} is not a card of relu-study. Move it away, or give another folder with --out.")
    figures = figure_files(folder, manifest.declaration)
    if not (same := place.resolve() == folder.resolve()):
        make_dirs(place)
        for path in (*(folder / f"{name}.csv" for name in files), *figures.values()):
            _copy(path, place / path.relative_to(folder))
    text = f"---\n{_yaml(manifest, frames)}---\n\n{_body(manifest, frames, figures)}"
    write_atomically(place / CARD, text.encode())
    left_out = " --exclude 'raw/*' 'tensorboard/*'" if same else ""
    return [
        f"{place / CARD}",
        f"The dataset has {counted(len(files), 'CSV file')}: {', '.join(files)}.",
        f"Upload it with: hf upload USER/NAME {place} . --repo-type dataset{left_out}",
    ]


def _checked(folder: Path, manifest: StudyManifest | CellManifest, files: list[str]) -> dict[str, pd.DataFrame]:
    """Return the frame of each CSV file by name. Each is read strictly, so a card never names a corrupt file."""
    frames: dict[str, pd.DataFrame] = {}
    for name in files:
        if name == "cells":
            frames[name] = read_cells(folder / "cells.csv", manifest.declaration)  # type: ignore[arg-type]
        elif name in ("runs", "summary"):
            read: Any = read_runs if name == "runs" else read_summary
            frames[name] = read(folder, manifest)
        else:
            frames[name] = read_csv(folder / f"{name}.csv", {"verdicts": TEXTS, "health": ("problem", "detector")}.get(name, ()))
    return frames


def _copy(source: Path, target: Path) -> None:
    make_dirs(target.parent)
    if not target.is_symlink():
        shutil.copyfile(source, target)
        return
    raise UserError(f"{target} is a link. Remove it, or give another folder with --out.")


def _yaml(manifest: StudyManifest | CellManifest, frames: dict[str, pd.DataFrame]) -> str:
    """Return the head of the card. Each value is JSON, which is YAML too, so texts need no quoting rules."""
    first = next(iter(frames))
    largest = max(map(len, frames.values()))
    size = next((name for name, limit in SIZES if largest < limit), "n>10M")
    lines = [f"pretty_name: {_text(manifest.declaration.title)}", "tags:"]
    lines += [f"- {_text(tag)}" for tag in ("relu_study", "jax", "neural networks", "benchmark")]
    lines += ["size_categories:", f"- {_text(size)}", "configs:"]
    for name in frames:
        lines += [f"- config_name: {_text(name)}", f"  data_files: {_text(f'{name}.csv')}"]
        lines += ["  default: true"] if name == first else []
    return "\n".join(lines) + "\n"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _body(manifest: StudyManifest | CellManifest, frames: dict[str, pd.DataFrame], figures: dict[str, Path]) -> str:
    declaration = manifest.declaration
    rows = [[f"`{name}`", CONTENT[name], f"{len(frame):,}"] for name, frame in frames.items()]
    verdicts = frames["verdicts"][frames["verdicts"]["contrast"] == "overall"]
    claims = [
        [markdown_text(text) for text in row]
        for row in verdicts[["claim", "statement", "verdict"]].itertuples(index=False, name=None)
    ]
    first = next(iter(frames))
    blocks = [
        f"# {markdown_text(declaration.title)}",
        MARK,
        inspect.cleandoc(declaration.text),
        _size(manifest, frames),
        markdown_grid(["configuration", "content", "rows"], rows, 2),
        f'```python\nfrom datasets import load_dataset\n\n{first} = load_dataset("USER/NAME", "{first}", split="train")\n```',
        *(["## Claims", markdown_grid(["", "claim", "answer"], claims, 3)] if claims else []),
        *(["## Figures"] if figures else []),
        *(f"![{markdown_text(name)}](figures/{name}.png)" for name in figures),
        "## Source",
        f"relu_study wrote these files: `{manifest.command}`. An empty cell is a missing number, such as one of a nonfinite run.",
    ]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _size(manifest: StudyManifest | CellManifest, frames: dict[str, pd.DataFrame]) -> str:
    """Return the sentence on the runs by status, or on the cells."""
    if "cells" in frames:
        return f"{counted(frames['cells']['cell_id'].nunique(), 'cell')} of untrained networks."
    counts = Counter(frames["runs"]["status"])
    by_status = ", ".join(f"{count:,} {status}" for status, count in counts.most_common())
    configurations = counted(frames["runs"]["config_id"].nunique(), "configuration")
    return f"{counted(len(frames['runs']), 'run')} of {configurations}: {by_status}."
