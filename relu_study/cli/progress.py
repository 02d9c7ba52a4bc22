"""Terminal output of a run: the plan, then one live progress bar, or plain lines without a terminal."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from relu_study.cli.eta import EtaEstimator
from relu_study.runner.callback import Callback

if TYPE_CHECKING:
    from relu_study.diagnosis.finding import Finding
    from relu_study.engine.draw_plan import Block, DrawPlan
    from relu_study.engine.plan import Plan, Tile
    from relu_study.runner.findings import FindingCounts
    from relu_study.runner.prepare import Job
    from relu_study.runner.worker_account import Accounts
    from relu_study.study.run_spec import RunSpec

LINE_INTERVAL = 15.0  # seconds between plain lines
BAR_INTERVAL = 1.0  # seconds between updates of the note
MAX_WORKERS = 3  # of a cluster, named in the note; of more, the sum and the slowest
MAX_FINDINGS = 20  # printed; a study has up to thousands of configurations


class Progress(Callback):
    """Progress bar: finished runs or draws, mean dead fraction, estimated time left. A line for each sick configuration."""

    def __init__(self, folder: str | Path = "DIR") -> None:
        """`folder` is the results folder, for messages."""
        self.folder = folder
        self.counts: FindingCounts | None = None  # at the end
        self._findings = 0
        self.console = Console(stderr=True)
        self.done = 0
        self._accounts: Accounts | None = None  # on a cluster
        self._bar: Bar | None = None
        self._dead = self._weight = 0.0
        self._last_note = -math.inf

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_start(self, plan: Plan | DrawPlan, stored: int) -> None:
        """Start the bar."""
        self.total, self.noun = sum(t.size for t in plan.tiles) + stored, plan.noun
        self.done = stored
        self.eta = EtaEstimator(plan)
        self._started = time.monotonic()
        if self.console.is_terminal and plan.tiles:
            self._bar = Bar(
                TextColumn(self.noun), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn(),
                console=self.console,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(self.noun, total=self.total, completed=stored, note="compiling")

    def on_tile_end(self, tile: Tile | Block, device: int, compiling: float, dead_fraction: float) -> None:
        """Advance the bar and update the note."""
        self.done += tile.size
        if math.isfinite(dead_fraction):
            self._dead += dead_fraction * tile.size
            self._weight += tile.size
        now = time.monotonic()
        self.eta.stored(tile, now - self._started, device, compiling)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
        if now - self._last_note <= (LINE_INTERVAL if self._bar is None else BAR_INTERVAL) and self.done < self.total:
            return
        self._last_note = now
        left = self.eta.seconds(now - self._started)
        dead = f"{self._dead / self._weight:.1%} dead, " if self._weight else "dead fraction unknown, "
        note = f"{dead if self.noun == 'runs' else ''}{left:.0f} s left{self._workers()}"
        if self._bar is not None:
            self._bar.update(self._task, note=note)
        else:
            self.console.print(f"{self.done}/{self.total} {self.noun}, {note}", highlight=False, soft_wrap=True)

    def on_retile(self, old: Sequence[Tile | Block], new: Sequence[Tile | Block]) -> None:
        """Update the estimate for narrower tiles."""
        self.eta.retile(old, new)

    def on_workers(self, accounts: Accounts) -> None:
        """Keep the accounts for the note."""
        self._accounts = accounts

    def _workers(self) -> str:
        """The rate of each worker, or of many workers the sum and the slowest; deaths and recompilations, if any."""
        if self._accounts is None:
            return ""
        rates = self._accounts.rates()
        if len(rates) > MAX_WORKERS:
            slowest = min(rates, key=lambda name: rates[name])
            total = f"{len(rates)} workers {sum(rates.values()):,.1f}/s"
            note = f", {total}, the slowest {slowest} {rates[slowest]:,.1f}/s"
        else:
            note = "".join(f", {name} {rate:,.1f}/s" for name, rate in rates.items())
        deaths, recompilations = self._accounts.deaths(), self._accounts.recompilations()
        note += f", ended early: {deaths:,}" if deaths else ""
        return note + (f", recompiled programs: {recompilations:,}" if recompilations else "")

    def on_finding(self, run: RunSpec, arm: str, finding: Finding) -> None:
        """Print one line above the bar; after 20 of them, the command that lists them all."""
        self._findings += 1
        if self._findings <= MAX_FINDINGS:
            self._print(f"{finding.problem}: {arm}, seed {run.seed}, run {run.run_id}: {finding.evidence}")
        elif self._findings == MAX_FINDINGS + 1:
            self._print(f"further findings: {list_findings(self.folder)}")

    def on_finding_counts(self, counts: FindingCounts) -> None:
        """Keep the counts for the summary."""
        self.counts = counts

    def on_message(self, line: str) -> None:
        """Print one line above the bar."""
        self.console.print(line, highlight=False, soft_wrap=True)

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def list_findings(folder: str | Path) -> str:
    """Return the command that lists the findings of a results folder."""
    return shlex.join(["relu-study", "diagnose", str(folder)])


def print_plan(job: Job[Any, Any], title: str, memory: str = "") -> None:
    """Print the plan of a study: a table, and the totals with `memory` inserted."""
    header, *rows = job.plan.table()
    table = Table(title=title, title_justify="left")
    for column in header:
        table.add_column(column, justify="left" if column in ("cohort", "program", "statistic") else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    print(job.plan.totals(job.stored, job.folder_state.timing, memory))
