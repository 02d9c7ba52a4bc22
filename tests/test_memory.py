"""Memory foretold: XLA's own figures of the largest program, found again by the run, and the process's peak beside the truth."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from drawn_study import study as coins
from small_study import base, study

from relu_study import Experiment, engine, memory, runner, tiles
from relu_study.job import prepare
from relu_study.plan import Tile
from relu_study.programs import Probing

ROOT = Path(__file__).resolve().parent.parent
FEW = Probing(histograms=False, metrics=("dead_fraction",))


def tile_of(rows: int, width: int = 4, sets: int = 4) -> Tile:
    spec = base.but(rows=rows, width=9)
    return Tile(engine.describe(spec, FEW).cohort, width, (spec,), 10, sets)


def test_a_tile_is_what_xla_says_of_its_programs_and_what_is_in_flight_beside_them() -> None:
    sizes, rows, state = memory.compiled(tile_of(1000), FEW)
    signature = engine.tasks[base.task](base.but(rows=1000)).signature
    columns = signature.d_in + signature.d_out
    assert rows == 4 * (signature.train_rows + signature.val_rows) * columns * 4
    weights = 9 * 4 + 9 + 9 + 1
    assert state == 4 * 4 * (3 * weights + 1), "parameters and both moments of Adam, and its count"
    assert sizes["advance"].arguments >= 4 * signature.train_rows * columns * 4 + state
    assert sizes["advance"].output >= state and sizes["advance"].temporary > 0
    whole = memory.of_tile(tile_of(1000), FEW)
    assert whole > rows + max(sum(size) for size in sizes.values())


def test_a_run_finds_what_was_compiled_for_it() -> None:
    """In JAX's cache, by the very key: else a plan would make a run wait twice."""
    kept = Path(jax.config.jax_compilation_cache_dir)

    def cached() -> set[str]:
        return {path.name for path in kept.iterdir() if path.name.startswith(("jit_advance", "jit_measure"))}

    tile = tile_of(1000)
    memory.compiled(tile, FEW)
    before = cached()
    assert before
    for key in engine.needs(tile.runs, FEW):
        engine.forget(key)
    tiles.train_tile(list(tile.runs), tile.width, probing=FEW, sets=tile.sets)
    assert cached() == before


def test_what_is_foretold_of_a_study() -> None:
    few = replace(
        study, metrics=("val_loss",), claims=(), tables=(), figures=(), experiments=(Experiment("main", {"relu": base}),)
    )
    job = prepare(few, None, Probing())
    found = memory.foretold(job)
    assert found.limit is None and found.host > memory.resident() * 0.9 + found.device
    assert re.match(r"peak memory about [\d,]+ MiB$", str(found)), found
    assert "only 100 MiB are free" in str(memory.Foretold(200 << 20, 300 << 20, 100 << 20))
    assert "300 of 400 MiB on each device" in str(memory.Foretold(200 << 20, 300 << 20, 400 << 20))
    drawn = memory.foretold_draws(runner.prepare_draws(coins, None))
    assert drawn.host > memory.resident() * 0.9 and drawn.device > 0


MEASURED = """
import sys
from relu_study.cli import main
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
study = Study("large", "Large", "How much?", [Experiment("main", {k: base.but(**v) for k, v in arms.items()})], seeds=16)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak as Linux tells it")
def test_peak_memory_is_foretold_within_a_quarter(tmp_path: Path) -> None:
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
