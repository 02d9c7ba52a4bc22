"""From a spec to its compiled programs. Pure JAX: no files, no printing; what is waited for is timed, and nothing hangs on it.

Each program of `programs.py` takes the runs of a tile together and is compiled once per cohort and device; `advance` is
the same whether or not anyone measures.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from relu_study import entries, functions, registry
from relu_study import initializers as _initializers  # noqa: F401  (each import fills its registry)
from relu_study import optimizers as _optimizers  # noqa: F401
from relu_study.clock import waiting
from relu_study.networks import MLP as _mlp  # noqa: F401
from relu_study.plan import Work
from relu_study.programs import (
    BLOCK,
    Data,
    Probing,
    State,
    Weights,
    compiled_rates,
    make_advance,
    make_init,
    make_measure,
    make_sample,
    site_units,
    steps_per_epoch,
)
from relu_study.registry import UserError, activations, initializers, networks, optimizers, ours, tasks
from relu_study.spec import RunSpec
from relu_study.tasks import Signature

ENGINE = 3  # grows when a change moves bits; committed results are then regenerated
# On a CPU the first level of LLVM's optimiser makes the same bits in 60 % of the compile time, and mostly faster code. Devices
# share one pool of threads: a loop that XLA splits over it waits for threads that train other tiles.
OPTIONS = {"cpu": {"xla_backend_optimization_level": "1", "xla_disable_hlo_passes": "cpu-parallel-task-assigner"}}
COMPILED = 4  # what a network of no layer takes to compile, in layers


@dataclass(frozen=True)
class Programs:
    """The compiled programs of one cohort."""

    advance: Callable[..., State]
    measure: Callable[..., dict[str, Array]]
    fresh: Callable[..., Any]  # the optimiser's first state, from the parameters, knobs and seeds


def check(spec: RunSpec, probing: Probing, seen: dict[Any, Any] | None = None) -> None:
    """Refuse what cannot be trained, by name and before anything compiles.

    `seen` holds the finished checks of the user's entries, each with its notes; specs that share it share their checks.
    """
    seen = {} if seen is None else seen
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
    if spec.weight_decay and not optimizers[spec.optimizer].takes_decay:
        raise UserError(
            f"optimizer {spec.optimizer!r} has no parameter weight_decay, so {spec.weight_decay:g} would do nothing; "
            "give its function that parameter, or leave the field at 0"
        )
    if activations[spec.output].fanout > 1:  # a loss would broadcast it against the targets, silently
        raise UserError(f"output {spec.output!r} gives several numbers for each target; choose an activation that gives one")
    if not ours(tasks[spec.task]):
        functions.once(seen, ("task", data_spec(spec)), lambda: entries.check_task(spec))
    task = tasks[spec.task](spec)
    signature = task.signature
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
    if not ours(networks[spec.network]):
        functions.once(seen, ("network", *cohort(spec, signature)), lambda: entries.check_network(spec, signature))
    functions.check_entries(spec, signature, task.box is not None, seen)


def describe(spec: RunSpec, probing: Probing = Probing()) -> Work:
    """What a run asks of a machine, from shapes alone: nothing is compiled."""
    task = tasks[spec.task](spec)
    step, signature = cohort(spec, task.signature)
    units = list(site_units(step, signature).values())
    widths = [signature.d_in, *units] if spec.output != "linear" else [signature.d_in, *units, signature.d_out]
    weights = sum(a * b for a, b in itertools.pairwise(widths))
    columns, per_epoch = signature.d_in + signature.d_out, steps_per_epoch(signature.train_rows, spec.batch_size)
    shared = (step.changed(), *_identified(signature), task.box is not None, task.phases)
    name = hashlib.sha256(repr(shared).encode()).hexdigest()[:8]
    extras = [v for k, v in step.changed().items() if k in ("norm", "dropout", "output")]
    rates = ", ".join(f"{name}={value:g}" for name, value in compiled_rates(spec, signature).items())
    return Work(
        cohort=name,
        title=" ".join(
            [
                spec.network,
                "-".join(map(str, widths)),
                spec.activation,
                *extras,
                spec.optimizer,
                *([f"(compiled for {rates})"] if rates else []),
                f"batch {spec.batch_size}",
            ]
        ),
        steps=round(spec.epochs * per_epoch),
        flops=6 * spec.batch_size * weights,
        batch=spec.batch_size,
        scratch=4 * (BLOCK * spec.batch_size * columns + 2 * spec.batch_size * sum(widths[1:]) + 2 * weights),
        data=4 * (signature.train_rows + probing.validation(signature)) * columns,
        state=16 * weights,
        layers=len(widths) + COMPILED,
        measured=len(range(0, math.ceil(spec.epochs), probing.every)) + 1 if spec.epochs else 1,
        watched=probing.probe_set(signature) + probing.validation(signature),
        sites=len(units),
    )


FIRST = ("train_rows", "val_rows", "d_in", "d_out", "loss", "metrics")  # all fields of a Signature in the first cohort names


def _identified(signature: Signature) -> tuple[Any, ...]:
    """What a cohort's name says of a signature: the first fields, and of later ones only other values than their defaults."""
    default = signature._field_defaults
    more = {name: v for name, v in signature._asdict().items() if name not in FIRST and v != default.get(name)}
    return tuple(getattr(signature, name) for name in FIRST), *([more] if more else [])


def starts(spec: RunSpec) -> tuple[tuple[Any, ...], ...]:
    """The programs that a run begins with, by what they are compiled for: its `init` and its `sample`."""
    signature = tasks[spec.task](spec).signature
    return ("init", start_spec(spec), signature.d_in, signature.d_out), ("sample", data_spec(spec))


def sites(spec: RunSpec) -> list[str]:
    """The sites of a spec's network, nearest the input first."""
    return list(site_units(*cohort(spec, tasks[spec.task](spec).signature)))


def cohort(spec: RunSpec, signature: Signature) -> tuple[RunSpec, Signature]:
    """The step fields and the task's signature, which the runs of one cohort share; rates too where they are compiled in."""
    return RunSpec(**dict(spec.marked("step")) | compiled_rates(spec, signature)), signature


def program_fields(spec: RunSpec) -> tuple[tuple[str, Any], ...]:
    """The fields that decide the programs of a run."""
    rates = compiled_rates(spec, tasks[spec.task](spec).signature) if not ours(optimizers[spec.optimizer]) else {}
    return spec.marked("step", "start", "data") + tuple(rates.items())


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function jit-compiled as the engine's programs are, traced once for all devices."""
    program, tracing = jax.jit(function, compiler_options=OPTIONS.get(jax.default_backend())), threading.Lock()

    def call(*args: Any) -> Any:
        # Of two devices that come at once the second waits for the first one's trace, but not for its compilation.
        with waiting(tracing):
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
def programs(step_spec: RunSpec, signature: Signature, probing: Probing, boxed: bool) -> Programs:
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

    return Programs(compiled(make_advance(step_spec, signature)), compiled(measure), compiled(jax.vmap(fresh)))


@made_once
def init_program(spec: RunSpec, d_in: int, d_out: int) -> Callable[..., Weights]:
    """First weights: (seeds, knobs, inputs) of W runs -> their parameters and statistics."""
    return compiled(jax.vmap(make_init(spec, d_in, d_out)))


@made_once
def sample_program(spec: RunSpec, phase: int, probing: Probing) -> Callable[..., Data]:
    """The rows of one phase of a task, from the seeds of W runs."""
    sample_one = make_sample(tasks[spec.task](spec), phase, probing)

    def sample(seeds: UInt32[Array, " W"]) -> Data:
        return jax.lax.map(sample_one, seeds)  # what is not kept of one run's rows is gone before the next one's are drawn

    return compiled(sample)


KEPT = {"programs": programs, "init": init_program, "sample": sample_program}  # what is made once, by its kind in `needs`
_replaced = 0


def forget_stale() -> None:
    """Programs are kept by the names they were made from: once a name stands for something else, they are made anew."""
    global _replaced
    if _replaced != registry.replaced:
        _replaced = registry.replaced
        forget_all()


def forget_all() -> None:
    """Every program is made anew when it is asked for."""
    for made in KEPT.values():
        made.kept.clear()


def start_spec(spec: RunSpec) -> RunSpec:
    """The fields that decide the first weights: an initialiser that does not look at its inputs shares its program."""
    start = RunSpec(**dict(spec.marked("step", "start"))).but(optimizer="adam", batch_size=128, dropout="none")
    fanout = activations[spec.activation].fanout
    return start if initializers[spec.initializer].needs_inputs or fanout > 1 else start.but(activation="linear", rows=2)


def data_spec(spec: RunSpec) -> RunSpec:
    """The fields that decide the rows, the seed apart."""
    return RunSpec(rows=spec.rows, **dict(spec.marked("data")))


def tile_programs(spec: RunSpec, probing: Probing = Probing()) -> Programs:
    """The programs that train and measure a tile of runs like `spec`."""
    return programs(*_programs_key(spec, probing))


def _programs_key(spec: RunSpec, probing: Probing) -> tuple[Any, ...]:
    task = tasks[spec.task](spec)
    return *cohort(spec, task.signature), probing, task.box is not None


def needs(runs: Iterable[RunSpec], probing: Probing = Probing()) -> set[tuple[Any, ...]]:
    """The programs that these runs are trained with, by what `forget` knows them by."""
    distinct = {program_fields(spec): spec for spec in runs}.values()
    return {key for spec in distinct for key in (("programs", *_programs_key(spec, probing)), *starts(spec))}


def forget(key: tuple[Any, ...]) -> None:
    """Let go of a program of `needs` that nobody needs any more: on a CPU a cohort's take some 30 MiB a device, others 5."""
    kind, *of = key
    kept = KEPT[kind].kept
    for made in [made for made in list(kept) if made[: len(of)] == tuple(of)]:  # a task of several phases has a program for each
        kept.pop(made, None)
