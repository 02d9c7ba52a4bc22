"""Terminal output of a run: the plan, then one live progress bar, or plain lines without a terminal."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from relu_study.cli.eta import EtaEstimator
from relu_study.runner.callback import Callback

if TYPE_CHECKING:
    from relu_study.engine.draw_plan import Block, DrawPlan
    from relu_study.engine.plan import Plan, Tile
    from relu_study.runner.prepare import Job

LINE_INTERVAL = 15.0  # seconds between plain lines
BAR_INTERVAL = 1.0  # seconds between updates of the note


class Progress(Callback):
    """Progress bar: finished runs or draws, mean dead fraction so far, estimated time left."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.done = 0
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
        note = f"{dead if self.noun == 'runs' else ''}{left:.0f} s left"
        if self._bar is not None:
            self._bar.update(self._task, note=note)
        else:
            self.console.print(f"{self.done}/{self.total} {self.noun}, {note}", highlight=False)

    def on_retile(self, old: Sequence[Tile | Block], new: Sequence[Tile | Block]) -> None:
        """Update the estimate for narrower tiles."""
        self.eta.retile(old, new)

    def on_message(self, line: str) -> None:
        """Print one line above the bar."""
        self.console.print(line, highlight=False, soft_wrap=True)


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
