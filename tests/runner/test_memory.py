"""Memory foretold: XLA's own figures of the largest program, found again by the run, and the process's peak beside the truth."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from paths import ROOT
from small_draw_study import study as coins
from small_study import base, study

from relu_study import Experiment, Study
from relu_study.components import registry
from relu_study.engine import cohorts, compilation, scheduler, train_tile
from relu_study.engine.plan import Tile
from relu_study.engine.state import MeasureConfig
from relu_study.engine.work import assign_devices
from relu_study.runner import callback, execute, memory
from relu_study.runner.prepare import Job, prepare
from relu_study.study import shard

FEW = MeasureConfig(histograms=False, metrics=("dead_fraction",))


def tile_of(rows: int, width: int = 4, sets: int = 4) -> Tile:
    spec = base.replace(rows=rows, width=9, optimizer="adam")
    return Tile(cohorts.cost_of(spec, FEW).cohort, width, (spec,), 10, sets)


def test_tile_memory_is_programs_plus_queued_arrays() -> None:
    sizes, rows, state = memory.compiled(tile_of(1000), FEW)
    signature = registry.tasks[base.task](base.replace(rows=1000)).signature
    columns = signature.d_in + signature.d_out
    assert rows == 4 * (signature.train_rows + signature.val_rows) * columns * 4
    weights = 9 * 4 + 9 + 9 + 1
    assert state == 4 * 4 * (3 * weights + 1), "parameters and both moments of Adam, and its count"
    assert sizes["advance"].arguments >= 4 * signature.train_rows * columns * 4 + state
    assert sizes["advance"].output >= state and sizes["advance"].temporary > 0
    whole = memory.of_tile(tile_of(1000), FEW)
    assert whole > rows + max(sum(size) for size in sizes.values())
    assert whole - memory.of_tile(tile_of(1000), FEW, only=True) == rows, "of the next tile on its device"


@pytest.fixture
def cached(tmp_path: Path) -> Iterator[Callable[[], set[str]]]:
    """Names of the programs in a cache of JAX's that no other test writes to at the same time."""
    shared = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    reset_cache()
    kept = tmp_path / "jax"
    yield lambda: {path.name for program in ("advance", "measure") for path in kept.glob(f"jit_{program}-*-cache")}
    jax.config.update("jax_compilation_cache_dir", shared)
    reset_cache()


def forget(tile: Tile, measure_config: MeasureConfig) -> None:
    for key in compilation.required_programs(tile.runs, measure_config):
        compilation.evict(key)


def train(tile: Tile, device: int, measure_config: MeasureConfig) -> None:
    """With programs that this process has not compiled yet."""
    forget(tile, measure_config)
    train_tile.train_tile(list(tile.runs), tile.width, jax.devices()[device], measure_config, num_datasets=tile.num_datasets)


@pytest.mark.slow
def test_training_hits_the_programs_of_the_plan(cached: Callable[[], set[str]]) -> None:
    """In JAX's cache, by the very key: else a plan would make a run wait twice."""
    tile = tile_of(1000)
    forget(tile, FEW)
    memory.compiled(tile, FEW)
    before = cached()
    train(tile, 0, FEW)
    assert cached() == before
    train(tile, 1, FEW)
    assert cached() > before, "another device's programs are others"


def test_predicted_memory_of_a_study() -> None:
    few = replace(
        study, metrics=("val_loss",), claims=(), tables=(), figures=(), experiments=(Experiment("main", {"relu": base}),)
    )
    job = prepare(few, None, MeasureConfig())
    found = memory.predict_memory(job)
    assert found.limit is None and found.host > memory.resident() * 0.9 + found.device
    assert re.match(r"peak memory about [\d,]+ MiB$", str(found)), found
    assert "only 100 MiB are free" in str(memory.MemoryEstimate(200 << 20, 300 << 20, 100 << 20))
    assert "300 of 400 MiB on each device" in str(memory.MemoryEstimate(200 << 20, 300 << 20, 400 << 20))
    drawn = memory.predict_memory_draws(prepare(coins, None))
    assert drawn.host > memory.resident() * 0.9 and drawn.device > 0


def asking(**arms: Any) -> Study:
    """A study of these arms that reports next to nothing."""
    main = Experiment("main", {label: base.replace(width=9, **fields) for label, fields in arms.items()})
    return replace(study, metrics=("val_loss",), claims=(), tables=(), figures=(), experiments=(main,), seeds=2)


def test_plan_compiles_the_programs_of_the_run(
    cached: Callable[[], set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an accelerator, on the very device that begins the cohort, which need not be the first."""
    monkeypatch.setattr(memory, "places", jax.devices)
    monkeypatch.setattr(scheduler, "places", jax.devices)
    both = asking(deep={"depth": 2, "epochs": 1}, long={"epochs": 9})
    job = prepare(both, None, FEW)
    homes = assign_devices(job.plan.tiles, job.plan.cost, 2)
    deep = next(cohort for cohort in job.plan.cohorts if cohort.work.layers == 8)
    assert homes[deep.name] == 1
    for tile in deep.tiles:
        forget(tile, job.measure_config)
    memory.predict_memory(job)
    before = cached()
    assert {name.partition("-")[0] for name in before} == {"jit_advance", "jit_measure"}
    for tile in deep.tiles:
        train(tile, homes[deep.name], job.measure_config)
    assert cached() == before
    for tile in deep.tiles:
        forget(tile, job.measure_config)
    execute.execute(both, tmp_path / "both", FEW, callback.Callback(), {"command": "", "preset": "default"})
    assert len({name for name in cached() - before if name.startswith("jit_advance")}) <= 1, "the other cohort's"


class Grew(NamedTuple):
    """Stands for what compiling took, and whether JAX's cache had it."""

    bytes: int
    all_found: bool

    def __enter__(self) -> Grew:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """MiB foretold of a study beyond those that lie there, where a tile takes 100 MiB and compiling its programs 10."""

    def foretell(job: Job[Any, Any], found: bool = True, grown: int = 10) -> int:
        grew, mib = Grew(grown * memory.MIB, found), memory.MIB
        monkeypatch.setattr(memory, "_RssMonitor", lambda: grew)
        monkeypatch.setattr(memory, "_CacheHitCounter", lambda: grew)
        monkeypatch.setattr(memory, "resident", lambda: 0)
        monkeypatch.setattr(memory, "RUN_BYTES", 0)
        monkeypatch.setattr(memory, "of_tile", lambda *_, only: (60 if only else 100) * mib)
        return round(memory.predict_memory(job).host / mib)

    return foretell


def test_memory_grows_with_devices(said: Callable[..., int]) -> None:
    one, two = prepare(asking(a={}), None, FEW), prepare(replace(asking(a={}), seeds=64), None, FEW)
    assert (len(one.plan.tiles), len(two.plan.tiles)) == (1, 2)
    assert said(one) == 40 + 10 + 60 and said(two) == 40 + 10 + 2 * 60, "places of a CPU share programs, not tiles"
    four = prepare(replace(asking(a={}), seeds=128), None, FEW)
    assert said(four) == 40 + 10 + 2 * 100, "the next tile's rows are there"
    assert said(four, found=False) == 40 + 4 + 2 * 100, "the run reads what the plan compiles"
    assert said(four, grown=0) == 40 + 2 * 100 + 100 + 15 * 7, "where the system does not say"


def test_small_cohort_next_to_a_large_one_needs_less(said: Callable[..., int]) -> None:
    job = prepare(asking(large={"rows": 100_000}, small={}), None, FEW)
    large, small = sorted((cohort.bytes() for cohort in job.plan.cohorts), reverse=True)
    assert said(job) == round(40 + 2 * 10 + 60 + small / memory.MIB)
    deep = prepare(asking(large={"rows": 100_000}, deep={"depth": 9}), None, FEW)
    large, small = sorted((cohort.bytes() for cohort in deep.plan.cohorts), reverse=True)
    assert large - small < 8 * memory.LAYER_BYTES, "what is compiled is the deep one"
    compiling = 10 * (1 + (100 + 15 * 7) / (100 + 15 * 15))
    assert said(deep) == round(40 + compiling + 60 + large / memory.MIB), "only its own tile is measured"


@pytest.mark.slow
def test_report_memory_includes_stored_runs(said: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "REPORT_BYTES", 4 << 20)
    few = asking(a={"epochs": 3}, b={"epochs": 1})
    fresh = said(prepare(few, tmp_path, FEW))
    columns = len(prepare(few, None, FEW).declaration["columns"])
    assert fresh == 40 + 4 * 4 * columns * 2 * (4 + 2)
    execute.execute(replace(few, seeds=1), tmp_path, FEW, callback.Callback(), {"command": "", "preset": "default"})
    assert (resumed := prepare(few, tmp_path, FEW)).stored == 2
    assert said(resumed) == fresh
    assert said(replace(resumed, shard=shard.Shard(1, 2))) < fresh / 2, "a shard makes no report"


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory as Linux tells it")
def test_rss_monitor_measures_growth() -> None:
    with memory._RssMonitor() as grown:
        held = bytearray(b"1") * (64 << 20)
    assert 60 << 20 < grown.bytes < 80 << 20 and len(held) == 64 << 20


MEASURED = """
import sys
from relu_study.cli.commands import main
status = 0
try:
    main()
except SystemExit as left:
    status = left.code
with open("/proc/self/status") as file:
    print(next(line for line in file if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(status)
"""
LARGE = """
from relu_study import Experiment, RunSpec, Study, grid
base = RunSpec(initializer="he_normal", epochs=1)
arms = {"shallow": {"rows": 300_000}, "deep": {"depth": 12, "rows": 2_000}, "wide": {"width": 256, "batch_size": 1024}}
study = Study("large", "Large", "How much?", [Experiment("main", {k: base.replace(**v) for k, v in arms.items()})], seeds=16)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak as Linux tells it")
def test_peak_memory_is_predicted_within_25_percent(tmp_path: Path) -> None:
    (tmp_path / "large.py").write_text(LARGE)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}

    def command(*words: str) -> str:
        line = [sys.executable, "-c", MEASURED, *words]
        done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    for start in ("cold", "warm"):
        said = re.search(r"peak memory about ([\d,]+) MiB", command("plan", "large.py"))
        assert said
        peak = re.search(r"VmHWM:\s+(\d+) kB", command("run", "large.py", "--out", start))
        assert peak
        assert int(said[1].replace(",", "")) == pytest.approx(int(peak[1]) / 1024, rel=0.25), start
