"""MNIST-1D: 5,000 synthetic sequences of 40 numbers in ten classes, 4,000 for training and 1,000 for validation.

Source: Greydanus & Kobak 2020, arXiv 2011.14439. The templates, the constants and the order of the
random draws are facts of the authors' code, github.com/greydanus/mnist1d (data.py, transform.py). The code here is ours.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float, Int

from relu_study.components.tasks.array_rows import ArrayRows, build
from relu_study.components.tasks.task import Task, task
from relu_study.study.run_spec import RunSpec

SEED = 42
SAMPLES, VALIDATION, CLASSES, LENGTH = 5000, 1000, 10, 40
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


def transformed(template: Float[np.ndarray, "12"], random: np.random.RandomState) -> Float[np.ndarray, "40"]:
    """Return one example of a template.

    The steps: padding, scaling, circular translation, correlated noise on the padding, independent noise, shear, and 40 points.
    """
    from scipy.ndimage import gaussian_filter

    low, high = PADDING
    zeros = low + int(random.rand() * (high - low + 1))
    signal = resampled(np.append(template + TINY, np.zeros(zeros)), len(template) + high)
    signal *= 1 + SCALE * (random.rand() - 0.5)
    signal = np.roll(signal, random.choice(TRANSLATIONS))
    noise = gaussian_filter(CORRELATED * random.randn(len(signal)), SMOOTHING)
    signal = np.where(signal == 0, noise, signal) + INDEPENDENT * random.randn(len(signal))
    signal = signal - SHEAR * (random.rand() - 0.5) * np.linspace(-0.5, 0.5, len(signal))
    return resampled(signal, LENGTH)


@functools.cache
def sequences() -> tuple[Float[np.ndarray, "5000 40"], Int[np.ndarray, " 5000"]]:
    """Return all sequences, in random order, with mean 0 and standard deviation 1 over all numbers, and their classes."""
    random = np.random.RandomState(SEED)  # its numbers are the same in all versions of NumPy
    labels = np.repeat(np.arange(CLASSES), SAMPLES // CLASSES)
    x = np.stack([transformed(templates()[label], random) for label in labels])
    order = random.permutation(SAMPLES)
    x = x[order]
    return (x - x.mean()) / x.std(), labels[order].astype(np.int32)


@functools.cache
def _table() -> ArrayRows:
    return ArrayRows(*sequences(), classes=CLASSES, val=VALIDATION, metrics=("accuracy", "trained"))


@task("mnist1d", rows=SAMPLES)
def mnist1d(spec: RunSpec) -> Task:
    """Classification of one-dimensional digits. All seeds share the rows, and the last 1,000 are for validation.

    With fewer rows, the seed draws training rows.
    """
    return build(_table(), spec)
