"""Training with optimisers that a user registers, and the assertion that one is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from relu_study import Experiment, RunSpec, Study, optimizer, run
from relu_study.components.registry import optimizers
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.runner.prepare import prepare

BASE = RunSpec(rows=60, width=4, epochs=2, batch_size=10, initializer="he_normal", learning_rate=0.02)
PARAMS = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}


def trained(functions: dict[str, Callable[..., Any]], **changes: Any) -> dict[str, list[dict[str, np.ndarray]]]:
    """Return name -> the final parameters of three seeds."""
    for name, function in functions.items():
        optimizer(name)(function)
    arms = {name: BASE.replace(optimizer=name, **changes) for name in functions}
    study = Study("optimizers", "Optimizers", "?", [Experiment("main", arms)], seeds=3, metrics=("val_loss",))
    results = run(study, keep_params=True)
    assert (results.runs.status == "ok").all()
    return {
        name: [results.params[i] for i in results.runs[results.runs.optimizer == name].sort_values("seed").run_id]
        for name in functions
    }


def same(one: list[dict[str, np.ndarray]], other: list[dict[str, np.ndarray]]) -> bool:
    return all(np.allclose(a[name], b[name], rtol=1e-5, atol=1e-6) for a, b in zip(one, other, strict=True) for name in a)


def refused(function: Callable[..., Any], **changes: Any) -> str:
    """Assert that a study of this optimiser is refused before anything compiles. Return the one-line message."""
    optimizers._entries.pop("offender", None)
    with pytest.raises(UserError) as error:
        optimizer("offender")(function)
        study = Study("s", "S", "?", [Experiment("main", {"arm": BASE.replace(optimizer="offender", **changes)})], seeds=1)
        prepare(study, None, MeasureConfig())
    assert "'offender'" in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def raw_noise(name: str) -> optax.GradientTransformation:
    """Return an optimiser with noise from a raw uint32 key, which is in its state under this name."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        key, now = jax.random.split(state[name])
        return jax.tree.map(lambda u: -0.1 * jax.random.normal(now, u.shape), updates), {name: key}

    return optax.GradientTransformation(lambda params: {name: jax.random.PRNGKey(0)}, update)


def noise_of_a_step(key: Any) -> optax.GradientTransformation:
    """Return an optimiser with noise from the caller's key and the step number."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        now = jax.random.fold_in(key, state)
        return jax.tree.map(lambda u: -0.1 * jax.random.normal(now, u.shape), updates), state + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def wrapped(update: Any, state: Any = ()) -> Callable[..., Any]:
    return lambda lr, wd: optax.GradientTransformation(lambda p: state, update)
