"""Checks of a user's tasks: shapes, keys, phases and boxes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import tiered
from user_entries import FEW, MINE, add_task, refused, sampled

from relu_study.components.registry import tasks
from relu_study.components.tasks.task import Signature, Task, task
from relu_study.engine import check_tasks, cohorts, train_tile
from relu_study.engine.train_step import make_sample
from relu_study.errors import UserError
from relu_study.study.run_spec import RunSpec

pytestmark = pytest.mark.usefixtures("restored_registries")


@given(
    rows=st.integers(50, 70),
    d_in=st.integers(3, 5),
    d_out=st.integers(1, 2),
    dtype=st.sampled_from([jnp.float32, jnp.int32, jnp.bool_, jnp.float16, jnp.complex64]),
    parts=st.sampled_from([1, 2, 3]),
)
@settings(max_examples=25)
def test_sample_must_fit_its_signature(rows: int, d_in: int, d_out: int, dtype: Any, parts: int) -> None:
    whole = sampled(rows, d_in, d_out, dtype)
    add_task(lambda key, phase: (*whole(key, phase), 0)[:parts] if parts != 1 else whole(key, phase)[0])
    if rows >= 60 and d_in == 4 and d_out == 1 and dtype != jnp.complex64 and parts == 2:
        cohorts.check(MINE, FEW)
        data = jax.jit(make_sample(tasks["mine"](MINE), 0))(np.uint32(0))
        assert data.train.shape == (40, 5) and data.val.shape == (20, 5) and data.train.dtype == jnp.result_type(float)
    else:
        refused(MINE, "task 'mine'", ". ")


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (lambda key, phase: {"x": jnp.zeros((60, 4)), "y": jnp.zeros((60, 1))}, ["one dict", "two arrays"]),
        (lambda key, phase: (jnp.zeros((60, 4)), jnp.zeros(60)), ["targets of shape (60,)", "60 x 1", "y[:, None]"]),
        (lambda key, phase: (jnp.zeros((60, 4)), jnp.zeros((61, 1))), ["60 inputs and 61 targets"]),
        (lambda key, phase: (jnp.zeros((60, 2, 2)), jnp.zeros((60, 1))), ["inputs of shape (60, 2, 2)", "d_in=4"]),
        (lambda key, phase: jnp.zeros((60, 4))[7, 8, 9], ["sample of task 'mine' raises IndexError"]),
        (lambda key: (jnp.zeros((60, 4)), jnp.zeros((60, 1))), ["sample(key, phase)"]),
    ],
    ids=["dict", "vector", "rows", "images", "raises", "parameters"],
)
def test_wrong_returns_are_refused_with_both_shapes(sample: Any, words: list[str]) -> None:
    add_task(sample)
    refused(MINE, *words)


def test_further_rows_are_not_read() -> None:
    add_task(sampled(70))
    cohorts.check(MINE, FEW)


@pytest.mark.parametrize(
    "index", [lambda key: jnp.arange(60), lambda key: jax.random.permutation(key, 60)], ids=["in order", "drawn"]
)
def test_index_beyond_the_data_is_refused(index: Callable[[Any], Any]) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(50, 4)))
    add_task(lambda key, phase: (x[index(key)], x[index(key)][:, :1]))
    refused(MINE, "task 'mine'", "beyond the end", "Draw fewer rows")


def clock(key: Any, phase: Any) -> Any:
    x = jax.random.uniform(jax.random.key(int(time.time())), (60, 4))
    return x, x[:, :1]


counted = [0]


def stateful(key: Any, phase: Any) -> Any:
    counted[0] += 1
    x = jax.random.uniform(key, (60, 4)) + counted[0]
    return x, x[:, :1]


def numpy_random(key: Any, phase: Any) -> Any:
    x = np.random.normal(size=(60, 4))
    return x, x[:, :1]


def inner(sample: Any) -> Any:
    """A sample of the same rows whose state hides in an inner jitted function."""
    jitted = jax.jit(sample, static_argnums=1)
    return lambda key, phase: tuple(1 * part for part in jitted(key, phase))


def looped(key: Any, phase: Any) -> Any:
    """State inside a jitted function inside a loop."""
    x = jax.lax.fori_loop(0, 2, lambda i, x: x + inner(numpy_random)(key, phase)[0], jnp.zeros((60, 4)))
    return x, x[:, :1]


def scalar_state(key: Any, phase: Any) -> Any:
    x = np.random.uniform() * jax.random.uniform(key, (60, 4))
    return x, x[:, :1]


KEPT_IN_JIT = [inner(numpy_random), inner(stateful), inner(scalar_state), inner(inner(numpy_random)), looped]


@pytest.mark.parametrize(
    "sample", [clock, stateful, numpy_random, jax.jit(numpy_random, static_argnums=1), scalar_state, *KEPT_IN_JIT]
)
def test_state_outside_the_key_is_refused(sample: Any) -> None:
    add_task(sample)
    refused(MINE, "task 'mine'", "same key give different rows", "jax.random")


@pytest.mark.parametrize(("phases", "faulty"), tiered([(2, 1), (3, 1), (16, 9), (40, 39)], (2, 1), (16, 9)))
def test_each_of_few_phases_is_drawn(phases: int, faulty: int) -> None:
    def sample(key: Any, phase: int) -> Any:
        x = jax.random.uniform(key, (60, 4)) + (5 if phase == faulty else 0)
        return x, x[:, :1]

    add_task(sample, box=(0.0, 1.0), phases=phases)
    refused(MINE, "task 'mine': drawn inputs are in [5", "outside its box")


def test_rows_that_differ_by_seed_in_any_phase_are_not_fixed() -> None:
    def sample(key: Any, phase: int) -> Any:
        x = jax.random.uniform(key if phase == 1 else jax.random.key(phase), (60, 4))
        return x, x[:, :1]

    add_task(sample, phases=3)
    assert check_tasks.check_task(MINE) == []
    add_task(lambda key, phase: sample(key, 2 * phase), phases=3)
    assert len(check_tasks.check_task(MINE)) == 1


def test_task_with_internal_state_is_refused() -> None:
    def drawn_when_built(spec: RunSpec) -> Task:
        x = np.random.normal(size=(60, 4))
        return Task(Signature(40, 20, 4, 1), lambda key, phase: (jnp.asarray(x), jnp.asarray(x[:, :1])))

    tasks.add("mine", drawn_when_built)
    refused(MINE, "same key give different rows")


def test_signature_that_depends_on_other_fields_is_refused() -> None:
    tasks.add("mine", lambda spec: Task(Signature(40, 20, spec.width, 1), sampled(d_in=spec.width)))
    refused(MINE, "signature depends on more than rows, target and inputs")


@given(low=st.one_of(st.floats(), st.sampled_from([-1.0, 0.0])), high=st.one_of(st.floats(), st.sampled_from([0.0, 1.0, 2.0])))
@settings(max_examples=30)
def test_box_is_ordered_finite_and_contains_the_inputs(low: float, high: float) -> None:
    add_task(sampled(), box=(low, high))
    with np.errstate(over="ignore"):
        finite = np.isfinite(np.array([low, high]).astype(np.float32)).all()
    if not finite or low > high:
        refused(MINE, "box must be two finite numbers (low, high) with low <= high")
    elif low > 0.05 or high < 0.95:
        refused(MINE, "task 'mine'", "outside its box", "box=None")
    elif low <= 0 and high >= 1:
        cohorts.check(MINE, FEW)


@pytest.mark.parametrize("box", [(0.0,), (0.0, 1.0, 2.0), [[0.0], [1.0]], [0.0, None]])
def test_malformed_box_is_refused(box: Any) -> None:
    tasks.add("mine", lambda spec: object.__new__(Task))
    broken = Task(Signature(40, 20, 4, 1), sampled())
    object.__setattr__(broken, "box", box)
    tasks._entries["mine"] = lambda spec: broken
    refused(MINE, "box must be two finite numbers")


def test_a_list_is_a_box() -> None:
    assert Task(Signature(40, 20, 4, 1), sampled(), box=[0, 1]).box == (0.0, 1.0)


def test_inputs_outside_the_box_in_a_later_seed_stop_the_run() -> None:
    def sample(key: Any, phase: Any) -> Any:
        x = jax.random.uniform(key, (60, 4))
        far = jax.random.key_data(key)[0] == jax.random.key_data(check_tasks.random_streams.stream(3, "data", 0))[0]
        return jnp.where(far, x + 5, x), x[:, :1]

    add_task(sample, box=(0.0, 1.0))
    cohorts.check(MINE, FEW)
    assert train_tile.train_tile([MINE.replace(seed=s) for s in (0, 1)], 2, measure_config=FEW)["status"].tolist() == ["ok", "ok"]
    with pytest.raises(UserError, match=r"task 'mine': drawn inputs are in \[.*, [56].*\], outside its box \(0.0, 1.0\)"):
        train_tile.train_tile([MINE.replace(seed=s) for s in (2, 3)], 2, measure_config=FEW)


def test_each_run_of_a_tile_is_checked_against_its_box() -> None:
    def boxed(spec: RunSpec) -> Task:
        shift = {"default": 0.0, "far": 5.0, "wrong": 9.0}[spec.target]

        def sample(key: Any, phase: Any) -> Any:
            x = jax.random.uniform(key, (60, 4)) + shift
            return x, x[:, :1]

        return Task(Signature(40, 20, 4, 1), sample, box=(0, 1) if spec.target != "far" else (5, 6))

    tasks.add("mine", boxed)
    right = [MINE.replace(target=target, seed=seed) for target in ("default", "far") for seed in (0, 1)]
    assert set(train_tile.train_tile(right, 4, measure_config=FEW)["status"]) == {"ok"}
    with pytest.raises(UserError, match=r"drawn inputs are in \[9\.\S+, 9\.\S+\], outside its box \(0\.0, 1\.0\)"):
        train_tile.train_tile([*right[1:], MINE.replace(target="wrong")], 4, measure_config=FEW)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "squared_eror"}, ["loss", "'squared_eror'", "squared_error"]),
        ({"loss": "crossentropy", "d_out": 3}, ["cross_entropy"]),
        ({"metrics": ("acuracy",)}, ["metric", "accuracy"]),
        ({"metrics": "accuracy"}, ["must be a tuple", "metrics=('accuracy',)"]),
        ({"metrics": ("accuracy",)}, ["accuracy of one output", "bce"]),
        ({"loss": "cross_entropy"}, ["at least 2 classes", "bce"]),
        ({"loss": "bce", "d_out": 2}, ["one logit", "d_out=1"]),
        ({"d_in": 0}, ["d_in must be a whole number"]),
        ({"train_rows": 30.5}, ["train_rows must be a whole number"]),
        ({"val_rows": 0}, ["rows=60 leaves 40 training and 0 validation rows"]),
    ],
)
def test_signature_fields_are_checked_by_name(changes: dict[str, Any], words: list[str]) -> None:
    signature = Signature(40, 20, 4, 1)._replace(**changes)
    add_task(sampled(d_out=signature.d_out), signature)
    refused(MINE, *words)


def test_task_of_a_wrong_type_is_refused() -> None:
    tasks.add("mine", lambda spec: (Signature(40, 20, 4, 1), sampled()))
    refused(MINE, "task 'mine' returns tuple", "Return a relu_study.Task")


TABLE = np.arange(240.0).reshape(60, 4), np.arange(60.0)[:, None]


def gathered(split: Any, table: Any = TABLE) -> None:
    add_task(lambda key, phase: tuple(jnp.asarray(part)[split(key, phase)] for part in TABLE), table=table, split=split)


def test_table_with_a_split_passes() -> None:
    gathered(lambda key, phase: jax.random.permutation(key, 60))
    assert check_tasks.check_task(MINE) == []


@pytest.mark.parametrize(
    ("split", "table", "words"),
    [
        (None, TABLE, ["has a table without a split"]),
        (lambda key, phase: jnp.arange(60), None, ["a split without a table"]),
        (lambda key, phase: jnp.arange(60), (TABLE[0], TABLE[1][:9]), ["arrays of [60, 9] rows"]),
        (lambda key, phase: jnp.arange(59), TABLE, ["split returns int32 of shape (59,)", "40 training rows"]),
        (lambda key, phase: jnp.arange(60.0), TABLE, ["split returns float32 of shape (60,)"]),
        (lambda key, phase: jnp.arange(60) + 1, TABLE, ["row numbers from 1 to 60", "table has 60 rows"]),
        (lambda key, phase: jnp.arange(60) - 1, TABLE, ["row numbers from -1 to 58"]),
        (lambda key, phase: np.random.permutation(60), TABLE, ["same key give different rows"]),
    ],
)
def test_wrong_table_or_split_is_refused(split: Any, table: Any, words: list[str]) -> None:
    add_task(lambda key, phase: TABLE, table=table, split=split)
    refused(MINE, "task 'mine'", *words)


def test_metric_of_the_other_kind_of_targets_is_refused() -> None:
    add_task(sampled(), Signature(40, 20, 4, 1, metrics=("r2",)))
    assert check_tasks.check_task(MINE) == []
    add_task(sampled(), Signature(40, 20, 4, 1, metrics=("r2", "accuracy")))
    refused(MINE, "accuracy of one output needs a logit")
    add_task(sampled(y=lambda x: (x, jnp.zeros(60, int))), Signature(40, 20, 4, 2, "ce", ("accuracy", "r2")))
    refused(MINE, "r2 is a metric of numbers, and ce has labels")


def test_options_may_change_the_signature() -> None:
    tasks._entries.pop("mine", None)

    @task("mine", options={"columns": 3})
    def mine(spec: RunSpec) -> Task:
        columns = int(spec.option("columns"))
        return Task(Signature(40, 20, columns, 1), sampled(d_in=columns))

    for columns in (3, 5):
        assert check_tasks.check_task(MINE.replace(columns=columns)) == []
