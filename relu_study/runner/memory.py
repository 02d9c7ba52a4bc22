"""How much memory a study will take: XLA's own analysis of its largest program, and all that lies beside it in the process."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from relu_study.components.registry import tasks
from relu_study.engine import cohorts, compilation, draw_block, scheduler, train_tile
from relu_study.engine.draw_plan import Block
from relu_study.engine.plan import Cohort, Tile
from relu_study.engine.state import MeasureConfig, State
from relu_study.runner.prepare import Job
from relu_study.runner.prepare_draws import DrawJob
from relu_study.study.run_spec import TRACED_FIELDS

MIB = 1 << 20
# Measured on Linux with jax 0.10.2 (results/speed/foretold.md).
PROCESS_BYTES = 40 * MIB  # on each device: the programs that begin a tile
COMPILER_BYTES, LAYER_BYTES = (
    100 * MIB,
    15 * MIB,
)  # what compiling a cohort's programs takes, with none of its layers and for each
READ_BYTES = 0.4  # of what a program takes to compile, it takes to read it back from JAX's cache
BASE = 480 * MIB  # the interpreter with all that a run imports, where the system does not say
RUN_BYTES = 30 << 10  # a run, its rows and its files' content while the report is made
REPORT_BYTES = 10  # times that the report holds each number of a run


class MemoryEstimate(NamedTuple):
    """Peak memory in bytes: of the process, and of what lies on one device where that has memory of its own."""

    host: int
    device: int
    limit: int | None  # what a device has; None where it shares the host's

    def __str__(self) -> str:
        there, asked = (available(), self.host) if self.limit is None else (self.limit, self.device)
        said = f"peak memory about {self.host / MIB:,.0f} MiB"
        if self.limit is not None:
            said += f", and about {self.device / MIB:,.0f} of {self.limit / MIB:,.0f} MiB on each device"
        if there is not None and asked > there:
            said += f" (only {there / MIB:,.0f} MiB are free: what does not fit goes on in narrower tiles, or is left out)"
        return said


class Size(NamedTuple):
    """What XLA says of one compiled program, in bytes."""

    arguments: int
    output: int
    temporary: int


def predict_memory(job: Job) -> MemoryEstimate:
    """The peak memory of training what a job lacks and of its report.

    The programs of the cohort that asks most, of its tiles and of the compiler, are compiled for the device that begins it, where
    `run` finds them in JAX's cache; what that takes of memory is measured. Meanwhile every other device is taken to have a cohort
    of its own, the largest there are, or the same where that is more work than a device's share.
    """
    base, limit = resident(), _limit()
    todo = [cohort for cohort in job.plan.cohorts if cohort.tiles]
    if not todo:
        return MemoryEstimate(base + _reported(job), 0, limit)
    most = max(todo, key=lambda c: c.bytes() + (LAYER_BYTES * c.work.layers if limit is None else 0))
    planned = job.plan.tiles
    devices, costs = min(job.plan.devices, len(planned)), scheduler.costs(planned, job.plan.cost)
    each = sum(costs.values()) / devices or 1.0
    shares = {name: math.ceil(cost / each) or 1 for name, cost in costs.items()}

    def together(ask: Callable[[Cohort], float]) -> float:
        """What the devices ask at the same time, as so many times what `most` asks."""
        asked = sorted((ask(c) for c in todo for _ in range(min(len(c.tiles), shares[c.name]))), reverse=True)[:devices]
        return sum(asked) / ask(most)

    home = scheduler.assign_devices(planned, job.plan.cost, job.plan.devices)[most.name]
    with _CacheHitCounter() as cache, _RssMonitor() as grown:
        tile = max(most.tiles, key=lambda tile: tile.num_datasets)
        one = of_tile(tile, job.probing, jax.devices()[home], alone=devices == len(planned))
    # On the device that it was compiled for just now a program is read back; where all were found, others' are taken to be there.
    compiling = (grown.bytes or _compiler(most)) * (together(_compiler) - (0 if cache.all_found else 1 - READ_BYTES))
    there = one * together(Cohort.bytes) if limit is None else 0.0
    begun, runs = base + devices * PROCESS_BYTES, job.stored + sum(tile.size for tile in planned)
    training = begun + round(compiling + there) + runs * RUN_BYTES // 3
    return MemoryEstimate(max(training, begun + _reported(job)), one, limit)


def _compiler(cohort: Cohort) -> int:
    """Bytes that compiling a cohort's programs takes, where it was not measured."""
    return COMPILER_BYTES + LAYER_BYTES * cohort.work.layers


def _reported(job: Job) -> int:
    """Bytes of the report of all runs, stored or not; a shard makes none."""
    runs = [] if job.shard else job.study.runs()
    looks = sum(len(train_tile.epochs_measured(run.epochs, job.probing.every)) for run in runs)
    return len(runs) * RUN_BYTES + REPORT_BYTES * 4 * len(job.declaration["columns"]) * looks


def predict_memory_draws(job: DrawJob) -> MemoryEstimate:
    """The peak memory of making the draws that a job lacks and of its report: the program of the costliest cell is compiled."""
    base, limit = resident(), _limit()
    if not job.plan.tiles:
        return MemoryEstimate(base, 0, limit)
    with _RssMonitor() as grown:
        one = of_block(max(job.plan.tiles, key=lambda block: block.operations * block.width))
    devices = min(job.plan.devices, len(job.plan.tiles))
    shared = one if limit is None else 0
    return MemoryEstimate(base + devices * ((grown.bytes or COMPILER_BYTES) + shared), one, limit)


def of_tile(tile: Tile, probing: MeasureConfig, device: Any = None, alone: bool = False) -> int:
    """Peak bytes of a tile on its device, by XLA's `memory_analysis` of the programs that train and measure it.

    While its last epochs are computed, the next tile's rows are there already, unless it is `alone` on its device; so are the
    states and measurements in flight.
    """
    sizes, rows, state = compiled(tile, probing, device)
    measured = sizes["measure"].output * len(train_tile.epochs_measured(tile.runs[0].epochs, probing.every))
    return max(sum(size) for size in sizes.values()) + (0 if alone else rows) + train_tile.IN_FLIGHT * state + measured


def of_block(block: Block) -> int:
    """Peak bytes of a block of draws on its device: its program, and the draws that are queued."""
    program = draw_block.draw_program(block.statistic, block.cell, block.width)
    size = _size(program, _shaped(jax.ShapeDtypeStruct((), np.uint32)))
    return sum(size) + draw_block.IN_FLIGHT * size.output


def compiled(tile: Tile, probing: MeasureConfig, device: Any = None) -> tuple[dict[str, Size], int, int]:
    """Compile the programs of a tile from shapes alone: their sizes, and the bytes of its rows and of its state.

    They are compiled for one `device`, the first unless said.
    """
    spec, wide = tile.runs[0], tile.width
    signature, real = tasks[spec.task](spec).signature, jnp.result_type(float)

    def shape(*dimensions: int, kind: Any = real) -> Any:
        return _shaped(jax.ShapeDtypeStruct(dimensions, kind), device)

    def made(program: Any, *arguments: Any) -> Any:
        return _shaped(program.jitted.eval_shape(*arguments), device)

    seeds, knobs, box = shape(wide, kind=np.uint32), {name: shape(wide) for name in TRACED_FIELDS}, shape(wide, 2)
    data = made(compilation.sample_program(cohorts.data_spec(spec), 0, probing), shape(tile.num_datasets, kind=np.uint32))
    inputs = shape(wide, probing.probe_set(signature), signature.d_in)
    init = compilation.init_program(cohorts.start_spec(spec), signature.d_in, signature.d_out)
    weights = made(init, seeds, knobs, inputs)
    programs = compilation.tile_programs(spec, probing)
    state = State(weights.params, weights.stats, made(programs.fresh, weights.params, knobs, seeds))
    source = None if tile.num_datasets == wide else shape(wide, kind=np.int32)
    at = [shape(kind=np.int32)] * 3
    sizes = {
        "advance": _size(programs.advance, state, data.train, seeds, knobs, *at, source),
        "measure": _size(programs.measure, state, state.params, data, knobs, box, source),
    }
    return sizes, _bytes(data), _bytes(state)


def _size(program: Any, *arguments: Any) -> Size:
    said = program.jitted.lower(*arguments).compile().memory_analysis()
    return Size(said.argument_size_in_bytes, said.output_size_in_bytes - said.alias_size_in_bytes, said.temp_size_in_bytes)


def _shaped(tree: Any, device: Any = None) -> Any:
    """The same shapes, committed to a device as the arrays of a tile are: so `run` finds what is compiled for them."""
    here = jax.sharding.SingleDeviceSharding(device or jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), tree)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


class _CacheHitCounter:
    """Were all programs that are compiled meanwhile found in JAX's cache?"""

    def __enter__(self) -> _CacheHitCounter:
        self.asked = self.found = 0
        self._listener: Callable[..., None] = self._hear
        jax.monitoring.register_event_listener(self._listener)
        return self

    def __exit__(self, *_: Any) -> None:
        jax.monitoring.unregister_event_listener(self._listener)

    @property
    def all_found(self) -> bool:
        return 0 < self.asked == self.found

    def _hear(self, event: str, **_: Any) -> None:
        self.asked += event == "/jax/compilation_cache/compile_requests_use_cache"
        self.found += event == "/jax/compilation_cache/cache_hits"


class _RssMonitor:
    """By how many bytes did this process grow meanwhile, at most? 0 where the system does not say."""

    def __enter__(self) -> _RssMonitor:
        self.base = self.most = resident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()
        self.most = max(self.most, resident())

    @property
    def bytes(self) -> int:
        return self.most - self.base

    def _look(self) -> None:
        while not self._over.wait(0.005):
            self.most = max(self.most, resident())


def _limit() -> int | None:
    device = jax.devices()[0]
    said = device.memory_stats() if device.platform != "cpu" else None
    return int(said["bytes_limit"]) if said and "bytes_limit" in said else None


def resident() -> int:
    """Bytes of this process that lie in memory now."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return BASE


def available() -> int | None:
    """Bytes that this process can come to, by the machine's free memory and its container's limit; None where unknown."""
    info, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if not info.exists():
        return None
    free = next(int(line.split()[1]) << 10 for line in info.read_text().splitlines() if line.startswith("MemAvailable"))
    most = limit.read_text().strip() if limit.exists() else ""
    return min(resident() + free, int(most)) if most.isdecimal() else resident() + free
