"""Shards of a study: each run belongs to one shard, in any order, and the result equals that of one process."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import kill_harness
import pytest
import small_draw_study
from hypothesis import given
from hypothesis import strategies as st
from small_study import study
from tiers import tiered

from relu_study.cli import commands
from relu_study.engine import compile_time
from relu_study.engine.plan import COMPILING, shard_tiles
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.report.report import report
from relu_study.runner import execute, machine
from relu_study.runner import prepare as preparation
from relu_study.runner import run as runner
from relu_study.runner.callback import Callback
from relu_study.runner.prepare import prepare
from relu_study.runner.run import run_draws
from relu_study.storage import locks, tile_files
from relu_study.storage.manifest import amend_manifest, read_manifest
from relu_study.storage.resume import FolderState
from relu_study.study.shard import Shard, shard_of


class Said(Callback):
    """A callback that records tiles and messages."""

    def __init__(self) -> None:
        self.made: list[Any] = []
        self.said: list[str] = []

    def on_tile_end(self, tile: Any, *_: Any) -> None:
        self.made.append(tile)

    def on_message(self, line: str) -> None:
        self.said.append(line)


# ------------------------------------------------------------------------------------- the cut


@given(st.lists(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), min_size=1, max_size=20), st.integers(1, 30))
def test_shards_are_complete_even_and_share_few_programs(cohorts: list[list[float]], of: int) -> None:
    work = [((c, i), f"cohort {c}", cost) for c, costs in enumerate(cohorts) for i, cost in enumerate(costs)]
    parts = [shard_tiles(work, Shard(number, of)) for number in range(1, of + 1)]
    assert list(itertools.chain(*parts)) == [tile for tile, _, _ in work], "each tile in one of them, in order"
    compiled = sum(len({cohort for cohort, _ in tiles}) for tiles in parts)
    assert compiled <= len(cohorts) + of - 1
    cost = {(c, i): seconds + (0 if i else COMPILING) for c, costs in enumerate(cohorts) for i, seconds in enumerate(costs)}
    even, largest = sum(cost.values()) / of, max(cost.values())
    assert all(abs(sum(cost[tile] for tile in tiles) - even) <= largest * (1 + 1e-9) for tiles in parts)


@pytest.mark.parametrize("of", tiered([2, 5], 5))
def test_every_run_is_in_one_shard_for_any_stored_runs(of: int, monkeypatch: pytest.MonkeyPatch) -> None:
    large = study.with_preset("full", seeds=20)
    widths, wanted = prepare(large, None, MeasureConfig()).widths, {run.run_id for run in large.runs()}

    def shards(stored: set[str]) -> list[set[str]]:
        before = FolderState({run: {} for run in stored}, widths if stored else {})
        monkeypatch.setattr(preparation, "read_folder_state", lambda *_: before)
        jobs = [prepare(large, None, MeasureConfig(), shard=Shard(number, of)) for number in range(1, of + 1)]
        assert all(j.widths == widths for j in jobs), "widths follow from the whole study"
        found = [{run.run_id for tile in j.plan.tiles for run in tile.runs} for j in jobs]
        assert all(j.stored + len(runs) == len(whole) for j, runs, whole in zip(jobs, found, cut or found))
        return found

    cut: list[set[str]] = []
    cut = shards(set())
    assert Counter(itertools.chain(*cut)) == Counter(wanted)
    some = set(sorted(wanted)[::3])
    assert shards(some) == [runs - some for runs in cut]


@pytest.mark.parametrize("of", [1, 2, 3, 20])
def test_every_block_is_in_one_shard(of: int) -> None:
    whole = prepare(small_draw_study.study, None)
    found = [prepare(small_draw_study.study, None, shard=Shard(number, of)) for number in range(1, of + 1)]
    blocks = [(b.cohort, b.first, b.count) for j in found for b in j.plan.tiles]
    assert sorted(blocks) == sorted((b.cohort, b.first, b.count) for b in whole.plan.tiles) and len(set(blocks)) == len(blocks)
    assert all(j.widths == whole.widths for j in found)


# --------------------------------------------------------------------------------- what comes of it


def carried_out(declared: Any, folder: Path, shard: Shard | None = None) -> Said:
    callback, about = Said(), {"command": f"test {shard}", "preset": "default"}
    execute.execute(declared, folder, MeasureConfig(), callback, about, shard=shard)
    return callback


STUDIES = {"trained": study, "drawn": small_draw_study.study.with_preset(draws=700)}


@pytest.fixture(scope="module", params=STUDIES)
def sharded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path, list[Said]]]:
    """A study whose three shards ran one after the other, the last one first, in 1,000 s."""
    folder, declared = tmp_path_factory.mktemp(request.param), STUDIES[request.param]
    said = [carried_out(declared, folder, Shard(3, 3))]
    amend_manifest(folder, {"wall_s": 1000.0})
    said += [carried_out(declared, folder, Shard(number, 3)) for number in (1, 2)]
    yield declared, folder, said


def test_shards_and_a_report_equal_one_process(sharded: Any, tmp_path: Path) -> None:
    declared, folder, said = sharded
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "raw"}, "a shard does not report"
    before = list(filter(None, [prepare(declared, None).undecidable_rows]))
    assert [callback.said[:-1] for callback in said] == [before, before, before]
    numbers = [callback.said[-1].partition(" ")[2].split(", ")[0] for callback in said]
    assert numbers == ["3/3 is done", "1/3 is done", "2/3 is done"]
    last = said[-1].said[-1].split(" holds ")[1].split(" of ")
    assert last[0] == last[1], "with the last one everything is there"
    manifest = read_manifest(folder)
    assert manifest["command"] == "test 2/3" and manifest["timing"]["wall_s"] >= 1000
    assert declared is not study or manifest["counts"] == {"ok": 9, "nonfinite": 0, "interrupted": 0}

    again = shutil.copytree(folder, tmp_path / "shards")
    assert carried_out(declared, again).made == []
    carried_out(declared, tmp_path / "whole")
    assert kill_harness.told(again) == kill_harness.told(tmp_path / "whole")
    raw = {path.name for path in (folder / "raw").iterdir()}
    assert {path.name for path in (again / "raw").iterdir()} == raw and kill_harness.once(again)


def test_repeated_shard_trains_nothing(sharded: Any) -> None:
    declared, folder, said = sharded
    before = kill_harness.held(folder).tiles
    assert carried_out(declared, folder, Shard(2, 3)).made == [] == carried_out(declared, folder, Shard(1, 2)).made
    assert kill_harness.held(folder).tiles == before and sum(len(callback.made) for callback in said) == len(before)


@pytest.fixture
def beside(sharded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Path]:
    """The first two tiles or blocks of a study that another process writes as shard 2/3."""
    declared, folder, _ = sharded
    folder = Path(shutil.copytree(folder, tmp_path / "beside"))
    other = locks.Writer(1, "node7", "noon", Shard(2, 3))
    monkeypatch.setattr(locks, "other_writers", lambda folder, shard: [other])
    return declared, folder


def test_shard_of_another_count_is_refused(beside: Any) -> None:
    declared, folder = beside
    before = (folder / "manifest.json").read_bytes()
    more = replace(declared, seeds=4) if declared is study else declared.with_preset(draws=600)
    with pytest.raises(UserError, match=r"by shard 2/3, process 1 on host node7 since noon with a different declaration_hash"):
        carried_out(more, folder, Shard(1, 3))
    assert (folder / "manifest.json").read_bytes() == before


def test_shard_of_another_provenance_is_refused_before_storing(beside: Any, monkeypatch: Any) -> None:
    declared, folder = beside
    shutil.rmtree(folder / "raw")
    made = machine.local_host()
    monkeypatch.setattr(machine, "local_host", lambda: {**made, "engine": 0})
    with pytest.raises(UserError, match="with a different provenance"):
        carried_out(declared, folder, Shard(1, 3))


class Unlike:
    """A processor with another arithmetic."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        patched.setattr(machine, "digest", lambda: "0" * 12)
        patched.setattr(machine, "processor", lambda: {"processor": "Other CPU", "instructions": "avx", "xla_flags": ""})


NAMED = r"\(digest: [0-9a-f]{12} there, 0{12} here \(the arithmetic differs: another processor, instruction set or XLA flag\)"
PROCESSORS = r"; processor: .+ there, Other CPU with avx here\)"


def tree(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".gate" not in path.name}


@pytest.mark.parametrize("sharded", ["trained"], indirect=True)
def test_shard_on_an_unlike_processor_is_refused(sharded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other shards have ended: their tiles are stored."""
    declared, folder = sharded[0], Path(shutil.copytree(sharded[1], tmp_path / "ended"))
    before = tree(folder)
    Unlike(monkeypatch)
    with pytest.raises(UserError, match=f"has a different provenance {NAMED}.* cannot be combined"):
        carried_out(declared, folder, Shard(1, 3))
    assert tree(folder) == before


def test_shard_on_an_unlike_processor_is_refused_while_others_run(beside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other shard runs, and no tile is stored yet."""
    declared, folder = beside
    shutil.rmtree(folder / "raw")
    before = (folder / "manifest.json").read_bytes()
    Unlike(monkeypatch)
    match = f"by shard 2/3, .* with a different provenance {NAMED}{PROCESSORS}. Wait .*same kind of processor"
    with pytest.raises(UserError, match=match):
        carried_out(declared, folder, Shard(1, 3))
    assert (folder / "manifest.json").read_bytes() == before and not tile_files.tile_paths(folder)


def test_shard_that_ends_during_the_start_of_an_unlike_one(sharded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other shard stores its tiles and ends after this one has read the empty folder, before it writes the manifest."""
    declared, source, _ = sharded
    folder, found = tmp_path / "meanwhile", tree(source)

    def slow(*args: Any) -> Any:
        for path, content in found.items():
            (folder / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(source)).write_bytes(content)
        return begin(*args)

    begin = execute.begin
    monkeypatch.setattr(execute, "begin", slow)
    with monkeypatch.context() as patched:
        Unlike(patched)
        with pytest.raises(UserError, match=f"shard that ended meanwhile, .*provenance {NAMED}{PROCESSORS}. Start all shards on"):
            carried_out(declared, folder, Shard(1, 3))
    kept = {path.relative_to(folder): content for path, content in tree(folder).items()}
    assert kept == {path.relative_to(source): content for path, content in found.items()}
    carried_out(declared, folder, Shard(1, 3))  # on the same processor it goes on
    assert read_manifest(folder)["timing"]["wall_s"] >= 1000


def test_concurrent_shards_leave_a_correct_manifest(beside: Any, monkeypatch: Any) -> None:
    declared, folder = beside
    monkeypatch.setattr(compile_time.Stopwatch, "spent", lambda clock: {"wall_s": 0.5, "compile_s": 0.0})
    manifest = read_manifest(folder)
    carried_out(declared, folder, Shard(1, 3))
    amend_manifest(folder, {"wall_s": 1000.0, "compile_s": 0.0})
    carried_out(declared, folder, Shard(3, 3))
    after = read_manifest(folder)
    assert after["timing"]["wall_s"] == pytest.approx(0.5 + 1000 + 0.5 + manifest["timing"]["wall_s"])
    kept = ("command", "timing")
    assert {k: v for k, v in after.items() if k not in kept} == {k: v for k, v in manifest.items() if k not in kept}


@pytest.mark.parametrize("sharded", ["trained"], indirect=True)
def test_stored_cost_is_equal_in_every_shard(sharded: Any, tmp_path: Path) -> None:
    """A plan estimates the remaining time from stored costs and the manifest's timing."""
    folder = Path(shutil.copytree(sharded[1], tmp_path / "some"))
    tile_files.tile_paths(folder)[0].unlink()
    paid = [
        sum(c.stored_cost for c in prepare(study, folder, MeasureConfig(), shard=of).plan.cohorts)
        for of in (None, *map(Shard, (1, 2, 3), 3 * [3]))
    ]
    whole = sum(c.stored_cost for c in prepare(study, sharded[1], MeasureConfig()).plan.cohorts)
    assert 0 < paid[0] < whole and paid == 4 * paid[:1]


def test_report_waits_for_the_shards(sharded: Any) -> None:
    declared, folder, _ = sharded
    with locks.writer_lock(folder, Shard(2, 3)):
        with pytest.raises(UserError, match="Wait until all 3 shards are done"):
            report(folder)
        with pytest.raises(UserError, match="Wait until all 3 shards are done"):
            carried_out(declared, folder)
        with pytest.raises(UserError, match="shard 2/3, process"):
            carried_out(declared, folder, Shard(2, 3))


def test_invalid_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Give it with out="):
        runner.run(study, None, shard=(1, 2))
    with pytest.raises(UserError, match=r"3/2 is no shard. Give I/N with whole numbers 1 <= I <= N"):
        run_draws(small_draw_study.study, tmp_path / "out", shard=(3, 2))
    for wrong in ((0, 2), (True, 2), (1.0, 2), ("1", "2")):
        with pytest.raises(UserError, match="1 <= I <= N"):
            shard_of(*wrong)
    with pytest.raises(UserError, match="Use one of them"):
        commands.run("small", only="abc", shard="1/2")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------ many at once


@pytest.mark.slow
@pytest.mark.parametrize("name", ["short", "coins"])
def test_concurrent_shards_survive_a_killed_one(name: str, tmp_path: Path) -> None:
    text = kill_harness.STUDY if name == "short" else Path(small_draw_study.__file__).read_text()
    (tmp_path / f"{name}.py").write_text(text)
    words, folder = ["run", f"{name}.py", "--out", str(tmp_path / "shards")], tmp_path / "shards"
    children = [kill_harness.born([*words, "--shard", f"{number}/3"], tmp_path) for number in (1, 2, 3)]
    kill_harness.until(folder, "raw/*.npz")
    children[1].kill()
    assert [kill_harness.ended(child) for child in children] in ([0, -9, 0], [0, 0, 0])
    assert kill_harness.ended(kill_harness.born([*words, "--shard", "2/3"], tmp_path)) == 0
    before = kill_harness.held(folder)
    assert kill_harness.ended(kill_harness.born(words, tmp_path)) == 0
    assert kill_harness.held(folder).tiles == before.tiles and kill_harness.once(folder)
    assert kill_harness.ended(kill_harness.born([*words[:-1], str(tmp_path / "whole")], tmp_path)) == 0
    assert kill_harness.told(folder) == kill_harness.told(tmp_path / "whole") and not list(folder.rglob("*.tmp"))
