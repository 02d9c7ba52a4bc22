"""Requests that `inspect` refuses, each with the offender and the action."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from relu_study import inspect
from relu_study.errors import UserError

PARAMS = {"hidden": jnp.ones((4, 3))}
ROWS = jnp.ones((5, 4))


def forward(params: Any, x: Any) -> Any:
    return jax.nn.relu(x @ params["hidden"])


def mse(output: Any, y: Any) -> Any:
    return jnp.mean(jnp.square(output - y))


MODEL = (forward, PARAMS)
Y = jnp.ones((5, 3))
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a bare function": (lambda: inspect(forward, ROWS), r"not function\. .*\(function, params\)"),
    "a bare Linen module": (lambda: inspect(nn.Dense(3), ROWS), r"not Dense\. .*\(module, variables\)"),
    "a triple": (lambda: inspect((forward, PARAMS, 0), ROWS), "not a tuple"),
    "a number": (lambda: inspect(5, ROWS), "not int"),
    "no params": (lambda: inspect((nn.Dense(3), {"state": 0}), ROWS), r"Dense are the collections \['state'\]"),
    "no variables": (lambda: inspect((nn.Dense(3), ROWS), ROWS), "Dense are a ArrayImpl"),
    "y without loss": (lambda: inspect(MODEL, ROWS, y=Y), "loss is missing"),
    "loss without y": (lambda: inspect(MODEL, ROWS, loss=mse), "y is missing"),
    "a vector of losses": (lambda: inspect(MODEL, ROWS, y=Y, loss=lambda out, y: out - y), r"shape \(5, 3\).*mean over examples"),
    "no batches": (lambda: inspect(MODEL, []), "no examples"),
    "no rows": (lambda: inspect(MODEL, ROWS[:0]), "no examples"),
    "batch_size": (lambda: inspect(MODEL, ROWS, batch_size=0), "batch_size=0"),
    "a scalar": (lambda: inspect(MODEL, 1.0), "no array but a float"),
    "batches of scalars": (lambda: inspect(MODEL, [1.0]), "batch 0 of x has no axis of examples"),
    "more batches of x": (lambda: inspect(MODEL, [ROWS, ROWS], y=[Y], loss=mse), "y has 1 batches, and x has more"),
    "more batches of y": (lambda: inspect(MODEL, [ROWS], y=[Y, Y], loss=mse), "y has more batches"),
    "fewer targets": (lambda: inspect(MODEL, ROWS, y=Y[:2], loss=mse), "y has 2 rows, but x has 5 in batch 0"),
    "an unknown site": (lambda: inspect(MODEL, ROWS, unit_axis={"hiden": 0}), "Did you mean hidden"),
    "an unknown axis": (lambda: inspect(MODEL, ROWS, unit_axis={"hidden": 2}), r"\(5, 3\) and no axis 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        call()


def test_a_list_of_targets_is_an_array_of_them() -> None:
    y = [[float(row), 0.0, 1.0] for row in range(5)]
    wide = (forward, {"hidden": jnp.ones((4, 300))})  # few units are evaluated on a grid piece by piece

    def loss(output: Any, y: Any) -> Any:
        return mse(output[:, :3], y)

    listed, array = (inspect(wide, ROWS, y=targets, loss=loss, batch_size=3).sites for targets in (y, jnp.asarray(y)))
    assert listed.grad_norm.tolist() == array.grad_norm.tolist() != [0.0]


def test_a_mapping_is_one_batch_and_a_generator_several() -> None:
    def named(params: Any, inputs: Any) -> Any:
        return forward(params, inputs["x"])

    assert inspect((named, PARAMS), {"x": ROWS}).sites.n.tolist() == [5]
    assert inspect(MODEL, (ROWS for _ in range(3))).sites.n.tolist() == [15]
