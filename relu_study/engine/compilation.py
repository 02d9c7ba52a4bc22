"""Compiled programs of a cohort, cached by their specs. Pure JAX: no files, no printing.

Each program takes all runs of a tile and compiles once per cohort and device. `advance` is the same with and without
measurement. Compile time is recorded and has no effect on the programs.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from relu_study.components.networks import network_of
from relu_study.components.options import program_options, values
from relu_study.components.registry import Registry, optimizers, tasks
from relu_study.components.tasks.task import Signature
from relu_study.engine import stored_programs, trace_settings
from relu_study.engine.bundle import Bundle
from relu_study.engine.cohorts import OPTIONS, cohort, init_programs, program_fields
from relu_study.engine.compile_time import timed_lock
from relu_study.engine.flax_init import make_flax_init
from relu_study.engine.forward import flax_model, site_units
from relu_study.engine.groups import map_in_groups, measured_bytes, sampled_bytes
from relu_study.engine.measure_step import make_measure
from relu_study.engine.places import variant_of
from relu_study.engine.state import Data, MeasureConfig, State, Weights
from relu_study.engine.train_step import compiled_rates, make_advance, make_init, make_sample, make_split, ranges
from relu_study.study.run_spec import RunSpec


@dataclass(frozen=True)
class Programs:
    """The compiled programs of one cohort."""

    advance: Callable[..., State]
    measure: Callable[..., Bundle]  # of states without optimiser state; cohorts of one network and task share it
    init_optimizer: Callable[..., Any]  # initial optimiser state, from parameters, traced hyperparameters and seeds


class TracedOnce:
    """A function jitted with the engine's compiler options, and compiled once per device, shapes and settings of JAX.

    With a `key`, its programs are stored between processes.
    """

    def __init__(self, function: Callable[..., Any], key: stored_programs.Key | None = None):
        options = OPTIONS.get(jax.default_backend())
        self.jitted = jax.jit(function, compiler_options=options)
        self._key = None if key is None else (*key, repr(options))
        self._tracing = threading.Lock()
        self._compiling: dict[Hashable, threading.Lock] = {}
        self.programs: dict[Hashable, jax.stages.Compiled] = {}  # by device, shapes and settings

    def __call__(self, *args: Any) -> Any:
        return self.compiled(*args)(*args)

    def compiled(self, *args: Any) -> jax.stages.Compiled:
        """The program for arguments, or for committed shapes, like these."""
        variant = variant_of(args), trace_settings.current()
        if (program := self.programs.get(variant)) is not None:
            return program
        # A second place waits for the program of the first only if they share a device.
        with timed_lock(self._compiling.setdefault(variant, threading.Lock())):
            if variant not in self.programs:
                self.programs[variant] = stored_programs.obtain(self._key, args, lambda: self._lower(args))
        return self.programs[variant]

    def _lower(self, args: Any) -> jax.stages.Lowered:
        with timed_lock(self._tracing):
            traced = self.jitted.trace(*args)
        return traced.lower()


class ProgramCache:
    """Thread-safe cache of the programs that `make` returns, by its arguments."""

    def __init__(self, make: Callable[..., Any]):
        functools.update_wrapper(self, make)
        self.make = make
        self.entries: dict[tuple[Any, ...], Any] = {}
        self._version = Registry.version  # of the registries that the entries were made from
        self._lock = threading.RLock()

    def __call__(self, *key: Any) -> Any:
        with self._lock:
            if key not in self.entries:
                self.entries[key] = self.make(*key)
            return self.entries[key]

    def evict(self, *prefix: Any) -> None:
        """Drop the programs whose arguments begin with `prefix`."""
        for key in [key for key in list(self.entries) if key[: len(prefix)] == prefix]:
            self.entries.pop(key, None)

    def clear(self) -> None:
        """Drop all programs."""
        self.entries.clear()

    def clear_stale(self) -> None:
        """Drop all programs if a registered name was redefined since the last call."""
        if self._version != Registry.version:
            self._version = Registry.version
            self.clear()


@ProgramCache
def advance_program(step_spec: RunSpec, signature: Signature) -> TracedOnce:
    """The training of W runs between two measurements, however they are measured."""
    return TracedOnce(make_advance(step_spec, signature), ("advance", step_spec, signature))


@ProgramCache
def measure_program(spec: RunSpec, signature: Signature, measure_config: MeasureConfig, boxed: bool) -> TracedOnce:
    """Measurement of W runs, of all cohorts with this network and task.

    On a CPU it takes one run after the other, so that each stays in the cache.
    """
    measure_one, n = make_measure(spec, signature, measure_config, boxed), measure_config.probe_set(signature)
    size = functools.partial(measured_bytes, spec, signature, measure_config)

    def measure(state: State, previous: Any, data: Data, hparams: Any, box: Array, source: Any = None) -> Bundle:
        probe = data._replace(train=jax.tree.map(lambda leaf: leaf[:, :n], data.train))

        def one(run: Any) -> dict[str, Array]:
            state, previous, dataset, hparams, box = run
            train, val = jax.tree.map(lambda leaf: leaf[dataset], (probe.train, probe.val))
            return measure_one(state, previous, Data(train, val, data.table), hparams, box)

        runs = (state, previous, jnp.arange(len(box)) if source is None else source, hparams, box)
        return Bundle.of(map_in_groups(one, runs, size))

    return TracedOnce(measure, ("measure", spec, signature, measure_config, boxed))


@ProgramCache
def optimizer_program(spec: RunSpec, compiled_in: tuple[tuple[str, float], ...]) -> TracedOnce:
    """Initial optimiser state of W runs: (parameters, hparams, seeds) -> state. Cohorts with equal optimisers share it."""

    def init_optimizer(params: Any, hparams: Any, seed: Array) -> Any:
        rates = {**values(spec), **hparams, **dict(compiled_in)}
        return optimizers[spec.optimizer].first_state(params, rates["learning_rate"], rates["weight_decay"], seed, rates)

    return TracedOnce(jax.vmap(init_optimizer), ("init_optimizer", spec, compiled_in))


@ProgramCache
def init_program(spec: RunSpec, inputs: jax.ShapeDtypeStruct, outputs: jax.ShapeDtypeStruct) -> Callable[..., Weights]:
    """Initialisation of W runs: (seeds, hparams, inputs) -> parameters and other variables."""
    flax = not network_of(spec).sized
    init = make_flax_init(spec, inputs, outputs) if flax else make_init(spec, *inputs.shape, *outputs.shape)
    return TracedOnce(jax.vmap(init), ("init", spec, inputs, outputs))


@ProgramCache
def sample_program(spec: RunSpec, phase: int, val_rows: int) -> Callable[..., Data]:
    """Data of one phase of a task: seeds and traced options of W runs -> their datasets, without a table.

    Of the validation rows they have the first `val_rows`.
    """
    task = tasks[spec.task](spec)
    sample_one = (make_sample if task.table is None else make_split)(task, phase, val_rows)
    size = functools.partial(sampled_bytes, task.signature)

    def sample(seeds: UInt32[Array, " W"], options: Mapping[str, Array] = MappingProxyType({})) -> Data:
        # Rows that are sampled but not kept are freed before the next group samples its own.
        return map_in_groups(lambda run: sample_one(run[0], **run[1]), (seeds, dict(options)), size)

    return TracedOnce(sample)


@ProgramCache
def site_layout(
    step_spec: RunSpec, signature: Signature, measure_config: MeasureConfig
) -> tuple[dict[str, int], dict[str, tuple[float, float]]]:
    """The units of each site of a cohort, and the ranges of its linear histograms. The network is traced for them."""
    return site_units(step_spec, signature), ranges(step_spec, signature, measure_config)


# By the kind of a key.
CACHES = {
    "advance": advance_program,
    "measure": measure_program,
    "init_optimizer": optimizer_program,
    "init": init_program,
    "sample": sample_program,
    "layout": site_layout,
}


def evict_stale() -> None:
    """Clear the caches if a registered name was redefined since the last call."""
    for cache in CACHES.values():
        cache.clear_stale()


def clear() -> None:
    """Empty the caches."""
    flax_model.cache_clear()
    for cache in CACHES.values():
        cache.clear()


def tile_programs(spec: RunSpec, measure_config: MeasureConfig = MeasureConfig()) -> Programs:
    """The programs that train and measure a tile of runs like `spec`."""
    keys = _program_keys(spec, measure_config)
    return Programs(**{kind: CACHES[kind](*key) for kind, key in keys.items()})


def _program_keys(spec: RunSpec, measure_config: MeasureConfig) -> dict[str, tuple[Any, ...]]:
    """The arguments of the programs of a cohort, by their kinds."""
    task = tasks[spec.task](spec)
    step_spec, signature = cohort(spec, task.signature)
    return {
        "advance": (step_spec, signature),
        "measure": (_measured(step_spec), signature, measure_config.for_measurement(), task.box is not None),
        "init_optimizer": _optimized(step_spec, signature),
    }


def _measured(step_spec: RunSpec) -> RunSpec:
    """The fields of a cohort's program that its measurement reads, with constants in the others."""
    options = program_options(step_spec, "network", "activation")
    default = RunSpec()
    return step_spec.replace(
        optimizer=default.optimizer,
        batch_size=default.batch_size,
        learning_rate=default.learning_rate,
        weight_decay=default.weight_decay,
        options=options,
    )


def _optimized(step_spec: RunSpec, signature: Signature) -> tuple[RunSpec, tuple[tuple[str, float], ...]]:
    """The fields of a cohort's program that its optimiser reads, and the rates that are compiled in."""
    options = program_options(step_spec, "optimizer")
    return RunSpec(optimizer=step_spec.optimizer, options=options), tuple(compiled_rates(step_spec, signature).items())


def required_programs(runs: Iterable[RunSpec], measure_config: MeasureConfig = MeasureConfig()) -> set[tuple[Any, ...]]:
    """The keys of the programs that these runs require, for `evict`."""
    keys: set[tuple[Any, ...]] = set()
    for spec in {program_fields(spec): spec for spec in runs}.values():
        keys.update((kind, *key) for kind, key in _program_keys(spec, measure_config).items())
        keys.update(init_programs(spec))
    return keys


def evict(key: tuple[Any, ...]) -> None:
    """Evict a program by its key. On a CPU the programs of a cohort take about 30 MiB per device, others 5 MiB."""
    kind, *prefix = key
    CACHES[kind].evict(*prefix)  # one `sample` per phase
