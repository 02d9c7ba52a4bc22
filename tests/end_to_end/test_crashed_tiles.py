"""A study whose tiles crash: the report has all other runs, the exit status is 3, and the next run tries them again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pandas as pd
import pytest
from fake_places import FakePlace, FakePlaces
from paths import ROOT

from relu_study.cli import commands
from relu_study.components.registry import statistics
from relu_study.engine import scheduler
from relu_study.engine.places import PlaceLost
from relu_study.storage import tile_files
from relu_study.storage.manifest import read_manifest

SUPPORT = ROOT / "tests" / "support"
SMALL, COINS = str(SUPPORT / "small_study.py"), str(SUPPORT / "small_draw_study.py")
WHY = "its process was killed by signal 9"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def crash(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], bool]], None]:
    """Trains at places of workers that end with each tile that meets a condition. A new worker follows each of them."""

    def lose(meets: Callable[[Any], bool]) -> None:
        def finished(work: Any, fallback: Any, _: Any) -> Iterator[Any]:
            numbers = itertools.count()

            def compute(tile: Any, place: FakePlace) -> Any:
                if meets(tile):
                    place.lost.set()
                    raise PlaceLost(WHY)
                return work.collect(work.start(tile, jax.devices()[0], lambda: True))

            def replace(_: str) -> list[FakePlace]:
                return [FakePlace(next(numbers), compute, slots=1)]

            return whole(work, fallback, FakePlaces(replace(""), replace=replace))

        monkeypatch.setattr(scheduler, "finished", finished)

    whole = scheduler.finished
    return lose


def test_crashed_tile_of_a_training_study(
    here: Run, crash: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ("run", SMALL, "--out", "out")
    with monkeypatch.context() as patched:
        patched.setattr(scheduler, "finished", scheduler.finished)
        crash(lambda tile: tile.runs[0].activation == "tanh")
        status, out, err = here(*words)
    assert status == commands.CRASHED == 3
    assert "small: 9 runs (6 ok, 3 crashed), " in out and "report: out/report.md" in out
    assert err.splitlines()[-1] == f"relu-study: 3 runs crashed ({WHY}). Run the same command to try them again."
    manifest, runs = read_manifest(tmp_path / "out"), pd.read_csv("out/runs.csv")
    assert manifest["counts"] == {"ok": 6, "nonfinite": 0, "crashed": 3, "interrupted": 0}
    assert sorted(manifest["crashed"]) == sorted(runs["run_id"][runs["status"] == "crashed"])
    assert set(runs["activation"][runs["status"] == "crashed"]) == {"tanh"} and set(runs["reason"].dropna()) == {WHY}
    assert "3 runs crashed." in Path("out/report.md").read_text()
    kept = {path: path.read_bytes() for path in tile_files.tile_paths(tmp_path / "out")}

    assert here("report", "out")[0] == 0, "only the command that trains has this status"
    status, out, err = here(*words)
    assert status == 0 and "9 runs (9 ok)" in out and "crashed (" not in err
    assert "crashed" not in read_manifest(tmp_path / "out") and "reason" not in pd.read_csv("out/runs.csv")
    assert {path: path.read_bytes() for path in kept} == kept, "stored runs are not trained again"
    assert here("run", SMALL, "--out", "whole")[0] == 0
    for name in ("runs", "summary", "units", "survival", "verdicts", "health"):
        assert Path(f"out/{name}.csv").read_bytes() == Path(f"whole/{name}.csv").read_bytes(), name


@pytest.fixture
def own_statistics() -> Iterator[None]:
    """Removes the statistic of the draw study, which another test may have imported from another module."""
    kept = dict(statistics._entries)
    statistics._entries.pop("coin", None)
    yield
    statistics._entries.clear()
    statistics._entries.update(kept)


@pytest.mark.usefixtures("own_statistics")
def test_crashed_block_of_a_draw_study(here: Run, crash: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("run", COINS, "--max-draws", "40", "--out", "out")
    with monkeypatch.context() as patched:
        patched.setattr(scheduler, "finished", scheduler.finished)
        crash(lambda block: dict(block.cell) == {"p": 0.5, "kind": "painted"})
        status, out, err = here(*words)
    assert status == 3, err
    assert "160 draws in 4 cells (1 crashed), " in out
    assert err.splitlines()[-1] == f"relu-study: 1 cell crashed ({WHY}). Run the same command to try them again."
    cells = pd.read_csv("out/cells.csv")
    assert (cells["draws"][(cells["p"] == 0.5) & (cells["kind"] == "painted")] == 0).all() and (cells["draws"] == 40).any()
    assert "## Crashed cells" in Path("out/report.md").read_text()
    status, out, _ = here(*words)
    assert status == 0 and "(1 crashed)" not in out and "Crashed cells" not in Path("out/report.md").read_text()
    assert (pd.read_csv("out/cells.csv")["draws"] == 40).all()
