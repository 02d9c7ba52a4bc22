"""The report page of a study in Markdown: its prose with tables, figures and verdicts."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from relu_study.report.figures.inputs import select_arms
from relu_study.report.health import Health, health_section, labels
from relu_study.report.markup import counted, markdown_grid, markdown_text
from relu_study.storage.checksums import sentence
from relu_study.storage.declaration import CellDeclaration, CellManifest, Declaration, StudyManifest, output_names
from relu_study.storage.schema import REASON
from relu_study.storage.statuses import AGAIN, STATUSES, reasons_text
from relu_study.study.outputs import CellFigure, Figure, Section


def page(
    folder: Path,
    manifest: StudyManifest,
    runs: pd.DataFrame,
    units: pd.DataFrame,
    verdicts: Sequence[dict[str, Any]],
    health: Health,
) -> str:
    """Return the text of report.md: prose, sections with tables, figures, verdicts and answers, and the findings of detectors.

    Only tables and figures in `folder` are shown. A survival figure is followed by the counts of its units.
    Every number comes from the files or the manifest.
    """
    declaration = manifest.declaration

    def below(figure: Figure) -> str:
        return _lives(figure, declaration, units) if figure.kind == "survival" else ""

    closing = [_crashed_runs(declaration, runs), health_section(health, declaration), _closing(folder, manifest, runs)]
    return _composed(folder, declaration, verdicts, _size(declaration, runs), below, "\n\n".join(filter(None, closing)))


def draw_page(folder: Path, manifest: CellManifest, cells: pd.DataFrame, verdicts: Sequence[dict[str, Any]]) -> str:
    """Return the text of report.md of a draw study."""
    declaration = manifest.declaration
    draws = {(c.cell_id, c.draws) for c in declaration.cells}
    stored = int(cells.drop_duplicates(["experiment", "cell_id"])["draws"].sum())
    size = (
        f"{len({name for name, _ in draws}):,} cells, {sum(count for _, count in draws):,} draws and nothing trained"
        f"{'' if stored else ': none is stored'}; {len(cells):,} rows in [cells.csv](cells.csv)."
    )
    details = [("command", f"`{manifest.command}`"), ("preset", manifest.preset)]
    details += [(name, _flat(value)) for name, value in manifest.provenance.items() if value != {}]
    closing = [
        *([crashed] if (crashed := _crashed_cells(manifest)) else []),
        "## How this page was made",
        "\n".join(f"- {name}: {text}" for name, text in details),
        _DRAW_RULE,
        "The numbers: [cells.csv](cells.csv), [verdicts.csv](verdicts.csv), [manifest.json](manifest.json). "
        "`relu-study report` makes this page anew from them.",
    ]
    return _composed(folder, declaration, verdicts, size, lambda figure: "", "\n\n".join(closing))


def _composed(
    folder: Path,
    declaration: Declaration | CellDeclaration,
    verdicts: Sequence[dict[str, Any]],
    size: str,
    below: Callable[[Any], str],
    closing: str,
) -> str:
    notes = [f"Note: {markdown_text(note)}." for note in declaration.notes]
    blocks = [f"# {declaration.title}", inspect.cleandoc(declaration.text), size, *notes, _in_short(verdicts)]
    by_name = {figure.name: figure for figure in declaration.figures}
    for section in _sections(declaration):
        blocks += [f"## {section.title}", inspect.cleandoc(section.text)]
        blocks += [_table(folder, name) for name in section.tables]
        for figure in (by_name[name] for name in section.figures):
            blocks += [_picture(folder, figure), below(figure)]
        blocks += [_answer(claim, verdicts, declaration) for claim in section.claims]
    return "\n\n".join(filter(None, [*blocks, closing])) + "\n"


def _sections(declaration: Declaration | CellDeclaration) -> list[Section]:
    """Return the declared sections, and one more for items in none of them."""
    sections = declaration.sections
    every = output_names(declaration) | {"claims": list(dict.fromkeys(claim.claim for claim in declaration.claims))}
    left = {kind: tuple(n for n in names if not any(n in getattr(s, kind) for s in sections)) for kind, names in every.items()}
    rest = Section("Further results" if sections else "Results", "", **left)
    return [*sections, *([rest] if any(left.values()) else [])]


def _size(declaration: Declaration, runs: pd.DataFrame) -> str:
    counts = runs["status"].value_counts()
    status = ", ".join(f"{counts[s]:,} {s}" for s in STATUSES if s in counts)
    targets = ", ".join(dict.fromkeys(runs["target"]))
    several = "s" if runs["target"].nunique() > 1 else ""
    return (
        f"{counted(len(runs), 'run')} of {counted(runs['config_id'].nunique(), 'configuration')} with "
        f"{counted(declaration.seeds, 'seed')} each, "
        f"on the target{several} {markdown_text(targets)}: {status}. {_lost_losses(runs)}{_probed(runs)}"
    )


def _crashed_runs(declaration: Declaration, runs: pd.DataFrame) -> str:
    """Return the section on crashed runs, with the number of each configuration and reason; empty without such runs."""
    crashed = runs[runs["status"] == "crashed"]
    if crashed.empty:
        return ""
    named = labels(declaration)
    counts = Counter(zip(crashed["config_id"], crashed[REASON], strict=True))
    rows = [[*named[config_id], f"{size:,}", reason] for (config_id, reason), size in counts.items()]
    grid = markdown_grid(["arm", "target", "runs", "reason"], [[markdown_text(text) for text in row] for row in rows], 2)
    text = f"{counted(len(crashed), 'run')} crashed. No number of this page counts them. {sentence(AGAIN)}"
    return f"## Crashed runs\n\n{text}\n\n{grid}"


def _crashed_cells(manifest: CellManifest) -> str:
    """Return the section on crashed cells, with their reasons; empty without such cells."""
    if not manifest.crashed:
        return ""
    named = {cell.cell_id: (cell.experiment, cell.label) for cell in reversed(manifest.declaration.cells)}
    rows = [[*named.get(name, ("", name)), reasons_text([reason])] for name, reason in manifest.crashed.items()]
    grid = markdown_grid(["experiment", "cell", "reason"], [[markdown_text(text) for text in row] for row in rows], 3)
    text = f"{counted(len(rows), 'cell')} crashed, and their stored draws are fewer than requested. {sentence(AGAIN)}"
    return f"## Crashed cells\n\n{text}\n\n{grid}"


def _lost_losses(runs: pd.DataFrame) -> str:
    """Return a sentence on finite runs with a nonfinite validation loss, or an empty string without such runs."""
    if "val_loss/all" not in runs:
        return ""
    lost = int((runs["val_loss/all"].isna() & (runs["status"] == "ok")).sum())
    return f"In {lost:,} of the ok runs the validation loss went nonfinite. " if lost else ""


def _probed(runs: pd.DataFrame) -> str:
    sizes = sorted(runs["probe_examples"].dropna().unique())
    return f"Dead units are counted on N = {', '.join(f'{n:,}' for n in sizes)} probe examples a run." if sizes else ""


def _in_short(verdicts: Sequence[dict[str, Any]]) -> str:
    rows = [[row["claim"], row["statement"], row["verdict"]] for row in verdicts if row["contrast"] == "overall"]
    return markdown_grid(["", "claim", "answer"], [[markdown_text(text) for text in row] for row in rows], 3) if rows else ""


def _table(folder: Path, name: str) -> str:
    path = folder / "tables" / f"{name}.md"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else _absent(f"The table {name}")


def _picture(folder: Path, figure: Figure | CellFigure) -> str:
    if not (folder / "figures" / f"{figure.name}.png").is_file():
        return _absent(f"The figure {figure.name}")
    text = markdown_text(figure.caption)
    return f"![{text}](figures/{figure.name}.png)\n\n*{text}*"


def _lives(figure: Figure, declaration: Declaration, units: pd.DataFrame) -> str:
    """Return the counts in units.csv for the arms of a figure."""
    by_config = {str(config_id): rows for config_id, rows in units.groupby("config_id", sort=False)}
    cells: dict[tuple[str, str, str], list[str]] = {}
    for entry in select_arms(figure, declaration):
        for row in by_config.get(entry.config_id, units[:0]).to_dict("records"):
            counts = [f"{row[name]:,}" for name in ("units", "born_dead", "died", "revived")]
            certified = "-" if pd.isna(row["certified_revived"]) else f"{row['certified_revived']:,}"
            interval = "" if pd.isna(row["ci_lo"]) else f" [{row['ci_lo']:.3g}, {row['ci_hi']:.3g}]"
            share = "-" if pd.isna(row["dead_at_end_fraction"]) else f"{row['dead_at_end_fraction']:.3g}{interval}"
            cells[entry.arm, entry.target, row["site"]] = [*counts, certified, f"{row['dead_at_end']:,}", share]
    headers = ["arm", "target", "site", "units", "born dead", "died", "revived", "revived (certified)", "dead at end", "share"]
    grid = markdown_grid(headers, [[*map(markdown_text, key), *row] for key, row in cells.items()], 3)
    return f"{grid}\n\nUnits of all runs; of those at the end the share [95 % interval over runs]." if cells else ""


def _absent(what: str) -> str:
    return f"*{what} is not here: nothing that it shows is part of the study at this size.*"


def _answer(claim: str, verdicts: Sequence[dict[str, Any]], declaration: Declaration | CellDeclaration) -> str:
    rows = [row for row in verdicts if row["claim"] == claim]
    if not rows:
        return ""
    *parts, overall = rows
    several = len({row["target"] for row in parts}) > 1
    headers = ["contrast", *(["target"] if several else []), "number", "effect [interval]", "claimed", "n", "verdict"]
    cells = [[row["contrast"], *([row["target"]] if several else []), _number(row), *_effect(row)] for row in parts]
    grid = markdown_grid(headers, [[markdown_text(text) for text in row] for row in cells], 3 if several else 2)
    whys = dict.fromkeys(c.why for c in declaration.claims if c.claim == claim and c.why)
    return "\n\n".join(
        [
            grid,
            *([f"On the margins: {markdown_text('; '.join(whys))}."] if whys else []),
            f"**{markdown_text(claim)}: {overall['verdict']}.** {markdown_text(overall['statement'])}: {overall['reason']}.",
        ]
    )


def _number(row: Mapping[str, Any]) -> str:
    when = {"last": "", "": "", "min": "least of all epochs", "max": "greatest of all epochs"}
    epoch = when.get(row["epoch"], f"epoch {row['epoch']}")
    return ", ".join(filter(None, [row["metric"].replace("_", " "), "" if row["site"] == "all" else row["site"], epoch]))


def _effect(row: Mapping[str, Any]) -> list[str]:
    margin = row["margin"]
    claimed = {"less": f"< {0 - margin:.3g}", "greater": f"> {margin:.3g}", "equivalent": f"within ±{margin:.3g}"}[
        row["direction"]
    ]
    if row["verdict"] == "not testable":
        return ["", claimed, f"{row['n']:.0f}", row["reason"]]
    return [f"{row['effect']:.3g} [{row['ci_lo']:.3g}, {row['ci_hi']:.3g}]", claimed, f"{row['n']:.0f}", row["verdict"]]


def _closing(folder: Path, manifest: StudyManifest, runs: pd.DataFrame) -> str:
    details = [
        ("command", f"`{manifest.command}`"),
        ("preset", manifest.preset),
        ("seeds", f"{manifest.declaration.seeds}"),
    ]
    provenance = {name: value for name, value in manifest.provenance.items() if name != "probe_examples" and value != {}}
    details += [(name.replace("_", " "), _flat(value)) for name, value in provenance.items()]
    lines = [f"- {name}: {text}" for name, text in details]
    names = [f"{name}.csv" for name in _CSVS if name != "health" or (folder / "health.csv").is_file()]
    files = ", ".join(f"[{name}]({name})" for name in (*names, "manifest.json"))
    return "\n\n".join(
        [
            "## How this page was made",
            f"{_probed(runs)} A dead fraction depends on that number: fewer examples make more units look dead.",
            "\n".join(lines),
            _RULE,
            f"The numbers: {files}. `relu-study report` makes this page anew from them.",
        ]
    )


_CSVS = ("runs", "experiments", "summary", "units", "survival", "verdicts", "health")
_DRAW_RULE = (
    "Every draw is a network of its own, from a stream of its own. A share has Wilson's 95 % interval, a mean the t interval; "
    "z = (estimate - theory) / standard error, that of a share as it is if the theory holds, with the error of a theory that is "
    "drawn itself. An effect is shown with its 95 % interval (90 % for `within`). Its claim is confirmed if the whole interval "
    "lies in the claimed region and refuted if none of it does; both need a p below 0.05 after Holm's correction over all "
    "testable rows; p is one-sided and counts twice. An answer is confirmed if every testable row is, and refuted if any is."
)
_RULE = (
    "Comparisons are paired by seed. An effect is shown with its 95 % interval (90 % for `within`). Its claim is confirmed if "
    "the whole interval lies in the claimed region and refuted if none of it does; both need a p below 0.05 after Holm's "
    "correction over all testable rows; p is one-sided, that of the claim or, where the effect lies on the other side, of its "
    "opposite, and counts twice. An answer is confirmed if every testable row is, and refuted if any is."
)


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        whole = {name: text.get("whole") if isinstance(text, dict) else text for name, text in value.items()}
        return ", ".join(f"{name} {text}" for name, text in whole.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "all" if value is None else f"{value}"
