"""Table of the built-in studies: question, default size and estimated minutes. Does not import JAX."""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relu_study.errors import UserError
from relu_study.runner.kinds import kind_of
from relu_study.storage.manifest import seeds_of
from relu_study.storage.statuses import STORED
from relu_study.study.loading import load_study, studies

HEADER = ("STUDY", "SIZE", "MINUTES", "QUESTION")


def study_lines() -> list[str]:
    """Return the lines of the table: a header, one line per study, and a note on the minutes."""
    rows, measured = [HEADER], False
    for name, path in studies().items():
        size, minutes = _size_and_minutes(path)
        measured |= bool(minutes)
        question = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        rows.append((name, size, minutes or "-", question))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        f"{name:<{widths[0]}}  {size:>{widths[1]}}  {minutes:>{widths[2]}}  {question}" for name, size, minutes, question in rows
    ]
    if measured:
        lines.append("MINUTES scale the time in results/STUDY/manifest.json to the default SIZE. Another machine may differ.")
    return lines


def _size_and_minutes(path: Path) -> tuple[str, str]:
    """Return the size and the estimated minutes of a study's default preset. Each is empty if unknown."""
    try:
        study = load_study(path)
    except UserError:  # `run` reports the problem
        return "", ""
    kind = kind_of(study)
    size, work = kind.amount(study)
    minutes = ""
    for folder in (Path("results"), path.resolve().parents[1] / "results"):
        # A missing or damaged manifest gives no estimate: `list` never fails.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            manifest = json.loads((folder / study.name / "manifest.json").read_bytes())
            minutes = f"{manifest['timing']['wall_s'] / 60 * work / _stored_work(manifest):.1f}"
            break
    return f"{size:,} {kind.noun}", minutes


def _stored_work(manifest: Mapping[str, Any]) -> float:
    """Return the work of the manifest's recorded time: the epochs of all stored runs, or the draws."""
    declaration, counts = manifest["declaration"], manifest["counts"]
    if "cells" in declaration:
        return sum(cell["draws"] for cell in declaration["cells"])
    configurations = {entry["config_id"]: entry for entry in declaration["configurations"]}.values()
    seeds = seeds_of(declaration)
    epochs = sum(seeds[entry["config_id"]] * entry["spec"]["epochs"] for entry in configurations)
    return epochs * sum(counts.get(status, 0) for status in STORED) / sum(counts.values())
