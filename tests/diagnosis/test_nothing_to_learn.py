"""Healthy networks on data without anything to learn: shuffled labels, constant targets, one class."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest

from relu_study.components.registry import tasks
from relu_study.components.tasks.task import Signature, Task, task
from relu_study.diagnosis.diagnose import diagnose
from relu_study.diagnosis.tiles import history_of
from relu_study.engine.train_tile import train_tile
from relu_study.study.run_spec import RunSpec

ROWS, SEEDS = 400, 4


@pytest.fixture
def registered() -> Iterator[None]:
    task("nothing_to_learn", rows=ROWS)(nothing_to_learn)
    yield
    tasks._entries.pop("nothing_to_learn")


def nothing_to_learn(spec: RunSpec) -> Task:
    """Normal inputs. The target says which targets they have."""
    loss = "squared_error" if spec.target == "constant" else "cross_entropy"

    def sample(key, phase):  # type: ignore[no-untyped-def]
        x = jax.random.normal(key, (ROWS, 3))
        label = jax.random.randint(jax.random.fold_in(key, 1), (ROWS,), 0, 1 if spec.target == "one_class" else 2)
        return x, jnp.full((ROWS, 1), 0.7) if spec.target == "constant" else jax.nn.one_hot(label, 2)

    return Task(Signature(300, 100, 3, 1 if spec.target == "constant" else 2, loss=loss), sample)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("target", ["shuffled", "constant", "one_class"])
def test_what_cannot_be_learned_is_not_dying(target: str) -> None:
    spec = RunSpec(task="nothing_to_learn", target=target, width=16, depth=2, batch_size=50, epochs=8, initializer="he_normal")
    tile = train_tile([spec.replace(seed=seed, learning_rate=3e-3) for seed in range(SEEDS)], SEEDS)
    problems = {finding.problem for findings in diagnose(history_of(tile)) for finding in findings}
    assert not problems & {"dying", "exploding", "vanishing"}
    if target != "shuffled":
        assert (tile["constant_loss"] == 0).all()
        assert not problems, "a constant is perfect"
