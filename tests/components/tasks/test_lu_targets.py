"""The targets of deep and narrow nets: their formulas, their interval, separate draws per seed."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from scipy.integrate import quad

from relu_study.components.registry import tasks
from relu_study.engine.train_step import make_sample
from relu_study.errors import UserError
from relu_study.study.run_spec import RunSpec

END, SEEDS, ROWS = np.sqrt(3), 16, 4000
BY_HAND = {  # of one input, each point by itself
    "abs": lambda x: (x if x > 0 else -x,),
    "x_sin_5x": lambda x: (x * np.sin(5 * x),),
    "step_sine": lambda x: ((1 if x > 0 else 0) + 0.2 * np.sin(5 * x),),
    "two_dim": lambda x, z: (abs(x + z), abs(x - z)),
}


def lu(target: str, **words: Any) -> RunSpec:
    return RunSpec(task="lu_targets", target=target, **{"rows": ROWS, **words})


@cache
def drawn(target: str) -> tuple[np.ndarray, np.ndarray]:
    """(SEEDS, ROWS, d) inputs and (SEEDS, ROWS, o) targets as runs get them: the training rows first."""
    task = tasks["lu_targets"](lu(target))
    data = jax.jit(jax.vmap(make_sample(task, 0)))(np.arange(SEEDS, dtype=np.uint32))
    xy = np.concatenate(data[:2], axis=1).astype(np.float64)
    return xy[..., : task.signature.d_in], xy[..., task.signature.d_in :]


@pytest.mark.parametrize("target", BY_HAND)
def test_targets_are_what_their_names_say(target: str) -> None:
    x, y = drawn(target)
    for inputs, outputs in zip(x[0, :500], y[0, :500]):
        np.testing.assert_allclose(outputs, BY_HAND[target](*inputs), atol=2e-6)


@pytest.mark.parametrize(("target", "d"), [("abs", 1), ("x_sin_5x", 1), ("step_sine", 1), ("two_dim", 2)])
def test_inputs_have_variance_1_and_3000_train(target: str, d: int) -> None:
    task = tasks["lu_targets"](lu(target))
    assert task.signature[:6] == (3000, 1000, d, d, "squared_error", ()) and task.phases == 1
    assert task.box == pytest.approx((-END, END))
    x = drawn(target)[0].reshape(-1, d)
    assert np.abs(x).max() <= np.float32(END) and np.all(np.abs(x).max(axis=0) > END * (1 - 20 / len(x)))
    assert np.all(np.abs(x.mean(axis=0)) < 4 / np.sqrt(len(x)))
    assert np.all(np.abs((x**2).mean(axis=0) - 1) < 4 * np.sqrt(4 / 5 / len(x)))  # E x^4 = 9/5
    assert np.all(np.abs(np.corrcoef(x.T) - np.eye(d)) < 4 / np.sqrt(len(x)) + 1e-9)


@pytest.mark.parametrize("target", ["abs", "x_sin_5x", "step_sine"])
def test_mean_and_variance_are_those_of_the_integral(target: str) -> None:
    """Of |x| the mean is sqrt(3)/2 and the variance 1/4; the others by quadrature, which knows nothing of the sample."""
    one = moment(target, 1)
    two, four = (moment(target, order, about=one) for order in (2, 4))
    assert target != "abs" or (one, two) == pytest.approx((END / 2, 1 / 4))
    y = drawn(target)[1].ravel()
    assert abs(y.mean() - one) < 4 * np.sqrt(two / y.size)
    assert abs(((y - one) ** 2).mean() - two) < 4 * np.sqrt((four - two**2) / y.size)


def moment(target: str, order: int, about: float = 0.0) -> float:
    density = 1 / (2 * END)
    return quad(lambda x: density * (BY_HAND[target](x)[0] - about) ** order, -END, END, points=[0.0])[0]


def test_comparisons_are_paired_and_seeds_differ() -> None:
    x = drawn("abs")[0]
    assert np.array_equal(drawn("x_sin_5x")[0], x) and np.array_equal(drawn("step_sine")[0], x)
    assert len({row.tobytes() for row in x}) == SEEDS and len(np.unique(x[0])) > ROWS - 10
    assert np.array_equal(tasks["lu_targets"](lu("default")).sample(jax.random.key(1), 0)[1], np.abs(x_of(1)))


def x_of(seed: int) -> np.ndarray:
    return np.asarray(tasks["lu_targets"](lu("abs")).sample(jax.random.key(seed), 0)[0])


def test_unsupported_choice_is_refused_with_a_hint() -> None:
    with pytest.raises(UserError, match=r"unknown target of task lu_targets 'two_dims'. Did you mean two_dim"):
        tasks["lu_targets"](lu("two_dims"))
    with pytest.raises(UserError, match=r"already have mean 0. Leave inputs='raw'"):
        tasks["lu_targets"](lu("abs", inputs="centred"))
