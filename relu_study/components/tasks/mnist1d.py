"""MNIST-1D: 5,000 synthetic sequences of 40 numbers in ten classes, 4,000 for training and 1,000 for validation.

Source: Greydanus & Kobak 2020, arXiv 2011.14439. The templates, the constants and the order of the
random draws are facts of the authors' code, github.com/greydanus/mnist1d (data.py, transform.py). The code here is ours.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from relu_study.components.tasks.array_rows import ArrayRows, build
from relu_study.components.tasks.task import Task, task
from relu_study.study.run_spec import RunSpec

SEED = 42
SAMPLES, VALIDATION, CLASSES = 5000, 1000, 10
POINTS, LENGTH = 72, 40  # of an example: before the last step, and after it
PADDING = 36, 60  # minimum and maximum of zeros after a template
SCALE, SHEAR = 0.4, 0.75  # widths of the uniform factors
TRANSLATIONS = 48
CORRELATED, INDEPENDENT, SMOOTHING = 0.25, 0.02, 2.0  # standard deviations of the noise; width of the Gaussian filter, in points
TINY = 1e-8  # added to a template: zeros of the padding remain the only zeros

# The height of each digit at twelve points.
DIGITS = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)


def templates() -> Float[np.ndarray, "10 12"]:
    """Return the templates: each of standard deviation 1/6, with its first point at 0."""
    heights = np.array(DIGITS)
    heights = (heights - heights.mean(axis=1, keepdims=True)) / heights.std(axis=1, keepdims=True)
    return (heights - heights[:, :1]) / 6


def resampled(signal: Float[np.ndarray, " n"], points: int) -> Float[np.ndarray, " m"]:
    """Return a signal at `points` equidistant points of its range, by linear interpolation."""
    return np.interp(np.linspace(0, 1, points), np.linspace(0, 1, len(signal)), signal)


class Draws(NamedTuple):
    """The random numbers of n examples: padding, factors, translation, and noise at each of 72 points."""

    zeros: Int[np.ndarray, " n"]
    scale: Float[np.ndarray, " n"]
    translation: Int[np.ndarray, " n"]
    correlated: Float[np.ndarray, "n 72"]
    independent: Float[np.ndarray, "n 72"]
    shear: Float[np.ndarray, " n"]


def draws(random: np.random.RandomState, n: int) -> Draws:
    """Return the random numbers of n examples, drawn example by example."""
    low, high = PADDING
    examples = []
    for _ in range(n):
        zeros = low + int(random.rand() * (high - low + 1))
        scale = 1 + SCALE * (random.rand() - 0.5)
        translation = random.choice(TRANSLATIONS)
        noise = CORRELATED * random.randn(POINTS), INDEPENDENT * random.randn(POINTS)
        examples.append((zeros, scale, translation, *noise, SHEAR * (random.rand() - 0.5)))
    return Draws(*map(np.array, zip(*examples, strict=True)))


def transformed(templates: Float[np.ndarray, "n 12"], drawn: Draws) -> Float[np.ndarray, "n 40"]:
    """Return one example of each template.

    The steps: padding, scaling, circular translation, correlated noise on the padding, independent noise, shear, and 40 points.
    """
    from scipy.ndimage import gaussian_filter1d

    padded = [np.append(template + TINY, np.zeros(zeros)) for template, zeros in zip(templates, drawn.zeros, strict=True)]
    signal = np.stack([resampled(one, POINTS) for one in padded]) * drawn.scale[:, None]
    signal = np.take_along_axis(signal, (np.arange(POINTS) - drawn.translation[:, None]) % POINTS, axis=1)
    signal = np.where(signal == 0, gaussian_filter1d(drawn.correlated, SMOOTHING, axis=1), signal) + drawn.independent
    signal -= drawn.shear[:, None] * np.linspace(-0.5, 0.5, POINTS)
    return np.stack([resampled(one, LENGTH) for one in signal])


@functools.cache
def sequences() -> tuple[Float[np.ndarray, "5000 40"], Int[np.ndarray, " 5000"]]:
    """Return all sequences, in random order, with mean 0 and standard deviation 1 over all numbers, and their classes."""
    random = np.random.RandomState(SEED)  # its numbers are the same in all versions of NumPy
    labels = np.repeat(np.arange(CLASSES), SAMPLES // CLASSES)
    x = transformed(templates()[labels], draws(random, SAMPLES))
    order = random.permutation(SAMPLES)
    return (x[order] - x.mean()) / x.std(), labels[order].astype(np.int32)


@functools.cache
def _table() -> ArrayRows:
    return ArrayRows(*sequences(), classes=CLASSES, val=VALIDATION, metrics=("accuracy", "trained"))


@task("mnist1d", rows=SAMPLES)
def mnist1d(spec: RunSpec) -> Task:
    """Classification of one-dimensional digits. All seeds share the rows, and the last 1,000 are for validation.

    With fewer rows, the seed draws training rows.
    """
    return build(_table(), spec)
