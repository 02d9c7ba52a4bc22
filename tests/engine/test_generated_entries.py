"""Generated activations and tasks with one planted fault each: each is refused in one line; the healthy ones are right."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from relu_study.components import interval_bounds, random_streams
from relu_study.components.activations import Activation, activation
from relu_study.components.registry import activations, tasks
from relu_study.components.tasks.task import Signature, Task
from relu_study.engine import check_functions, check_tasks, compilation
from relu_study.engine.train_step import make_sample
from relu_study.errors import UserError
from relu_study.study.run_spec import TRACED_FIELDS, RunSpec

HPARAMS = {field: getattr(RunSpec(), field) for field in TRACED_FIELDS}


@pytest.fixture(autouse=True)
def _own_entries() -> Iterator[None]:
    before = [(registry, dict(registry._entries)) for registry in (activations, tasks)]
    yield
    for registry, kept in before:
        registry._entries = kept
    compilation.clear()


def refused(check: Callable[[], Any], *words: str) -> None:
    with pytest.raises(UserError) as error:
        check()
    line = str(error.value)
    assert "'mine'" in line and "\n" not in line and all(word in line for word in words), line


# ------------------------------------------------------------------------------------- activations


@dataclass(frozen=True)
class Pieces:
    """A continuous piecewise linear function through dyadic numbers, which single precision computes exactly."""

    knots: tuple[float, ...]
    slopes: tuple[float, ...]  # one more than the knots
    start: float  # the value at the first knot

    def __call__(self, z: Any) -> Any:
        found = self.start + self.slopes[0] * (z - self.knots[0])
        value = self.start
        for i, knot in enumerate(self.knots):
            found = jnp.where(z > knot, value + self.slopes[i + 1] * (z - knot), found)
            value += self.slopes[i + 1] * ((*self.knots, knot)[i + 1] - knot)
        return found

    def ends(self) -> list[tuple[float, float]]:
        edges = (-inf, *self.knots, inf)
        return list(itertools.pairwise(edges))

    def flat(self) -> tuple[tuple[float, float], ...]:
        return tuple(piece for piece, slope in zip(self.ends(), self.slopes) if slope == 0)

    def identity(self) -> tuple[float, float] | None:
        inside = [piece for piece, slope in zip(self.ends(), self.slopes) if slope == 1 and self.offset(piece) == 0]
        return inside[0] if inside else None

    def offset(self, piece: tuple[float, float]) -> float:
        end = piece[0] if np.isfinite(piece[0]) else piece[1]
        return float(self(jnp.float32(end))) - end

    def turning_points(self) -> tuple[float, ...]:
        """Each knot where a sign of the slope meets another one, or a flat piece."""
        signs = np.sign(self.slopes)
        return tuple(knot for knot, one, two in zip(self.knots, signs, signs[1:]) if one != two)

    def values(self) -> tuple[float, float]:
        ends = [float(self(jnp.float32(z))) for z in (-1e4, *self.knots, 1e4)]
        return min(ends), max(ends)

    def range(self) -> tuple[float, float]:
        low, high = self.values()
        least = -inf if self.slopes[0] > 0 or self.slopes[-1] < 0 else low
        return least, inf if self.slopes[0] < 0 or self.slopes[-1] > 0 else high

    def declared(self) -> dict[str, Any]:
        pieces = {"flat": self.flat(), "identity": self.identity(), "values": self.range()}
        return {**pieces, "turning_points": self.turning_points()}


quarters = st.integers(-16, 16).map(lambda n: n / 4)
piecewise = st.builds(
    lambda knots, slopes, start: Pieces(tuple(sorted(knots)), tuple(slopes[: len(knots) + 1]), start),
    st.lists(quarters, min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from([0.0, 0.0, 1.0, 1.0, 0.25, -0.5, 2.0]), min_size=4, max_size=4),
    quarters,
)


@dataclass(frozen=True)
class Smooth:
    """A growing sum of shifted hyperbolic tangents."""

    parts: tuple[tuple[float, float, float], ...]

    def __call__(self, z: Any) -> Any:
        return sum(height * jnp.tanh(rate * z + shift) for height, rate, shift in self.parts)

    def declared(self) -> dict[str, Any]:
        top = 1.001 * sum(height for height, _, _ in self.parts)
        return {"values": (-top, top), "smooth": True}

    def values(self) -> tuple[float, float]:
        top = sum(height for height, _, _ in self.parts)
        return -top, top


steep = st.floats(0.25, 2.0, width=32)
smooth = st.lists(st.tuples(steep, steep, steep), min_size=1, max_size=3).map(lambda parts: Smooth(tuple(parts)))
Shape = Pieces | Smooth


def register(function: Callable[[Any], Any], **pieces: Any) -> Activation:
    activations._entries.pop("mine", None)
    return activation("mine", **pieces)(function)


def check() -> None:
    check_functions.check_activation("mine", HPARAMS, certified=True)


@pytest.mark.slow
@given(shape=piecewise | smooth, low=quarters, width=st.sampled_from([0.0, 0.25, 1.5, 8.0]))
@settings(max_examples=20)
def test_generated_activation_matches_its_declaration(shape: Shape, low: float, width: float) -> None:
    phi = register(shape, **shape.declared())
    check()
    points = jnp.linspace(low, low + width, 33)[:, None]
    post = np.asarray(phi(points, {}))
    np.testing.assert_array_equal(post, np.asarray(shape(points)))
    lo, hi = interval_bounds.through(phi, interval_bounds.Interval(jnp.full(1, low), jnp.full(1, low + width)), {})
    assert (lo <= post).all() and (post <= hi).all()
    if isinstance(shape, Pieces):
        inner = [(z, s) for (a, b), s in zip(shape.ends(), shape.slopes) for z in [(max(a, -99.0) + min(b, 99.0)) / 2]]
        slopes = phi.slope(jnp.array([[z] for z, _ in inner], jnp.float32), {})[:, 0]
        assert slopes.tolist() == [abs(slope) for _, slope in inner]


FUNCTION_FAULTS: dict[str, tuple[Callable[[Shape], Callable[[Any], Any]], str]] = {
    "fewer units": (lambda f: lambda z: f(z)[..., :1], "shape"),
    "summed": (lambda f: lambda z: f(z).sum(axis=-1), "shape"),
    "repeated": (lambda f: lambda z: jnp.concatenate([f(z), f(z)], axis=-1), "fanout=1"),
    "half": (lambda f: lambda z: f(z).astype(jnp.float16), "float16"),
    "whole": (lambda f: lambda z: jnp.round(f(z)).astype(int), "int32"),
    "two returns": (lambda f: lambda z: (f(z), f(z)), "tuple"),
    "raises": (lambda f: lambda z: f(z) + {}["slope"], "raises KeyError"),
    "NaN": (lambda f: lambda z: jnp.where(z < -3, jnp.nan, f(z)), "NaN at -16"),
    "NaN at one point": (lambda f: lambda z: f(z) + 0 * jnp.where(z == 0.5, 0 * jnp.inf, z), "NaN at 0.5"),
    "centred": (lambda f: lambda z: f(z) - z.mean(axis=-1, keepdims=True), "mixes units"),
    "centred by batch": (lambda f: lambda z: f(z) - z.mean(axis=0), "mixes units or examples"),
    "reversed": (lambda f: lambda z: f(z[..., ::-1]) + z, "mixes units"),
    "NumPy's state": (lambda f: lambda z: f(z) + np.random.normal(), "other values at each call"),
    "NumPy's state in jit": (lambda f: jax.jit(lambda z: f(z) * np.random.normal() + z), "other values at each call"),
}


@pytest.mark.slow
@given(shape=piecewise | smooth, fault=st.sampled_from(sorted(FUNCTION_FAULTS)))
@settings(max_examples=25)
def test_generated_function_with_a_fault_is_refused(shape: Shape, fault: str) -> None:
    plant, words = FUNCTION_FAULTS[fault]
    register(plant(shape))
    refused(check, words)


@pytest.mark.parametrize("fault", FUNCTION_FAULTS)
def test_each_fault_of_a_function_is_refused(fault: str) -> None:
    plant, words = FUNCTION_FAULTS[fault]
    register(plant(Pieces((0.0,), (0.25, 1.0), 0.0)))
    refused(check, words)


@pytest.mark.slow
@given(shape=piecewise, fault=st.sampled_from(["flat", "identity", "high", "low", "turning_points"]), pick=st.integers(0, 3))
@settings(max_examples=25)
def test_a_generated_wrong_piece_is_refused(shape: Pieces, fault: str, pick: int) -> None:
    declared, (low, high) = shape.declared(), shape.values()
    sloped = [piece for piece, slope in zip(shape.ends(), shape.slopes) if slope != 0]
    others = [p for p, slope in zip(shape.ends(), shape.slopes) if slope != 1 or shape.offset(p) != 0]
    if fault == "flat" and sloped:
        wrong: dict[str, Any] = {"flat": (*declared["flat"], sloped[pick % len(sloped)])}
    elif fault == "identity" and others:
        wrong = {"identity": others[pick % len(others)]}
    elif fault in ("high", "low"):
        wrong = {"values": (low, high - 0.25) if fault == "high" and high - 0.25 >= low else (low + 0.25, max(high, low + 0.25))}
    else:
        assume(fault == "turning_points" and {-1.0, 1.0} <= {*np.sign(shape.slopes)})
        wrong = {"turning_points": ()}
    register(shape, **declared | wrong)
    words = {"turning_points": "turns back"}.get(next(iter(wrong)), f"declares {next(iter(wrong))}=")
    refused(check, words)


@given(shape=smooth, fault=st.sampled_from(["flat", "identity", "values"]))
@settings(max_examples=9)
def test_wrong_piece_of_a_smooth_function_is_refused(shape: Smooth, fault: str) -> None:
    low, high = shape.values()
    wrong = {"flat": ((-1.0, 1.0),), "identity": (-1.0, 1.0), "values": (low, 0.75 * high)}[fault]
    register(shape, **shape.declared() | {fault: wrong})
    refused(check, f"declares {fault}=")


# ------------------------------------------------------------------------------------------- tasks

inner_noise = jax.jit(lambda x: x + np.random.uniform(size=x.shape))


@dataclass(frozen=True)
class Drawn:
    """A task of drawn sizes: uniform inputs and targets that are a weighted sum of them."""

    train: int
    val: int
    d_in: int
    d_out: int
    phases: int
    spare: int  # rows beyond those declared

    def rows(self, key: Any, phase: int) -> tuple[Any, Any]:
        x = jax.random.uniform(jax.random.fold_in(key, phase), (self.train + self.val + self.spare, self.d_in))
        return x, x @ jnp.arange(1.0, 1 + self.d_in * self.d_out).reshape(self.d_in, self.d_out)

    def task(self, sample: Any = None, **changes: Any) -> Task:
        signature = Signature(self.train, self.val, self.d_in, self.d_out)
        return Task(signature, sample or self.rows, **{"box": (0.0, 1.0), "phases": self.phases, **changes})


drawn_tasks = st.builds(Drawn, *[st.integers(2, 6)] * 2, *[st.integers(1, 3)] * 2, st.integers(1, 3), st.integers(0, 2))
SPEC = RunSpec(task="mine", rows=20, width=4)


def late(task: Drawn, change: Callable[[Any, Any], Any]) -> Callable[[Any, int], Any]:
    """A sample that is at fault in its last phase."""
    return lambda key, phase: change(*task.rows(key, phase)) if phase == task.phases - 1 else task.rows(key, phase)


TASK_FAULTS: dict[str, tuple[Callable[[Drawn], Callable[[Any, int], Any]], str]] = {
    "rows": (lambda t: late(t, lambda x, y: (x[t.spare + 1 :], y[t.spare + 1 :])), "fewer than"),
    "columns": (lambda t: late(t, lambda x, y: (jnp.hstack([x, x]), y)), "d_in="),
    "targets": (lambda t: late(t, lambda x, y: (x, jnp.hstack([y, y]))), "d_out="),
    "rows of one part": (lambda t: late(t, lambda x, y: (x, jnp.vstack([y, y]))), "Return equally many of each"),
    "vector": (lambda t: late(t, lambda x, y: (x, y[:, 0])), "targets of shape"),
    "complex": (lambda t: late(t, lambda x, y: (x * 1j, y)), "complex64"),
    "one return": (lambda t: late(t, lambda x, y: x), "two arrays"),
    "three returns": (lambda t: late(t, lambda x, y: (x, y, y)), "3 values"),
    "box": (lambda t: late(t, lambda x, y: (x.at[-1 - t.spare].add(2.0), y)), "outside its box"),
    "raises": (lambda t: late(t, lambda x, y: (x, y)[2]), "raises IndexError"),
    "NumPy's state": (lambda t: late(t, lambda x, y: (x, y + np.random.normal())), "same key give different rows"),
    "NumPy's state in jit": (lambda t: late(t, lambda x, y: (x, inner_noise(y))), "same key give different rows"),
    "index": (lambda t: late(t, lambda x, y: (x[jnp.arange(len(x)) + 1], y)), "beyond the end"),
}


@pytest.mark.slow
@given(task=drawn_tasks)
@settings(max_examples=6)
def test_a_generated_task_gives_its_own_rows(task: Drawn) -> None:
    tasks._entries["mine"] = lambda spec: task.task()
    assert check_tasks.check_task(SPEC) == []
    for phase in range(task.phases):
        x, y = task.rows(random_streams.stream(3, "data", phase), phase)
        data = make_sample(task.task(), phase)(jnp.uint32(3))
        whole = np.hstack([x, y])[: task.train + task.val]
        np.testing.assert_array_equal(np.vstack([data.train, data.val]), whole)


@pytest.mark.slow
@given(task=drawn_tasks, fault=st.sampled_from(sorted(TASK_FAULTS)))
@settings(max_examples=25)
def test_generated_task_with_a_fault_is_refused(task: Drawn, fault: str) -> None:
    plant, words = TASK_FAULTS[fault]
    tasks._entries["mine"] = lambda spec: task.task(plant(task))
    refused(lambda: check_tasks.check_task(SPEC), words)


@pytest.mark.parametrize("fault", TASK_FAULTS)
def test_each_fault_of_a_task_is_refused(fault: str) -> None:
    plant, words = TASK_FAULTS[fault]
    task = Drawn(4, 3, 2, 2, 2, 1)
    tasks._entries["mine"] = lambda spec: task.task(plant(task))
    refused(lambda: check_tasks.check_task(SPEC), words)


@given(task=drawn_tasks, kept=st.booleans())
@settings(max_examples=5)
def test_generated_task_without_randomness_gives_a_note(task: Drawn, kept: bool) -> None:
    key = jax.random.key(5)
    tasks._entries["mine"] = lambda spec: task.task(lambda _, phase: task.rows(key, phase), fixed=kept)
    assert [("same rows" in note, "fixed=True" in note) for note in check_tasks.check_task(SPEC)] == [(True, True)] * (not kept)
