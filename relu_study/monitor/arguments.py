"""Checks of a monitor's arguments."""

from __future__ import annotations

import operator
from typing import Any

import jax
import numpy as np

from relu_study.errors import UserError
from relu_study.monitor.measure import examples_of


def check_arguments(targets: Any, loss: Any, every: Any, on_error: str) -> int:
    """Return `every` as an integer. Raises UserError for an invalid argument."""
    try:
        steps = operator.index(every)
    except TypeError:
        steps = 0
    if steps < 1:
        raise UserError(f"every={every!r} is no number of steps. Pass a whole number of at least 1.")
    if (targets is None) != (loss is None):
        missing = "loss" if loss is None else "targets"
        raise UserError(f"gradients need targets and loss, but {missing} is missing. Pass both, or neither.")
    if on_error not in ("warn", "raise"):
        raise UserError(f"on_error={on_error!r} is unknown. Choose warn or raise.")
    return steps


def check_rows(inputs: Any, targets: Any) -> None:
    """Raise UserError for a probe set without examples, or with another number of targets."""
    rows = examples_of(inputs)
    if not rows:
        raise UserError("probe has no examples on its first axis. Pass an array of examples.")
    for leaf in jax.tree.leaves(targets):
        if np.ndim(leaf) and len(leaf) != rows:
            raise UserError(f"targets has {len(leaf)} rows, but probe has {rows}. Pass a target for every example.")


def step_number(step: Any) -> int:
    """Return a step as a number. An ensemble's training state has an array of equal steps. Raises UserError."""
    if isinstance(step, jax.core.Tracer):
        raise UserError("the step is an array inside jit. Call the monitor outside, with a number.")
    numbers = np.unique(np.asarray(step))
    if len(numbers) != 1 or numbers.dtype.kind not in "iuf" or numbers[0] != np.floor(numbers[0]):
        raise UserError(f"the step {step!r} is no whole number. Pass the number of the training step.")
    if numbers[0] < 0:
        raise UserError(f"the step {step!r} is negative. Count the steps from 0.")
    return int(numbers[0])
