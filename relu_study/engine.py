"""From a tile of runs to their numbers. Pure JAX: no files, no clocks, no printing.

Each program of `programs.py` takes the runs of a tile together and is compiled once per cohort and device; `advance` is
the same whether or not anyone measures. A tile is a message: plain specs in, plain arrays out (`train_tile`).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from relu_study import initializers as _initializers  # noqa: F401  (each import fills its registry)
from relu_study import optimizers as _optimizers  # noqa: F401
from relu_study import registry
from relu_study.networks import MLP as _mlp  # noqa: F401
from relu_study.plan import Work
from relu_study.probes import revivals
from relu_study.programs import (
    BLOCK,
    Data,
    Probing,
    State,
    Weights,
    make_advance,
    make_init,
    make_measure,
    make_sample,
    site_units,
    steps_per_epoch,
)
from relu_study.registry import UserError, activations, initializers, networks, optimizers, tasks
from relu_study.spec import KNOBS, RunSpec
from relu_study.tasks import Signature

ENGINE = 3  # grows when a change moves bits; committed results are then regenerated
# On a CPU the first level of LLVM's optimiser makes the same bits in 60 % of the compile time, and mostly faster code. Devices
# share one pool of threads: a loop that XLA splits over it waits for threads that train other tiles.
OPTIONS = {"cpu": {"xla_backend_optimization_level": "1", "xla_disable_hlo_passes": "cpu-parallel-task-assigner"}}
IN_FLIGHT = 3  # epochs queued on a device ahead of the one it works on


@dataclass(frozen=True)
class Programs:
    """The compiled programs of one cohort."""

    advance: Callable[..., State]
    measure: Callable[..., dict[str, Array]]


def check(spec: RunSpec, probing: Probing) -> None:
    """Refuse what cannot be trained, by name and before anything compiles."""
    for known, name in (
        (networks, spec.network),
        (activations, spec.activation),
        (activations, spec.output),
        (initializers, spec.initializer),
        (optimizers, spec.optimizer),
        (tasks, spec.task),
    ):
        known[name]
    for name, asked in (("probe_examples", probing.examples), ("val_examples", probing.val_examples)):
        if asked is not None and not (isinstance(asked, int) and asked >= 1):
            raise UserError(f"{name} must be a whole number of at least 1, not {asked!r}")
    if activations[spec.output].fanout > 1:  # a loss would broadcast it against the targets, silently
        raise UserError(f"output {spec.output!r} gives several numbers for each target; choose an activation that gives one")
    signature = tasks[spec.task](spec).signature
    if signature.train_rows < 1 or signature.val_rows < 1:
        raise UserError(
            f"rows={spec.rows} leaves {signature.train_rows} training and {signature.val_rows} validation rows; give more"
        )
    if spec.batch_size > signature.train_rows:
        raise UserError(f"batch_size {spec.batch_size} is larger than the {signature.train_rows} training rows; make it smaller")
    if probing.examples is not None and probing.examples > signature.train_rows:
        raise UserError(
            f"a probe set of {probing.examples} examples is larger than the {signature.train_rows} training rows; "
            f"ask for at most that many"
        )


def describe(spec: RunSpec, probing: Probing = Probing()) -> Work:
    """What a run asks of a machine, from shapes alone: nothing is compiled."""
    task = tasks[spec.task](spec)
    step, signature = cohort(spec, task.signature)
    units = list(site_units(step, signature).values())
    widths = [signature.d_in, *units] if spec.output != "linear" else [signature.d_in, *units, signature.d_out]
    weights = sum(a * b for a, b in itertools.pairwise(widths))
    columns, per_epoch = signature.d_in + signature.d_out, steps_per_epoch(signature.train_rows, spec.batch_size)
    shared = (step.changed(), tuple(signature), task.box is not None, task.phases)
    name = hashlib.sha256(repr(shared).encode()).hexdigest()[:8]
    extras = [v for k, v in step.changed().items() if k in ("norm", "dropout", "output")]
    return Work(
        cohort=name,
        title=" ".join(
            [spec.network, "-".join(map(str, widths)), spec.activation, *extras, spec.optimizer, f"batch {spec.batch_size}"]
        ),
        steps=round(spec.epochs * per_epoch),
        flops=6 * spec.batch_size * weights,
        batch=spec.batch_size,
        scratch=4 * (BLOCK * spec.batch_size * columns + 2 * spec.batch_size * sum(widths[1:]) + 2 * weights),
        data=4 * (signature.train_rows + probing.validation(signature)) * columns,
        state=16 * weights,
    )


def starts(spec: RunSpec) -> tuple[tuple[Any, ...], ...]:
    """The programs that a run begins with, by what they are compiled for: its `init` and its `sample`."""
    signature = tasks[spec.task](spec).signature
    return ("init", _start_spec(spec), signature.d_in, signature.d_out), ("sample", _data_spec(spec))


def sites(spec: RunSpec) -> list[str]:
    """The sites of a spec's network, nearest the input first."""
    return list(site_units(*cohort(spec, tasks[spec.task](spec).signature)))


def cohort(spec: RunSpec, signature: Signature) -> tuple[RunSpec, Signature]:
    """What the runs of one cohort share: the step fields and the task's signature."""
    return RunSpec(**dict(spec.marked("step"))), signature


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function jit-compiled as the engine's programs are, traced once for all devices."""
    program, tracing = jax.jit(function, compiler_options=OPTIONS.get(jax.default_backend())), threading.Lock()

    def call(*args: Any) -> Any:
        with tracing:  # the second of two devices that come at once waits for the first one's trace, but not for its compilation
            program.trace(*args)
        return program(*args)

    return call


def _made_once(make: Callable[..., Any]) -> Any:
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


@_made_once
def programs(step_spec: RunSpec, signature: Signature, probing: Probing, boxed: bool) -> Programs:
    """The programs of a cohort. `measure` takes a tile's runs one after the other, which keeps each in cache."""
    measure_one, n = make_measure(step_spec, signature, probing, boxed), probing.probe_set(signature)

    def measure(state: State, previous: Any, data: Data, knobs: Any, box: Array, source: Any = None) -> dict[str, Array]:
        seen = data._replace(train=data.train[:, :n])

        def one(run: Any) -> dict[str, Array]:
            state, previous, place, knobs, box = run
            return measure_one(state, previous, jax.tree.map(lambda leaf: leaf[place], seen), knobs, box)

        return jax.lax.map(one, (state, previous, jnp.arange(len(box)) if source is None else source, knobs, box))

    return Programs(compiled(make_advance(step_spec, signature)), compiled(measure))


@_made_once
def _init_program(spec: RunSpec, d_in: int, d_out: int) -> Callable[..., Weights]:
    return compiled(jax.vmap(make_init(spec, d_in, d_out)))


@_made_once
def _opt_program(optimizer: str) -> Callable[..., Any]:
    def fresh(params: Any) -> Any:
        return optimizers[optimizer](0.0, 0.0).init(params)

    return compiled(jax.vmap(fresh))


@_made_once
def _sample_program(spec: RunSpec, phase: int, probing: Probing) -> Callable[..., Data]:
    sample_one = make_sample(tasks[spec.task](spec), phase, probing)

    def sample(seeds: UInt32[Array, " W"]) -> Data:
        return jax.lax.map(sample_one, seeds)  # what is not kept of one run's rows is gone before the next one's are drawn

    return compiled(sample)


_replaced = 0


def _forget_stale() -> None:
    """Programs are kept by the names they were made from: once a name stands for something else, they are made anew."""
    global _replaced
    if _replaced != registry.replaced:
        _replaced = registry.replaced
        for kept in (programs, _init_program, _opt_program, _sample_program):
            kept.kept.clear()


@functools.partial(jax.jit, donate_argnums=0)
def _put_in(kept: Any, other: Any, where: Bool[Array, " W"]) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(jnp.expand_dims(where, range(1, a.ndim)), b, a), kept, other)


def _begin(specs: list[RunSpec], key: Callable[[RunSpec], RunSpec], make: Callable[[RunSpec], Any]) -> Any:
    """What each run begins with: made for the whole tile once per distinct `key`, each run then taking its own."""
    keys = [key(spec) for spec in specs]
    distinct = list(dict.fromkeys(keys))
    begun = make(distinct[0])
    for one in distinct[1:]:
        begun = _put_in(begun, make(one), np.array([key == one for key in keys]))
    return begun


def _start_spec(spec: RunSpec) -> RunSpec:
    """The fields that decide the first weights: an initialiser that does not look at its inputs shares its program."""
    start = RunSpec(**dict(spec.marked("step", "start"))).but(optimizer="adam", batch_size=128, dropout="none")
    fanout = activations[spec.activation].fanout
    return start if initializers[spec.initializer].needs_inputs or fanout > 1 else start.but(activation="linear", rows=2)


def _data_spec(spec: RunSpec) -> RunSpec:
    return RunSpec(rows=spec.rows, **dict(spec.marked("data")))


class Begun(NamedTuple):
    """A tile of runs on its device, before the first step; `source` is the set of rows that each run reads, None: its own."""

    state: State
    data: Data
    seeds: UInt32[Array, " W"]
    knobs: dict[str, Float[Array, " W"]]
    box: Float[Array, "W 2"]
    source: Int[Array, " W"] | None


class Pending(NamedTuple):
    """A tile that is queued on a device: its numbers may not have been computed yet."""

    runs: list[RunSpec]
    epochs: np.ndarray
    units: dict[str, int]
    measured: list[dict[str, Array]]
    params: Any
    probe_examples: int


def epochs_measured(epochs: float) -> np.ndarray:
    """0, 1, 2, ... and the last, which may be a fraction."""
    return np.append(np.arange(math.ceil(epochs)), epochs).astype(float) if epochs else np.zeros(1)


def tile_programs(spec: RunSpec, probing: Probing = Probing()) -> Programs:
    """The programs that train and measure a tile of runs like `spec`."""
    return programs(*_programs_key(spec, probing))


def _programs_key(spec: RunSpec, probing: Probing) -> tuple[Any, ...]:
    task = tasks[spec.task](spec)
    return *cohort(spec, task.signature), probing, task.box is not None


def forget(spec: RunSpec, probing: Probing = Probing()) -> None:
    """Let go of the programs of a cohort that is done: on a CPU they take some 30 MiB a device."""
    programs.kept.pop(_programs_key(spec, probing), None)


def put(value: Any, device: Any) -> Any:
    """Arrays committed to a device: they alone decide where a program runs; a default device would trace each anew per device."""
    return jax.device_put(value, device)


def readers_of(specs: list[RunSpec], sets: int | None) -> tuple[list[RunSpec], np.ndarray | None]:
    """One run for each of `sets` sets of rows, and the number of the set that each run reads; None: every run its own."""
    if sets is None or sets == len(specs):
        return specs, None
    keys = [(_data_spec(spec), spec.seed) for spec in specs]
    distinct = list(dict.fromkeys(keys))
    readers = [specs[keys.index(key)] for key in distinct]
    assert len(readers) <= sets, f"{len(readers)} sets of rows are read, not {sets}"
    return [*readers, *[readers[0]] * (sets - len(readers))], np.array([distinct.index(key) for key in keys], np.int32)


def draw(readers: list[RunSpec], phase: int, device: Any, probing: Probing) -> Data:
    """The rows of one phase of their task that these runs read."""
    seeds = put(np.array([s.seed for s in readers], np.uint32), device)
    return _begin(readers, _data_spec, lambda key: _sample_program(key, phase, probing)(seeds))


def begin(specs: list[RunSpec], device: Any, probing: Probing = Probing(), sets: int | None = None) -> Begun:
    """Queue what runs of one cohort begin with on a device: data, weights and the optimiser's first state."""
    signature = tasks[specs[0].task](specs[0]).signature
    readers, source = readers_of(specs, sets)
    seeds = put(np.array([s.seed for s in specs], np.uint32), device)
    knobs = {name: put(np.array([getattr(s, name) for s in specs], jnp.result_type(float)), device) for name in KNOBS}
    box = put(np.array([tasks[s.task](s).box or (0, 0) for s in specs], jnp.result_type(float)), device)
    data = draw(readers, 0, device, probing)
    looked_at = data.train[:, : probing.probe_set(signature), : signature.d_in]
    if source is not None:
        source = put(source, device)
        looked_at = looked_at[source]
    weights = _begin(specs, _start_spec, lambda key: _init_program(key, signature.d_in, signature.d_out)(seeds, knobs, looked_at))
    # A fresh optimiser depends on no input, so its program would leave it uncommitted.
    state = put(State(weights.params, weights.stats, _opt_program(specs[0].optimizer)(weights.params)), device)
    return Begun(state, data, seeds, knobs, box, source)


def start_tile(
    runs: list[RunSpec],
    width: int,
    device: Any,
    probing: Probing = Probing(),
    probe: bool = True,
    chunk: int | None = None,
    sets: int | None = None,
    wanted: Callable[[], bool] = lambda: True,
) -> Pending | None:
    """Queue the whole training of up to `width` runs of one cohort and length on a device; None where no longer wanted.

    `probe=False` measures only before the first and after the last step; `chunk` limits the steps of a dispatch; `sets`, where it
    is less than the width, makes runs of the same data and seed share one copy of it. None of them moves a bit of the training.
    """
    _forget_stale()
    specs = [*runs, *[runs[0]] * (width - len(runs))]
    task = tasks[specs[0].task](specs[0])
    total, per_epoch = specs[0].epochs, steps_per_epoch(task.signature.train_rows, specs[0].batch_size)
    program = tile_programs(specs[0], probing)
    state, data, seeds, knobs, box, source = begin(specs, device, probing, sets)
    phase = 0
    measured = [program.measure(state, state.params, data, knobs, box, source)]
    for epoch in range(1, math.ceil(total) + 1):
        if not wanted():
            return None
        now = min((epoch - 1) * task.phases // max(math.ceil(total), 1), task.phases - 1)
        if now != phase:
            data, phase = draw(readers_of(specs, sets)[0], now, device, probing), now
        last = per_epoch if epoch <= total else round((total - epoch + 1) * per_epoch)
        previous = state.params
        for start in range(0, last, chunk or max(last, 1)):
            at = [put(np.int32(i), device) for i in (epoch, start, min(start + (chunk or last), last))]
            state = program.advance(state, data.train, seeds, knobs, *at, source)
        if probe or epoch == math.ceil(total):
            measured.append(program.measure(state, previous, data, knobs, box, source))
        if len(measured) > IN_FLIGHT:
            jax.block_until_ready(measured[-IN_FLIGHT])
    epochs = epochs_measured(total)
    return Pending(
        runs,
        epochs if probe else epochs[[0, -1]][: len(measured)],
        site_units(*cohort(specs[0], task.signature)),
        measured,
        state.params,
        probing.probe_set(task.signature),
    )


def collect(pending: Pending, keep_params: bool = False) -> dict[str, np.ndarray]:
    """Wait for a tile and return its numbers as plain arrays, padding dropped, runs first, epochs second."""
    n = len(pending.runs)
    epochs = jax.device_get(pending.measured)
    tile = {name: np.stack([e[name][:n] for e in epochs], axis=1) for name in epochs[0]}
    finite = tile.pop("finite")
    masks = {
        name: np.unpackbits(values, axis=-1, count=pending.units[name.partition(":")[2]]).astype(bool)
        for name, values in tile.items()
        if name.startswith(("dead:", "certified_dead:"))
    }
    if masks:
        tile |= {f"metric:{name}": values for name, values in revivals.fractions(masks, list(pending.units)).items()}
    # Once bad, a run stays bad: what it shows later is not a measurement.
    bad = ~np.logical_and.accumulate(finite, axis=1)
    for name, values in tile.items():
        if name.startswith("metric:"):
            values[bad] = np.nan
        if name.startswith("histogram:"):
            values[bad] = 0
        if name.startswith("metric:update_norm/"):
            values[:, pending.epochs == 0] = np.nan
    first_bad = np.where(bad.any(axis=1), pending.epochs[bad.argmax(axis=1)], np.nan)
    tile |= {
        "epoch": pending.epochs,
        "status": np.where(bad.any(axis=1), "nonfinite", "ok"),
        "first_bad_epoch": first_bad,
        "probe_examples": np.array(pending.probe_examples),
        **{f"units:{site}": np.array(units) for site, units in pending.units.items()},
    }
    if keep_params:
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(pending.params)):
            name = ".".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path).removesuffix(".value")
            tile[f"param:{name}"] = np.asarray(leaf)[:n]
    return tile


def train_tile(
    runs: list[RunSpec], width: int, device: Any = None, probing: Probing = Probing(), **options: Any
) -> dict[str, np.ndarray]:
    """Train up to `width` runs of one cohort and length together, from plain data to plain arrays."""
    keep_params = options.pop("keep_params", False)
    pending = start_tile(runs, width, device or jax.devices()[0], probing, **options)
    assert pending is not None
    return collect(pending, keep_params)
