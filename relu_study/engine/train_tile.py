"""Training of one tile on one device. `train_tile` takes RunSpecs and returns NumPy arrays."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from relu_study.components.metrics import revivals
from relu_study.components.networks import network_of
from relu_study.components.registry import metrics, ours, tasks
from relu_study.components.tasks.task import Signature
from relu_study.engine import check_tasks, cohorts, compilation
from relu_study.engine.bundle import Bundle, separate
from relu_study.engine.state import Data, MeasureConfig, State, Weights, parameter_names, unpack
from relu_study.engine.tile_data import datasets_of, draw, init_per_key, numbers, probe_inputs
from relu_study.engine.train_step import steps_per_epoch
from relu_study.errors import UserError
from relu_study.study.measurement_times import measured_epochs, measured_steps, steps_in
from relu_study.study.run_spec import RunSpec

IN_FLIGHT = 3  # measured epochs queued on a device ahead of the current one


class TileState(NamedTuple):
    """A tile on its device before the first step. `source` is the dataset index of each run; None: one dataset per run."""

    state: State
    data: Data
    seeds: UInt32[Array, " W"]
    hparams: dict[str, Float[Array, " W"]]
    box: Float[Array, "W 2"]
    source: Int[Array, " W"] | None


class Extremes(NamedTuple):
    """Minimum and maximum sampled input of each dataset, and a run that reads it."""

    readers: list[RunSpec]
    least: Float[Array, " S"]
    most: Float[Array, " S"]


class Dispatch(NamedTuple):
    """Steps start..stop-1 of an epoch, counted from 0, with the training states before and after them."""

    epoch: int  # counted from 1
    start: int
    stop: int
    before: State
    after: State
    data: Data  # of the current phase


@runtime_checkable
class Observer(Protocol):
    """Reads training states within an epoch. It chooses where dispatches end, which changes no bit of the training."""

    def ends(self, epoch: int, steps: int) -> list[int]:
        """The steps of an epoch at which a dispatch ends, in order; the last one is `steps`."""

    def see(self, dispatch: Dispatch) -> None:
        """Receive a queued dispatch."""


class QueuedTile(NamedTuple):
    """A tile queued on a device. Its numbers may not be computed yet."""

    runs: list[RunSpec]
    epochs: np.ndarray
    units: dict[str, int]
    ranges: dict[str, tuple[float, float]]  # of the histograms with linear bins
    measured: list[Bundle]
    params: Any
    probe_examples: int
    drawn: list[Extremes]  # inputs of each phase, if a user's task has a box


def init_tile(
    specs: list[RunSpec], device: Any, measure_config: MeasureConfig = MeasureConfig(), num_datasets: int | None = None
) -> TileState:
    """Queue the initial state of runs of one cohort on a device: data, weights, optimiser state."""
    signature = tasks[specs[0].task](specs[0]).signature
    readers, source = datasets_of(specs, num_datasets)
    # Committed arrays select the device of a program. A default device would cause one trace per device.
    seeds = jax.device_put(np.array([s.seed for s in specs], np.uint32), device)
    traced = [cohorts.traced_numbers(spec) for spec in specs]
    hparams = {name: numbers([run[name] for run in traced], device) for name in traced[0]}
    box = jax.device_put(np.array([tasks[s.task](s).box or (0, 0) for s in specs], jnp.result_type(float)), device)
    data = draw(readers, 0, device, measure_config)
    if source is not None:
        source = jax.device_put(source, device)
    inputs = probe_inputs(signature, data, source, measure_config) if network_of(specs[0]).sized else None

    def init(key: RunSpec) -> Weights:
        return compilation.init_program(key, signature.inputs, signature.outputs)(seeds, hparams, inputs)

    weights = init_per_key(specs, cohorts.start_spec, init)
    # Most optimiser states depend on no input, so their program leaves them uncommitted.
    optimizer_state = compilation.tile_programs(specs[0], measure_config).init_optimizer(weights.params, hparams, seeds)
    state = jax.device_put(State(weights.params, weights.stats, optimizer_state), device)
    return TileState(state, data, seeds, hparams, box, source)


def start_tile(
    runs: list[RunSpec],
    width: int,
    device: Any,
    measure_config: MeasureConfig = MeasureConfig(),
    probe: bool = True,
    chunk: int | None = None,
    num_datasets: int | None = None,
    should_continue: Callable[[], bool] = lambda: True,
    observer: Observer | None = None,
) -> QueuedTile | None:
    """Queue the training of up to `width` runs of one cohort and length on a device.

    Returns None if `should_continue` returns False before the last epoch.
    `probe=False` measures only before the first and after the last step. `chunk` limits the steps of a dispatch.
    `num_datasets`, if less than the width, lets runs of the same data and seed share one copy of the data.
    `observer` sees every dispatch, and replaces `chunk`.
    None of these options changes a bit of the training.
    """
    compilation.evict_stale()
    specs = [*runs, *[runs[0]] * (width - len(runs))]
    task = tasks[specs[0].task](specs[0])
    total, num_epochs = specs[0].epochs, math.ceil(specs[0].epochs)
    per_epoch = steps_per_epoch(task.signature.train_rows, specs[0].batch_size)
    program = compilation.tile_programs(specs[0], measure_config)
    readers, _ = datasets_of(specs, num_datasets)
    state, data, seeds, hparams, box, source = init_tile(specs, device, measure_config, num_datasets)
    phase, drawn = 0, _extremes(readers, data)
    measured_at = measured_steps(total, per_epoch, measure_config.measure_every if probe else (num_epochs + 1,))
    table = () if data.table is None else (data.table,)
    measured = [program.measure(state._replace(opt=None), state.params, data, hparams, box, source)]
    for epoch in range(1, num_epochs + 1):
        if not should_continue():
            return None
        now = min((epoch - 1) * task.phases // num_epochs, task.phases - 1)
        if now != phase:
            data, phase = draw(readers, now, device, measure_config), now
            drawn += _extremes(readers, data)
        last, due = steps_in(epoch, total, per_epoch), measured_at.get(epoch, ())
        ends = observer.ends(epoch, last) if observer else range(chunk or last, last, chunk or last or 1)
        previous = state.params
        for start, stop in itertools.pairwise([0, *sorted({*ends, *due, last})]):
            if stop > start:
                before, at = state, [np.int32(i) for i in (epoch, start, stop)]
                state = program.advance(state, data.train, seeds, hparams, *at, source, *table)
                if observer:
                    observer.see(Dispatch(epoch, start, stop, before, state, data))
            if stop in due:
                measured.append(program.measure(state._replace(opt=None), previous, data, hparams, box, source))
                previous = state.params
            if len(measured) > IN_FLIGHT:
                jax.block_until_ready(measured[-IN_FLIGHT])
    units, spans = compilation.site_layout(*cohorts.cohort(specs[0], task.signature), measure_config)
    epochs = np.array(measured_epochs(total, per_epoch, measure_config.measure_every))
    return QueuedTile(
        runs,
        epochs if probe else epochs[[0, -1]][: len(measured)],
        units,
        spans,
        measured,
        state.params,
        measure_config.probe_set(task.signature),
        drawn,
    )


@functools.partial(jax.jit, static_argnums=1)
def _ends(data: Data, signature: Signature) -> tuple[Array, Array]:
    inputs = [unpack(signature, data.rows(part))[0] for part in (data.train, data.val)]
    least, most = (jnp.stack([end(x, axis=range(1, x.ndim)) for x in inputs]) for end in (jnp.nanmin, jnp.nanmax))
    return least.min(axis=0), most.max(axis=0)


def _boxed(spec: RunSpec) -> bool:
    """Whether a user's task has a box. Tests check the boxes of the package's tasks."""
    return not ours(tasks[spec.task]) and tasks[spec.task](spec).box is not None


def _extremes(readers: list[RunSpec], data: Data) -> list[Extremes]:
    if not any(map(_boxed, {spec.replace(seed=0): spec for spec in readers}.values())):
        return []
    return [Extremes(readers, *_ends(data, tasks[readers[0].task](readers[0]).signature))]


def _check_inputs(drawn: list[Extremes]) -> None:
    for readers, *ends in drawn:
        for spec, least, most in zip(readers, *jax.device_get(ends), strict=True):
            if _boxed(spec):
                check_tasks.check_inside(spec.task, tasks[spec.task](spec).box, least, most)


def _check_certified(pending: QueuedTile, tile: dict[str, np.ndarray], masks: dict[str, np.ndarray], bad: np.ndarray) -> None:
    """Raise UserError if a unit is certified dead but not dead, or certified always on but not always on."""
    for site, units in pending.units.items():
        dead, certified = (masks.get(f"{kind}:{site}") for kind in ("dead", "certified_dead"))
        if dead is not None and certified is not None:
            _check_subset(pending, site, "dead", certified.sum(-1), dead.sum(-1), (certified & ~dead).sum(-1), bad)
        on, sure = (tile.get(f"metric:{kind}_fraction/{site}") for kind in ("always_on", "certified_always_on"))
        if on is not None and sure is not None:
            on, sure = (np.where(np.isfinite(share), np.round(units * share), 0).astype(int) for share in (on, sure))
            # With a user's entries each wrong unit is counted. With the package's entries only an excess shows.
            _check_subset(pending, site, "always on", sure, on, tile.get(f"unsound:{site}", np.maximum(sure - on, 0)), bad)


def _check_subset(
    pending: QueuedTile, site: str, state: str, certified: np.ndarray, seen: np.ndarray, wrong: np.ndarray, bad: np.ndarray
) -> None:
    """Raise UserError for the first `wrong` unit: certified, but contradicted by the probe set."""
    if not ((wrong > 0) & ~bad).any():
        return
    run, at = (int(i) for i in np.argwhere((wrong > 0) & ~bad)[0])
    spec = pending.runs[run]
    counts = [int(count[run, at]) for count in (certified, seen, wrong)]
    raise UserError(
        f"run {spec.run_id} (seed {spec.seed}): {counts[0]} units of {site} are certified {state} and {counts[1]} are {state} "
        f"at epoch {pending.epochs[at]:g}, and {counts[2]} of the certified ones are not {state}. Correct the box of task "
        f"{spec.task!r}, or the flat pieces, values and turning points of activation {spec.activation!r}"
        f"{'' if spec.output == 'linear' else f' or {spec.output!r}'}. Stored tiles are kept."
    )


def _from_first_nonfinite(values: Float[np.ndarray, "R E"]) -> Bool[np.ndarray, "R E"]:
    """Mask of the epochs from the first nonfinite value on."""
    return ~np.logical_and.accumulate(np.isfinite(values), axis=1)


def _requires(name: str, *fields: str) -> bool:
    """Whether an array of a tile is a registered metric that requires one of these fields of a snapshot."""
    metric = name.removeprefix("metric:").partition("/")[0]
    return name.startswith("metric:") and metric in metrics and not set(fields).isdisjoint(metrics[metric].requires)


def fetch(pending: QueuedTile, keep_params: bool = False) -> dict[str, np.ndarray]:
    """Wait for a tile and return its numbers as arrays [runs, epochs, ...] without padding."""
    tile = separate(pending.measured, len(pending.runs))
    _check_inputs(pending.drawn)
    # After its first nonfinite epoch a run has no measurements.
    bad = ~np.logical_and.accumulate(tile.pop("finite"), axis=1)
    constant_loss = tile.pop("constant_loss")[:, 0]  # of the first phase's data
    precision = np.float64 if jax.config.jax_enable_x64 else np.float32
    # A metric may return another dtype; the provenance of a tile states one.
    tile = {name: values.astype(precision, copy=False) if name.startswith("metric:") else values for name, values in tile.items()}
    masks = _unit_masks(pending, tile)
    _check_certified(pending, tile, masks, bad)
    tile = {name: values for name, values in tile.items() if not name.startswith("unsound:")}
    if masks:
        revived = {name for kind, name in revivals.KINDS.items() if f"metric:{kind}_fraction/all" in tile}
        fractions = revivals.fractions(masks, list(pending.units), precision)
        tile |= {f"metric:{name}": values for name, values in fractions.items() if name.partition("/")[0] in revived}
    _drop_undefined(tile, bad, pending.epochs)
    tile |= _run_arrays(pending, bad) | {"constant_loss": constant_loss}
    return tile | _final_params(pending) if keep_params else tile


def _unit_masks(pending: QueuedTile, tile: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The stored masks of units, unpacked from bits."""
    return {
        name: np.unpackbits(values, axis=-1, count=pending.units[name.partition(":")[2]]).astype(bool)
        for name, values in tile.items()
        if name.startswith(("dead:", "certified_dead:"))
    }


def _drop_undefined(tile: dict[str, np.ndarray], bad: Bool[np.ndarray, "R E"], epochs: np.ndarray) -> None:
    """Replace the measurements of nonfinite runs, and the metrics of updates at epoch 0, by NaN or zero counts."""
    for name, values in tile.items():
        if name.startswith("metric:"):
            values[bad] = np.nan
        if name == "metric:train_loss/all":  # from its first nonfinite value on, the loss is missing
            values[_from_first_nonfinite(values)] = np.nan
        if name.startswith("histogram:"):
            values[bad] = 0
        if _requires(name, "steps", "kernel_step", "bias_step"):
            values[:, epochs == 0] = np.nan
    if "metric:val_loss/all" in tile:  # the run and its probe-set metrics stay finite
        nonfinite = _from_first_nonfinite(tile["metric:val_loss/all"])
        for name, values in tile.items():
            if name.startswith("metric:val_") or _requires(name, "val_loss"):
                values[nonfinite] = np.nan


def _run_arrays(pending: QueuedTile, bad: Bool[np.ndarray, "R E"]) -> dict[str, np.ndarray]:
    """The epochs, the status of each run, and the sizes of probe set, sites and histogram ranges."""
    return {
        "epoch": pending.epochs,
        "status": np.where(bad.any(axis=1), "nonfinite", "ok"),
        "first_bad_epoch": np.where(bad.any(axis=1), pending.epochs[bad.argmax(axis=1)], np.nan),
        "probe_examples": np.array(pending.probe_examples),
        **{f"units:{site}": np.array(units) for site, units in pending.units.items()},
        **{f"bins:{name}": np.array(span) for name, span in pending.ranges.items()},
    }


def _final_params(pending: QueuedTile) -> dict[str, np.ndarray]:
    """The parameters after the last step, as "param:" and their dotted path."""
    params = {}
    leaves = jax.tree.leaves(jax.device_get(pending.params))
    for name, leaf in zip(parameter_names(pending.params), leaves, strict=True):
        params[f"param:{name}"] = np.asarray(leaf)[: len(pending.runs)]
    return params


def train_tile(
    runs: list[RunSpec], width: int, device: Any = None, measure_config: MeasureConfig = MeasureConfig(), **options: Any
) -> dict[str, np.ndarray]:
    """Train up to `width` runs of one cohort and length together.

    Returns arrays by name, runs first and epochs second. `options` are those of `start_tile`, and `keep_params`.
    """
    keep_params = options.pop("keep_params", False)
    pending = start_tile(runs, width, device or jax.devices()[0], measure_config, **options)
    assert pending is not None
    return fetch(pending, keep_params)
