"""A worker of a cluster: it trains tiles and draws blocks at its own places, and knows no folder.

Importing this module does not import JAX, since the environment of a worker is set before.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from relu_study.errors import UserError
from relu_study.study.travelling_sources import TravellingSources

if TYPE_CHECKING:
    from relu_study.engine.draw_plan import Block
    from relu_study.engine.plan import Tile
    from relu_study.engine.state import MeasureConfig
    from relu_study.runner.source_folder import SourceFolder

# Platform -> JAX_PLATFORMS. Explicit names: JAX silently falls back to the CPU when another process holds the accelerator.
PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}


class WorkerError(Exception):
    """An unexpected error of a worker, with its traceback."""


class Answer(NamedTuple):
    """The result of a call. A memory error or another error is an answer too, so that it ends no worker."""

    kind: str  # numbers, lacking, user_error or error
    value: Any  # arrays by name, or a text
    compiling: float = 0.0  # seconds
    seconds: float = 0.0  # of the training, without compilation
    programs: int = 0  # compiled or read from JAX's cache


class Report(NamedTuple):
    """The machine of a worker, as plain data."""

    platform: str
    kind: str
    devices: int
    host: dict[str, Any]
    processor: dict[str, str]
    memory: int | None
    digest: str | None
    package: str  # the hash of the package's source files
    own: dict[str, Any]  # the fingerprints of the study's own entries

    @property
    def bits(self) -> tuple[Any, ...]:
        """The part that decides the bits of a run."""
        return (self.platform, repr(sorted(self.host.items())), self.digest)


class Worker:
    """A process that trains tiles. On a CPU it has one place a core, on an accelerator one place a device."""

    def __init__(
        self,
        platform: str,
        places: int,
        settings: Mapping[str, Any],
        environment: Mapping[str, str],
        sources: TravellingSources | None = None,
        packed: Mapping[str, bytes] | None = None,
    ) -> None:
        """Start JAX with `places` devices on a CPU, load the study's own sources and register its `packed` entries.

        `settings` are settings of JAX, `environment` variables of the driver that change bits.
        """
        os.environ.update(environment)
        os.environ["JAX_PLATFORMS"] = PLATFORMS[platform]
        import jax

        from relu_study.components.registry import REGISTRIES
        from relu_study.engine.jax_settings import pinned
        from relu_study.runner.devices import use_devices
        from relu_study.runner.own_entries import register_packed

        if platform == "cpu":
            jax.config.update("jax_num_cpu_devices", places)
        for name, value in settings.items():
            jax.config.update(name, value)
        use_devices()
        self._pinned = pinned()
        self._pinned.__enter__()  # for the life of the process
        for registry in REGISTRIES:
            registry.load()  # in one thread, before tiles ask for entries
        self._sources: SourceFolder | None = None
        self._root = ""
        if sources is not None:
            from relu_study.runner import source_folder  # not on Windows, as Ray

            self._sources, self._root = source_folder.SourceFolder(), sources.root
            sources.unpack(self._sources.path)
        register_packed(packed or {})
        from relu_study.engine.places import places as devices_of_places

        self._devices = devices_of_places()
        self._turns = [threading.Lock() for _ in self._devices]  # one tile at a time begins at a place
        self._programs: dict[str, set[tuple[Any, ...]]] = {}  # cohort -> keys of its programs
        self._evict: Callable[[tuple[Any, ...]], None] | None = None
        self._guard = threading.Lock()

    def machine(self, own: Sequence[str] = ()) -> Report:
        """Return the machine of this process, with the fingerprints of the `own` entries of the study ("kind name")."""
        from relu_study.runner.machine import local_machine, package_digest
        from relu_study.runner.own_entries import registered_entries
        from relu_study.runner.provenance import sources

        here, entries = local_machine(), registered_entries(own)
        return Report(
            *(here.platform, here.kind, len(self._devices), here.host, here.processor, here.memory, here.digest()),
            *(package_digest(), sources(entries)),
        )

    def train(self, tile: Tile, place: int, measure_config: MeasureConfig, keep_params: bool = False) -> Answer:
        """Train a tile at a place. It waits until the previous tile of the place is queued."""
        from relu_study.engine import compilation, train_tile

        self._remember(tile.cohort, compilation.required_programs(tile.runs, measure_config), compilation.evict)
        return self._answer(
            place,
            lambda device: train_tile.start_tile(
                list(tile.runs), tile.width, device, measure_config, num_datasets=tile.num_datasets
            ),
            lambda pending: train_tile.fetch(pending, keep_params),
        )

    def draw(self, block: Block, place: int) -> Answer:
        """Draw a block at a place."""
        from relu_study.engine import draw_block

        self._remember(block.cohort, draw_block.required_programs(block), draw_block.evict)
        return self._answer(place, lambda device: draw_block.draw_block(block, device), lambda sums: sums)

    def rate(self, tile: Tile, measure_config: MeasureConfig) -> Answer:
        """Measure the training steps per second of a tile."""
        from relu_study.engine.width_search import steps_per_second

        return self._answer(
            0, lambda device: steps_per_second(tile, device, measure_config), lambda rate: {"steps_per_second": rate}
        )

    def forget(self, cohort: str) -> None:
        """Evict the programs that only a finished cohort required."""
        with self._guard:
            keys = self._programs.pop(cohort, set())
            for key in keys - {key for others in self._programs.values() for key in others}:
                if self._evict is not None:
                    self._evict(key)

    def close(self) -> None:
        """Remove the copies of the study's sources."""
        if self._sources is not None:
            self._sources.close()

    def _remember(self, cohort: str, keys: set[tuple[Any, ...]], evict: Callable[[tuple[Any, ...]], None]) -> None:
        with self._guard:
            self._programs.setdefault(cohort, set()).update(keys)
            self._evict = evict

    def _answer(self, place: int, start: Callable[[Any], Any], collect: Callable[[Any], Any]) -> Answer:
        from relu_study.components.entry_errors import entry_errors, out_of_memory_reason
        from relu_study.engine.compile_time import thread_compile_seconds, thread_programs

        try:
            with entry_errors():
                with self._turns[place]:
                    began, before, programs = time.perf_counter(), thread_compile_seconds(), thread_programs()
                    pending = start(self._devices[place])
                    compiling, programs = thread_compile_seconds() - before, thread_programs() - programs
                numbers = collect(pending)
            return Answer("numbers", numbers, compiling, max(time.perf_counter() - began - compiling, 0.0), programs)
        except UserError as error:
            return Answer("user_error", self._as_on_driver(str(error)))
        except Exception as error:
            if why := out_of_memory_reason(error):
                return Answer("lacking", why)
            return Answer("error", self._as_on_driver("".join(traceback.format_exception(error))))

    def _as_on_driver(self, text: str) -> str:
        """Name the study's files as on the driver."""
        return text.replace(str(self._sources.path), self._root) if self._sources is not None else text


def numbers_of(answer: Answer, worker: str) -> Any:
    """Return the numbers of an answer.

    Raises:
        UserError: the error of a study's own code.
        RuntimeError, MemoryError: a lack of memory, as `out_of_memory_reason` recognises it.
        WorkerError: another error of the worker.
    """
    if answer.kind == "numbers":
        return answer.value
    if answer.kind == "user_error":
        raise UserError(answer.value)
    if answer.kind == "lacking":
        text = str(answer.value)
        raise (
            MemoryError(text.removeprefix("MemoryError").removeprefix(": "))
            if text.startswith("MemoryError")
            else (RuntimeError(text))
        )
    raise WorkerError(f"worker {worker} raises:\n{answer.value}")
