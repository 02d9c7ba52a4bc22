"""Every entry that a study brings keeps its contract, or is refused in one line; no fault ends in a wrong number."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from relu_study.components.activations import activation
from relu_study.components.initializers import Layer, initializer
from relu_study.components.layers import Dense, Site
from relu_study.components.networks import Block, network
from relu_study.components.registry import activations, initializers, networks, ours, tasks
from relu_study.components.tasks.task import LOSSES, METRICS, Signature, Task, accuracy, targets, trained
from relu_study.engine import check_functions, check_networks, check_tasks, cohorts, compilation, train_tile
from relu_study.engine.state import MeasureConfig
from relu_study.engine.train_step import make_init, make_sample
from relu_study.errors import UserError
from relu_study.runner import run
from relu_study.runner.prepare import prepare
from relu_study.runner.prepare_draws import prepare_draws
from relu_study.storage import schema
from relu_study.study.draw_study import Draws, DrawStudy
from relu_study.study.run_spec import TRACED_FIELDS, RunSpec
from relu_study.study.study import Experiment, Study

inf = float("inf")
SPEC = RunSpec(rows=60, width=6, batch_size=8, epochs=1, initializer="he_normal", learning_rate=0.01)
MINE = SPEC.replace(task="mine")
FEW = MeasureConfig(30, 20, histograms=False, metrics=("train_loss", "val_loss", "dead_fraction", "certified_dead_fraction"))


@pytest.fixture(autouse=True)
def _own_entries() -> Iterator[None]:
    registries = (activations, initializers, networks, tasks)
    before = [dict(registry._entries) for registry in registries]
    yield
    for registry, kept in zip(registries, before):
        registry._entries = kept
    compilation.clear()  # programs are kept by name


def refused(spec: RunSpec, *words: str) -> str:
    """The one line with which a spec is refused before anything compiles; it has all these words."""
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


# ------------------------------------------------------------------------------------------- tasks


@given(
    rows=st.integers(50, 70),
    d_in=st.integers(3, 5),
    d_out=st.integers(1, 2),
    dtype=st.sampled_from([jnp.float32, jnp.int32, jnp.bool_, jnp.float16, jnp.complex64]),
    parts=st.sampled_from([1, 2, 3]),
)
@settings(max_examples=40)
def test_a_sample_fits_its_signature_or_is_refused(rows: int, d_in: int, d_out: int, dtype: Any, parts: int) -> None:
    whole = sampled(rows, d_in, d_out, dtype)
    add_task(lambda key, phase: (*whole(key, phase), 0)[:parts] if parts != 1 else whole(key, phase)[0])
    if rows >= 60 and d_in == 4 and d_out == 1 and dtype != jnp.complex64 and parts == 2:
        cohorts.check(MINE, FEW)
        data = jax.jit(make_sample(tasks["mine"](MINE), 0, MeasureConfig(val_examples=None)))(np.uint32(0))
        assert data.train.shape == (40, 5) and data.val.shape == (20, 5) and data.train.dtype == jnp.result_type(float)
    else:
        refused(MINE, "task 'mine'", ";")


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
def test_other_returns_are_refused_with_both_shapes(sample: Any, words: list[str]) -> None:
    add_task(sample)
    refused(MINE, *words)


def test_further_rows_are_not_read() -> None:
    add_task(sampled(70))
    cohorts.check(MINE, FEW)


@pytest.mark.parametrize(
    "index", [lambda key: jnp.arange(60), lambda key: jax.random.permutation(key, 60)], ids=["in order", "drawn"]
)
def test_an_index_beyond_the_data_is_refused(index: Callable[[Any], Any]) -> None:
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


@pytest.mark.parametrize(("phases", "faulty"), [(2, 1), (3, 1), (16, 9), (40, 39)])
def test_each_of_few_phases_is_drawn(phases: int, faulty: int) -> None:
    def sample(key: Any, phase: int) -> Any:
        x = jax.random.uniform(key, (60, 4)) + (5 if phase == faulty else 0)
        return x, x[:, :1]

    add_task(sample, box=(0.0, 1.0), phases=phases)
    refused(MINE, "task 'mine': drawn inputs are in [5", "outside its box")


def test_rows_that_differ_by_seed_in_one_phase_are_not_fixed() -> None:
    def sample(key: Any, phase: int) -> Any:
        x = jax.random.uniform(key if phase == 1 else jax.random.key(phase), (60, 4))
        return x, x[:, :1]

    add_task(sample, phases=3)
    assert check_tasks.check_task(MINE) == []
    add_task(lambda key, phase: sample(key, 2 * phase), phases=3)
    assert len(check_tasks.check_task(MINE)) == 1


def test_state_of_the_task_itself_is_refused() -> None:
    def drawn_when_built(spec: RunSpec) -> Task:
        x = np.random.normal(size=(60, 4))
        return Task(Signature(40, 20, 4, 1), lambda key, phase: (jnp.asarray(x), jnp.asarray(x[:, :1])))

    tasks.add("mine", drawn_when_built)
    refused(MINE, "same key give different rows")


def test_a_signature_of_other_fields_is_refused() -> None:
    tasks.add("mine", lambda spec: Task(Signature(40, 20, spec.width, 1), sampled(d_in=spec.width)))
    refused(MINE, "signature depends on more than rows, target and inputs")


@given(low=st.one_of(st.floats(), st.sampled_from([-1.0, 0.0])), high=st.one_of(st.floats(), st.sampled_from([0.0, 1.0, 2.0])))
@settings(max_examples=60)
def test_a_box_is_ordered_finite_and_holds_the_inputs(low: float, high: float) -> None:
    add_task(sampled(), box=(low, high))
    if not (max(abs(low), abs(high)) < 3e38 and low <= high):
        refused(MINE, "box must be two finite numbers (low, high) with low <= high")
    elif low > 0.05 or high < 0.95:
        refused(MINE, "task 'mine'", "outside its box", "box=None")
    elif low <= 0 and high >= 1:
        cohorts.check(MINE, FEW)


@pytest.mark.parametrize("box", [(0.0,), (0.0, 1.0, 2.0), [[0.0], [1.0]], [0.0, None]])
def test_a_box_of_another_form_is_refused(box: Any) -> None:
    tasks.add("mine", lambda spec: object.__new__(Task))
    broken = Task(Signature(40, 20, 4, 1), sampled())
    object.__setattr__(broken, "box", box)
    tasks._entries["mine"] = lambda spec: broken
    refused(MINE, "box must be two finite numbers")


def test_a_list_is_a_box() -> None:
    assert Task(Signature(40, 20, 4, 1), sampled(), box=[0, 1]).box == (0.0, 1.0)


def test_inputs_that_leave_the_box_in_a_later_seed_stop_the_run() -> None:
    def sample(key: Any, phase: Any) -> Any:
        x = jax.random.uniform(key, (60, 4))
        far = jax.random.key_data(key)[0] == jax.random.key_data(check_tasks.random_streams.stream(3, "data", 0))[0]
        return jnp.where(far, x + 5, x), x[:, :1]

    add_task(sample, box=(0.0, 1.0))
    cohorts.check(MINE, FEW)
    assert train_tile.train_tile([MINE.replace(seed=s) for s in (0, 1)], 2, probing=FEW)["status"].tolist() == ["ok", "ok"]
    with pytest.raises(UserError, match=r"task 'mine': drawn inputs are in \[.*, [56].*\], outside its box \(0.0, 1.0\)"):
        train_tile.train_tile([MINE.replace(seed=s) for s in (2, 3)], 2, probing=FEW)


def test_each_run_of_a_tile_is_held_to_its_own_box() -> None:
    def boxed(spec: RunSpec) -> Task:
        shift = {"default": 0.0, "far": 5.0, "wrong": 9.0}[spec.target]

        def sample(key: Any, phase: Any) -> Any:
            x = jax.random.uniform(key, (60, 4)) + shift
            return x, x[:, :1]

        return Task(Signature(40, 20, 4, 1), sample, box=(0, 1) if spec.target != "far" else (5, 6))

    tasks.add("mine", boxed)
    right = [MINE.replace(target=target, seed=seed) for target in ("default", "far") for seed in (0, 1)]
    assert set(train_tile.train_tile(right, 4, probing=FEW)["status"]) == {"ok"}
    with pytest.raises(UserError, match=r"drawn inputs are in \[9\.\S+, 9\.\S+\], outside its box \(0\.0, 1\.0\)"):
        train_tile.train_tile([*right, MINE.replace(target="wrong")], 8, probing=FEW)


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
def test_a_signature_is_checked_by_name(changes: dict[str, Any], words: list[str]) -> None:
    signature = Signature(40, 20, 4, 1)._replace(**changes)
    add_task(sampled(d_out=signature.d_out), signature)
    refused(MINE, *words)


def test_a_task_of_another_kind_is_refused() -> None:
    tasks.add("mine", lambda spec: (Signature(40, 20, 4, 1), sampled()))
    refused(MINE, "task 'mine' returns tuple", "Return a relu_study.Task")


# ------------------------------------------------------------------------------------------ losses

CLASSES = np.arange(60) % 3


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.uint8])
@pytest.mark.parametrize("shape", [(60,), (60, 1)])
@pytest.mark.parametrize("loss", ["cross_entropy", "ce"])
def test_labels_become_one_hot(dtype: Any, shape: tuple[int, ...], loss: str) -> None:
    add_task(sampled(y=lambda x: jnp.asarray(CLASSES.reshape(shape), dtype)), Signature(40, 20, 4, 3, loss, ("accuracy",)))
    cohorts.check(MINE, FEW)
    data = jax.jit(make_sample(tasks["mine"](MINE), 0, MeasureConfig(val_examples=None)))(np.uint32(0))
    assert np.array_equal(np.concatenate([data.train, data.val])[:, 4:], np.eye(3)[CLASSES])


@pytest.mark.parametrize("labels", [CLASSES + 1, CLASSES - 1, CLASSES + 0.5])
def test_labels_that_are_no_class_are_refused_and_never_trained_on(labels: np.ndarray) -> None:
    signature = Signature(40, 20, 4, 3, "cross_entropy")
    add_task(sampled(y=lambda x: jnp.asarray(labels)), signature)
    refused(MINE, "labels of cross_entropy are in", "whole numbers from 0 to 2")
    found = np.asarray(targets(signature, jnp.asarray(labels)))
    wrong = ~np.isin(labels, [0, 1, 2])
    assert np.isnan(found[wrong]).all() and np.array_equal(found[~wrong], np.eye(3)[labels[~wrong].astype(int)])


def test_rows_that_are_no_probabilities_are_refused() -> None:
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
    tile = train_tile.train_tile([spec], 2, probing=FEW._replace(every=60))
    assert tile["metric:accuracy/all"][0, -1] > 0.9 and tile["metric:trained/all"][0, -1] == 1
    assert set(METRICS) >= {"accuracy", "trained"}


def test_targets_of_one_logit_are_0_or_1() -> None:
    add_task(sampled(y=lambda x: jnp.where(x[:, :1] > 0.5, 1, -1)), Signature(40, 20, 4, 1, "bce"))
    refused(MINE, "targets of bce are in [-1, 1]", "0 or 1")


# ------------------------------------------------------------------------------------------- notes


def study_of(spec: RunSpec) -> Study:
    return Study("mine", "Mine", "?", [Experiment("main", {"a": spec, "b": spec.replace(width=7)})], seeds=2)


def test_equal_rows_of_two_keys_are_one_line_unless_declared() -> None:
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    rows = (jnp.asarray(x), jnp.asarray(x[:, :1]))
    add_task(lambda key, phase: rows)
    (note,) = prepare(study_of(MINE), None, FEW).declaration["notes"]
    assert re.search(r"task 'mine' gives two different keys the same rows.*fixed=True", note)
    declaration = read_back(prepare(study_of(MINE), None, FEW).declaration)
    assert declaration["notes"] == [note]
    with pytest.raises(Exception, match="invalid notes"):
        read_back({**declaration, "notes": [3]})
    add_task(lambda key, phase: rows, fixed=True)
    assert "notes" not in prepare(study_of(MINE), None, FEW).declaration
    assert "notes" not in prepare(study_of(SPEC), None, FEW).declaration


def read_back(declaration: dict[str, Any]) -> dict[str, Any]:
    return schema._whole(declaration)


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
def test_the_line_stands_in_plan_and_report(here: Any, tmp_path: Any, fixed: str) -> None:
    (tmp_path / "same.py").write_text(PLANTED.format(fixed=fixed))
    status, out, _ = here("plan", "same.py", "--no-memory")
    assert status == 0 and out.count("same rows") == (not fixed)
    assert here("run", "same.py", "--out", "out")[0] == 0
    assert (tmp_path / "out" / "report.md").read_text().count("same rows") == (not fixed)


# ---------------------------------------------------------------------------------------- networks


INNER = jax.jit(lambda x: x + np.random.normal(size=x.shape[-1]))


class Own(nnx.Module):
    """A network with one fault; none without."""

    def __init__(self, fault: str, spec: RunSpec, d_in: int, d_out: int, rngs: nnx.Rngs):
        self.fault, self.site = fault, Site("relu")
        self.first, self.last = Dense(d_in, spec.width), Dense(spec.width, d_out if fault != "outputs" else d_out + 1)
        if fault == "linear":
            self.first = nnx.Linear(d_in, spec.width, rngs=rngs)
        if fault == "conv":
            self.conv = nnx.Conv(1, 1, (3,), rngs=rngs)
        if fault == "drawn":
            self.scale = nnx.Param(jax.random.normal(rngs.params(), ()))
        if fault == "drawn by a key of its own":
            self.scale = nnx.Param(jax.random.normal(jax.random.key(0), (spec.width,)))
        if fault == "numpy":
            self.scale = np.random.normal(size=spec.width)
        if fault == "idle":
            self.spare = Dense(2, 2)
        if fault == "dropout":
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
        if fault == "constant":
            self.scale = nnx.Param(jnp.full(spec.width, 1.5))
        if fault == "constant row":
            self.scale = nnx.Param(jnp.full((1, spec.width), 1.5))
        if fault == "constant matrix":
            self.scale = nnx.Param(jnp.ones((2, spec.width)))

    def __call__(self, x: Any, ctx: Any) -> Any:
        if self.fault == "before":
            x = self.site(x, ctx)
        if self.fault == "assigned":
            self.first.kernel[...] = jnp.ones(self.first.kernel.shape)
        x = self.first(x, ctx) if self.fault != "linear" else self.first(x)
        if self.fault == "assigned later":
            self.last.kernel[...], self.first.kernel[...] = jnp.ones(self.last.kernel.shape), 2 * self.first.kernel[...]
            ctx.init_hook, x = None, x.copy()
        x = jax.nn.relu(x) if self.fault == "no site" else self.site(x, ctx)
        if self.fault == "numpy inside":
            x = INNER(x)
        return self.last(x * self.scale[...] if hasattr(self, "scale") else x, ctx)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("linear", ["first.kernel", "not drawn by the run's seed", "Dense"]),
        ("conv", ["conv.kernel", "not drawn by the run's seed"]),
        ("drawn", ["scale", "not drawn by the run's seed"]),
        ("drawn by a key of its own", ["scale", "not drawn by the run's seed"]),
        ("no site", ["no Site", "Site"]),
        ("before", ["a Site before any Dense"]),
        ("constant matrix", ["scale", "not drawn by the run's seed"]),
        ("assigned later", ["last.kernel", "same for two seeds"]),
        ("numpy", ["different each time it is traced"]),
        ("numpy inside", ["different each time it is traced"]),
        ("idle", ["never applies its Dense spare"]),
        ("dropout", ["Rng", "dropout"]),
        ("outputs", ["(2, 2)", "(2, 1)"]),
    ],
)
def test_a_network_that_cannot_be_trained_right_is_refused(fault: str, words: list[str]) -> None:
    networks.add("own", functools.partial(Own, fault))
    refused(SPEC.replace(network="own"), "network 'own'", *words)


@pytest.mark.parametrize("fault", ["none", "constant", "constant row", "assigned"])  # `prepare` draws over an assigned kernel
def test_a_network_of_dense_layers_and_constants_is_right(fault: str) -> None:
    networks.add("own", functools.partial(Own, fault))
    cohorts.check(SPEC.replace(network="own"), FEW)


def test_norms_of_a_network_are_its_own() -> None:
    @network("normed")
    class Normed(nnx.Module):
        def __init__(self, spec: RunSpec, d_in: int, d_out: int, rngs: nnx.Rngs):
            self.block, self.last = Block(spec, 0, d_in, rngs), Dense(spec.width, d_out)

        def __call__(self, x: Any, ctx: Any) -> Any:
            return self.last(self.block(x, ctx), ctx)

    for norm in ("batch_norm", "layer_norm"):
        cohorts.check(SPEC.replace(network="normed", norm=norm), FEW)


def test_a_function_that_builds_no_module_is_refused() -> None:
    networks.add("own", lambda spec, d_in, d_out, rngs: 3)
    refused(SPEC.replace(network="own"), "network 'own' returns int", "nnx.Module")


@pytest.mark.parametrize("name", [*initializers])
@pytest.mark.parametrize("kind", [*networks])
def test_no_run_shares_its_first_weights_with_another_seed(kind: str, name: str) -> None:
    spec = SPEC.replace(network=kind, initializer=name, depth=3)
    check_networks.check_network(spec, Signature(40, 20, 4, 2))
    x = jax.random.uniform(jax.random.key(0), (30, 4), minval=-1.0)
    hparams = {field: jnp.float32(getattr(spec, field)) for field in TRACED_FIELDS}
    weights = jax.jit(jax.vmap(make_init(spec, 4, 2), (0, None, None)))(jnp.arange(6, dtype=jnp.uint32), hparams, x)
    kernels = [leaf for leaf in jax.tree.leaves(weights.params) if leaf.ndim == 3]
    assert len(kernels) == 4
    for kernel in kernels:
        assert len({one.tobytes() for one in np.asarray(kernel)}) == 6


def test_the_entries_of_the_package_keep_the_contract() -> None:
    for registry, entry in [(r, e) for r in (activations, initializers, networks, tasks) for e in r]:
        assert ours(registry[entry]), entry
    for name in tasks:
        assert check_tasks.check_task(SPEC.replace(task=name)) == []
    for name in activations:
        check_functions.check_activation(name, {field: getattr(SPEC, field) for field in TRACED_FIELDS}, certified=True)
    for name in initializers:
        for place, (fan_in, fan_out) in enumerate([(3, 5), (5, 5), (5, 2)]):
            check_functions.check_layer(name, Layer(place, 3, fan_in, fan_out, place == 2))
        check_functions.check_layer(name, Layer(1, 3, 1, 1, False))  # an orthogonal kernel of one weight is 1 or -1


# ------------------------------------------------------------------------ activations, initialisers


class Leaky:
    def __init__(self, k: float):
        self.k = k

    def __call__(self, pre: Any) -> Any:
        return jnp.maximum(pre, self.k * pre)


def leaky(k: float, pre: Any) -> Any:
    return jnp.maximum(pre, k * pre)


LEAKY = {
    "partial": functools.partial(leaky, 0.3),
    "keyword partial": functools.partial(lambda pre, leak: jnp.maximum(pre, leak * pre), leak=0.3),
    "object": Leaky(0.3),
    "method": Leaky(0.3).__call__,
    "jitted": jax.jit(lambda pre: jnp.maximum(pre, 0.3 * pre)),
    "default": lambda pre, slope=0.3: jnp.maximum(pre, slope * pre),
    "jitted partial": jax.jit(functools.partial(leaky, 0.3)),
    "jax.nn": functools.partial(jax.nn.leaky_relu, negative_slope=0.3),
}


@pytest.mark.parametrize("name", LEAKY)
def test_callables_of_every_kind_are_activations(name: str) -> None:
    phi = activation("mine")(LEAKY[name])
    cohorts.check(SPEC.replace(activation="mine"), FEW)
    z = jnp.array([[-2.0, 0.5]])
    hparams = {field: jnp.float32(getattr(SPEC, field)) for field in TRACED_FIELDS}
    np.testing.assert_allclose(phi(z, hparams), [[-0.6, 0.5]], rtol=1e-6)
    activation("mine")(LEAKY[name])  # registered again, as in a notebook


FUNCTIONS = (jax.nn.celu, jnp.sin, jax.lax.erf, jax.nn.mish, jnp.negative, jnp.abs, jax.nn.softplus, jax.nn.gelu)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: getattr(f, "__name__", str(f)))
def test_functions_of_jax_are_activations(function: Any) -> None:
    phi = activation("mine")(function)
    cohorts.check(SPEC.replace(activation="mine"), FEW)
    z = jnp.array([[-2.0, 0.5]])
    np.testing.assert_array_equal(phi(z, {}), function(z))
    if function not in (jax.nn.celu, jnp.sin):  # two suffice for the engine
        return
    tile = train_tile.train_tile([SPEC.replace(activation="mine")], 2, probing=FEW)
    assert tile["status"].tolist() == ["ok"]


def test_a_traced_field_still_reaches_a_parameter_with_a_default() -> None:
    phi = activation("mine")(lambda pre, leak=0.9: jnp.maximum(pre, leak * pre))
    assert phi.hparams == ("leak",) and float(phi(jnp.array([[-1.0]]), {"leak": 0.25})[0, 0]) == -0.25


@pytest.mark.parametrize("function", [0.3, "relu", None])
def test_what_is_no_function_is_refused(function: Any) -> None:
    with pytest.raises(UserError, match=r"activation 'mine' must be a function"):
        activation("mine")(function)
    with pytest.raises(UserError, match=r"initializer 'mine' must be a function \(key, layer, inputs\) -> \(kernel, bias\)"):
        initializer("mine")(function)


@pytest.mark.parametrize(
    ("function", "pieces", "words"),
    [
        (lambda z: jnp.where(z > 0, z, 0.2 * z), {"flat": ((-inf, 0.0),)}, ["flat=(-inf, 0.0)", "slope", "0.2"]),
        (lambda z: jnp.tanh(z), {"identity": (-1.0, 1.0)}, ["identity=(-1.0, 1.0)", "value"]),
        (lambda z: 2 * jnp.tanh(z), {"values": (-1.0, 1.0)}, ["values=(-1.0, 1.0)", "value", "2"]),
        (lambda z: jax.nn.relu(z)[:, :1], {}, ["shape (5, 1)", "(5, 3)", "fanout=1"]),
        (lambda z: jax.nn.relu(z), {"fanout": 2}, ["fanout=2", "(5, 6)"]),
        (lambda z: z > 0, {}, ["bool", "float32"]),
        (lambda z: jax.nn.softmax(z), {}, ["mixes units"]),
        (lambda z: z - z.mean(axis=0), {}, ["mixes units or examples"]),
        (lambda z: z + np.random.normal(), {}, ["other values at each call"]),
        (jax.jit(lambda z: z + np.random.normal()), {}, ["other values at each call"]),
        (lambda z: jnp.where(jnp.abs(z) < 1, 1 - jnp.abs(z), 0.0), {"flat": ((1.0, inf),)}, ["turns back", "turning_points"]),
        (lambda z: 1 / 0, {}, ["activation 'mine' raises ZeroDivisionError"]),
        (jnp.maximum, {}, ["activation 'mine' raises"]),
    ],
)
def test_an_activation_that_is_not_what_it_declares_is_refused(function: Any, pieces: Any, words: list[str]) -> None:
    activation("mine", **pieces)(function)
    refused(SPEC.replace(activation="mine"), "activation 'mine'", *words)


@pytest.mark.parametrize(
    "pieces", [{"flat": (-inf, 0.0)}, {"flat": ((0.0, -1.0),)}, {"identity": 3}, {"values": (1,)}, {"fanout": 0}]
)
def test_pieces_of_another_form_are_refused_at_once(pieces: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"activation 'mine': {next(iter(pieces))} must be"):
        activation("mine", **pieces)(jax.nn.relu)


def test_a_kink_with_another_slope_is_not_certified() -> None:
    """jnp.maximum has slope 1/2 at 0: a layer behind a dead one is there, at zero, and not dead."""
    activation("mine", flat=((-inf, 0.0),), identity=(0.0, inf), values=(0.0, inf))(lambda z: jnp.maximum(z, 0.0))
    spec = SPEC.replace(activation="mine", depth=2, epochs=0, rows=60)

    def off(key: Any, layer: Layer, inputs: Any) -> Any:
        return jnp.ones((layer.fan_in, layer.fan_out)), jnp.full(layer.fan_out, 0.0 if layer.index else -1.0)

    initializer("off", needs_inputs=False)(off)
    tile = train_tile.train_tile([spec.replace(initializer="off")], 2, probing=FEW)
    assert tile["metric:certified_dead_fraction/site_1"].tolist() == tile["metric:dead_fraction/site_1"].tolist() == [[1.0]]
    assert tile["metric:certified_dead_fraction/site_2"].tolist() == tile["metric:dead_fraction/site_2"].tolist() == [[0.0]]


def test_certified_units_that_are_not_dead_stop_the_run_with_both_numbers() -> None:
    activation("mine", flat=((-inf, 0.0),))(lambda z: jnp.where(z > 0, z, 0.2 * z))
    spec = RunSpec(rows=60, width=6, batch_size=8, epochs=1, initializer="he_normal", activation="mine", bias_shift=-9.0)
    with pytest.raises(UserError) as error:
        train_tile.train_tile([spec], 2, probing=FEW)
    line = str(error.value)
    assert re.search(rf"run {spec.run_id} \(seed 0\): 6 units of site_1 are certified dead and 0 are dead at epoch 0", line)
    assert "'negative_box'" in line and "'mine'" in line


ON = FEW._replace(metrics=("train_loss", "always_on_fraction", "certified_always_on_fraction"))


def turns_far_out(z: Any) -> Any:
    """ReLU with a dip between 50 and 150 that no bound knows of."""
    return jnp.where(jnp.abs(z - 100) < 50, z - 1000, jax.nn.relu(z))


def wide(key: Any, layer: Layer, inputs: Any) -> Any:
    """A first layer that spreads the inputs over -200 to 0 or over 0 to 200, in turn, and a second one of ones."""
    sign = jnp.where(jnp.arange(layer.fan_out) % 2, 1.0, -1.0)
    kernel = jnp.zeros((layer.fan_in, layer.fan_out)).at[0].set(200.0 * sign) if layer.index == 0 else jnp.eye(layer.fan_in)
    return kernel, jnp.full(layer.fan_out, 250.0 * (layer.index > 0))


def test_units_certified_always_on_that_are_not_stop_the_run_with_both_numbers() -> None:
    activation("mine", identity=(0.0, inf), flat=((-inf, 0.0),))(turns_far_out)
    initializer("wide", needs_inputs=False)(wide)
    add_task(sampled(), box=(0.0, 1.0))
    spec = MINE.replace(initializer="wide", depth=2, activation="mine", epochs=0)
    with pytest.raises(UserError) as error:
        train_tile.train_tile([spec], 2, probing=ON)
    line = str(error.value)
    wanted = r"6 units of site_2 are certified always on and 3 are always on at epoch 0, and 3 of the certified ones are not"
    assert re.search(rf"run {spec.run_id} \(seed 0\): {wanted} always on", line), line
    assert "task 'mine'" in line and "activation 'mine'" in line and "\n" not in line


def test_a_network_whose_intervals_leave_a_part_out_is_found() -> None:
    class Shifted(nnx.Module):
        bounded = True

        def __init__(self, spec: RunSpec, d_in: int, d_out: int, rngs: nnx.Rngs):
            self.first, self.site, self.last = Dense(d_in, spec.width), Site("relu"), Dense(spec.width, d_out)

        def __call__(self, x: Any, ctx: Any) -> Any:
            x = self.first(x, ctx)
            if not isinstance(x, tuple) and not hasattr(x, "values"):
                x = x * jnp.where(jnp.arange(x.shape[-1]) == 0, -1.0, 1.0)  # the first unit, in a batch only
            return self.last(self.site(x, ctx), ctx)

    def ones(key: Any, layer: Layer, inputs: Any) -> Any:
        return jnp.where(jnp.arange(layer.fan_out) == 1, -1.0, 1.0) * jnp.ones((layer.fan_in, layer.fan_out)), jnp.zeros(
            layer.fan_out
        )

    networks.add("own", Shifted)
    initializer("ones", needs_inputs=False)(ones)
    add_task(sampled(), box=(0.0, 1.0))
    spec = MINE.replace(network="own", initializer="ones", epochs=0)
    with pytest.raises(UserError, match=r"5 units of site_1 are certified always on and 4 are always on at epoch 0, and 1 of"):
        train_tile.train_tile([spec], 2, probing=ON)
    assert train_tile.train_tile([spec.replace(network="mlp")], 2, probing=ON)["status"].tolist() == ["ok"]


@pytest.mark.parametrize("wrong", [False, True])
def test_a_wrong_box_shows_in_units_certified_always_on(wrong: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_tile, "_check_inputs", lambda drawn: None)  # it finds a wrong box of a study's own task first

    def ones(key: Any, layer: Layer, inputs: Any) -> Any:
        return jnp.ones((layer.fan_in, layer.fan_out)), jnp.zeros(layer.fan_out)

    initializer("ones", needs_inputs=False)(ones)
    add_task(lambda key, phase: tuple(part * (1 - 2 * wrong) for part in sampled()(key, phase)), box=(0.0, 1.0))
    spec = MINE.replace(initializer="ones", epochs=0)
    if not wrong:
        tile = train_tile.train_tile([spec], 2, probing=ON)
        assert tile["metric:certified_always_on_fraction/site_1"].tolist() == [[1.0]]
        assert not any(name.startswith("unsound") for name in tile)
        return
    with pytest.raises(UserError, match=r"6 units of site_1 are certified always on and 0 are always on .*box of task 'mine'"):
        train_tile.train_tile([spec], 2, probing=ON)


def shaped(rows: int, columns: int, biases: tuple[int, ...], dtype: Any) -> Any:
    def draw(key: Any, layer: Any, inputs: Any) -> Any:
        return jax.random.normal(key, (layer.fan_in + rows, layer.fan_out + columns)).astype(dtype), jnp.zeros(biases, dtype)

    return draw


@given(
    rows=st.integers(0, 1),
    columns=st.integers(0, 1),
    bias=st.sampled_from([(), (6,), (6, 1), (5,)]),
    dtype=st.sampled_from("fei"),
)
@settings(max_examples=30)
def test_an_initialiser_returns_the_layers_shapes_or_is_refused(rows: int, columns: int, bias: Any, dtype: str) -> None:
    initializers._entries.pop("mine", None)
    initializer("mine")(shaped(rows, columns, bias, dtype))
    if (rows, columns, bias, dtype) == (0, 0, (6,), "f"):
        cohorts.check(SPEC.replace(initializer="mine", depth=2), FEW)
    else:
        refused(SPEC.replace(initializer="mine", depth=2), "initializer 'mine' returns a", "expected", "(kernel, bias)")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda key, layer, x: jnp.zeros((layer.fan_in, layer.fan_out)), ["returns one", "(kernel, bias)"]),
        (lambda key, layer, x: (jnp.zeros((layer.fan_in, layer.fan_out)), jnp.zeros(layer.fan_out), 1), ["3 values"]),
        (lambda key, layer, x: layer.no_such, ["raises AttributeError"]),
        (
            lambda key, layer, x: (
                jnp.asarray(np.random.normal(size=(layer.fan_in, layer.fan_out)), float),
                jnp.zeros(layer.fan_out),
            ),
            ["other weights for the same key"],
        ),
        (
            jax.jit(
                lambda key, layer, x: (jnp.full((layer.fan_in, layer.fan_out), np.random.normal()), jnp.zeros(layer.fan_out)),
                static_argnums=1,
            ),
            ["other weights for the same key"],
        ),
    ],
)
def test_other_initialisers_are_refused(function: Any, words: list[str]) -> None:
    initializer("mine")(function)
    refused(SPEC.replace(initializer="mine"), "initializer 'mine'", *words)


def test_an_initialiser_that_hides_that_it_looks_at_its_inputs_is_refused() -> None:
    def looks(key: Any, layer: Any, inputs: Any) -> Any:
        return jax.random.normal(key, (layer.fan_in, layer.fan_out)) * jnp.std(inputs), jnp.zeros(layer.fan_out)

    initializer("mine", needs_inputs=False)(looks)
    refused(SPEC.replace(initializer="mine"), "needs_inputs=False")
    initializers._entries.pop("mine")
    initializer("mine")(looks)
    cohorts.check(SPEC.replace(initializer="mine"), FEW)


@pytest.mark.parametrize("function", [jax.nn.initializers.he_normal(), jax.nn.initializers.zeros, lambda key, layer: None])
def test_initialisers_of_another_form_are_refused_with_the_right_one(function: Any) -> None:
    with pytest.raises(UserError, match=r"\(key, layer, inputs\) -> \(kernel, bias\).*layer\.fan_in"):
        initializer("mine")(function)


def one_weight(key: Any, layer: Any, inputs: Any) -> Any:
    """Ones, but for the last layer of the network, which is drawn."""
    drawn = jax.random.normal(key, (layer.fan_in, layer.fan_out))
    return drawn if layer.last else jnp.ones_like(drawn), jnp.zeros(layer.fan_out)


def of_a_fixed_key(key: Any, layer: Any, inputs: Any) -> Any:
    """A kernel of a fixed key and a bias of the run's."""
    kernel = jax.random.normal(jax.random.key(layer.index), (layer.fan_in, layer.fan_out))
    return kernel, jax.random.normal(key, (layer.fan_out,))


def of_inputs(key: Any, layer: Any, inputs: Any) -> Any:
    return jnp.ones((layer.fan_in, layer.fan_out)) * inputs.mean(), jnp.zeros(layer.fan_out)


def deep_layer(key: Any, layer: Any, inputs: Any) -> Any:
    """Drawn in the first layer and constant in later ones."""
    drawn = jax.random.normal(key, (layer.fan_in, layer.fan_out))
    return drawn if layer.index == 0 else jnp.ones_like(drawn), jnp.zeros(layer.fan_out)


@pytest.mark.parametrize("function", [one_weight, of_a_fixed_key, of_inputs, jax.jit(of_a_fixed_key, static_argnums=1)])
def test_an_initialiser_that_ignores_its_key_is_refused(function: Any) -> None:
    initializer("mine", output=True)(function)
    refused(
        SPEC.replace(initializer="mine"),
        "initializer 'mine' gives every seed the same kernel in layer 0",
        "jax.random.normal(key",
    )


def test_each_layer_of_an_initialiser_uses_its_key() -> None:
    initializer("mine")(deep_layer)
    cohorts.check(SPEC.replace(initializer="mine"), FEW)  # its only later layer is the output, which it does not set
    refused(SPEC.replace(initializer="mine", depth=3), "initializer 'mine' gives every seed the same kernel in layer 1", "6 x 6")


def test_a_draw_from_a_small_set_uses_its_key() -> None:
    def signs(key: Any, layer: Any, inputs: Any) -> Any:
        return jax.random.rademacher(key, (layer.fan_in, layer.fan_out), jnp.float32), jnp.zeros(layer.fan_out)

    initializer("mine", needs_inputs=False)(signs)
    for index in range(8):
        check_functions.check_layer("mine", Layer(index, 9, 1, 1, False))


def test_draw_studies_check_what_they_name() -> None:
    def study(**cell: Any) -> DrawStudy:
        return DrawStudy("mine", "Mine", "?", [Draws("main", "gradients", {"a": {"width": 4, "depth": 3, **cell}}, 16)])

    activation("mine")(jax.nn.softmax)
    initializer("mine")(shaped(1, 0, (4,), "f"))
    prepare_draws(study(), None)
    with pytest.raises(UserError, match="activation 'mine' mixes units"):
        prepare_draws(study(activation="mine"), None)
    with pytest.raises(UserError, match=r"initializer 'mine' returns a kernel of shape \("):
        prepare_draws(study(initializer="mine"), None)
    initializers._entries.pop("mine")
    initializer("mine")(of_a_fixed_key)
    with pytest.raises(UserError, match="initializer 'mine' gives every seed the same kernel"):
        prepare_draws(study(initializer="mine"), None)


def test_each_entry_is_checked_once_a_study(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    add_task(sampled())
    real = check_tasks.check_task
    monkeypatch.setattr(check_tasks, "check_task", lambda spec: calls.append(spec.task) or real(spec))
    study = study_of(MINE)
    prepare(replace(study, experiments=[Experiment("main", {str(i): MINE.replace(width=i) for i in range(3, 9)})]), None, FEW)
    assert calls == ["mine"]


@pytest.mark.slow
def test_a_contradiction_stops_a_study_and_keeps_its_tiles(tmp_path: Any) -> None:
    """A slope that the grid does not meet: the run finds it, and the other arm goes on without the faulty one."""
    fault = -5000.5

    def late(pre: Any) -> Any:
        return jnp.where(jnp.abs(pre - fault) < 0.2, 3 * pre, jnp.where(pre < -20, -20.0, pre))

    activation("mine", flat=((-inf, -20.0),))(late)
    arms = {"fine": SPEC, "late": SPEC.replace(activation="mine", bias_shift=fault, gain=0.01)}
    study = Study("late", "Late", "?", [Experiment("main", arms)], seeds=2)
    with pytest.raises(UserError, match=r"6 units of site_1 are certified dead and 0 are dead at epoch 0.*'mine'"):
        run.run(study, tmp_path)
    tiles_before = {path.name: path.read_bytes() for path in tmp_path.glob("raw/*.npz")}
    healthy = run.run(replace(study, experiments=[Experiment("main", {"fine": SPEC})]), tmp_path)
    assert healthy.runs["status"].tolist() == ["ok", "ok"]
    assert tiles_before.items() <= {path.name: path.read_bytes() for path in tmp_path.glob("raw/*.npz")}.items()
