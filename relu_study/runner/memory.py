"""Peak memory of a study: XLA's analysis of its largest program, plus the rest of the process."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from relu_study.components.networks import network_of
from relu_study.components.registry import tasks
from relu_study.engine import cohorts, compilation, draw_block, train_tile, work
from relu_study.engine.draw_plan import Block, DrawPlan
from relu_study.engine.places import places
from relu_study.engine.plan import Cohort, Plan, Tile
from relu_study.engine.state import MeasureConfig, State, pack
from relu_study.runner.machine import device_memory
from relu_study.runner.prepare import Job
from relu_study.study.draw_study import DrawStudy
from relu_study.study.run_spec import RunSpec
from relu_study.study.study import Study

MIB = 1 << 20
# Measured on Linux with jax 0.10.2 (results/speed/foretold.md).
PROCESS_BYTES = 40 * MIB  # per device: the programs that initialise a tile
COMPILER_BYTES, LAYER_BYTES = 100 * MIB, 15 * MIB  # compiling the programs of a cohort: constant part, and per layer
CACHE_READ_RATIO = 0.4  # memory to read a program from JAX's cache / memory to compile it
RUN_BYTES = 30 << 10  # a run with its CSV rows and file contents while the report is written
REPORT_BYTES = 10  # copies of each number of a run in the report


class MemoryEstimate(NamedTuple):
    """Peak memory in bytes: of the process, and of one device with separate memory."""

    host: int
    device: int
    limit: int | None  # memory of a device; None if it shares the host's

    def __str__(self) -> str:
        free, needed = (available(), self.host) if self.limit is None else (self.limit, self.device)
        text = f"peak memory about {self.host / MIB:,.0f} MiB"
        if self.limit is not None:
            text += f", and about {self.device / MIB:,.0f} of {self.limit / MIB:,.0f} MiB on each device"
        if needed > free:
            text += f" (only {free / MIB:,.0f} MiB are free: runs that do not fit continue in narrower tiles or are skipped)"
        return text


class Size(NamedTuple):
    """XLA's memory analysis of one compiled program, in bytes."""

    arguments: int
    output: int
    temporary: int


def predict_memory(job: Job[Study, Plan]) -> MemoryEstimate:
    """Peak memory of training the missing runs of a job and of its report.

    Compiles the programs of the largest cohort, by tile and compiler memory, for its assigned device.
    `run` finds these programs in JAX's cache. The memory of the compilation is measured.
    Every other device is assumed to train another of the largest cohorts at the same time.
    It trains the same cohort if that has more work than the share of one device.
    """
    base, limit = resident(), device_memory()
    todo = [cohort for cohort in job.plan.cohorts if cohort.tiles]
    if not todo:
        return MemoryEstimate(base + _reported(job), 0, limit)
    largest = max(todo, key=lambda c: c.bytes() + (LAYER_BYTES * c.work.layers if limit is None else 0))
    planned = job.plan.tiles
    devices, costs = min(job.plan.devices, len(planned)), work.costs(planned, job.plan.cost)
    each = sum(costs.values()) / devices or 1.0
    shares = {name: math.ceil(cost / each) or 1 for name, cost in costs.items()}

    def concurrent(need: Callable[[Cohort], float], most: int = devices) -> float:
        """The need of all places at the same time, at most `most` with the same cohort."""
        return sum(
            sorted((need(c) for c in todo for _ in range(min(len(c.tiles), shares[c.name], most))), reverse=True)[:devices]
        )

    place = places()[work.assign_devices(planned, job.plan.cost, job.plan.devices)[largest.name]]
    compilers = 1 if job.plan.platform == "cpu" else devices  # places of a CPU share their programs
    with _CacheHitCounter() as cache, _RssMonitor() as grown:
        tile = max(largest.tiles, key=lambda tile: tile.num_datasets)
        one = of_tile(tile, job.measure_config, place, only=devices == len(planned))
    # This device will read the program just compiled from the cache. If every program was a cache hit, the other devices
    # are assumed to have theirs in the cache too.
    others = concurrent(_compiler, compilers) / _compiler(largest) - (0 if cache.all_found else 1 - CACHE_READ_RATIO)
    compiling = (grown.bytes or _compiler(largest)) * others
    tiles = concurrent(lambda cohort: one if cohort is largest else cohort.bytes()) if limit is None else 0.0
    initialised, runs = base + compilers * PROCESS_BYTES, job.stored + sum(tile.size for tile in planned)
    training = initialised + round(compiling + tiles) + runs * RUN_BYTES // 3
    return MemoryEstimate(max(training, initialised + _reported(job)), one, limit)


def _compiler(cohort: Cohort) -> int:
    """Bytes to compile the programs of a cohort, if not measured."""
    return COMPILER_BYTES + LAYER_BYTES * cohort.work.layers


def _reported(job: Job[Study, Plan]) -> int:
    """Bytes of the report of all runs, stored or not; a shard writes no report."""
    runs = [] if job.shard else job.study.runs()
    by_length: dict[Any, list[RunSpec]] = {}
    for run in runs:
        by_length.setdefault((run.task, run.rows, run.batch_size, run.epochs, run.options), []).append(run)
    measurements = sum(len(alike) * len(cohorts.epochs_measured(alike[0], job.measure_config)) for alike in by_length.values())
    return len(runs) * RUN_BYTES + REPORT_BYTES * 4 * len(job.declaration["columns"]) * measurements


def predict_memory_draws(job: Job[DrawStudy, DrawPlan]) -> MemoryEstimate:
    """Peak memory of computing the missing draws of a job. Compiles the program of the costliest cell."""
    base, limit = resident(), device_memory()
    if not job.plan.tiles:
        return MemoryEstimate(base, 0, limit)
    with _RssMonitor() as grown:
        one = of_block(max(job.plan.tiles, key=lambda block: block.operations * block.width))
    devices = min(job.plan.devices, len(job.plan.tiles))
    shared = one if limit is None else 0
    return MemoryEstimate(base + devices * ((grown.bytes or COMPILER_BYTES) + shared), one, limit)


def of_tile(tile: Tile, measure_config: MeasureConfig, device: Any = None, only: bool = False) -> int:
    """Peak bytes of a tile on its device, from XLA's `memory_analysis` of `advance` and `measure`.

    Includes the states and measurements in flight.
    Includes the data of the next tile, which is sampled during the last epochs, unless the tile is the `only` one of its device.
    """
    sizes, rows, state = compiled(tile, measure_config, device)
    measured = sizes["measure"].output * len(cohorts.epochs_measured(tile.runs[0], measure_config))
    return max(sum(size) for size in sizes.values()) + (0 if only else rows) + train_tile.IN_FLIGHT * state + measured


def of_block(block: Block) -> int:
    """Peak bytes of a block of draws on its device: its program and the queued draws."""
    program = draw_block.draw_program(block.statistic, block.cell, block.width)
    size = _size(program, _shaped(jax.ShapeDtypeStruct((), np.uint32)))
    return sum(size) + draw_block.IN_FLIGHT * size.output


def compiled(tile: Tile, measure_config: MeasureConfig, device: Any = None) -> tuple[dict[str, Size], int, int]:
    """Compile the programs of a tile from shapes only, for one `device` (default: the first).

    Returns the sizes by program, the bytes of the data and the bytes of the state.
    """
    spec, wide = tile.runs[0], tile.width
    signature, real = tasks[spec.task](spec).signature, jnp.result_type(float)

    def shape(*dimensions: int, kind: Any = real) -> Any:
        return _shaped(jax.ShapeDtypeStruct(dimensions, kind), device)

    def output(program: Any, *arguments: Any) -> Any:
        return _shaped(program.jitted.eval_shape(*arguments), device)

    seeds, box = shape(wide, kind=np.uint32), shape(wide, 2)
    hparams = {name: shape(wide) for name in cohorts.traced_numbers(spec)}
    options = {name: shape(tile.num_datasets) for name in cohorts.task_numbers(spec)}
    sample = compilation.sample_program(cohorts.data_spec(spec), 0, measure_config.validation(signature))
    data = output(sample, shape(tile.num_datasets, kind=np.uint32), options)
    if tasks[spec.task](spec).table is not None:
        data = data._replace(table=_shaped(jax.eval_shape(lambda: pack(signature, *tasks[spec.task](spec).table)), device))
    inputs = shape(wide, measure_config.probe_set(signature), signature.d_in) if network_of(spec).sized else None
    init = compilation.init_program(cohorts.start_spec(spec), signature.inputs, signature.outputs)
    weights = output(init, seeds, hparams, inputs)
    programs = compilation.tile_programs(spec, measure_config)
    state = State(weights.params, weights.stats, output(programs.init_optimizer, weights.params, hparams, seeds))
    source = None if tile.num_datasets == wide else shape(wide, kind=np.int32)
    at = [jax.ShapeDtypeStruct((), np.int32)] * 3  # numbers of the host, as in `start_tile`
    table = () if data.table is None else (data.table,)
    sizes = {
        "advance": _size(programs.advance, state, data.train, seeds, hparams, *at, source, *table),
        "measure": _size(programs.measure, state._replace(opt=None), state.params, data, hparams, box, source),
    }
    return sizes, _bytes(data), _bytes(state)


def _size(program: Any, *arguments: Any) -> Size:
    size = program.compiled(*arguments).memory_analysis()
    return Size(size.argument_size_in_bytes, size.output_size_in_bytes - size.alias_size_in_bytes, size.temp_size_in_bytes)


def _shaped(tree: Any, device: Any = None) -> Any:
    """The same shapes, committed to a device like the arrays of a tile, so that `run` finds the compiled programs."""
    sharding = jax.sharding.SingleDeviceSharding(device or jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


class _CacheHitCounter:
    """Whether JAX's cache contained all programs compiled within the context."""

    def __enter__(self) -> _CacheHitCounter:
        self.requests = self.hits = 0
        self._listener: Callable[..., None] = self._on_event
        jax.monitoring.register_event_listener(self._listener)
        return self

    def __exit__(self, *_: Any) -> None:
        jax.monitoring.unregister_event_listener(self._listener)

    @property
    def all_found(self) -> bool:
        return 0 < self.requests == self.hits

    def _on_event(self, event: str, **_: Any) -> None:
        self.requests += event == "/jax/compilation_cache/compile_requests_use_cache"
        self.hits += event == "/jax/compilation_cache/cache_hits"


class _RssMonitor:
    """Peak growth of this process in bytes within the context."""

    def __enter__(self) -> _RssMonitor:
        self.base = self.peak = resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, resident())

    @property
    def bytes(self) -> int:
        return self.peak - self.base

    def _poll(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, resident())


def resident() -> int:
    """Resident memory of this process in bytes."""
    return int(psutil.Process().memory_info().rss)


def available() -> int:
    """Bytes that this process can reach, from free memory and the container's limit."""
    free, limit = resident() + psutil.virtual_memory().available, Path("/sys/fs/cgroup/memory.max")
    most = limit.read_text().strip() if limit.exists() else ""
    return min(free, int(most)) if most.isdecimal() else free
