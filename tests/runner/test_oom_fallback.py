"""Programs that do not fit in memory: narrower tiles before a cohort's first is stored, a clear end after it, no run lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
import pandas as pd
import pytest
from paths import ROOT
from small_draw_study import study as coins
from small_study import base, study

from relu_study import Experiment
from relu_study.components import entry_errors
from relu_study.engine import cohorts, compilation, draw_block, plan, train_tile
from relu_study.engine.plan import Tile
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.runner import prepare
from relu_study.runner import run as runner
from relu_study.runner.callback import Callback
from relu_study.runner.oom_fallback import HalvingFallback
from relu_study.runner.run import run_draws
from relu_study.storage import block_files, manifest, tile_files
from relu_study.storage.frames import load
from relu_study.storage.manifest import read_manifest

FULL = "RESOURCE_EXHAUSTED: Out of memory allocating 1600000000 bytes."
DISPATCHING = "INTERNAL: Error dispatching computation: Out of memory allocating 192001348 bytes."  # of a CPU under a cap
RELU, TANH = (cohorts.cost_of(base.replace(activation=name)).cohort for name in ("relu", "tanh"))
# What is measured is little, so that programs of many widths are compiled in no time.
bare = replace(study, seeds=8, metrics=("val_loss",), use_targets=(), targets=(), claims=(), tables=(), figures=())
eight = replace(bare, experiments=(Experiment("main", {"relu": base, "tanh": base.replace(activation="tanh")}),))
tanh = replace(bare, experiments=(Experiment("main", {"tanh": base.replace(activation="tanh")}),))


class Told(Callback):
    """What a person is told, and the tiles that were stored."""

    def __init__(self, stop_after: int = 10**6) -> None:
        self.said: list[str] = []
        self.tiles: list[Tile] = []
        self.stop_after = stop_after

    def on_message(self, line: str) -> None:
        self.said.append(line)

    def on_tile_end(self, tile: Any, *_: Any) -> None:
        self.tiles.append(tile)
        if len(self.tiles) == self.stop_after:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def _eight_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "WIDTH_LIMITS", {"cpu": plan.WidthLimits(2, 8, 1 << 30)})


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, int]]]:
    """Makes the training of a cohort fail where `fails(cohort, width)`, at once or when its numbers are asked for."""

    def limit(fails: Callable[[str, int], bool], late: bool = False) -> list[tuple[str, int]]:
        begun: list[tuple[str, int]] = []
        start, collect = train_tile.start_tile, train_tile.fetch
        of: dict[int, tuple[str, int]] = {}

        def allocate(place: tuple[str, int]) -> None:
            if fails(*place):
                raise jax.errors.JaxRuntimeError(FULL)

        def limited(runs: Any, width: int, *rest: Any, **options: Any) -> Any:
            begun.append((cohorts.cost_of(runs[0]).cohort, width))
            if not late:
                allocate(begun[-1])
            place, pending = begun[-1], start(runs, width, *rest, **options)
            of[id(pending.runs)] = place
            return pending

        def asked(pending: Any, keep_params: bool = False) -> Any:
            if late:
                allocate(of[id(pending.runs)])
            return collect(pending, keep_params)

        monkeypatch.setattr(train_tile, "start_tile", limited)
        monkeypatch.setattr(train_tile, "fetch", asked)
        return begun

    return limit


def widths(folder: Path) -> Iterator[tuple[str, int]]:
    """The cohort of every stored tile with the width in its provenance."""
    for path in tile_files.tile_paths(folder):
        tile = tile_files.read_tile(path)
        specs = [json.loads(str(spec)) for spec in tile["spec"]]
        yield TANH if specs[0].get("activation") == "tanh" else RELU, json.loads(str(tile["provenance"]))["width"]


@pytest.mark.parametrize(
    "late", [pytest.param(False, id="when it is queued", marks=pytest.mark.slow), pytest.param(True, id="when it is collected")]
)
def test_cohort_that_does_not_fit_continues_at_half_width(tmp_path: Path, small_memory: Any, late: bool) -> None:
    small_memory(lambda cohort, width: cohort == TANH and width > 2, late)
    runner.run(eight, tmp_path / "narrow", callback=(told := Told()))

    assert set(load(tmp_path / "narrow").runs.status) == {"ok"} and len(load(tmp_path / "narrow").runs) == 16
    assert sorted(widths(tmp_path / "narrow")) == sorted([(RELU, 8), *[(TANH, 2)] * 4])
    assert read_manifest(tmp_path / "narrow")["widths"] == {RELU: 8, TANH: 2}
    first, second, *_ = told.said
    for line, wide in ((first, 8), (second, 4)):
        assert f"cohort {TANH}" in line and "tanh" in line and FULL in line, line
        assert f"at width {wide} (" in line and line.endswith(f"at {wide // 2}"), line
    assert sorted(run.run_id for tile in told.tiles for run in tile.runs) == sorted(run.run_id for run in eight.runs())


@pytest.mark.slow
def test_bits_match_the_width_in_the_manifest(tmp_path: Path, small_memory: Any) -> None:
    small_memory(lambda cohort, width: cohort == TANH and width > 2)
    runs = runner.run(eight, tmp_path).runs.set_index("run_id")
    spec = base.replace(activation="tanh", seed=3)
    alone = train_tile.train_tile([spec], 2, measure_config=prepare.prepare(eight, None, MeasureConfig()).measure_config)
    assert np.float32(runs.loc[spec.run_id, "val_loss/all"]) == alone["metric:val_loss/all"][0, -1]


@pytest.mark.slow
def test_only_the_first_calls_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator has nothing for the compiled program's first two calls: at 8, then at 4; at 2 there is room."""
    programs, failed = compilation.tile_programs, []

    def stingy(spec: Any, *rest: Any) -> Any:
        made = programs(spec, *rest)

        def advance(*args: Any) -> Any:
            if spec.activation == "tanh" and len(failed) < 2:
                failed.append(len(args[2]))
                raise jax.errors.JaxRuntimeError(FULL)
            return made.advance(*args)

        return replace(made, advance=advance)

    monkeypatch.setattr(compilation, "tile_programs", stingy)
    results = runner.run(eight, tmp_path)
    assert failed == [8, 4] and set(results.runs.status) == {"ok"}
    assert read_manifest(tmp_path)["widths"][TANH] == 2


def test_stored_tiles_fix_the_width(tmp_path: Path, small_memory: Any) -> None:
    runner.run(eight, tmp_path)
    kept = {path: path.read_bytes() for path in tile_files.tile_paths(tmp_path)}
    small_memory(lambda cohort, width: cohort == TANH)
    with pytest.raises(UserError, match=rf"cohort {TANH} .*width of 8 .*Free memory .*new folder with --out.* are kept") as error:
        runner.run(eight, tmp_path, seeds=12)
    assert str(tmp_path) in str(error.value) and FULL in str(error.value)
    assert {path: path.read_bytes() for path in kept} == kept and set(widths(tmp_path)) == {(RELU, 8), (TANH, 8)}
    manifest = read_manifest(tmp_path)
    assert manifest["widths"] == {RELU: 8, TANH: 8} and "oom" not in manifest
    assert manifest["counts"] == {"ok": 20, "nonfinite": 0, "interrupted": 4}, "the other cohort is done"


@pytest.mark.slow
def test_tile_of_the_same_run_fixes_the_width(tmp_path: Path, small_memory: Any) -> None:
    small_memory(lambda cohort, width: bool(tile_files.tile_paths(tmp_path)), late=True)
    with pytest.raises(UserError, match="width of 8"):
        runner.run(tanh, tmp_path, seeds=16)
    assert list(widths(tmp_path)) == [(TANH, 8)] and read_manifest(tmp_path)["widths"] == {TANH: 8}


@pytest.mark.slow
def test_tile_that_fails_with_others_may_fit_serially(tmp_path: Path, small_memory: Any) -> None:
    runner.run(eight, tmp_path)
    calls = iter([True])
    small_memory(lambda cohort, width: cohort == TANH and next(calls, False))
    assert set(runner.run(eight, tmp_path, seeds=12).runs.status) == {"ok"}


@pytest.mark.slow
def test_runs_that_never_fit_are_oom_and_retried_later(tmp_path: Path, small_memory: Any, monkeypatch: Any) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(plan, "WIDTH_LIMITS", {"cpu": plan.WidthLimits(2, 4, 1 << 30)})
        begun = small_memory(lambda cohort, width: cohort == TANH)
        told = Told()
        runner.run(eight, tmp_path, callback=told)
    runs = pd.read_csv(tmp_path / "runs.csv")
    assert dict(runs.groupby("activation")["status"].first()) == {"relu": "ok", "tanh": "oom"} and len(runs) == 16
    assert runs.loc[runs.status == "oom", "val_loss/all"].isna().all()
    manifest = read_manifest(tmp_path)
    assert manifest["counts"] == {"ok": 8, "nonfinite": 0, "oom": 8, "interrupted": 0}
    assert manifest["oom"] == sorted(runs.run_id[runs.status == "oom"]) and manifest["widths"] == {RELU: 4}
    assert [width for cohort, width in begun if cohort == TANH][-1] == 2
    assert any("8 did not fit in memory (status oom). Free memory" in line for line in told.said), told.said
    assert "8 ok, 8 oom" in (tmp_path / "report.md").read_text()

    monkeypatch.undo()
    monkeypatch.setattr(plan, "WIDTH_LIMITS", {"cpu": plan.WidthLimits(2, 8, 1 << 30)})
    again = Told()
    assert set(runner.run(eight, tmp_path, callback=again).runs.status) == {"ok"}
    assert sum(tile.size for tile in again.tiles) == 8 and "oom" not in read_manifest(tmp_path)
    assert set(widths(tmp_path)) == {(RELU, 4), (TANH, 8)}, "with room, at the width of the rule"


@pytest.mark.slow
def test_nothing_fits(tmp_path: Path, small_memory: Any) -> None:
    small_memory(lambda cohort, width: True)
    assert set(runner.run(eight, tmp_path).runs.status) == {"oom"}
    assert not tile_files.tile_paths(tmp_path)


@pytest.mark.slow
def test_interrupted_run_resumes_at_the_narrower_width(tmp_path: Path, small_memory: Any) -> None:
    small_memory(lambda cohort, width: cohort == TANH and width > 4)
    with pytest.raises(KeyboardInterrupt):
        runner.run(eight, tmp_path, callback=Told(stop_after=2))
    assert read_manifest(tmp_path)["widths"][TANH] == 4
    assert set(runner.run(eight, tmp_path).runs.status) == {"ok"} and (TANH, 4) in set(widths(tmp_path))


@pytest.mark.slow
def test_draws_continue_at_half_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, block = draw_block.draw_program, next(iter(coins_blocks(tmp_path)))
    lost = coins_blocks(tmp_path)[-1].cell

    def limited(statistic: str, cell: Any, wide: int) -> Any:
        if cell == lost or (cell == block.cell and wide > block.width // 4):
            raise jax.errors.JaxRuntimeError(FULL)
        return draw(statistic, cell, wide)

    limited.evict = draw.evict  # type: ignore[attr-defined]
    monkeypatch.setattr(draw_block, "draw_program", limited)
    told = Told()
    cells = run_draws(coins, tmp_path / "coins", draws=100, callback=told)
    made = {name: there["width"] for (name, _, _), there in block_files.stored_blocks(tmp_path / "coins").items()}
    manifest = read_manifest(tmp_path / "coins")
    assert made == manifest["widths"] and made[block.cohort] == block.width // 4
    assert any(f"cell {block.cohort} (coin" in line and f"at {block.width // 4:,}" in line for line in told.said), told.said
    assert any("1 of these cells did not fit in memory. Free memory" in line for line in told.said), told.said
    (unfit,) = manifest["oom"]
    assert set(cells.cell_id[cells.draws == 0]) == {unfit} and unfit not in made
    monkeypatch.undo()
    assert (run_draws(coins, tmp_path / "coins", draws=100).draws == 100).all()


def coins_blocks(folder: Path) -> list[Any]:
    return sorted(prepare.prepare(coins.with_preset(draws=100), folder / "none").plan.tiles, key=lambda block: block.cohort)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (jax.errors.JaxRuntimeError(FULL + "\n a long table"), FULL),
        (MemoryError("std::bad_alloc"), "MemoryError: std::bad_alloc"),
        (MemoryError(), "MemoryError"),
        (jax.errors.JaxRuntimeError("INTERNAL: YNNPACK operation failed: error"), "INTERNAL: YNNPACK operation failed: error"),
        (jax.errors.JaxRuntimeError("INVALID_ARGUMENT: shapes"), ""),
        (jax.errors.JaxRuntimeError(DISPATCHING), DISPATCHING),
        (ValueError("out of memory"), ""),
    ],
)
def test_out_of_memory_errors_are_recognised(error: Exception, why: str) -> None:
    assert entry_errors.out_of_memory_reason(error) == why


def test_other_errors_propagate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(train_tile, "start_tile", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        runner.run(eight, tmp_path)


CAPPED = """
import resource, sys
from pathlib import Path
from relu_study import Experiment, RunSpec, Study, run
from relu_study.engine import plan
from relu_study.engine.plan import WidthLimits
from relu_study.runner.callback import Callback

class Told(Callback):
    def on_message(self, line):
        print(line, flush=True)

plan.WIDTH_LIMITS["cpu"] = WidthLimits(2, 32, 1 << 30)
base = RunSpec(epochs=0, width=4, rows=400)
study = Study("capped", "Capped", "Does it fit?", [Experiment("main", {"small": base})], seeds=32, metrics=("constant",))
run(study, callback=Told())
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (int(sys.argv[1]) << 20),) * 2)
arms = {"small": base, "large": base.replace(rows=1_000_000)}
large = Study("capped", "Capped", "Does it fit?", [Experiment("main", arms)], seeds=32, metrics=("constant",))
print(run(large, sys.argv[2], callback=Told()).runs.groupby("rows")["status"].value_counts().to_dict(), flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="caps the address space as Linux does")
def test_a_cap_on_the_address_space(tmp_path: Path) -> None:
    """A tile of 32 runs draws 640 MB of rows at a time; 450 MiB are left, of which the compiler takes its part."""
    command = [sys.executable, "-c", CAPPED, "450", str(tmp_path / "capped")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = r"does not fit in memory at width 32 \(.*Out of memory allocating \d+ bytes.*\): it continues at 16"
    assert re.search(found, done.stdout), done.stdout
    assert done.stdout.splitlines()[-1] == "{(400, 'ok'): 32, (1000000, 'ok'): 32}"
    made = {
        json.loads(str(tile_files.read_tile(path)["provenance"]))["width"] for path in tile_files.tile_paths(tmp_path / "capped")
    }
    assert made == set(read_manifest(tmp_path / "capped")["widths"].values()) and 32 in made and min(made) < 32


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, "cohort a: a tile of 2 runs has ended several workers and is not tried again in this run (exit code 1)"),
        (3, "cohort a: no worker finishes a tile of this cohort. Its 6 runs are not tried again in this run (exit code 1)"),
    ],
)
def test_given_up_tiles_have_one_line_and_one_entry(
    count: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    monkeypatch.setattr(manifest, "amend_manifest", lambda folder, columns, crashed: written.append(crashed))
    tiles = [SimpleNamespace(cohort="a", size=2, ids=[f"r{i}", f"s{i}"]) for i in range(count)]
    job = SimpleNamespace(
        widths={}, plan=SimpleNamespace(describe=lambda tile: f"cohort {tile.cohort}"), kind=SimpleNamespace(noun="runs")
    )
    policy = HalvingFallback(cast(Any, job), tmp_path, told := Told())
    policy.crash(cast(Any, tiles), "exit code 1")
    assert told.said == [text]
    assert written == [{name: "exit code 1" for tile in tiles for name in sorted(tile.ids)}]
