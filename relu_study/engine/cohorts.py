"""Cohorts: the runs that share one compiled program, their checks, sites and costs."""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import Any

from relu_study.components.registry import activations, initializers, networks, optimizers, ours, tasks
from relu_study.components.tasks.task import Signature
from relu_study.engine import check_functions, check_networks, check_tasks
from relu_study.engine.plan import RunCost
from relu_study.engine.state import MeasureConfig, site_units
from relu_study.engine.train_step import BLOCK, compiled_rates, steps_per_epoch
from relu_study.errors import UserError
from relu_study.study.run_spec import RunSpec

ENGINE = 3  # grows with each change of bits; committed results are then regenerated
# On a CPU, LLVM optimisation level 1 gives the same bits in 60 % of the compile time, and mostly faster code.
# Devices share one thread pool: a loop that XLA splits over it would wait for threads that train other tiles.
OPTIONS = {"cpu": {"xla_backend_optimization_level": "1", "xla_disable_hlo_passes": "cpu-parallel-task-assigner"}}
COMPILED = 4  # constant part of the compile time, in layers


def check(spec: RunSpec, measure_config: MeasureConfig, seen: dict[Any, Any] | None = None) -> None:
    """Raise UserError if a spec cannot be trained. Compiles nothing.

    `seen` caches the checks of the user's entries, with their notes, across specs.
    """
    seen = {} if seen is None else seen
    for registry, name in (
        (networks, spec.network),
        (activations, spec.activation),
        (activations, spec.output),
        (initializers, spec.initializer),
        (optimizers, spec.optimizer),
        (tasks, spec.task),
    ):
        registry[name]
    for name, count in (("probe_examples", measure_config.probe_examples), ("val_examples", measure_config.val_examples)):
        if count is not None and not (isinstance(count, int) and count >= 1):
            raise UserError(f"{name} must be a whole number of at least 1, not {count!r}")
    if spec.weight_decay and not optimizers[spec.optimizer].takes_decay:
        raise UserError(
            f"optimizer {spec.optimizer!r} has no parameter weight_decay, so {spec.weight_decay:g} would do nothing. "
            "Give its function that parameter, or leave the field at 0."
        )
    if activations[spec.output].fanout > 1:  # a loss would silently broadcast it against the targets
        raise UserError(f"output {spec.output!r} gives several numbers for each target. Choose an activation that gives one.")
    if not ours(tasks[spec.task]):
        check_functions.once(seen, ("task", data_spec(spec)), lambda: check_tasks.check_task(spec))
    task = tasks[spec.task](spec)
    signature = task.signature
    if signature.train_rows < 1 or signature.val_rows < 1:
        raise UserError(
            f"rows={spec.rows} leaves {signature.train_rows} training and {signature.val_rows} validation rows. Give more."
        )
    if spec.batch_size > signature.train_rows:
        raise UserError(f"batch_size {spec.batch_size} is larger than the {signature.train_rows} training rows. Make it smaller.")
    if measure_config.probe_examples is not None and measure_config.probe_examples > signature.train_rows:
        raise UserError(
            f"a probe set of {measure_config.probe_examples} examples is larger than the {signature.train_rows} training rows. "
            f"Request at most that many."
        )
    if not ours(networks[spec.network]):
        check_functions.once(seen, ("network", *cohort(spec, signature)), lambda: check_networks.check_network(spec, signature))
    check_functions.check_entries(spec, signature, task.box is not None, seen)


def cost_of(spec: RunSpec, measure_config: MeasureConfig = MeasureConfig()) -> RunCost:
    """The cost of a run, from shapes only. Compiles nothing."""
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
    return RunCost(
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
        data=4 * (signature.train_rows + measure_config.validation(signature)) * columns,
        state=16 * weights,
        layers=len(widths) + COMPILED,
        num_measurements=len(range(0, math.ceil(spec.epochs), measure_config.measure_every)) + 1 if spec.epochs else 1,
        measured_rows=measure_config.probe_set(signature) + measure_config.validation(signature),
        sites=len(units),
    )


FIRST = ("train_rows", "val_rows", "d_in", "d_out", "loss", "metrics")  # the fields of Signature in the original cohort ids


def _identified(signature: Signature) -> tuple[Any, ...]:
    """The signature fields that enter a cohort id: the fields in FIRST, and later fields that differ from their defaults."""
    default = signature._field_defaults
    extra = {name: v for name, v in signature._asdict().items() if name not in FIRST and v != default.get(name)}
    return tuple(getattr(signature, name) for name in FIRST), *([extra] if extra else [])


def init_programs(spec: RunSpec) -> tuple[tuple[Any, ...], ...]:
    """The cache keys of the `init` and `sample` programs of a run."""
    signature = tasks[spec.task](spec).signature
    return ("init", start_spec(spec), signature.d_in, signature.d_out), ("sample", data_spec(spec))


def sites(spec: RunSpec) -> list[str]:
    """The site names of a spec's network, from input to output."""
    return list(site_units(*cohort(spec, tasks[spec.task](spec).signature)))


def cohort(spec: RunSpec, signature: Signature) -> tuple[RunSpec, Signature]:
    """The program fields (with the rates, if compiled in) and the task's signature, which the runs of a cohort share."""
    return RunSpec(**dict(spec.marked("program")) | compiled_rates(spec, signature)), signature


def program_fields(spec: RunSpec) -> tuple[tuple[str, Any], ...]:
    """The fields that determine the programs of a run."""
    rates = compiled_rates(spec, tasks[spec.task](spec).signature) if not ours(optimizers[spec.optimizer]) else {}
    return spec.marked("program", "init", "data") + tuple(rates.items())


def start_spec(spec: RunSpec) -> RunSpec:
    """The fields that determine the initial weights. An initialiser that ignores its inputs shares its program."""
    start = RunSpec(**dict(spec.marked("program", "init"))).replace(optimizer="adam", batch_size=128, dropout="none")
    fanout = activations[spec.activation].fanout
    return start if initializers[spec.initializer].needs_inputs or fanout > 1 else start.replace(activation="linear", rows=2)


def data_spec(spec: RunSpec) -> RunSpec:
    """The fields that determine the data, without the seed."""
    return RunSpec(rows=spec.rows, **dict(spec.marked("data")))
