"""Components that a user registers under the name "mine", and the assertion that one is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from relu_study.components.registry import tasks
from relu_study.components.tasks.task import Signature, Task
from relu_study.engine import cohorts
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.study.run_spec import RunSpec
from relu_study.study.study import Experiment, Study

inf = float("inf")
SPEC = RunSpec(rows=60, width=6, batch_size=8, epochs=1, initializer="he_normal", learning_rate=0.01)
MINE = SPEC.replace(task="mine")
FEW = MeasureConfig(30, 20, histograms=False, metrics=("train_loss", "val_loss", "dead_fraction", "certified_dead_fraction"))


def refused(spec: RunSpec, *words: str) -> str:
    """Assert that a spec is refused before anything compiles, with a one-line message that has all these words. Return it."""
    with pytest.raises(UserError) as error:
        cohorts.check(spec, FEW)
    line = str(error.value)
    assert "\n" not in line and all(word in line for word in words), line
    return line


def sampled(
    rows: int = 60, d_in: int = 4, d_out: int = 1, dtype: Any = jnp.float32, y: Callable[[Any], Any] | None = None
) -> Callable[..., Any]:
    def sample(key: Any, phase: Any) -> Any:
        x = jax.random.uniform(key, (rows, d_in))
        return x, jnp.ones((rows, d_out), dtype) * x[:, :1].astype(dtype) if y is None else y(x)

    return sample


USUAL = Signature(40, 20, 4, 1)


def add_task(sample: Any, signature: Signature = USUAL, **more: Any) -> None:
    tasks._entries.pop("mine", None)
    tasks.add("mine", lambda spec: Task(signature, sample, **more))


def study_of(spec: RunSpec) -> Study:
    return Study("mine", "Mine", "?", [Experiment("main", {"a": spec, "b": spec.replace(width=7)})], seeds=2)
