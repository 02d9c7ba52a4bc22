"""Measured tile widths in the manifest, with the devices of this machine in the place of an accelerator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest
from small_study import base, study

from relu_study import Experiment, Study
from relu_study.engine import cohorts, plan, train_tile, width_search
from relu_study.engine.plan import Tile
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.runner import run as runner
from relu_study.runner.measured_width import with_measured_widths
from relu_study.runner.prepare import Job, begin, prepare
from relu_study.runner.single_run import run_single
from relu_study.storage import locks, tile_files
from relu_study.storage.manifest import amend_manifest, fix_width, read_manifest
from relu_study.study.shard import shard_of

FULL = "RESOURCE_EXHAUSTED: Out of memory allocating 1600000000 bytes."
RELU, TANH = (cohorts.cost_of(base.replace(activation=name)).cohort for name in ("relu", "tanh"))
arms = {"relu": base, "lecun": base.replace(initializer="lecun_normal"), "tanh": base.replace(activation="tanh")}
bare = replace(
    study, seeds=8, use_targets=(), targets=(), claims=(), tables=(), figures=(), experiments=(Experiment("main", arms),)
)
relu_only = replace(bare, experiments=(Experiment("main", {"relu": base, "lecun": arms["lecun"]}),))  # both shards train it
RATES = {8: 100.0, 4: 98.0, 2: 90.0}
ABOUT = {"command": "test", "preset": "default"}


@pytest.fixture(autouse=True)
def _eight_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "WIDTH_LIMITS", {"cpu": plan.WidthLimits(2, 8, 1 << 30)})
    monkeypatch.setattr(plan, "MEASURED_PLATFORMS", {"cpu"})


def rate(tile: Tile) -> float:
    assert tile.cohort == RELU, "the runs of the other cohort fit into one tile"
    return RATES[tile.width]


def refused(tile: Tile) -> float:
    raise AssertionError("a stored width is not measured again")


def started(folder: Path, study: Study = bare, shard: tuple[int, int] | None = None) -> Job[Any, Any]:
    """Return the job of a study after its manifest is written."""
    job = prepare(study, folder, MeasureConfig(), shard=shard and shard_of(*shard))
    begin(job, folder, lambda line: None, ABOUT)
    return job


def widths_of(job: Job[Any, Any]) -> dict[str, set[int]]:
    return {cohort.name: {tile.width for tile in cohort.tiles} for cohort in job.plan.cohorts}


def test_the_measured_width_is_in_the_manifest_before_the_first_tile(tmp_path: Path) -> None:
    messages: list[str] = []
    job = started(tmp_path)
    assert job.widths == {TANH: 8} == read_manifest(tmp_path)["widths"]
    settled = with_measured_widths(job, tmp_path, messages.append, rate)
    assert settled.widths == {RELU: 4, TANH: 8} == read_manifest(tmp_path)["widths"]
    assert widths_of(settled) == {RELU: {4}, TANH: {8}}
    assert settled.tile_provenance(settled.plan.cohorts[0].tiles[0])["width"] == 4
    (line,) = messages
    assert RELU in line and "width 4" in line and "2: 90, 4: 98, 8: 100" in line


def test_the_width_of_a_resumed_study_is_the_stored_one(tmp_path: Path) -> None:
    with_measured_widths(started(tmp_path), tmp_path, lambda line: None, rate)
    job = with_measured_widths(started(tmp_path), tmp_path, lambda line: None, refused)
    assert job.widths == {RELU: 4, TANH: 8} and widths_of(job)[RELU] == {4}


@pytest.mark.parametrize("started_when", ["before", "after"])
def test_shards_have_the_width_of_the_first(tmp_path: Path, started_when: str) -> None:
    first, second = ((number, 2) for number in (1, 2))
    with locks.writer_lock(tmp_path, shard_of(*first)), locks.writer_lock(tmp_path, shard_of(*second)):
        one = started(tmp_path, relu_only, first)
        late = prepare(relu_only, tmp_path, MeasureConfig(), shard=shard_of(*second))
        if started_first := started_when == "before":
            begin(late, tmp_path, lambda line: None, ABOUT)
        one = with_measured_widths(one, tmp_path, lambda line: None, rate)
        if not started_first:
            begin(late, tmp_path, lambda line: None, ABOUT)  # keeps the width that was measured in between
        late = with_measured_widths(late, tmp_path, lambda line: None, refused)
    assert late.widths == one.widths == {RELU: 4} == read_manifest(tmp_path)["widths"]
    assert widths_of(one)[RELU] == widths_of(late)[RELU] == {4}


def test_of_two_measurements_at_once_the_first_counts(tmp_path: Path) -> None:
    job = started(tmp_path)

    def overtaken(tile: Tile) -> float:
        fix_width(tmp_path, RELU, 2)  # by another shard, during the measurement
        return rate(tile)

    assert with_measured_widths(job, tmp_path, lambda line: None, overtaken).widths == {RELU: 2, TANH: 8}
    assert fix_width(tmp_path, RELU, 8) == 2


def test_a_cohort_marked_as_too_large_is_measured_again(tmp_path: Path) -> None:
    with_measured_widths(started(tmp_path), tmp_path, lambda line: None, rate)
    amend_manifest(tmp_path, {}, widths={TANH: 8})
    assert with_measured_widths(started(tmp_path), tmp_path, lambda line: None, lambda tile: 1.0).widths[RELU] == 2


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Measure by `RATES` in place of a clock. Returns the tried widths."""
    widths: list[int] = []

    def fake(tile: Tile, **options: Any) -> float:
        widths.append(tile.width)
        return rate(tile)

    monkeypatch.setattr(width_search, "steps_per_second", fake)
    return widths


def stored_widths(folder: Path) -> set[tuple[str, int]]:
    stored = tile_files.stored_runs(folder, []).values()
    return {(provenance["cohort"], provenance["width"]) for _, provenance in stored}


@pytest.mark.slow
def test_a_study_trains_at_the_measured_width_and_resumes_at_it(tmp_path: Path, tried: list[int]) -> None:
    runner.run(bare, tmp_path)
    assert tried == [8, 4, 2] and stored_widths(tmp_path) == {(RELU, 4), (TANH, 8)}
    runner.run(replace(bare, seeds=10), tmp_path)
    assert tried == [8, 4, 2] and stored_widths(tmp_path) == {(RELU, 4), (TANH, 8)}
    assert len(tile_files.stored_runs(tmp_path, [])) == 30


@pytest.mark.slow
def test_shards_store_tiles_of_one_width(tmp_path: Path, tried: list[int]) -> None:
    for number in (1, 2):
        runner.run(relu_only, tmp_path, shard=(number, 2))
        assert stored_widths(tmp_path) == {(RELU, 4)} and len(tile_files.stored_runs(tmp_path, [])) == 8 * number
    assert tried == [8, 4, 2]
    assert len(runner.run(relu_only, tmp_path).runs) == 16


@pytest.mark.slow
def test_without_memory_a_measured_width_is_halved(tmp_path: Path, tried: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    start: Callable[..., Any] = train_tile.start_tile

    def limited(runs: Any, width: int, *rest: Any, **options: Any) -> Any:
        if cohorts.cost_of(runs[0]).cohort == RELU and width > 2:
            raise jax.errors.JaxRuntimeError(FULL)
        return start(runs, width, *rest, **options)

    monkeypatch.setattr(train_tile, "start_tile", limited)
    results = runner.run(bare, tmp_path)
    assert set(results.runs.status) == {"ok"} and stored_widths(tmp_path) == {(RELU, 2), (TANH, 8)}
    assert read_manifest(tmp_path)["widths"] == {RELU: 2, TANH: 8}


@pytest.mark.slow
def test_a_single_run_needs_no_measurement(tmp_path: Path, tried: list[int]) -> None:
    chosen = base.replace(seed=1)
    run_single(bare, chosen.run_id, None, tmp_path / "one", MeasureConfig())
    assert tried == [] and stored_widths(tmp_path / "one") == {(RELU, 8)}, "without a sweep: the provisional width"
    runner.run(relu_only, tmp_path / "sweep")
    run_single(relu_only, chosen.run_id, tmp_path / "sweep", tmp_path / "again", MeasureConfig())
    assert stored_widths(tmp_path / "again") == {(RELU, 4)}


def test_a_failed_measurement_fixes_no_width(tmp_path: Path) -> None:
    job = started(tmp_path)

    def wrong(tile: Tile) -> float:
        raise UserError("Activation 'mine' raises. Correct it.")

    with pytest.raises(UserError, match="Correct it"):
        with_measured_widths(job, tmp_path, lambda line: None, wrong)
    assert read_manifest(tmp_path)["widths"] == {TANH: 8}


def test_a_cpu_measures_no_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    job = started(tmp_path)
    assert with_measured_widths(job, tmp_path, lambda line: None, refused) == job
    assert set(job.widths) == {RELU, TANH} == set(read_manifest(tmp_path)["widths"])
