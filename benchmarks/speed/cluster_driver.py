"""Cost of a cluster's driver for `cluster.py`: CPU seconds a tile by size, an empty call, and the scheduler at many places."""

from __future__ import annotations

import contextlib
import resource
import statistics
import tempfile
import threading
import time
import unittest.mock
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from relu_study import Experiment, RunSpec, Study, grid
from relu_study.engine import cohorts, scheduler
from relu_study.engine.places import Started
from relu_study.engine.plan import Tile
from relu_study.engine.state import MeasureConfig
from relu_study.engine.work import Work
from relu_study.runner import cluster, execute, memory
from relu_study.runner.callback import Callback
from relu_study.runner.prepare import Job, prepare
from relu_study.runner.remote_place import SLOTS
from relu_study.runner.remote_places import RemotePlaces
from relu_study.runner.worker import Answer, Worker
from relu_study.study.loading import load_study

ABOUT = {"command": "python benchmarks/speed/cluster.py", "preset": "default"}
WIDTH = 32  # of the tiles whose size is varied by their epochs
RATES = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2]
SKIPPED = 4  # first tiles, whose numbers are trained
COHORTS = 32  # of the scheduler at many places
OFFERED = 250  # tiles per second of the scheduler at many places


class Cost(NamedTuple):
    """CPU seconds of the driver per tile of `mb` megabytes: all of it, and two of its parts."""

    mb: float
    total: float
    transport: float  # the call of a worker, with the copy of its answer
    save: float  # compression, checksum and file
    wall: float  # seconds per tile of the whole, if no worker computes


class RepeatingWorker(Worker):
    """A worker that trains the first tile of each size, and answers the others with its numbers at once."""

    def train(self, tile: Tile, place: int, measure_config: MeasureConfig, keep_params: bool = False) -> Answer:
        with self.__dict__.setdefault("_training", threading.Lock()):
            answers: dict[Any, Answer] = self.__dict__.setdefault("_answers", {})
            key = tile.cohort, tile.steps, tile.size
            if key not in answers:
                answers[key] = super().train(tile, place, measure_config, keep_params)
            return answers[key]


def cpu() -> float:
    """CPU seconds of all threads of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def megabytes(numbers: dict[str, np.ndarray]) -> float:
    """The size of the arrays of a tile in MB (1e6 bytes)."""
    return sum(np.asarray(array).nbytes for array in numbers.values()) / 1e6


@contextlib.contextmanager
def reusable(places: RemotePlaces) -> Iterator[RemotePlaces]:
    """Places that stay open after a run, so that the next run finds the workers with their programs."""
    with unittest.mock.patch.multiple(places, close=lambda: None, forget=lambda cohort: None):
        yield places


# ------------------------------------------------------------------------------------ cost of a tile


class Ticks(Callback):
    """CPU and elapsed seconds at the end of each stored tile."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def on_tile_end(self, *_: Any) -> None:
        self.cpu.append(cpu())
        self.wall.append(time.perf_counter())


def sized_study(epochs: int, tiles: int) -> Study:
    """A study of tiles of one size: net A on few rows."""
    base = RunSpec(initializer="he_normal", rows=400, epochs=epochs)
    arms = grid(base, learning_rate=RATES)
    return Study("driver", "Driver", "What does a tile cost?", [Experiment("main", arms)], seeds=tiles * WIDTH // len(RATES))


def repeated(call: Callable[[], Any], times: int) -> float:
    """CPU seconds of a call, a mean over several after one to warm up."""
    call()
    before = cpu()
    for _ in range(times):
        call()
    return (cpu() - before) / times


def cost(places: RemotePlaces, epochs: int, tiles: int) -> Cost:
    """The cost of tiles of so many epochs. The driver does all of a run but TensorBoard."""
    ticks = Ticks()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "driver"
        job: Job[Any, Any] = prepare(sized_study(epochs, tiles), folder, MeasureConfig(), machine=places.machine)
        (width,) = job.widths.values()
        if width != WIDTH:
            raise SystemExit(f"cluster.py: tiles of {WIDTH} runs are expected, and the plan has {width}")
        execute.run_tiles(job, folder, ticks, ABOUT, places=places)
        tile = job.plan.tiles[0]
        member = next(member for member in places.members if member.places)
        numbers = places.call(member, *places.request(tile, 0)).value
        transport = repeated(lambda: places.call(member, *places.request(tile, 0)), tiles)
        save = repeated(lambda: job.kind.save(folder, tile, numbers, job.tile_provenance(tile)), tiles)
    last = len(ticks.cpu) - 2  # with the last tile all configurations are complete: TensorBoard, at most 3 % of a long run
    total, wall = ((series[last] - series[SKIPPED]) / (last - SKIPPED) for series in (ticks.cpu, ticks.wall))
    return Cost(megabytes(numbers), total, transport, save, wall)


def costs(lengths: Sequence[int], tiles: int, repeats: int, on_message: Callable[[str], None]) -> tuple[list[Cost], list[float]]:
    """The costs by length in turn, `repeats` times, and the seconds of empty calls."""
    with (
        unittest.mock.patch.object(cluster, "Worker", RepeatingWorker),
        cluster.connected("ray:local", sized_study(1, tiles), 1, on_message) as connected,
        reusable(connected) as places,
    ):
        member = next(member for member in places.members if member.places)
        empty = []
        for _ in range(50 * tiles):
            began = time.perf_counter()
            places.backend.call(member.handle, "forget", "no cohort")
            empty.append(time.perf_counter() - began)
        return [cost(places, epochs, tiles) for _ in range(repeats) for epochs in lengths], empty


# ------------------------------------------------------------------------------------- real studies


def study_tile(path: Path) -> tuple[int, int, float]:
    """Runs and measurements of the largest tile of a study, and the MB of its measurements, from the shapes of its programs."""

    def output(program: Any, *arguments: Any) -> memory.Size:
        shapes = jax.tree.leaves(program.jitted.eval_shape(*arguments))
        return memory.Size(0, sum(leaf.size * leaf.dtype.itemsize for leaf in shapes), 0)

    job: Any = prepare(load_study(path), None, MeasureConfig())
    tile: Tile = max(job.plan.tiles, key=lambda one: (one.size, one.steps))
    measurements = len(cohorts.epochs_measured(tile.runs[0], job.measure_config))
    with unittest.mock.patch.object(memory, "_size", output):
        sizes, _, _ = memory.compiled(tile, job.measure_config)
    return tile.size, measurements, sizes["measure"].output * measurements / 1e6


# ----------------------------------------------------------------------------- scheduler, many places


class SleepingPlace:
    """A place that waits instead of training."""

    slots = SLOTS

    def __init__(self, number: int, seconds: Iterator[float]) -> None:
        self.number, self.seconds = number, seconds
        self.worker, self.name = f"worker {number}", f"place {number}"
        self.turn, self.ended = threading.Lock(), threading.Event()

    def start(self, tile: Tile, should_continue: Callable[[], bool]) -> Started | None:
        """Wait for the seconds of a tile."""
        with self.turn:
            seconds = next(self.seconds)
            self.ended.wait(seconds)
        return Started({}, 0.0, seconds) if should_continue() else None

    def collect(self, pending: Any) -> Any:
        """No numbers."""
        return pending


class SleepingPlaces:
    """So many places, which never change but are treated as places of a cluster."""

    changing, exact = True, True

    def __init__(self, count: int, seconds: float) -> None:
        draws = np.random.default_rng(0)
        self.places = [SleepingPlace(i, iter(seconds * draws.uniform(0.7, 1.3, 1000))) for i in range(count)]

    def current(self) -> list[SleepingPlace]:
        """All places."""
        return self.places

    def kill(self, place: Any, reason: str) -> None:
        raise AssertionError(f"{place.name}: {reason}")

    def close(self) -> None:
        """End all waits."""
        for place in self.places:
            place.ended.set()

    def on_message(self, line: str) -> None:
        """No message."""


def scheduling(count: int, window: float) -> float:
    """CPU seconds of the scheduler per tile in a steady state, with a thread for each slot of so many places.

    Each place has one tile on average before the measurement, and the list of unstarted tiles is not empty at its end.
    """
    measured, skipped = max(count, round(OFFERED * window)), max(count, 20)
    total = measured + skipped + (SLOTS + 1) * count
    tiles = [Tile(f"cohort {i * COHORTS // total}", 1, (), 1, 1) for i in range(total)]

    def never(*_: Any) -> Any:
        raise AssertionError("started on this machine")

    work: Any = Work(tiles, lambda tile: 1.0, never, never, lambda tile: set(), lambda key: None)
    with contextlib.closing(scheduler.finished(work, None, SleepingPlaces(count, count / OFFERED))) as finished:
        for _ in range(skipped):
            next(finished)
        before = cpu()
        for _ in range(measured):
            next(finished)
        return (cpu() - before) / measured


def median_ms(seconds: Sequence[float]) -> float:
    """A median in milliseconds."""
    return 1e3 * statistics.median(seconds)
