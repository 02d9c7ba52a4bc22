"""Metrics of tasks against scikit-learn and NumPy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, r2_score, top_k_accuracy_score

from relu_study.components.tasks.task import METRICS, balanced_accuracy, r2, top5_accuracy

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(300, 9))
LABELS = np.minimum(RNG.integers(12, size=300), 7)  # unbalanced, and class 8 does not occur
LOGITS[np.arange(300), LABELS] += 1.0
ONE_HOT = np.eye(9)[LABELS]


def test_top5_accuracy() -> None:
    wanted = top_k_accuracy_score(LABELS, LOGITS, k=5, labels=np.arange(9))
    for y in (ONE_HOT, LABELS.astype(np.int32)):
        assert float(top5_accuracy(jnp.asarray(LOGITS), jnp.asarray(y))) == pytest.approx(wanted)
    assert 0.6 < wanted < 0.95
    equal = top5_accuracy(jnp.zeros((300, 9)), jnp.asarray(ONE_HOT))  # the first five of equal logits
    assert float(equal) == pytest.approx((LABELS < 5).mean())
    assert float(top5_accuracy(jnp.full((300, 9), jnp.nan), jnp.asarray(ONE_HOT))) == 0
    assert float(top5_accuracy(jnp.asarray(LOGITS)[:, :5], jnp.asarray(LABELS % 5))) == 1


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_balanced_accuracy() -> None:
    wanted = balanced_accuracy_score(LABELS, LOGITS.argmax(axis=1))
    for y in (ONE_HOT, LABELS.astype(np.int32)):
        assert float(balanced_accuracy(jnp.asarray(LOGITS), jnp.asarray(y))) == pytest.approx(wanted)
    assert wanted != pytest.approx((LOGITS.argmax(axis=1) == LABELS).mean(), abs=1e-3)
    logit, y = LOGITS[:, :1], (LABELS[:, None] > 5).astype(float)
    wanted = balanced_accuracy_score(y[:, 0], logit[:, 0] > 0)
    assert float(balanced_accuracy(jnp.asarray(logit), jnp.asarray(y))) == pytest.approx(wanted)


def test_each_position_of_a_sequence_counts() -> None:
    logits, y = jnp.asarray(LOGITS.reshape(30, 10, 9)), jnp.asarray(LABELS.reshape(30, 10))
    for metric in (balanced_accuracy, top5_accuracy, METRICS["accuracy"].function):
        flat = metric(jnp.asarray(LOGITS), jnp.asarray(LABELS))
        assert float(metric(logits, y)) == pytest.approx(float(flat))


def test_r2() -> None:
    y = RNG.normal(size=(200, 3)) * [1, 10, 100] + [0, 5, -1000]
    prediction = y + RNG.normal(size=(200, 3)) * [0.5, 20, 10]
    assert float(r2(jnp.asarray(prediction), jnp.asarray(y))) == pytest.approx(r2_score(y, prediction), abs=1e-4)
    assert float(r2(jnp.asarray(y), jnp.asarray(y))) == 1
    assert float(r2(jnp.broadcast_to(jnp.asarray(y).mean(axis=0), y.shape), jnp.asarray(y))) == pytest.approx(0, abs=1e-4)
    constant = np.column_stack([y[:, 0], np.full(200, 3.0)])
    close = constant + np.array([0.0, 0.1])
    assert float(r2(jnp.asarray(constant), jnp.asarray(constant))) == 1
    assert float(r2(jnp.asarray(close), jnp.asarray(constant))) == pytest.approx(r2_score(constant, close), abs=1e-5)
    sequence = (prediction.reshape(20, 10, 3), y.reshape(20, 10, 3))
    wanted = r2_score(*(part.reshape(20, -1) for part in reversed(sequence)))
    assert float(r2(*map(jnp.asarray, sequence))) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("name", METRICS)
def test_each_metric_declares_range_and_direction(name: str) -> None:
    about = METRICS[name].declared()
    assert about["direction"] == "higher" and about["high"] == 1 and about["unit"] and about["text"].endswith(".")
    assert about["source"] or name == "accuracy"
