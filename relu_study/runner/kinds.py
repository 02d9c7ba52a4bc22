"""The two kinds of study, training and drawing: one object each, with everything that differs when a study runs.

A method that computes imports JAX itself, because `relu-study list` and checks of options use the kinds too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from relu_study.engine.draw_plan import Block, DrawPlan
from relu_study.engine.plan import Plan, Tile
from relu_study.storage import block_files, tile_files
from relu_study.storage.checksums import CorruptFileError
from relu_study.storage.manifest import read_manifest
from relu_study.storage.statuses import LISTED, STATUSES, listed
from relu_study.study.draw_study import DrawStudy
from relu_study.study.study import Study

if TYPE_CHECKING:
    from relu_study.engine.state import MeasureConfig
    from relu_study.engine.width_search import Rate
    from relu_study.engine.work import Work
    from relu_study.report.tensorboard.live import Live
    from relu_study.runner.findings import StudyFindings
    from relu_study.runner.machine import Machine
    from relu_study.runner.memory import MemoryEstimate
    from relu_study.runner.prepare import Job, Request

Arrays = dict[str, np.ndarray]
S = TypeVar("S", bound=Study | DrawStudy)
P = TypeVar("P", bound=Plan | DrawPlan)
T = TypeVar("T", bound=Tile | Block)


@runtime_checkable
class Kind(Protocol[S, P, T]):
    """The parts of planning, running and storing that depend on the kind of a study."""

    noun: str  # of the counted results
    stored_noun: str  # of the results on disk
    action: str  # in messages about options
    size_options: Sequence[str]  # the options that set the size, the usual one first

    def with_size(self, study: S, preset: str | None, sizes: Mapping[str, Any]) -> S:
        """The study at a preset's size, changed by the values of its size options."""

    def amount(self, study: S) -> tuple[int, float]:
        """The number of results, and the work that their time is proportional to."""

    def request(self, study: S, folder: Path | None, measure_config: MeasureConfig, machine: Machine) -> Request[P]:
        """Check and declare every run or cell."""

    def memory(self, job: Job[S, P]) -> MemoryEstimate:
        """Peak memory of the missing tiles. Compiles the largest program."""

    def work(self, job: Job[S, P], keep_params: bool) -> Work[T, Arrays]:
        """The missing tiles, for the scheduler."""

    def with_measured_widths(
        self, job: Job[S, P], folder: Path, on_message: Callable[[str], None], rate: Rate | None = None
    ) -> Job[S, P]:
        """The job with measured tile widths in place of provisional ones. Draws have none. `rate` measures a tile."""
        return job

    def save(self, folder: Path, tile: T, numbers: Arrays, provenance: Mapping[str, Any]) -> Path:
        """Store a finished tile. Returns the path of its file."""

    def stored(self, folder: Path, damaged: list[CorruptFileError] | None = None) -> Mapping[Any, dict[str, Any]]:
        """The provenance of every stored run or block. Without `damaged`, a corrupt file raises CorruptFileError."""

    def count(self, ids: Collection[Any]) -> int:
        """The number of results of these runs or blocks."""

    def counts(self, folder: Path, ids: Collection[Any]) -> dict[str, Any]:
        """The manifest's entry with the number of runs by status, from raw/ and the manifest; empty for draws."""
        return {}

    def live(self, folder: Path, manifest: Mapping[str, Any], per_seed: bool) -> Live | None:
        """TensorBoard files during the run; None for draws."""
        return None

    def findings(self, folder: Path, manifest: Mapping[str, Any], stored: int) -> StudyFindings | None:
        """The findings of the stored runs, to which finished tiles are added; None for draws."""
        return None


class Training(Kind[Study, Plan, Tile]):
    """Studies that train networks. A run is one network; a tile stores several."""

    noun, stored_noun, action = "runs", "finished runs", "trains networks"
    size_options = ("seeds", "epochs", "probe_examples")

    def with_size(self, study: Study, preset: str | None, sizes: Mapping[str, Any]) -> Study:
        return study.with_preset(preset, seeds=sizes["seeds"], epochs=sizes["epochs"])

    def amount(self, study: Study) -> tuple[int, float]:
        runs = study.runs()
        return len(runs), sum(run.epochs for run in runs)

    def request(self, study: Study, folder: Path | None, measure_config: MeasureConfig, machine: Machine) -> Request[Plan]:
        from relu_study.runner.prepare_runs import request_runs

        return request_runs(study, folder, measure_config, machine)

    def memory(self, job: Job[Study, Plan]) -> MemoryEstimate:
        from relu_study.runner.memory import predict_memory

        return predict_memory(job)

    def work(self, job: Job[Study, Plan], keep_params: bool) -> Work[Tile, Arrays]:
        from relu_study.engine.work import training

        return training(job.plan, job.measure_config, keep_params)

    def with_measured_widths(
        self, job: Job[Study, Plan], folder: Path, on_message: Callable[[str], None], rate: Rate | None = None
    ) -> Job[Study, Plan]:
        from relu_study.runner import measured_width

        return measured_width.with_measured_widths(job, folder, on_message, rate)

    def save(self, folder: Path, tile: Tile, numbers: Arrays, provenance: Mapping[str, Any]) -> Path:
        header = {
            "run_id": np.array(tile.ids),
            "spec": np.array([json.dumps(run.changed()) for run in tile.runs]),
            "provenance": np.array(json.dumps(provenance, sort_keys=True)),
        }
        return tile_files.write_tile(folder, header | numbers)

    def stored(self, folder: Path, damaged: list[CorruptFileError] | None = None) -> Mapping[Any, dict[str, Any]]:
        return {run: provenance for run, (_, provenance) in tile_files.stored_runs(folder, damaged).items()}

    def count(self, ids: Collection[Any]) -> int:
        return len(ids)

    def counts(self, folder: Path, ids: Collection[Any]) -> dict[str, Any]:
        stored, unstored = tile_files.stored_runs(folder, []), listed(read_manifest(folder))
        found = Counter(stored[run][0] if run in stored else unstored.get(run, "interrupted") for run in ids)
        return {"counts": {status: found[status] for status in STATUSES if found[status] or status not in LISTED}}

    def live(self, folder: Path, manifest: Mapping[str, Any], per_seed: bool) -> Live | None:
        from relu_study.report.tensorboard.live import Live

        return Live(folder, manifest, per_seed)

    def findings(self, folder: Path, manifest: Mapping[str, Any], stored: int) -> StudyFindings | None:
        from relu_study.runner.findings import StudyFindings

        findings = StudyFindings(manifest["declaration"])
        if stored:
            findings.stored(folder)
        return findings


class Drawing(Kind[DrawStudy, DrawPlan, Block]):
    """Studies that draw a statistic of untrained networks. A block stores the sums of consecutive draws of one cell."""

    noun, stored_noun, action = "draws", "draws", "is a draw study"
    size_options = ("max_draws",)

    def with_size(self, study: DrawStudy, preset: str | None, sizes: Mapping[str, Any]) -> DrawStudy:
        return study.with_preset(preset, sizes["max_draws"])

    def amount(self, study: DrawStudy) -> tuple[int, float]:
        draws = sum(experiment.draws * len(experiment.cells) for experiment in study.experiments)
        return draws, draws

    def request(
        self, study: DrawStudy, folder: Path | None, measure_config: MeasureConfig, machine: Machine
    ) -> Request[DrawPlan]:
        from relu_study.runner.prepare_draws import request_draws

        return request_draws(study, machine)

    def memory(self, job: Job[DrawStudy, DrawPlan]) -> MemoryEstimate:
        from relu_study.runner.memory import predict_memory_draws

        return predict_memory_draws(job)

    def work(self, job: Job[DrawStudy, DrawPlan], keep_params: bool) -> Work[Block, Arrays]:
        from relu_study.engine.work import drawing

        return drawing(job.plan)

    def save(self, folder: Path, block: Block, numbers: Arrays, provenance: Mapping[str, Any]) -> Path:
        return block_files.write_block(folder, (block.cohort, block.first, block.count), numbers, provenance)

    def stored(self, folder: Path, damaged: list[CorruptFileError] | None = None) -> Mapping[Any, dict[str, Any]]:
        return block_files.stored_blocks(folder, damaged)

    def count(self, ids: Collection[Any]) -> int:
        return sum(count for _, _, count in ids)


TRAINING, DRAWING = Training(), Drawing()


def kind_of(study: Study | DrawStudy) -> Kind[Any, Any, Any]:
    """The kind of a study."""
    return DRAWING if isinstance(study, DrawStudy) else TRAINING
