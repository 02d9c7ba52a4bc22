"""relu_study itself, for peers.py: a tile on every device of this process, with everything that can be watched.

Each run has data and an order of its own; after every epoch every metric, loss and histogram is measured over 8,192 training and
8,192 validation examples. What epochs cost is the difference between a training that is so much longer and one of a
single step, so data and start drop out.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import jax
import peer
import timing

from relu_study.components.registry import tasks
from relu_study.engine import cohorts, plan
from relu_study.engine.state import MeasureConfig
from relu_study.engine.train_step import steps_per_epoch
from relu_study.runner import run
from relu_study.runner.machine import device_memory

WATCHED = MeasureConfig()  # everything there is


def fitting(width: int, work: plan.RunCost) -> int:
    """The width, halved until a tile takes at most a quarter of an accelerator's memory, which other processes use too."""
    memory = device_memory()
    while memory is not None and width > 2 and 4 * width * (work.data + work.state + work.scratch) > memory:
        width //= 2
    return width


class Ours:
    """The engine at the width that the plan gives, or at the chosen one; a piece is whole epochs."""

    def __init__(self, job: peer.Job, choice: Any) -> None:
        base = timing.NETS[job.net]
        rows = job.rows + timing.VALIDATION if base.task == "wide" else job.rows * 10 // 7
        self.spec = base.replace(batch_size=job.batch, rows=rows)
        signature = tasks[base.task](self.spec).signature
        assert signature.train_rows == job.rows
        self.per_epoch = steps_per_epoch(job.rows, job.batch)
        work = cohorts.cost_of(self.spec, WATCHED)
        self.width = fitting(choice, work) if choice else plan.width(work, 1000, jax.devices()[0].platform)
        self.networks = self.width * len(jax.devices())
        self.piece(1)  # compiles

    def piece(self, steps: int) -> tuple[int, float]:
        epochs, little = max(round(steps / self.per_epoch), 1), 1 / self.per_epoch
        short, long = (timing.busy(self.spec.replace(epochs=n + little), self.width, WATCHED) for n in (0, epochs))
        return epochs * self.per_epoch, long - short


if __name__ == "__main__":
    run.use_devices()
    peer.serve(f"relu_study {importlib.metadata.version('relu_study')}, jax {jax.__version__}", Ours)
