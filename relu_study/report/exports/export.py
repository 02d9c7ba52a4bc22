"""Export of a results folder: one loop over its runs for every tracker, or a dataset card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from relu_study.errors import UserError
from relu_study.report.exports.attachments import missing_outputs
from relu_study.report.exports.tracker import CARD, ExportedRun, Tracker, check_destination, open_tracker
from relu_study.report.markup import counted
from relu_study.stats.numpy_defaults import numpy_defaults
from relu_study.storage.checksums import one_line
from relu_study.storage.declaration import is_of_draws, read_declared, read_declared_cells
from relu_study.storage.manifest import is_monitored, read_manifest
from relu_study.storage.statuses import STORED

Progress = Callable[[int, int], None]  # of finished runs, of all runs


@numpy_defaults()
def export(
    folder: str | Path,
    to: str,
    *,
    project: str | None = None,
    per_seed: bool = False,
    offline: bool = False,
    out: str | Path | None = None,
    on_run: Progress = lambda done, runs: None,
) -> list[str]:
    """Export a results folder to a tracker, or write its dataset card. Every number comes from the folder's files.

    A tracker gets one run of the whole study with its tables, figures and verdicts, then one run per configuration: the curves
    of mean, lo and hi, final values, verdicts, counts by status, and the factors. With `per_seed` it gets one run per seed
    instead, grouped by configuration. A draw study is one run with its cells as a table. A second export replaces the runs of
    the first. A missing or nonfinite number is left out.

    Args:
        folder: The results folder.
        to: wandb, mlflow, trackio or hf.
        project: Name of the project (default: the study).
        per_seed: Whether runs are single seeds.
        offline: Whether W&B writes local files only.
        out: Folder of W&B's local files, or of a dataset with its card.
        on_run: Called after each run with the number of finished runs and of all runs.

    Returns:
        Lines on the exported runs, left out parts, and where to see them.

    Raises:
        UserError: the destination is unknown, an option does not apply to it, its library is missing or refuses a request, or
            the folder cannot be read.
    """
    check_destination(to, {"offline": offline, "per_seed": per_seed, "project": project, "out": out})
    folder, target = Path(folder).expanduser(), None if out is None else Path(out).expanduser()
    if is_monitored(folder):
        raise UserError(
            f"{folder} is the folder of a monitor, and export takes a study's. Import {folder / 'tensorboard'} into the tracker."
        )
    if to == CARD:
        from relu_study.report.exports.dataset_card import write_dataset

        return write_dataset(folder, target)
    draws = is_of_draws(read_manifest(folder))
    if draws and per_seed:
        raise UserError(f"{folder} is a draw study and has no seeds. Leave out --per-seed.")
    lines, runs, count = _draw_study(folder) if draws else _training_study(folder, per_seed)
    first = next(runs)
    tracker = open_tracker(to, project or first.name, offline, target)
    kinds: Counter[str] = Counter()
    try:
        for number, run in enumerate(_chained(first, runs), start=1):
            send(run, tracker)
            kinds[run.kind] += 1
            on_run(number, count)
        return [_sent(kinds), *lines, *tracker.close()]
    except tracker.errors as error:
        raise UserError(f"{to} refuses the export after {counted(kinds.total(), 'run')}: {one_line(error)}") from error


def send(run: ExportedRun, tracker: Tracker) -> None:
    """Send one run to a tracker."""
    tracker.start(run)
    for step, values in run.points:
        tracker.log(step, values)
    for name, frame in run.tables.items():
        tracker.table(name, frame)
    for name, path in run.figures.items():
        tracker.figure(name, path)
    tracker.summary(run.summary)
    tracker.finish(run.complete)


def _training_study(folder: Path, per_seed: bool) -> tuple[list[str], Iterator[ExportedRun], int]:
    """Return lines on left out parts, the runs, and their number."""
    from relu_study.report.exports.stored_study import configuration_runs, read_study, seed_runs, study_run

    stored = read_study(folder)
    lines = _left_out(missing_outputs(folder, read_declared(folder).declaration))
    if not stored.raw:
        epochs = "the last epoch of each run" if per_seed else "the epochs in summary.csv"
        lines.append(f"{folder / 'raw'} is missing, as in a clone: curves have {epochs} only.")
    missing = int((~stored.runs["status"].isin(STORED)).sum())
    if missing:
        lines.append(
            f"{counted(missing, 'run')} of {len(stored.runs):,} not stored: exported with the status and without numbers."
        )
    made = seed_runs(stored) if per_seed else configuration_runs(stored)
    count = 1 + (len(stored.runs) if per_seed else len(stored.entries))
    return lines, _chained(study_run(stored), made), count


def _draw_study(folder: Path) -> tuple[list[str], Iterator[ExportedRun], int]:
    from relu_study.report.exports.stored_draws import draw_run

    lines = _left_out(missing_outputs(folder, read_declared_cells(folder).declaration))
    return lines, iter([draw_run(folder)]), 1


def _left_out(paths: list[str]) -> list[str]:
    return [f"Left out, since the folder lacks them: {', '.join(paths)}."] if paths else []


def _chained(first: ExportedRun, others: Iterable[ExportedRun]) -> Iterator[ExportedRun]:
    yield first
    yield from others


def _sent(kinds: Counter[str]) -> str:
    nouns = {"study": "run of the study", "configuration": "run of a configuration", "seed": "run of a seed"}
    parts = [f"{count:,} {nouns[kind]}" if count == 1 else f"{count:,} {kind} runs" for kind, count in kinds.items()]
    return f"exported {' and '.join(parts)}"
