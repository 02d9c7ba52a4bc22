"""What a person sees of a run: the plan before it, then one live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from relu_study.cli.eta import EtaEstimator, eta_from_manifest

if TYPE_CHECKING:
    from relu_study.engine.draw_plan import Block, DrawPlan
    from relu_study.engine.plan import Plan, Tile
from relu_study.runner.callback import Callback

EVERY = 15.0  # seconds between plain lines


class Progress(Callback):
    """Runs done, dead fraction so far and time left, as `forecast` has it."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.done = 0
        self._bar: Bar | None = None
        self._dead = self._weight = 0.0
        self._said = -math.inf

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_start(self, plan: Plan | DrawPlan, stored: int) -> None:
        """Told before the first tile is queued."""
        self.total, self.noun = sum(t.size for t in plan.tiles) + stored, plan.noun
        self.done = stored
        self.forecast = EtaEstimator(plan)
        self._began = time.monotonic()
        if self.console.is_terminal and plan.tiles:
            self._bar = Bar(
                TextColumn(self.noun), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn(),
                console=self.console,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(self.noun, total=self.total, completed=stored, note="compiling")

    def on_tile_end(self, tile: Tile | Block, device: int, compiling: float, dead_fraction: float) -> None:
        """Told when a tile is stored."""
        self.done += tile.size
        if math.isfinite(dead_fraction):
            self._dead += dead_fraction * tile.size
            self._weight += tile.size
        now = time.monotonic()
        self.forecast.stored(tile, now - self._began, device, compiling)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
        if now - self._said <= (EVERY if self._bar is None else 1.0) and self.done < self.total:
            return
        self._said = now
        left = self.forecast.seconds(now - self._began)
        dead = f"{self._dead / self._weight:.1%} dead, " if self._weight else "dead fraction not known, "
        note = f"{dead if self.noun == 'runs' else ''}{left:.0f} s left"
        if self._bar is not None:
            self._bar.update(self._task, note=note)
        else:
            self.console.print(f"{self.done}/{self.total} {self.noun}, {note}", highlight=False)

    def on_retile(self, old: Sequence[Tile | Block], new: Sequence[Tile | Block]) -> None:
        """Told when narrower tiles take the place of others."""
        self.forecast.cut_anew(old, new)

    def on_message(self, line: str) -> None:
        """One line above the bar."""
        self.console.print(line, highlight=False, soft_wrap=True)


def print_draws(plan: DrawPlan, stored: int, title: str, memory: str = "") -> None:
    """The plan of a draw study as a table: a statistic a line. `memory`: what there is to say of it."""
    table = Table(title=title, title_justify="left")
    for column in ("statistic", "cells", "draws", "blocks"):
        table.add_column(column, justify="left" if column == "statistic" else "right")
    for name in dict.fromkeys(block.statistic for block in plan.tiles):
        own = [block for block in plan.tiles if block.statistic == name]
        table.add_row(name, f"{len({b.cohort for b in own}):,}", f"{sum(b.count for b in own):,}", f"{len(own):,}")
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    cells = len({block.cohort for block in plan.tiles})
    print(
        f"{sum(block.count for block in plan.tiles):,} draws to make ({stored:,} stored) in {cells:,} "
        f"cells and {len(plan.tiles):,} blocks on {plan.devices} {plan.platform} device(s); a compilation a cell; "
        f"{memory}time: unknown until the first blocks are done"
    )


def print_plan(plan: Plan, stored: int, title: str, timing: Mapping[str, float] = MappingProxyType({}), memory: str = "") -> None:
    """The plan as a table: a cohort a line.

    `timing`: what the stored runs took, from the manifest of their folder; `memory`: what there is to say of it.
    """
    table = Table(title=title, title_justify="left")
    for column in ("cohort", "program", "runs", "width", "tiles", "steps a run", "MiB a tile"):
        table.add_column(column, justify="left" if column in ("cohort", "program") else "right")
    for c in plan.cohorts:
        steps = sorted({t.steps for t in c.tiles}) or [c.work.steps]
        mib = c.bytes() / 2**20
        span = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,}-{steps[-1]:,}"
        table.add_row(c.name, c.work.title, f"{c.runs:,}", str(c.width), f"{len(c.tiles):,}", span, f"{mib:.0f}")
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    known, asked = eta_from_manifest(plan, timing), plan.seconds()
    if known is not None:
        duration = f"about {known:,.0f} s, at the speed of those stored"
    elif asked is not None:
        duration = f"about {asked:,.0f} s of training"
    else:
        duration = "time: unknown on this device until its first tiles are done"
    runs = sum(c.runs for c in plan.cohorts)
    print(
        f"{_counted(runs, 'run')} to train ({stored:,} stored) in {_counted(len(plan.cohorts), 'cohort')} and "
        f"{_counted(len(plan.tiles), 'tile')} on {_counted(plan.devices, f'{plan.platform} device')}; "
        f"about {_counted(plan.compilations(), 'compilation')}; "
        f"about {plan.bytes() / 2**20:,.0f} MiB of tiles at a time; {memory}{duration}"
    )


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
