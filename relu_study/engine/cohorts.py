"""Cohorts of runs that share one compiled program: checks of a spec, cohort ids, sites and costs."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

from relu_study.components.networks import OWN, initializer_of, network_of
from relu_study.components.options import check_options, program_options, traced_options, values
from relu_study.components.registry import activations, initializers, networks, optimizers, ours, tasks
from relu_study.components.tasks.task import Signature
from relu_study.engine import check_flax_networks, check_functions, check_networks, check_tasks
from relu_study.engine.arithmetic import arithmetic
from relu_study.engine.forward import network_spec, site_units
from relu_study.engine.plan import RunCost
from relu_study.engine.state import MeasureConfig, packed
from relu_study.engine.train_step import BLOCK, compiled_rates, steps_per_epoch
from relu_study.errors import UserError
from relu_study.study.measurement_times import measured_epochs
from relu_study.study.run_spec import TRACED_FIELDS, RunSpec

ENGINE = 3  # version of the numbers: grows with each change that moves a bit, and committed results are then regenerated
# On a CPU, LLVM optimisation level 1 gives the same bits in 60 % of the compile time, and mostly faster code.
# Devices share one thread pool: a loop that XLA splits over it would wait for threads that train other tiles.
OPTIONS = {"cpu": {"xla_backend_optimization_level": "1", "xla_disable_hlo_passes": "cpu-parallel-task-assigner"}}
FIXED_LAYERS = 4  # the part of the compile time that does not depend on depth, as a number of layers
ORIGINAL_FIELDS = ("train_rows", "val_rows", "d_in", "d_out", "loss", "metrics")  # Signature fields in every cohort id


def check(spec: RunSpec, measure_config: MeasureConfig, seen: dict[Any, Any] | None = None) -> None:
    """Raise UserError if a spec cannot be trained. Compiles nothing.

    `seen` caches the checks of the user's entries, with their notes, across specs.
    """
    seen = {} if seen is None else seen
    _check_names(spec)
    check_options(spec)
    _check_fields(spec, measure_config)
    _check_optimizer(spec, seen)
    if not ours(tasks[spec.task]):
        check_functions.once(seen, ("task", data_spec(spec)), lambda: check_tasks.check_task(spec))
    task = tasks[spec.task](spec)
    signature = task.signature
    _check_rows(spec, signature, measure_config)
    _check_network(spec, signature, measure_config, seen)
    check_functions.check_entries(spec, signature, task.box is not None, seen)


def _check_network(spec: RunSpec, signature: Signature, measure_config: MeasureConfig, seen: dict[Any, Any]) -> None:
    """Raise UserError if a network does not fit the task, or a user's network breaks its contract."""
    if not ours(networks[spec.network]):
        check_networks.check_kind(f"network {spec.network!r}", network_of(spec).function)
    if not network_of(spec).sized:
        key = ("network", *cohort(spec, signature), initializer_of(spec), spec.gain, spec.bias_shift)
        check_functions.once(seen, key, lambda: check_flax_networks.check_flax_network(spec, signature))
        requested = measure_config.metrics or ()
        check_functions.once(seen, ("bounds", spec.network), lambda: check_flax_networks.unbounded(spec.network, requested))
        return
    if not packed(signature):
        form = f"inputs {signature.inputs.dtype}{list(signature.inputs.shape)} and outputs {list(signature.outputs.shape)}"
        raise UserError(f"network {spec.network!r} maps vectors to vectors, but task {spec.task!r} has {form}. Choose another.")
    if not ours(networks[spec.network]):
        check_functions.once(seen, ("network", *cohort(spec, signature)), lambda: check_networks.check_network(spec, signature))


def _check_names(spec: RunSpec) -> None:
    """Raise UserError if a component of the spec is not registered."""
    for registry, name in (
        (networks, spec.network),
        (activations, spec.activation),
        (activations, spec.output),
        (optimizers, spec.optimizer),
        (tasks, spec.task),
    ):
        registry[name]  # raises UserError, with the nearest names
    network, name = network_of(spec), initializer_of(spec)
    if name == OWN and network.sized and name not in initializers:
        raise UserError(f"network {spec.network!r} draws no weights, so it has no initializer 'own'. Choose a registered one.")
    if name != OWN or network.sized:
        initializers[name]


def _check_fields(spec: RunSpec, measure_config: MeasureConfig) -> None:
    """Raise UserError for fields that are invalid for any task."""
    for name, count in (("probe_examples", measure_config.probe_examples), ("val_examples", measure_config.val_examples)):
        if count is not None and not (isinstance(count, int) and count >= 1):
            raise UserError(f"{name} is {count!r}. Give a whole number of at least 1.")
    if spec.weight_decay and not optimizers[spec.optimizer].takes_decay:
        raise UserError(
            f"optimizer {spec.optimizer!r} has no parameter weight_decay, so {spec.weight_decay:g} would do nothing. "
            "Give its function that parameter, or leave the field at 0."
        )
    if activations[spec.output].fanout > 1:  # a loss would silently broadcast it against the targets
        raise UserError(f"output {spec.output!r} gives several numbers for each target. Choose an activation that gives one.")


def _check_optimizer(spec: RunSpec, seen: dict[Any, Any]) -> None:
    """Raise UserError if an optimiser refuses the options that a spec sets."""
    optimizer = optimizers[spec.optimizer]
    given = tuple(pair for pair in spec.options if pair[0] in optimizer.options)

    def build() -> None:
        optimizer(spec.learning_rate, spec.weight_decay, None, values(spec))

    if given:
        check_functions.once(seen, ("optimizer", spec.optimizer, given), build)


def _check_rows(spec: RunSpec, signature: Signature, measure_config: MeasureConfig) -> None:
    """Raise UserError if the task has too few rows for training, validation, the batch size or the probe set."""
    if signature.train_rows < 1 or signature.val_rows < 1:
        raise UserError(
            f"rows={spec.rows} leaves {signature.train_rows} training and {signature.val_rows} validation rows. Give more rows."
        )
    if spec.batch_size > signature.train_rows:
        raise UserError(f"batch_size {spec.batch_size} is larger than the {signature.train_rows} training rows. Make it smaller.")
    if measure_config.probe_examples is not None and measure_config.probe_examples > signature.train_rows:
        raise UserError(
            f"a probe set of {measure_config.probe_examples} examples is larger than the {signature.train_rows} training rows. "
            "Request at most that many."
        )


def cost_of(spec: RunSpec, measure_config: MeasureConfig = MeasureConfig()) -> RunCost:
    """Return the cost of a run, from shapes only. Compiles nothing."""
    task = tasks[spec.task](spec)
    program, signature = cohort(spec, task.signature)
    units = list(site_units(program, signature).values())
    widths = [signature.d_in, *units] if spec.output != "linear" else [signature.d_in, *units, signature.d_out]
    weights = sum(a * b for a, b in itertools.pairwise(widths))
    flops, activations = 2 * weights, sum(widths[1:])
    if not network_of(spec).sized:
        flops, activations, weights = arithmetic(network_of(spec), network_spec(program), signature.inputs, signature.outputs)
    columns = signature.d_in + signature.d_out
    shared = (program.changed(), *_identified(signature), task.box is not None, task.phases)
    if task.table is not None:  # the runs of a tile share one table
        shared = (*shared, data_spec(spec))
    return RunCost(
        cohort=hashlib.sha256(repr(shared).encode()).hexdigest()[:8],
        title=_title(spec, program, signature, widths),
        steps=_total_steps(spec, signature),
        flops=3 * spec.batch_size * flops,  # the backward pass costs two forward passes
        batch=spec.batch_size,
        scratch=4 * (BLOCK * spec.batch_size * columns + 2 * spec.batch_size * activations + 2 * weights),
        data=4 * (signature.train_rows + measure_config.validation(signature)) * (columns if task.table is None else 1),
        state=16 * weights,
        layers=len(widths) + FIXED_LAYERS,
        num_measurements=len(epochs_measured(spec, measure_config)),
        measured_rows=measure_config.probe_set(signature) + measure_config.validation(signature),
        sites=len(units),
    )


def epochs_measured(spec: RunSpec, measure_config: MeasureConfig) -> list[float]:
    """Return the measured epochs of a run: 0, those of its measurement settings, and its length."""
    per_epoch = steps_per_epoch(tasks[spec.task](spec).signature.train_rows, spec.batch_size)
    return measured_epochs(spec.epochs, per_epoch, measure_config.measure_every)


def _title(spec: RunSpec, program: RunSpec, signature: Signature, widths: list[int]) -> str:
    """Return the readable name of a cohort, such as "mlp 10-5-1 relu adam batch 128"."""
    extras = [value for name, value in program.changed().items() if name in ("norm", "dropout", "output")]
    parts = [spec.network, "-".join(map(str, widths)), spec.activation, *extras, spec.optimizer]
    parts += [f"{name}={value}" for name, value in program.options]
    if rates := compiled_rates(spec, signature):
        parts.append(f"(compiled for {', '.join(f'{name}={value:g}' for name, value in rates.items())})")
    return " ".join([*parts, f"batch {spec.batch_size}"])


def _identified(signature: Signature) -> tuple[Any, ...]:
    """Return the signature fields in a cohort id. A later field enters only if it differs from its default.

    A new field with a default therefore changes no existing id.
    """
    default = signature._field_defaults
    later = {name: v for name, v in signature._asdict().items() if name not in ORIGINAL_FIELDS and v != default.get(name)}
    return tuple(getattr(signature, name) for name in ORIGINAL_FIELDS), *([later] if later else [])


def init_programs(spec: RunSpec) -> tuple[tuple[Any, ...], ...]:
    """Return the cache keys of the `init` and `sample` programs of a run."""
    signature = tasks[spec.task](spec).signature
    return ("init", start_spec(spec), signature.inputs, signature.outputs), ("sample", data_spec(spec))


def sites(spec: RunSpec) -> list[str]:
    """Return the site names of a spec's network, from input to output."""
    return list(site_units(*cohort(spec, tasks[spec.task](spec).signature)))


def cohort(spec: RunSpec, signature: Signature) -> tuple[RunSpec, Signature]:
    """Return the spec's program fields, with the rates if compiled in, and its task's signature. A cohort shares both."""
    options = program_options(spec, "network", "activation", "optimizer")
    return RunSpec(**dict(spec.marked("program")) | compiled_rates(spec, signature), options=options), signature


def program_fields(spec: RunSpec) -> tuple[tuple[str, Any], ...]:
    """Return the fields that determine the programs of a run, as (name, value) pairs."""
    rates = compiled_rates(spec, tasks[spec.task](spec).signature) if not ours(optimizers[spec.optimizer]) else {}
    options = program_options(spec, "network", "activation", "optimizer", "task")
    return spec.marked("program", "init", "data") + tuple(rates.items()) + options


def start_spec(spec: RunSpec) -> RunSpec:
    """Return the fields that determine the initial weights, with constants in the other fields. Equal specs share a program."""
    if not network_of(spec).sized:
        return network_spec(spec).replace(initializer=initializer_of(spec))
    start = RunSpec(**dict(spec.marked("program", "init")), options=program_options(spec, "network", "activation"))
    start = start.replace(optimizer="adam", batch_size=128, dropout="none", initializer=initializer_of(spec))
    if initializers[start.initializer].needs_inputs or activations[spec.activation].fanout > 1:  # fanout changes the shapes
        return start
    return start.replace(activation="linear", rows=2)


def data_spec(spec: RunSpec) -> RunSpec:
    """Return the fields that determine the data, without the seed."""
    return RunSpec(rows=spec.rows, **dict(spec.marked("data")), options=program_options(spec, "task"))


def traced_numbers(spec: RunSpec) -> dict[str, float]:
    """Return the numbers that the programs of a run take as inputs: traced fields, set traced options, total steps.

    The total steps are present if the optimiser takes them; for the package's optimisers, if an option is set too.
    """
    numbers = {name: float(getattr(spec, name)) for name in TRACED_FIELDS}
    numbers |= {name: float(spec.option(name)) for name in traced_options(spec) if name not in task_numbers(spec)}
    optimizer = optimizers[spec.optimizer]
    if optimizer.takes_steps and (not ours(optimizer) or program_options(spec, "optimizer")):
        numbers["steps"] = float(_total_steps(spec, tasks[spec.task](spec).signature))
    return numbers


def task_numbers(spec: RunSpec) -> dict[str, float]:
    """Return the traced options of a spec's task that are set, by name."""
    declared = getattr(tasks[spec.task], "traced", ())
    return {name: float(spec.option(name)) for name in traced_options(spec) if name in declared}


def _total_steps(spec: RunSpec, signature: Signature) -> int:
    return round(spec.epochs * steps_per_epoch(signature.train_rows, spec.batch_size))
