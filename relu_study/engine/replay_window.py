"""Replay of one run: its steps in a window, measured one by one, and every unit that dies or revives in them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt32

from relu_study.components import random_streams
from relu_study.components.registry import tasks
from relu_study.engine import cohorts, compilation, train_tile
from relu_study.engine.observe_step import Observation, StepInputs, UnitStep, make_step_programs
from relu_study.engine.state import Data, MeasureConfig, State, parameter_names
from relu_study.engine.train_step import steps_per_epoch
from relu_study.study.run_spec import RunSpec

DIED, REVIVED, NONFINITE = "died", "revived", "nonfinite"
KEPT = 256 << 20  # bytes of the arrays of events; later events have no arrays


@dataclass(frozen=True)
class Window:
    """Steps first..stop-1 of a run, counted from 0 over all epochs."""

    first: int
    stop: int

    @classmethod
    def between(cls, spec: RunSpec, start: float, end: float) -> Window:
        """The steps of a run between two epochs; at least one step, where the run has one."""
        per_epoch, total = steps_of(spec)
        first = min(max(math.floor(start * per_epoch + 1e-6), 0), max(total - 1, 0))
        return cls(first, min(max(math.ceil(end * per_epoch - 1e-6), first + 1), total))


def steps_of(spec: RunSpec) -> tuple[int, int]:
    """Return the steps per epoch and the steps in all of a run."""
    per_epoch = steps_per_epoch(tasks[spec.task](spec).signature.train_rows, spec.batch_size)
    return per_epoch, cohorts.cost_of(spec).steps


@dataclass(frozen=True)
class StepRecord:
    """The run after `number` steps in all, `step` of them in `epoch`. `rows` are those of the batch of the last step.

    The first record of a window is its start. It has no batch: `rows` are empty, and the losses and norms of a step NaN.
    `table_rows` are the batch's rows in the table of a task that has one.
    """

    number: int
    epoch: int
    step: int
    rows: Int[np.ndarray, " b"]
    table_rows: Int[np.ndarray, " b"] | None
    seen: Observation


@dataclass(frozen=True)
class Event:
    """A unit that died or revived in one step, or the step after which a run is nonfinite.

    `by` is "step", or "data" where the probe set changed with the phase of the task. Then `after` is the start of the phase.
    `unit_step` has the arrays of a unit.
    """

    kind: str
    by: str
    site: str  # of a nonfinite run: the first site with a nonfinite pre, or empty
    unit: int | None
    before: StepRecord
    after: StepRecord
    unit_step: UnitStep | None = None
    parameters: tuple[str, ...] = ()  # nonfinite after the step
    gradients: tuple[str, ...] = ()  # parameters whose gradient of the batch is nonfinite


@dataclass
class Recorder:
    """The observer of a replay: it cuts a window into single steps, and records each of them."""

    spec: RunSpec
    measure_config: MeasureConfig
    window: Window
    device: Any
    records: list[StepRecord] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of the parameters
    _data: Any = None  # of the tile, in the phase of the last record
    _rows: Any = None  # those of the run
    _table_rows: Int[np.ndarray, " n"] | None = None  # training rows, as indices of the task's table
    _bytes: int = 0
    _nonfinite: bool = False

    def __post_init__(self) -> None:
        signature = tasks[self.spec.task](self.spec).signature
        step_spec, signature = cohorts.cohort(self.spec, signature)
        programs = make_step_programs(step_spec, signature, self.measure_config)
        self.rows, self.batch = signature.train_rows, self.spec.batch_size
        self.per_epoch, _ = steps_of(self.spec)
        self._observe, self._explain = (compilation.TracedOnce(_first_run(f)) for f in (programs.observe, programs.explain))
        numbers = cohorts.traced_numbers(self.spec)
        self._hparams = {
            name: jax.device_put(np.array(value, jnp.result_type(float)), self.device) for name, value in numbers.items()
        }

    def ends(self, epoch: int, steps: int) -> list[int]:
        """The steps of an epoch at which a dispatch ends: each step of the window, and the last."""
        before = (epoch - 1) * self.per_epoch
        first, stop = (min(max(at - before, 0), steps) for at in (self.window.first, self.window.stop))
        cuts = range(first, stop + 1) if stop > first else ()
        return sorted({*cuts, steps} - {0})

    def see(self, dispatch: train_tile.Dispatch) -> None:
        """Record a dispatch of one step in the window."""
        number = (dispatch.epoch - 1) * self.per_epoch + dispatch.start
        if not self.window.first <= number < self.window.stop:
            return
        if self._data is not dispatch.data:
            self._start(dispatch, number)
        rows = self._batch_rows(dispatch)
        table = None if self._table_rows is None else self._table_rows[rows]
        inputs = self._inputs(rows, number)
        seen = jax.device_get(self._observe(dispatch.before, dispatch.after, inputs))
        record = StepRecord(number + 1, dispatch.epoch, dispatch.stop, rows, table, seen)
        for kind, site, unit in () if self._nonfinite else self._changes(record):
            step = self._unit_step(dispatch, inputs, site, unit)
            self.events.append(Event(kind, "step", site, unit, self.records[-1], record, step))
        self._note_nonfinite(record, "step")
        self.records.append(record)

    def _start(self, dispatch: train_tile.Dispatch, number: int) -> None:
        """Record the state before the first step of the window or of a phase of the data."""
        self._data, self.names = dispatch.data, parameter_names(dispatch.before.params)
        self._rows = Data(jax.tree.map(lambda leaf: leaf[0], dispatch.data.train), None, dispatch.data.table)
        self._table_rows = None if dispatch.data.table is None else np.asarray(self._rows.train)
        inputs = self._inputs(self._batch_rows(dispatch), number)
        seen = jax.device_get(self._observe(dispatch.before, dispatch.before, inputs))
        nothing = np.full((), np.nan, np.asarray(seen.loss).dtype)
        seen = seen._replace(loss=nothing, grad_norm=nothing, step_norm=nothing, bad_grads=np.zeros_like(seen.bad_grads))
        record = StepRecord(number, dispatch.epoch, dispatch.start, np.zeros(0, np.int64), None, seen)
        if self.records and not self._nonfinite:
            self.events += [
                Event(kind, "data", site, unit, self.records[-1], record) for kind, site, unit in self._changes(record)
            ]
        if self.records:
            self._note_nonfinite(record, "data")
        self._nonfinite |= not is_finite(record)
        self.records.append(record)

    def _batch_rows(self, dispatch: train_tile.Dispatch) -> Int[np.ndarray, " b"]:
        """The training rows of a step's batch, in its order."""
        first = dispatch.start * self.batch
        size = min(self.batch, self.rows - first)
        seed, epoch = np.uint32(self.spec.seed), np.int32(dispatch.epoch)
        return np.asarray(_order(seed, epoch, np.uint32(first), size, self.rows)).astype(int)

    def _inputs(self, rows: Int[np.ndarray, " b"], number: int) -> StepInputs:
        seed, index, at = (
            jax.device_put(x, self.device) for x in (np.uint32(self.spec.seed), rows.astype(np.int32), np.int32(number))
        )
        return StepInputs(self._rows, self._hparams, seed, index, at)

    def _changes(self, record: StepRecord) -> Iterator[tuple[str, str, int]]:
        """Yield (died or revived, site, unit) for each unit whose dead flag differs from that of the last record."""
        last = self.records[-1].seen.sites
        for site, stats in record.seen.sites.items() if is_finite(record) else ():
            for unit in np.flatnonzero(stats.dead != last[site].dead).tolist():
                yield DIED if stats.dead[unit] else REVIVED, site, unit

    def _unit_step(self, dispatch: train_tile.Dispatch, inputs: StepInputs, site: str, unit: int) -> UnitStep | None:
        if self._bytes > KEPT:
            return None
        index = list(self.records[-1].seen.sites).index(site)
        at = (jax.device_put(np.int32(i), self.device) for i in (index, unit))
        explained = self._explain(dispatch.before, dispatch.after, inputs, *at)
        step: UnitStep = jax.device_get(explained[site])
        self._bytes += sum(array.nbytes for array in step if array is not None)
        return step

    def _note_nonfinite(self, record: StepRecord, by: str) -> None:
        """Add the event of the first step after which the training loss or a parameter is nonfinite."""
        if self._nonfinite or is_finite(record):
            return
        self._nonfinite = True
        sites = [name for name, stats in record.seen.sites.items() if not np.isfinite([stats.low, stats.high]).all()]
        parameters, gradients = (
            tuple(name for name, bad in zip(self.names, flags, strict=True) if bad)
            for flags in (record.seen.bad_params, record.seen.bad_grads)
        )
        site = sites[0] if sites else ""
        self.events.append(Event(NONFINITE, by, site, None, self.records[-1], record, None, parameters, gradients))


def is_finite(record: StepRecord) -> bool:
    """Whether the training loss and every parameter are finite, as in the status of a run."""
    return bool(np.isfinite(record.seen.train_loss)) and not record.seen.bad_params.any()


def _first_run(function: Any) -> Any:
    """Return a function of the states of a tile that applies `function` to its first run."""

    def of_tile(before: State, after: State, *more: Any) -> Any:
        return function(*(jax.tree.map(lambda leaf: leaf[0], state) for state in (before, after)), *more)

    return of_tile


@functools.partial(jax.jit, static_argnums=(3, 4))
def _order(seed: Any, epoch: Any, first: Any, size: int, rows: int) -> UInt32[Array, " b"]:
    """Return the rows at positions first..first+size-1 of an epoch's order."""
    positions = first + jnp.arange(size, dtype=jnp.uint32)
    return random_streams.shuffled(random_streams.order_key(seed, epoch), positions, rows)
