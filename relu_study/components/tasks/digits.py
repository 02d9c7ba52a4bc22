"""Handwritten digits: 1,797 images of 8 x 8 pixels in ten classes.

Source: Alpaydin & Kaynak 1998, "Optical recognition of handwritten digits", UCI repository, test set, as in scikit-learn.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from relu_study.components.tasks.array_rows import ArrayRows, build
from relu_study.components.tasks.task import Signature, Task, task
from relu_study.errors import UserError, nearest
from relu_study.study.run_spec import RunSpec

IMAGES, SIDE, PIXELS, CLASSES = 1797, 8, 64, 10
TARGETS = ("default", "digit")


@functools.cache
def images() -> tuple[Float[np.ndarray, "1797 64"], Float[np.ndarray, "1797 10"]]:
    """Return all images, with pixels in [0, 1], and their one-hot classes."""
    pixels, labels = _stored()
    return pixels / 16, np.eye(CLASSES)[labels]


def _stored() -> tuple[Float[np.ndarray, "1797 64"], Int[np.ndarray, "1797"]]:
    """Return the pixels, 0 to 16, and the classes. Importing scikit-learn would take ten times as long as reading its file."""
    package = importlib.util.find_spec("sklearn")
    if package is not None and package.origin is not None:
        path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            table = np.loadtxt(path, delimiter=",")
            return table[:, :-1], table[:, -1].astype(int)
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # another layout, or the error without it

    pixels, labels = load_digits(return_X_y=True)
    return pixels, labels


@task("digits", rows=IMAGES)
def digits(spec: RunSpec) -> Task:
    """Classification of digits. The seed draws the split, with 80 % of the images for training.

    Centred inputs subtract 1/2. `rows` is at most 1797. With fewer rows, the seed also draws the images.

    Raises:
      UserError: for an unknown target or too many rows.
    """
    if spec.target not in TARGETS:
        raise nearest(spec.target, TARGETS, f"target of task {spec.task}")
    if spec.rows > IMAGES:
        raise UserError(f"task digits has {IMAGES} images, not rows={spec.rows}. Set rows={IMAGES}, or fewer.")
    train, shift = spec.rows * 4 // 5, 0.5 if spec.inputs == "centred" else 0.0

    def sample(key: Key[Array, ""], phase: Int[Array, ""] | int) -> tuple[Float[Array, "n 64"], Float[Array, "n 10"]]:
        order = jax.random.permutation(key, IMAGES)[: spec.rows]
        x, y = (jnp.asarray(values, jnp.result_type(float))[order] for values in images())
        return x - shift, y

    signature = Signature(train, spec.rows - train, PIXELS, CLASSES, loss="cross_entropy", metrics=("accuracy", "trained"))
    return Task(signature, sample, box=(-shift, 1 - shift))


@functools.cache
def _table() -> ArrayRows:
    pixels, classes = images()
    x = pixels.astype(np.float32).reshape(IMAGES, SIDE, SIDE, 1)
    return ArrayRows(x, classes.argmax(axis=1).astype(np.int32), CLASSES, metrics=("accuracy", "trained"), centre=0.5)


@task("digits_image", rows=IMAGES)
def digits_image(spec: RunSpec) -> Task:
    """The images of task digits, with the same splits, as 8 x 8 x 1 pixels. Centred inputs subtract 1/2."""
    return build(_table(), spec)
