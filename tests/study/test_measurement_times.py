"""Measurement times of a run: whole epochs, fractions of an epoch, and lists of epochs."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from relu_study.errors import UserError
from relu_study.study.measurement_times import checked_every, measured_epochs, measured_steps, tensorboard_scale


@pytest.mark.parametrize(
    ("epochs", "every", "when"),
    [
        (0, 3, [0]),
        (0.25, 3, [0, 0.25]),
        (3, 1, [0, 1, 2, 3]),
        (3, 3, [0, 3]),
        (4, 3, [0, 3, 4]),
        (6.5, 3, [0, 3, 6, 6.5]),
        (6.5, 7, [0, 6.5]),
        (2, (1,), [0, 1, 2]),
        (7, (1, 2, 4), [0, 1, 2, 4, 7]),
    ],
)
@pytest.mark.parametrize("per_epoch", [1, 4, 47])
def test_whole_epochs(epochs: float, every: Any, when: list[float], per_epoch: int) -> None:
    assert measured_epochs(epochs, per_epoch, every) == when


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "every", "steps"),
    [
        (2, 4, 0.25, {1: [1, 2, 3, 4], 2: [1, 2, 3, 4]}),
        (2, 10, 0.3, {1: [3, 6, 9, 10], 2: [3, 6, 9, 10]}),  # at its multiples in each epoch, and at the end
        (1, 10, 0.1, {1: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}),
        (2, 3, 0.01, {1: [1, 2, 3], 2: [1, 2, 3]}),  # no more often than each step
        (2, 1, 0.25, {1: [1], 2: [1]}),
        (2.5, 4, 0.25, {1: [1, 2, 3, 4], 2: [1, 2, 3, 4], 3: [1, 2]}),
        (0.5, 4, 0.25, {1: [1, 2]}),
        (0, 4, 0.25, {}),
        (3, 10, (0.02, 0.11, 0.12, 0.5, 1, 1.2, 2.96, 9), {1: [1, 5, 10], 2: [2], 3: [10]}),  # 2.96 rounds to the end
        (2, 4, (0.001,), {2: [4]}),  # epoch 0
        (2.5, 4, (2.4, 2.5, 2.6), {3: [2]}),
        (1, 1, (0.4, 0.6), {1: [1]}),
    ],
)
def test_measurements_within_epochs(epochs: float, per_epoch: int, every: Any, steps: dict[int, list[int]]) -> None:
    assert measured_steps(epochs, per_epoch, every) == steps


def test_recorded_epochs_are_steps_over_steps_per_epoch_with_nine_digits() -> None:
    assert measured_epochs(2.5, 3, 0.25) == [0, 0.333333333, 0.666666667, 1, 1.33333333, 1.66666667, 2, 2.33333333, 2.5]
    assert measured_epochs(1, 47, (0.1,)) == [0, 0.106382979, 1]  # 4.7 rounds to 5


@pytest.mark.parametrize("every", [0.07, 0.25, 1 / 3, (0.01, 0.02, 0.3, 1.51, 2.49), 1, 2])
@pytest.mark.parametrize("per_epoch", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("epochs", [0.3, 1, 2.5, 3])
def test_epochs_increase_and_steps_repeat_the_nearest_ones(every: Any, per_epoch: int, epochs: float) -> None:
    when = measured_epochs(epochs, per_epoch, every)
    assert when[0] == 0 and when[-1] == epochs and when == sorted(set(when))
    for epoch in when[1:-1]:
        step = round(epoch * per_epoch)
        if isinstance(every, tuple):
            near = [Fraction(time) for time in every]
        elif every < 1:
            near = [n + min(Fraction(every) * i, Fraction(1)) for n in range(3) for i in range(math.ceil(1 / every) + 1)]
        else:
            near = [Fraction(n) for n in range(4)]
        assert min(abs(time * per_epoch - step) for time in near) <= Fraction(1, 2)
    scale = tensorboard_scale(every)
    inner = [math.ceil(round(epoch * scale, 6)) for epoch in when[:-1]]
    assert len(set(inner)) == len(inner)


@pytest.mark.parametrize(
    ("every", "scale"),
    [
        *((1, 1), (20, 1), ((1, 2, 8), 1), (0.5, 1000), (0.25, 1000), ((0.05, 0.1, 1), 1000), (0.1, 1000)),
        *((0.001, 10_000), ((0.001, 1), 10_000), ((1, 1.0001), 100_000), (1e-12, 10**9)),
    ],
)
def test_tensorboard_steps_of_an_epoch(every: Any, scale: int) -> None:
    assert tensorboard_scale(every) == scale


@pytest.mark.parametrize(
    ("every", "plain"),
    [
        *((1, 1), (3.0, 3), (0.5, 0.5), ([0.5, 1.0], (0.5, 1)), ((2,), (2,))),
        *((np.int64(4), 4), (np.float32(0.5), 0.5), (np.array([0.25, 1.0]), (0.25, 1))),
    ],
)
def test_intervals_and_lists_are_plain_numbers(every: Any, plain: Any) -> None:
    checked = checked_every(every, "study s: every")
    assert checked == plain and type(checked) is type(plain)
    if isinstance(plain, tuple) and isinstance(checked, tuple):
        assert [type(number) for number in checked] == [type(number) for number in plain]


@pytest.mark.parametrize("wrong", [0, -1, 0.0, -0.5, math.nan, math.inf, 1.5, True, False, "3", "", None, 2**33, np.array(1.5)])
def test_other_intervals_are_refused(wrong: Any) -> None:
    with pytest.raises(UserError, match="study s: every must be a whole number of at least 1, a fraction of an epoch between"):
        checked_every(wrong, "study s: every")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ((), "study s: every has no epochs. Name at least one"),
        ((0, 1), r"study s: every has the epoch 0. Use numbers above 0: epoch 0 is always measured"),
        ((1, -2), "the epoch -2"),
        ((0.5, math.nan), "the epoch nan"),
        ((True, 2), "the epoch True"),
        ((1, "2"), "the epoch '2'"),
        ((1, 1), "the epoch 1 after 1. Sort the epochs, and name each once"),
        ((0.5, 0.25), "the epoch 0.25 after 0.5"),
    ],
)
def test_other_lists_are_refused(wrong: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        checked_every(wrong, "study s: every")
