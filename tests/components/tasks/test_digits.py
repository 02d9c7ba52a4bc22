"""The digits, split by the seed; the loss and metrics of classification against NumPy."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from relu_study.components.registry import tasks
from relu_study.components.tasks.task import LOSSES, METRICS, accuracy, cross_entropy, trained
from relu_study.engine import train_tile
from relu_study.engine.state import MeasureConfig
from relu_study.engine.train_step import make_sample
from relu_study.errors import UserError
from relu_study.runner.prepare_runs import declared_metrics
from relu_study.study.run_spec import RunSpec

DIGITS = RunSpec(task="digits", rows=1797, batch_size=128, width=16, epochs=2, initializer="he_normal")
SEEDS = 4


@cache
def drawn(**words: Any) -> tuple[np.ndarray, np.ndarray]:
    """(SEEDS, rows, 64) images and (SEEDS, rows, 10) classes as runs get them: the training rows first."""
    task = tasks["digits"](DIGITS.replace(**words))
    data = jax.jit(jax.vmap(make_sample(task, 0)))(np.arange(SEEDS, dtype=np.uint32))
    xy = np.concatenate(data[:2], axis=1).astype(np.float64)
    return xy[..., :64], xy[..., 64:]


def test_every_seed_has_each_image_once_and_its_class() -> None:
    x, y = drawn()
    pixels, label = load_digits(return_X_y=True)
    wanted = sorted(zip(map(tuple, pixels), label))
    for images, classes in zip(x, y):
        assert np.all(classes.sum(axis=1) == 1) and set(np.unique(classes)) == {0.0, 1.0}
        assert sorted(zip(map(tuple, 16 * images), classes.argmax(axis=1))) == wanted
    assert len({row.tobytes() for row in x}) == SEEDS, "the seed draws the split"
    assert x.min() == 0 and x.max() == 1 and tasks["digits"](DIGITS).box == (0, 1)


def test_split_is_one_fifth_with_every_class_on_both_sides() -> None:
    task = tasks["digits"](DIGITS)
    assert task.signature[:6] == (1437, 360, 64, 10, "cross_entropy", ("accuracy", "trained")) and task.phases == 1
    for classes in drawn()[1]:
        counts = classes[:1437].sum(axis=0), classes[1437:].sum(axis=0)
        assert min(counts[0]) > 110 and min(counts[1]) > 15
    places = [[np.flatnonzero((x == drawn()[0][0][0]).all(axis=1))[0] for x in drawn()[0][1:]]]
    assert len(set(places[0])) == SEEDS - 1, "the first image of one seed is another's anywhere"


@pytest.mark.slow
def test_centred_inputs_and_fewer_rows() -> None:
    x, y = drawn(inputs="centred")
    assert np.array_equal(x, drawn()[0] - 0.5) and np.array_equal(y, drawn()[1])
    assert tasks["digits"](DIGITS.replace(inputs="centred")).box == (-0.5, 0.5)
    few = drawn(rows=500)
    assert np.array_equal(few[0], drawn()[0][:, :500]) and tasks["digits"](DIGITS.replace(rows=500)).signature[:2] == (400, 100)


def test_unsupported_choice_is_refused_with_a_hint() -> None:
    with pytest.raises(UserError, match=r"1797 images, not rows=2000. Set rows=1797"):
        tasks["digits"](RunSpec(task="digits", rows=2000))
    with pytest.raises(UserError, match=r"unknown target of task digits 'parity'. Choose one of default, digit"):
        tasks["digits"](DIGITS.replace(target="parity"))


def test_scikit_learn_is_imported_only_for_its_images() -> None:
    code = (
        "import sys; from relu_study import RunSpec; from relu_study.components.registry import tasks;"
        " tasks['digits'](RunSpec(task='digits', rows=9));"
        "sys.exit('sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ----------------------------------------------------------------------------------------- classification

LOGITS = np.random.default_rng(0).normal(size=(40, 7)) * 3
ONE_HOT = np.eye(7)[np.random.default_rng(1).integers(7, size=40)]


def by_hand(logits: np.ndarray, y: np.ndarray) -> float:
    """Mean of -log of the share that the right class has of the exponentials."""
    losses = [-np.log(np.exp(row[label]) / np.exp(row).sum()) for row, label in zip(logits, y.argmax(axis=1))]
    return float(np.mean(losses))


def test_cross_entropy() -> None:
    loss, slope = jax.jit(cross_entropy), jax.jit(jax.grad(cross_entropy))
    logits, y = LOGITS.astype(np.float32), ONE_HOT.astype(np.float32)
    np.testing.assert_allclose(loss(logits, y), by_hand(LOGITS, ONE_HOT), rtol=1e-6)
    assert float(loss(0 * logits, y)) == pytest.approx(np.log(7))
    # log odds have no origin; nothing overflows
    np.testing.assert_allclose(loss(logits + 1000, y), by_hand(LOGITS, ONE_HOT), rtol=1e-4)
    assert np.isfinite(float(loss(np.float32([[1e4, -1e4]]), np.float32([[0, 1]]))))
    shares = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(slope(logits, y), (shares - ONE_HOT) / 40, rtol=1e-4, atol=1e-7)
    assert LOSSES["cross_entropy"] is cross_entropy


def test_accuracy_and_trained() -> None:
    right = sum(max(range(7), key=lambda c: row[c]) == label for row, label in zip(LOGITS, ONE_HOT.argmax(axis=1)))
    share, zero = jax.jit(accuracy), np.zeros((40, 7), np.float32)
    assert float(share(LOGITS.astype(np.float32), ONE_HOT.astype(np.float32))) == pytest.approx(right / 40)
    assert float(share(zero, ONE_HOT.astype(np.float32))) == pytest.approx(ONE_HOT[:, 0].mean())  # the first of equals
    learnt, two = jax.jit(trained), np.eye(2, dtype=np.float32)
    for prediction, wanted in (([0, 0, 1, 0], 0), ([0, 0, 1, 1], 1), ([1, 0, 0, 0], 0)):
        assert float(learnt(two[prediction], two[[0, 0, 0, 1]])) == wanted  # a half is not more than a half


def test_run_is_measured_as_a_classifier() -> None:
    """What the tile says of the last epoch is what its last weights say of its rows, in NumPy."""
    few = MeasureConfig(histograms=False, metrics=("train_loss", "val_loss", "constant"))
    tile = train_tile.train_tile([DIGITS.replace(epochs=5, learning_rate=0.01)], 2, measure_config=few, keep_params=True)
    x, y = (part[0].astype(np.float64) for part in drawn())
    weights = {name: value[0].astype(np.float64) for name, value in tile.items() if name.startswith("param:")}
    hidden = np.maximum(x @ weights["param:hidden.0.dense.kernel"] + weights["param:hidden.0.dense.bias"], 0)
    logits = hidden @ weights["param:output.kernel"] + weights["param:output.bias"]
    said = {name: tile[f"metric:{name}/all"][0, -1] for name in ("train_loss", "val_loss", "accuracy", "trained", "constant")}
    assert said["train_loss"] == pytest.approx(by_hand(logits[:1437], y[:1437]), rel=1e-4)
    assert said["val_loss"] == pytest.approx(by_hand(logits[1437:], y[1437:]), rel=1e-4)
    right = (logits[:1437].argmax(axis=1) == y[:1437].argmax(axis=1)).mean()
    assert said["accuracy"] == pytest.approx(right, abs=1e-3) and right > 0.9 and said["trained"] == 1 and said["constant"] == 0
    assert tile["metric:train_loss/all"][0, 0] > np.log(10) * 0.9 and tile["metric:trained/all"][0, 0] == 0


def test_manifest_describes_histograms() -> None:
    said = declared_metrics([DIGITS])
    for name, unit in (("accuracy", "fraction"), ("trained", "0 or 1")):
        about = said[name]
        assert (about["unit"], about["direction"], about["low"], about["high"], about["sites"]) == (unit, "higher", 0, 1, False)
        assert about["text"] == METRICS[name].text
    assert not {"accuracy", "trained"} & set(declared_metrics([RunSpec()]))
