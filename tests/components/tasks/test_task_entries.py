"""Registered tasks: their own numbers of rows, their options, and traced options as arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relu_study.components.registry import tasks
from relu_study.components.tasks.task import Signature, Task, TaskEntry, task
from relu_study.engine.compilation import sample_program
from relu_study.errors import UserError
from relu_study.study.run_spec import RunSpec


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks.load()
    monkeypatch.setattr(tasks, "_entries", dict(tasks._entries))


def noisy(**words: Any) -> Any:
    @task("noisy", **words)
    def build(spec: RunSpec) -> Task:
        columns = dict(spec.options).get("columns", 3)

        def sample(key: Any, phase: Any, noise: Any = 0.0) -> Any:
            x = jax.random.uniform(key, (spec.rows, columns))
            return x, x[:, :1] + noise

        return Task(Signature(spec.rows // 2, spec.rows - spec.rows // 2, columns, 1), sample)

    return build


def test_unset_rows_are_the_rows_of_the_task() -> None:
    assert noisy(rows=60)(RunSpec(rows=8)).signature.train_rows == 4  # the function itself
    entry = tasks["noisy"]
    assert isinstance(entry, TaskEntry) and (entry.rows, entry.options, entry.traced) == (60, {}, ())
    assert entry(RunSpec()).signature[:2] == (30, 30) and entry(RunSpec(rows=8)).signature[:2] == (4, 4)
    assert RunSpec(task="noisy").run_id != RunSpec(task="noisy", rows=60).run_id
    noisy()
    assert tasks["noisy"](RunSpec()).signature[:2] == (100_000, 100_000)


def test_digits_without_rows_are_all_digits() -> None:
    (x, y), (same, labels) = (tasks["digits"](spec).sample(jax.random.key(3), 0) for spec in (RunSpec(), RunSpec(rows=1797)))
    assert np.array_equal(x, same) and np.array_equal(y, labels)


def test_options_are_filled_in() -> None:
    noisy(options={"columns": 5})
    entry = tasks["noisy"]
    assert entry(RunSpec(task="noisy")).signature.d_in == 5
    assert entry(RunSpec(task="noisy", options={"columns": 2})).signature.d_in == 2


def test_traced_option_reaches_the_rows_as_an_array() -> None:
    noisy(rows=20, options={"noise": 0.5}, traced=("noise",))
    spec = RunSpec(task="noisy", rows=20, batch_size=4)
    x, y = tasks["noisy"](spec).sample(jax.random.key(0), 0)
    assert np.allclose(y[:, 0], x[:, 0] + 0.5)
    program = sample_program(spec, 0, 0)
    seeds = np.array([1, 1, 2], np.uint32)
    data = program(seeds, {"noise": jnp.asarray([0.0, 2.0, 0.0])})
    assert np.allclose(data.train[1] - data.train[0], [0, 0, 0, 2.0]) and not np.allclose(data.train[0], data.train[2])
    assert np.allclose(program(seeds).train[0, :, 3] - data.train[0, :, 3], 0.5)


def test_traced_option_of_a_table_is_refused() -> None:
    @task("gathered", options={"noise": 0.5}, traced=("noise",))
    def build(spec: RunSpec) -> Task:
        table = (np.zeros((4, 1)), np.zeros((4, 1)))
        return Task(Signature(2, 2, 1, 1), lambda key, phase: table, table=table, split=lambda key, phase: jnp.arange(4))

    with pytest.raises(UserError, match="task 'gathered' has a table, so no sample takes its option 'noise'"):
        tasks["gathered"](RunSpec())


def test_function_in_the_registry_needs_no_entry() -> None:
    tasks.add("plain", lambda spec: Task(Signature(3, 2, 1, 1), lambda key, phase: (jnp.zeros((5, 1)), jnp.zeros((5, 1)))))
    assert tasks["plain"](RunSpec(task="plain")).signature.train_rows == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"rows": 1}, "task 'noisy' has rows=1. Give a whole number of at least 2"),
        ({"rows": 2.5}, "task 'noisy' has rows=2.5"),
        ({"rows": True}, "task 'noisy' has rows=True"),
        ({"options": {"rows": 3}}, "option 'rows' is a RunSpec field"),
        ({"options": {"kind": "a"}, "traced": ("kind",)}, "cannot be traced"),
        ({"options": {"noise": 1.0}, "traced": ("nois",)}, "Did you mean noise"),
    ],
)
def test_wrong_declaration_is_refused(words: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        noisy(**words)
