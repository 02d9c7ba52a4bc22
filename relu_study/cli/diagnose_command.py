"""The command diagnose: findings of detectors in a results folder, a CSV file or a TensorBoard folder. No JAX."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from relu_study.cli.arguments import existing_folder
from relu_study.errors import UserError

if TYPE_CHECKING:
    from relu_study.report.tables.health_table import Diagnosis
    from relu_study.storage.foreign_runs import ForeignRuns

SICK = 3  # exit status of --check
WIDTH = 1000  # of the table without a terminal: one line for each finding

Names = tuple[str, ...]
OptionalFolder = Annotated[Positional[str | None], arg(metavar="DIR", help="Results folder.", help_behavior_hint="")]
Detectors = Annotated[Names, arg(metavar="NAME ...", aliases=("--detectors",), help_behavior_hint="(default: ours)")]
Where = Annotated[Names, arg(metavar="CONDITION ...", help_behavior_hint="")]
Pairs = Annotated[Names, arg(metavar="NAME=VALUE ...", help_behavior_hint="")]
Path_ = Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")]
FolderOf = Annotated[str | None, arg(metavar="DIR", help_behavior_hint="")]
Number = Annotated[float | None, arg(metavar="X", help_behavior_hint="(default: unknown)")]


def diagnose_runs(
    folder: OptionalFolder = None,
    check: bool = False,
    csv: Path_ = None,
    detector: Detectors = (),
    where: Where = (),
    from_csv: Path_ = None,
    columns: Pairs = (),
    from_tensorboard: FolderOf = None,
    tags: Pairs = (),
    constant_loss: Number = None,
) -> int:
    """Print the training problems of every configuration: dying, vanishing, exploding, not learning.

    A problem counts if it holds at the end of a run. docs/diagnosis.md lists the rules and their thresholds.

    Args:
        check: Exit with status 3 if any configuration has a finding.
        csv: Write every configuration and detector to this CSV file.
        detector: Names of detectors: dying, exploding, vanishing, not_learning, or rules of other tools.
        where: Conditions on configurations, all required: activation=relu,selu "learning_rate>=0.01".
        from_csv: Diagnose a CSV file of another tool, one row per measurement, in place of DIR.
        columns: With --from-csv: its columns: epoch=step train_loss=loss grad_norm/site_1=g1 run=name.
        from_tensorboard: Diagnose a TensorBoard folder of another tool, one run per subfolder, in place of DIR.
        tags: With --from-tensorboard: tags or patterns of tags: train_loss="loss/train*".
        constant_loss: With --from-csv or --from-tensorboard: the loss of the best constant prediction.
    """
    from relu_study.diagnosis.diagnose import OURS

    names = tuple(dict.fromkeys(detector)) or OURS
    sources = {"DIR": folder, "--from-csv": from_csv, "--from-tensorboard": from_tensorboard}
    given = [name for name, value in sources.items() if value is not None]
    if len(given) != 1:
        raise UserError(f"diagnose takes one of DIR, --from-csv and --from-tensorboard, not {' and '.join(given) or 'none'}.")
    _check_options(given[0], where, columns, tags, constant_loss)
    if folder is not None:
        diagnosis = _of_folder(existing_folder(folder), names, where)
    else:
        diagnosis = _of_other_tool(from_csv, columns, from_tensorboard, tags, constant_loss, names)
    if not diagnosis.health.frame["n_scored"].any():
        lines = [line for line in diagnosis.lines if "abstain" in line]
        raise UserError(f"no detector can be applied. {' '.join(lines)} Record these metrics, or name other detectors.")
    _print(diagnosis)
    if csv is not None:
        from relu_study.storage.atomic_write import write_atomically
        from relu_study.storage.csv_files import csv_text

        write_atomically(Path(csv).expanduser(), csv_text(diagnosis.frame()).encode())
        print(csv)
    return SICK if check and len(diagnosis.health.sick) else 0


def _check_options(
    source: str, where: Sequence[str], columns: Sequence[str], tags: Sequence[str], constant_loss: float | None
) -> None:
    """Raise UserError for an option of another source, or a missing one."""
    options = {"--where": (where, ("DIR",)), "--columns": (columns, ("--from-csv",)), "--tags": (tags, ("--from-tensorboard",))}
    for option, (value, of) in options.items():
        if value and source not in of:
            raise UserError(f"{option} applies to {of[0]} only, not to {source}. Leave it out.")
    if constant_loss is not None and source == "DIR":
        raise UserError("--constant-loss does not apply to DIR: a study knows the loss of its best constants. Leave it out.")
    if source == "--from-csv" and not columns:
        raise UserError("--from-csv needs --columns with the file's columns, such as --columns epoch=step train_loss=loss.")
    if source == "--from-tensorboard" and not tags:
        raise UserError("--from-tensorboard needs --tags with tags of scalars, such as --tags train_loss='loss/train*'.")


def _of_folder(folder: Path, names: Sequence[str], where: Sequence[str]) -> Diagnosis:
    from relu_study.report.tables.health_table import diagnose_monitor, diagnose_study
    from relu_study.storage.manifest import is_monitored

    if is_monitored(folder):
        if where:
            raise UserError("--where selects configurations, and a monitored training has one. Leave it out.")
        return diagnose_monitor(folder, names)
    return diagnose_study(folder, names, where)


def _of_other_tool(
    from_csv: str | None,
    columns: Sequence[str],
    from_tensorboard: str | None,
    tags: Sequence[str],
    constant_loss: float | None,
    names: Sequence[str],
) -> Diagnosis:
    from relu_study.report.tables.health_table import diagnose_foreign
    from relu_study.storage.foreign_runs import parse_pairs, read_metric_csv

    constant = float("nan") if constant_loss is None else constant_loss
    if from_csv is not None:
        pairs = parse_pairs(columns, "--columns")
        runs = read_metric_csv(Path(from_csv).expanduser(), pairs, constant)
    else:
        from relu_study.report.tensorboard.foreign_scalars import read_tensorboard

        assert from_tensorboard is not None
        pairs = parse_pairs(tags, "--tags")
        runs = read_tensorboard(Path(from_tensorboard).expanduser(), pairs, constant)
    diagnosis = diagnose_foreign(runs, names)
    return diagnosis.with_notes(_notes(runs, pairs, "column" if from_csv is not None else "tag"))


def _notes(runs: ForeignRuns, pairs: Mapping[str, str], noun: str) -> list[str]:
    """Return lines on the named columns or tags, and on epochs and runs that are left out."""
    from relu_study.report.markup import counted

    lines = [f"{noun}s read: {', '.join(f'{name} = {value}' for name, value in pairs.items())}."]
    if runs.dropped:
        lines.append(f"Left out: {counted(runs.dropped, 'epoch')} without a value of every named metric.")
    if runs.skipped:
        some = ", ".join(runs.skipped[:4])
        lines.append(f"Left out: {counted(len(runs.skipped), 'run')} without any of these {noun}s, such as {some}.")
    return lines


def _print(diagnosis: Diagnosis) -> None:
    """Print the table of findings and the lines below it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from relu_study.report.tables.health_table import FOLDED, RIGHT

    header, rows = diagnosis.table()
    if rows:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
        for title in header:
            table.add_column(title, justify="right" if title in RIGHT else "left", overflow="fold", no_wrap=title not in FOLDED)
        for row in rows:
            table.add_row(*map(Text, row))
        console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
        with console.capture() as capture:
            console.print(table)
        print("\n".join(line.rstrip() for line in capture.get().splitlines()), end="\n\n")
    print("\n".join(diagnosis.lines))
