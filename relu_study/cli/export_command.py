"""The command export: a results folder in an experiment tracker, or as a dataset. No JAX."""

from __future__ import annotations

import sys
import time
from typing import Annotated

from tyro.conf import arg

from relu_study.cli.arguments import Folder, existing_folder

PLAIN_SECONDS = 10.0  # between plain lines of progress, without a terminal

Destination = Annotated[str, arg(metavar="NAME")]
Project = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: the study)")]
OutFolder = Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: see below)")]


def export_results(
    folder: Folder,
    to: Destination,
    per_seed: bool = False,
    offline: bool = False,
    project: Project = None,
    out: OutFolder = None,
) -> None:
    """Export a results folder to an experiment tracker, or write its dataset card.

    A tracker gets a run of the study with its tables, figures and verdicts, and a run per configuration: curves of mean, lo and
    hi, final values, verdicts and factors. A second export replaces the first.

    Args:
        to: wandb, mlflow, trackio, or hf for a Hugging Face dataset card. A tracker needs the extra of its name.
        per_seed: A run per seed in place of those per configuration, grouped by configuration.
        offline: W&B only: write local files, without an account.
        project: Name of the project, or of the MLflow experiment.
        out: W&B: parent of its folder wandb/ (default: WANDB_DIR or the current folder). hf: a new folder for the card and
            copies of its files (default: the card is written into DIR).
    """
    from relu_study.report.exports.export import export

    with _Bar() as bar:
        lines = export(
            existing_folder(folder), to, project=project, per_seed=per_seed, offline=offline, out=out, on_run=bar.on_run
        )
    print("\n".join(lines))


class _Bar:
    """A live bar of exported runs on a terminal, else a plain line every ten seconds."""

    def __enter__(self) -> _Bar:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("exporting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)
        self._task, self._last = self._bar.add_task("", total=None), time.monotonic()
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def on_run(self, done: int, runs: int) -> None:
        """Show the number of exported runs."""
        self._bar.update(self._task, completed=done, total=runs)
        if self._bar.disable and time.monotonic() - self._last > PLAIN_SECONDS:
            self._last = time.monotonic()
            print(f"exported {done:,} of {runs:,} runs", file=sys.stderr, flush=True)
