"""Measurement times of a run: whole epochs, several in each epoch, or a list of epochs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from numbers import Real
from typing import Any

from relu_study.errors import UserError

Every = int | float | tuple[int | float, ...]

MOST = 2**32
DIGITS = 9  # of a recorded epoch, as in the CSV files
TENSORBOARD_STEPS = 1000  # an epoch of a study that measures within epochs
MOST_TENSORBOARD_DIGITS = 9


def checked_every(every: Any, where: str) -> Every:
    """Return a measurement interval or a tuple of epochs as plain numbers. Whole numbers are integers.

    Raises:
        UserError: `every` is no whole number, fraction between 0 and 1, or increasing sequence. `where` names its owner.
    """
    number = _plain(every)
    if number is not None and (isinstance(number, int) or number < 1):
        return number
    if number is not None or isinstance(every, str) or not isinstance(every, Iterable) or getattr(every, "shape", None) == ():
        raise UserError(
            f"{where} must be a whole number of at least 1, a fraction of an epoch between 0 and 1, or a tuple of epochs, "
            f"not {every!r}. For other intervals name the epochs: every=(0.5, 1, 2.5)"
        )
    epochs = tuple(every)
    numbers = [_plain(epoch) for epoch in epochs]
    for epoch, number in zip(epochs, numbers, strict=True):
        if number is None:
            raise UserError(f"{where} has the epoch {epoch!r}. Use numbers above 0: epoch 0 is always measured")
    plain = tuple(number for number in numbers if number is not None)
    if not plain:
        raise UserError(f"{where} has no epochs. Name at least one, or a number of epochs between measurements")
    for before, after in itertools.pairwise(plain):
        if after <= before:
            raise UserError(f"{where} has the epoch {after:g} after {before:g}. Sort the epochs, and name each once")
    return plain


def _plain(value: Any) -> int | float | None:
    """Return a number above 0 as an integer if it is whole, else as a float; None for any other value."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not 0 < number <= MOST:
        return None
    return int(number) if number.is_integer() else number


@lru_cache(maxsize=4096)
def measured_steps(epochs: float, per_epoch: int, every: Every = 1) -> Mapping[int, Sequence[int]]:
    """Return the measurements of a run after its first: epoch, counted from 1 -> the numbers of steps taken in it.

    A whole number measures at the end of every `every`-th epoch. A fraction measures at its multiples within each epoch, and at
    the end of each epoch. A tuple measures at its epochs. Each is the nearest whole step, and epochs of one step are one
    measurement. The end of the run is always measured.
    """
    last = math.ceil(epochs)
    if not last:
        return {}
    size = steps_in(last, epochs, per_epoch)
    steps: dict[int, list[int]] = {}
    if isinstance(every, tuple):
        for step in sorted({round(epoch * per_epoch) for epoch in every if epoch < epochs} - {0}):
            number = -(-step // per_epoch)
            steps.setdefault(number, []).append(step - (number - 1) * per_epoch)
    elif isinstance(every, int):
        steps = {number: [per_epoch] for number in range(every, last, every)}
    else:
        within = _within(every, per_epoch)
        steps = {number: within for number in range(1, last + 1)}
    return {**steps, last: [*(step for step in steps.get(last, ()) if step < size), size]}


def _within(every: float, per_epoch: int) -> list[int]:
    """Return the steps of an epoch nearest to the multiples of a fraction, and its end."""
    if every * per_epoch <= 1:
        return list(range(1, per_epoch + 1))
    return sorted({*(round(i * every * per_epoch) for i in range(1, math.ceil(1 / every))), per_epoch} - {0})


def steps_in(epoch: int, epochs: float, per_epoch: int) -> int:
    """Return the number of steps in an epoch, from 1, of a run of `epochs`. Only the last epoch can be shorter."""
    return per_epoch if epoch <= epochs else round((epochs - epoch + 1) * per_epoch)


def measured_epochs(epochs: float, per_epoch: int, every: Every = 1) -> list[float]:
    """Return the measured epochs: 0, those of `measured_steps` as steps / steps per epoch, and the run's length.

    A fractional epoch has nine significant digits, so the CSV files have the same number.
    """
    steps = measured_steps(epochs, per_epoch, every)
    measured = [number - 1 + step / per_epoch for number, due in steps.items() for step in due]
    return [0.0, *(float(f"{epoch:.{DIGITS}g}") for epoch in measured[:-1]), *([float(epochs)] if steps else [])]


def tensorboard_scale(every: Every) -> int:
    """Return the TensorBoard steps of an epoch: 1 if all measurements are at whole epochs, else 1,000 or a greater power of ten.

    It depends on `every` only, so all runs of a study share one axis. Two measurements within a run have different steps.
    """
    times = every if isinstance(every, tuple) else (every,)
    if all(isinstance(time, int) for time in times):
        return 1
    # Rounding to whole steps at most halves the distance of two measurements.
    near = min(after - before for before, after in itertools.pairwise((0, *times)))
    if not isinstance(every, tuple):  # the end of an epoch can be near a multiple
        rest = 1 - every * (math.ceil(1 / every) - 1)
        near = min(near, rest if rest > 1e-9 else near)
    return max(TENSORBOARD_STEPS, 10 ** min(math.ceil(math.log10(4 / near)), MOST_TENSORBOARD_DIGITS))
