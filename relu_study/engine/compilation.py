"""From a spec to its compiled programs. Pure JAX: no files, no printing; what is waited for is timed, and nothing hangs on it.

Each program of `programs.py` takes the runs of a tile together and is compiled once per cohort and device; `advance` is
the same whether or not anyone measures.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from relu_study.components.registry import Registry, optimizers, tasks
from relu_study.components.tasks.task import Signature
from relu_study.engine.cohorts import OPTIONS, cohort, init_programs, program_fields
from relu_study.engine.compile_time import timed_lock
from relu_study.engine.measure_step import make_measure
from relu_study.engine.state import Data, MeasureConfig, State, Weights
from relu_study.engine.train_step import compiled_rates, make_advance, make_init, make_sample
from relu_study.study.run_spec import RunSpec


@dataclass(frozen=True)
class Programs:
    """The compiled programs of one cohort."""

    advance: Callable[..., State]
    measure: Callable[..., dict[str, Array]]
    fresh: Callable[..., Any]  # the optimiser's first state, from the parameters, knobs and seeds


def jit_traced_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function jit-compiled as the engine's programs are, traced once for all devices."""
    program, tracing = jax.jit(function, compiler_options=OPTIONS.get(jax.default_backend())), threading.Lock()

    def call(*args: Any) -> Any:
        # Of two devices that come at once the second waits for the first one's trace, but not for its compilation.
        with timed_lock(tracing):
            program.trace(*args)
        return program(*args)

    call.jitted = program  # type: ignore[attr-defined]
    return call


def made_once(make: Callable[..., Any]) -> Any:
    """`cache`, for one thread a device: no two make the same program; `get.kept` holds what was made, by its key."""
    making = threading.RLock()
    kept: dict[Any, Any] = {}

    @functools.wraps(make)
    def get(*key: Any) -> Any:
        with making:
            if key not in kept:
                kept[key] = make(*key)
            return kept[key]

    get.kept = kept  # type: ignore[attr-defined]
    return get


@made_once
def programs(step_spec: RunSpec, signature: Signature, probing: MeasureConfig, boxed: bool) -> Programs:
    """The programs of a cohort. `measure` takes a tile's runs one after the other, which keeps each in cache."""
    measure_one, n = make_measure(step_spec, signature, probing, boxed), probing.probe_set(signature)

    def measure(state: State, previous: Any, data: Data, knobs: Any, box: Array, source: Any = None) -> dict[str, Array]:
        seen = data._replace(train=data.train[:, :n])

        def one(run: Any) -> dict[str, Array]:
            state, previous, place, knobs, box = run
            return measure_one(state, previous, jax.tree.map(lambda leaf: leaf[place], seen), knobs, box)

        return jax.lax.map(one, (state, previous, jnp.arange(len(box)) if source is None else source, knobs, box))

    constants = compiled_rates(step_spec, signature)

    def fresh(params: Any, knobs: Any, seed: Array) -> Any:
        rates = {**knobs, **constants}
        return optimizers[step_spec.optimizer].first_state(params, rates["learning_rate"], rates["weight_decay"], seed)

    return Programs(
        jit_traced_once(make_advance(step_spec, signature)), jit_traced_once(measure), jit_traced_once(jax.vmap(fresh))
    )


@made_once
def init_program(spec: RunSpec, d_in: int, d_out: int) -> Callable[..., Weights]:
    """First weights: (seeds, knobs, inputs) of W runs -> their parameters and statistics."""
    return jit_traced_once(jax.vmap(make_init(spec, d_in, d_out)))


@made_once
def sample_program(spec: RunSpec, phase: int, probing: MeasureConfig) -> Callable[..., Data]:
    """The rows of one phase of a task, from the seeds of W runs."""
    sample_one = make_sample(tasks[spec.task](spec), phase, probing)

    def sample(seeds: UInt32[Array, " W"]) -> Data:
        return jax.lax.map(sample_one, seeds)  # what is not kept of one run's rows is gone before the next one's are drawn

    return jit_traced_once(sample)


KEPT = {"programs": programs, "init": init_program, "sample": sample_program}  # what is made once, by its kind in `needs`
_replaced = 0


def evict_stale() -> None:
    """Programs are kept by the names they were made from: once a name stands for something else, they are made anew."""
    global _replaced
    if _replaced != Registry.version:
        _replaced = Registry.version
        clear()


def clear() -> None:
    """Every program is made anew when it is asked for."""
    for made in KEPT.values():
        made.kept.clear()


def tile_programs(spec: RunSpec, probing: MeasureConfig = MeasureConfig()) -> Programs:
    """The programs that train and measure a tile of runs like `spec`."""
    return programs(*_programs_key(spec, probing))


def _programs_key(spec: RunSpec, probing: MeasureConfig) -> tuple[Any, ...]:
    task = tasks[spec.task](spec)
    return *cohort(spec, task.signature), probing, task.box is not None


def required_programs(runs: Iterable[RunSpec], probing: MeasureConfig = MeasureConfig()) -> set[tuple[Any, ...]]:
    """The programs that these runs are trained with, by what `forget` knows them by."""
    distinct = {program_fields(spec): spec for spec in runs}.values()
    return {key for spec in distinct for key in (("programs", *_programs_key(spec, probing)), *init_programs(spec))}


def evict(key: tuple[Any, ...]) -> None:
    """Let go of a program of `needs` that nobody needs any more: on a CPU a cohort's take some 30 MiB a device, others 5."""
    kind, *of = key
    kept = KEPT[kind].kept
    for made in [made for made in list(kept) if made[: len(of)] == tuple(of)]:  # a task of several phases has a program for each
        kept.pop(made, None)
