"""Summary of a finished study: runs, time, statuses, verdicts, and the commands to go on with."""

from __future__ import annotations

import csv
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_study.storage.checksums import sentence
from relu_study.storage.manifest import read_manifest
from relu_study.storage.statuses import AGAIN, reasons_text

if TYPE_CHECKING:
    from relu_study.runner.findings import FindingCounts

VERDICTS = ("confirmed", "refuted", "inconclusive")


def summary(folder: Path, findings: FindingCounts | None = None) -> list[str]:
    """The lines that end `relu-study run`: results, findings, report path and next commands."""
    manifest = read_manifest(folder)
    is_draw_study = "cells" in manifest["declaration"]
    size = _draws(manifest) if is_draw_study else _runs(manifest["counts"])
    lines = [f"{manifest['study']}: {size}, {_duration(manifest['timing'])}"]
    if claims := _claims(folder / "verdicts.csv"):
        lines.append(f"claims: {claims}")
    if findings:
        lines.append(f"findings: {_findings(findings)}")
    lines += [f"results: {folder}", f"report: {folder}/report.md"]
    if is_draw_study:
        return [*lines, f"next: open {folder}/report.html, or read the cells with relu_study.load_cells({str(folder)!r})"]
    name = shlex.quote(str(folder))
    steps = {"view": "open TensorBoard", "table": "print a table"}
    if findings and findings.sick:
        steps = {"diagnose": "list the findings", **steps}
    width = max(map(len, steps))
    return [
        *lines,
        "next:",
        *(f"  relu-study {f'{word} {name}':{width + len(name) + 1}}  {text}" for word, text in steps.items()),
    ]


def _findings(counts: FindingCounts) -> str:
    """The number of configurations with a finding, by problem."""
    total = f"{counts.configurations:,} configuration{'s' * (counts.configurations != 1)}"
    if not counts.sick:
        return f"none in {total}"
    problems = ", ".join(f"{count:,} {problem.replace('_', ' ')}" for problem, count in counts.by_problem.items())
    return f"{counts.sick:,} of {total} ({problems})"


def _runs(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    statuses = ", ".join(f"{count:,} {status}" for status, count in counts.items() if count or status == "ok")
    return f"{total:,} run{'s' * (total != 1)} ({statuses})"


def _draws(manifest: Mapping[str, Any]) -> str:
    cells = {cell["cell_id"]: cell["draws"] for cell in manifest["declaration"]["cells"]}
    crashed = f" ({len(manifest['crashed']):,} crashed)" if manifest.get("crashed") else ""
    return f"{sum(cells.values()):,} draws in {len(cells):,} cell{'s' * (len(cells) != 1)}{crashed}"


def crashed_line(folder: Path) -> str:
    """The line on the crashed runs or cells of a study, with their reasons; empty without any."""
    manifest = read_manifest(folder)
    if not (crashed := manifest.get("crashed")):
        return ""
    noun = "cell" if "cells" in manifest["declaration"] else "run"
    return f"{len(crashed):,} {noun}{'s' * (len(crashed) != 1)} crashed ({reasons_text(crashed.values())}). {sentence(AGAIN)}"


def _duration(timing: Mapping[str, float]) -> str:
    seconds = timing.get("wall_s", 0.0)
    return f"{seconds / 60:,.1f} minutes" if seconds >= 60 else f"{seconds:,.1f} seconds"


def _claims(path: Path) -> str:
    """The number of claims by verdict; empty if the study makes no claim."""
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", newline="") as file:
        verdicts = Counter(row["verdict"] for row in csv.DictReader(file) if row["contrast"] == "overall")
    names = [*VERDICTS, *sorted(verdicts.keys() - set(VERDICTS))]
    return ", ".join(f"{verdicts[name]} {name}" for name in names) if verdicts else ""
