"""Checks of tasks with a table: its arrays, and the row numbers that its split gives a run."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from relu_study.components import random_streams
from relu_study.components.entry_errors import calling
from relu_study.components.tasks.task import Task
from relu_study.errors import UserError


def check_arrays(name: str, task: Task, rebuilt: Task) -> None:
    """Raise UserError if a table is no pair of arrays of equal lengths, has no split, or differs when it is built again."""
    if task.table is None or task.split is None:
        raise UserError(f"task {name!r} has a table without a split, or a split without a table. Give both.")
    sizes = [len(part) for part in task.table]
    if len(sizes) != 2 or sizes[0] != sizes[1]:
        raise UserError(f"task {name!r}: its table has arrays of {sizes} rows. Give inputs and targets with equally many rows.")
    again: Any = rebuilt.table or ()
    if len(again) != 2 or any(a is not b and not np.array_equal(a, b) for a, b in zip(task.table, again, strict=True)):
        raise UserError(f"task {name!r}: its table differs when the task is built again. Build it without random numbers.")


def drawn(name: str, task: Task, seed: int, phase: int) -> str:
    """Return the digest of the row numbers of a seed.

    Raises UserError for wrong numbers, because programs gather rows without a check of their numbers.
    """
    assert task.table is not None and task.split is not None
    s, rows = task.signature, len(task.table[0])
    with calling(f"split of task {name!r}"):
        chosen = np.asarray(task.split(random_streams.stream(seed, "data", phase), phase))
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or len(chosen) < s.train_rows + s.val_rows:
        raise UserError(
            f"task {name!r}: split returns {chosen.dtype} of shape {chosen.shape}. Give the numbers of {s.train_rows} training "
            f"rows, then of {s.val_rows} validation rows."
        )
    if chosen.size and (chosen.min() < 0 or chosen.max() >= rows):
        raise UserError(
            f"task {name!r}: split gives row numbers from {chosen.min()} to {chosen.max()}, and its table has {rows} rows. "
            f"Give numbers from 0 to {rows - 1}."
        )
    return hashlib.sha256(chosen.tobytes()).hexdigest()
