"""Classification losses of a user's task, and tasks whose seeds draw the same rows."""

from __future__ import annotations

import itertools
import re
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import tiered
from user_entries import FEW, MINE, SPEC, add_task, refused, sampled, study_of

from relu_study.components.registry import tasks
from relu_study.components.tasks.task import LOSSES, METRICS, Signature, accuracy, targets, trained
from relu_study.engine import cohorts, train_tile
from relu_study.engine.train_step import make_sample
from relu_study.runner.prepare import prepare
from relu_study.storage.declaration import parse_declaration

pytestmark = pytest.mark.usefixtures("restored_registries")

CLASSES = np.arange(60) % 3


LABELS = list(itertools.product(["cross_entropy", "ce"], [(60,), (60, 1)], [np.int32, np.float32, np.uint8]))


@pytest.mark.parametrize(
    ("loss", "shape", "dtype"),
    tiered(LABELS, ("cross_entropy", (60,), np.int32), ("ce", (60, 1), np.float32), ("ce", (60,), np.uint8)),
)
def test_labels_become_one_hot(dtype: Any, shape: tuple[int, ...], loss: str) -> None:
    add_task(sampled(y=lambda x: jnp.asarray(CLASSES.reshape(shape), dtype)), Signature(40, 20, 4, 3, loss, ("accuracy",)))
    cohorts.check(MINE, FEW)
    data = jax.jit(make_sample(tasks["mine"](MINE), 0))(np.uint32(0))
    assert np.array_equal(np.concatenate([data.train, data.val])[:, 4:], np.eye(3)[CLASSES])


@pytest.mark.parametrize("labels", [CLASSES + 1, CLASSES - 1, CLASSES + 0.5])
def test_invalid_labels_are_refused_and_never_trained_on(labels: np.ndarray) -> None:
    signature = Signature(40, 20, 4, 3, "cross_entropy")
    add_task(sampled(y=lambda x: jnp.asarray(labels)), signature)
    refused(MINE, "labels of cross_entropy are in", "whole numbers from 0 to 2")
    found = np.asarray(targets(signature, jnp.asarray(labels)))
    wrong = ~np.isin(labels, [0, 1, 2])
    assert np.isnan(found[wrong]).all() and np.array_equal(found[~wrong], np.eye(3)[labels[~wrong].astype(int)])


def test_target_rows_must_be_probabilities() -> None:
    add_task(sampled(y=lambda x: jnp.asarray(2 * np.eye(3)[CLASSES] - 1)), Signature(40, 20, 4, 3, "ce"))
    refused(MINE, "no probabilities")


def test_losses_by_their_short_names() -> None:
    z, y = jnp.array([[-2.0], [0.5], [3.0]]), jnp.array([[0.0], [1.0], [0.0]])
    p = 1 / (1 + np.exp(-np.asarray(z, float)))
    by_hand = -np.mean(np.where(y == 1, np.log(p), np.log(1 - p)))
    assert float(LOSSES["bce"](z, y)) == pytest.approx(by_hand, rel=1e-6)
    assert LOSSES["mse"] is LOSSES["squared_error"] and LOSSES["ce"] is LOSSES["cross_entropy"]
    assert float(accuracy(z, y)) == pytest.approx(2 / 3) and float(trained(z, y)) == 1
    assert np.isfinite(float(LOSSES["bce"](jnp.full((1, 1), 200.0), jnp.zeros((1, 1)))))


@pytest.mark.parametrize("vector", [True, False])
def test_one_logit_learns_two_classes(vector: bool) -> None:
    def y(x: Any) -> Any:
        label = (x[:, 0] > 0.5).astype(int)
        return label if vector else label[:, None]

    add_task(sampled(y=y), Signature(40, 20, 4, 1, "bce", ("accuracy", "trained")))
    spec = MINE.replace(epochs=60, learning_rate=0.03)
    cohorts.check(spec, FEW)
    tile = train_tile.train_tile([spec], 2, measure_config=FEW._replace(measure_every=60))
    assert tile["metric:accuracy/all"][0, -1] > 0.9 and tile["metric:trained/all"][0, -1] == 1
    assert set(METRICS) >= {"accuracy", "trained"}


def test_targets_of_one_logit_are_0_or_1() -> None:
    add_task(sampled(y=lambda x: jnp.where(x[:, :1] > 0.5, 1, -1)), Signature(40, 20, 4, 1, "bce"))
    refused(MINE, "targets of bce are in [-1, 1]", "0 or 1")


def test_equal_rows_of_two_keys_give_one_note_unless_declared() -> None:
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    rows = (jnp.asarray(x), jnp.asarray(x[:, :1]))
    add_task(lambda key, phase: rows)
    (note,) = prepare(study_of(MINE), None, FEW).declaration["notes"]
    assert re.search(r"task 'mine' gives two different keys the same rows.*fixed=True", note)
    declaration = read_back(prepare(study_of(MINE), None, FEW).declaration)
    assert declaration["notes"] == (note,)
    with pytest.raises(Exception, match=r"expected `str`, got `int` at `\$\.notes\[0\]`"):
        read_back({**declaration, "notes": [3]})
    add_task(lambda key, phase: rows, fixed=True)
    assert "notes" not in prepare(study_of(MINE), None, FEW).declaration
    assert "notes" not in prepare(study_of(SPEC), None, FEW).declaration


def read_back(declaration: dict[str, Any]) -> dict[str, Any]:
    return asdict(parse_declaration(declaration))


PLANTED = """
import jax.numpy as jnp
from relu_study import Experiment, RunSpec, Signature, Study, Task, task

@task("same")
def same(spec):
    x = jnp.linspace(-1, 1, 240).reshape(60, 4)
    return Task(Signature(40, 20, 4, 1), lambda key, phase: (x, x[:, :1]){fixed})

base = RunSpec(task="same", rows=60, width=6, batch_size=8, epochs=0)
study = Study("same", "Same", "?", [Experiment("main", {{"a": base}})], seeds=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fixed", ["", ", fixed=True"])
def test_note_appears_in_plan_and_report(here: Any, tmp_path: Any, fixed: str) -> None:
    (tmp_path / "same.py").write_text(PLANTED.format(fixed=fixed))
    status, out, _ = here("plan", "same.py", "--no-memory")
    assert status == 0 and out.count("same rows") == (not fixed)
    assert here("run", "same.py", "--out", "out")[0] == 0
    assert (tmp_path / "out" / "report.md").read_text().count("same rows") == (not fixed)
