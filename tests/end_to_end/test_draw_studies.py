"""Draw studies: a draw does not depend on its block, and blocks are resumed, extended, or refused by provenance."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from small_draw_study import study

from relu_study.components import random_streams
from relu_study.components.registry import statistics
from relu_study.engine import draw_block
from relu_study.engine.draw_plan import Block
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.report.report import report
from relu_study.runner import execute
from relu_study.runner.callback import Callback
from relu_study.runner.prepare import prepare
from relu_study.storage import block_files
from relu_study.study.claims import CellClaim
from relu_study.study.draw_study import BLOCK, Draws, blocks_of, cell_id, grid_cells
from relu_study.study.outputs import CellFigure, CellTable

FILES = (
    "cells.csv",
    "verdicts.csv",
    "report.md",
    "tables/main.csv",
    "tables/until.csv",
    "figures/board.png",
    "figures/lines.svg",
)
CELL = statistics["coin"].cell(p=0.1)


class Counted(Callback):
    """A callback that records the drawn blocks."""

    def __init__(self) -> None:
        self.drawn: list[Block] = []

    def on_tile_end(self, tile: Block, device: int, compiling: float, dead_fraction: float) -> None:
        assert device in range(2) and compiling >= 0 and np.isnan(dead_fraction)
        self.drawn.append(tile)


def draw(folder: Path, declared=study, preset: str = "default", draws: int | None = None) -> Counted:
    callback = Counted()
    execute.execute(declared.with_preset(preset, draws), folder, MeasureConfig(), callback, {"command": "test", "preset": preset})
    return callback


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "coins"
    draw(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def block(first: int, count: int, width: int, cell=CELL) -> Block:
    return Block(cell_id("coin", cell), width, "coin", tuple(sorted(cell.items())), first, count, 1e4)


def test_block_stores_the_sums_of_its_draws():
    name, entry = cell_id("coin", CELL), statistics["coin"]
    single = [jax.device_get(entry.draw(CELL, random_streams.draw_key(name, i))) for i in range(5, 45)]
    heads, height = np.array([s["heads"] for s in single]), np.array([s["height"] for s in single], float)
    sums = draw_block.draw_block(block(5, 40, 16))
    assert sums is not None
    np.testing.assert_array_equal(sums["sum:heads"], heads.sum(axis=0))
    np.testing.assert_array_equal(sums["n:heads"], [40] * 3)
    known = height[~np.isnan(height)]
    assert sums["n:height"] == len(known) == heads[:, 0].sum()
    np.testing.assert_allclose(sums["sum:height"], known.sum(), rtol=1e-5)
    np.testing.assert_allclose(sums["m2:height"], ((known - known.mean()) ** 2).sum(), rtol=1e-5)
    assert sums["bins:height"].sum() == len(known)


@pytest.mark.parametrize("width", [1, 64, 1024])
def test_batch_size_changes_no_share(width):
    one, other = draw_block.draw_block(block(3, 100, width)), draw_block.draw_block(block(3, 100, 16))
    assert one is not None and other is not None
    np.testing.assert_array_equal(one["sum:heads"], other["sum:heads"])


def test_every_device_draws_the_same():
    one, other = (draw_block.draw_block(block(0, 100, 16), device) for device in jax.devices()[:2])
    assert one is not None and other is not None
    assert all((one[name] == other[name]).all() for name in one)


def test_cells_have_separate_random_streams():
    other = statistics["coin"].cell(p=0.1, kind="painted")
    one, two = draw_block.draw_block(block(0, 2000, 1024)), draw_block.draw_block(block(0, 2000, 1024, other))
    assert one is not None and two is not None
    assert (one["sum:heads"] != two["sum:heads"]).any()


@pytest.mark.parametrize("draws, asked", [(1, [1]), (BLOCK, [BLOCK]), (BLOCK + 1, [BLOCK, 1]), (3 * BLOCK, [BLOCK] * 3)])
def test_blocks_cover_every_draw_once(draws, asked):
    found = blocks_of(draws)
    assert [count for _, count in found] == asked
    assert [i for first, count in found for i in range(first, first + count)] == list(range(draws))


def test_a_second_run_draws_nothing_and_changes_no_byte(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "coins")
    assert draw(tmp_path / "coins").drawn == []
    assert contents(tmp_path / "coins") == contents(finished)


def test_only_missing_blocks_are_drawn(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "coins")
    paths = block_files.block_paths(tmp_path / "coins")
    gone = block_files.read_block(paths[1])[0]
    paths[1].unlink()
    assert [(b.cohort, b.first, b.count) for b in draw(tmp_path / "coins").drawn] == [gone]
    assert contents(tmp_path / "coins") == contents(finished)


def test_more_draws_keep_full_blocks_and_fewer_draws_are_a_view(finished, tmp_path):
    folder = tmp_path / "coins"
    shutil.copytree(finished, folder)
    more = draw(folder, preset="full").drawn
    assert {(b.first, b.count) for b in more} == {(BLOCK, BLOCK), (2 * BLOCK, 40_000 - 2 * BLOCK), (0, 1400)}
    assert set(pd.read_csv(folder / "cells.csv").query("experiment == 'several'")["draws"]) == {40_000}
    assert draw(folder).drawn == []
    assert contents(folder) == contents(finished)


def test_new_cell_keeps_existing_bytes(finished, tmp_path):
    folder = Path(shutil.copytree(finished, tmp_path / "coins"))
    one, *others = study.experiments
    more = replace(study, experiments=[replace(one, cells={"new": {"p": 0.3}, **one.cells}), *others])
    drawn = draw(folder, more).drawn
    assert {b.cohort for b in drawn} == {cell_id("coin", statistics["coin"].cell(p=0.3))}
    assert sorted((b.first, b.count) for b in drawn) == blocks_of(one.draws)
    old, new = ((at / "cells.csv").read_text().splitlines() for at in (finished, folder))
    assert [row for row in new if ",new," not in row] == old and len(new) > len(old)
    assert all((folder / "raw" / path.name).read_bytes() == path.read_bytes() for path in block_files.block_paths(finished))
    assert draw(folder).drawn == [] and contents(folder) == contents(finished)


def test_report_is_rebuilt_without_study_and_blocks(finished, tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(finished, clone, ignore=shutil.ignore_patterns("raw", "figures", "tables", "report.*", "verdicts.csv"))
    assert any("no block" in line for line in report(clone))
    assert contents(clone) == contents(finished)


def test_changed_statistic_is_refused(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "coins")
    path = next((tmp_path / "coins" / "raw").glob("block-*"))
    place, made, sums = block_files.read_block(path)
    block_files.write_block(tmp_path / "coins", place, sums, {**made, "own": {"statistic coin": "other"}})
    with pytest.raises(UserError, match=r"statistic coin has changed.*cannot be combined"):
        prepare(study, tmp_path / "coins")
    made = {**made, "engine": 0}
    block_files.write_block(tmp_path / "coins", place, sums, made)
    with pytest.raises(UserError, match=rf"{path.name} has a different provenance .*engine: 0 there"):
        report(tmp_path / "coins")


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_corrupt_block_is_named(finished, tmp_path, content):
    shutil.copytree(finished, tmp_path / "coins")
    path = block_files.block_paths(tmp_path / "coins")[0]
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    with pytest.raises(UserError, match=f"{path.name} is not a readable block"):
        report(tmp_path / "coins")


def test_interrupted_draw_study_lists_missing_draws(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "coins")
    for path in block_files.block_paths(tmp_path / "coins")[:-1]:
        path.unlink()
    said = report(tmp_path / "coins")
    assert any("cells lack draws" in line for line in said), said
    cells = pd.read_csv(tmp_path / "coins" / "cells.csv")
    assert cells.loc[cells["draws"] == 0, "estimate"].isna().all()
    assert (cells["draws"] == 0).any() and (cells["draws"] > 0).any()


def test_manifest_declares_all_inputs_of_a_report(finished):
    declaration = json.loads((finished / "manifest.json").read_text())["declaration"]
    assert {c["label"] for c in declaration["cells"]} >= {"p=0.1, kind=plain", "p=0.5"}
    assert declaration["factors"] == ["p", "kind", "throw"]
    assert declaration["cells"][0]["theory"]["heads"] == {"value": [0.1] * 3, "error": 0.0, "lower": None, "upper": 1.0}


def test_cells_are_labelled_by_six_digits():
    assert list(grid_cells(p=(3**0.5, 1.0), kind=("plain",), n=5)) == ["p=1.73205, kind=plain", "p=1, kind=plain"]
    assert grid_cells(p=(3**0.5, 1.0), n=5)["p=1.73205"] == {"n": 5, "p": 3**0.5}
    assert list(grid_cells(p=0.5)) == ["all"]


WRONG = [
    (lambda: grid_cells(p=(0.1, 0.1 + 1e-9)), "two cells are called 'p=0.1'"),
    (lambda: Draws("e", "coin", {}, 5), "has no cells"),
    (lambda: Draws("e", "coin", grid_cells(p=0.5), 0), "draws must be a whole number of at least 1"),
    (lambda: CellFigure("f", "", "mop", (), "throw"), "unknown kind of figure f 'mop'. Did you mean map"),
    (lambda: CellFigure("f", "", "map", (), "throw"), "needs a factor as rows"),
    (
        lambda: CellClaim("C", "", "several", "all", "heads", 0.1, "lesser", 0),
        "unknown direction of claim C 'lesser'. Did you mean less",
    ),
    (lambda: CellClaim("C", "", "several", "all", "heads", 0.1, "equivalent", 0), "an equivalence needs a margin above 0"),
    (lambda: replace(study, experiments=[]), "declares no experiments"),
    (lambda: replace(study, experiments=[*study.experiments, study.experiments[0]]), "'several' is declared twice"),
    (lambda: replace(study, presets={"full": {"draws": 5}}), "unknown setting of preset full 'draws'"),
    (lambda: study.with_preset("fill"), "unknown preset 'fill'. Did you mean full"),
    (lambda: declared(Draws("several", "cain", grid_cells(p=0.5), 5)), "unknown statistic 'cain'. Did you mean"),
    (lambda: declared(Draws("several", "coin", grid_cells(q=0.5), 5)), "cell 'all' of several: unknown factor 'q'"),
    (lambda: declared(Draws("several", "coin", grid_cells(p="fair"), 5)), "factor p is 'fair'. Give a number."),
    (lambda: declared(Draws("several", "coin", grid_cells(p=1.5), 5)), r"p must lie in \[0, 1\], not 1.5"),
    (
        lambda: declared(tables=[CellTable("t", "", ("several",), {"p": "q05x"})]),
        "unknown column of table t 'q05x'. Did you mean q05",
    ),
    (lambda: declared(tables=[CellTable("t", "", ("several",), {"p": "p"}, ("thro=1",))]), "Did you mean throw"),
    (
        lambda: declared(tables=[CellTable("t", "", ("sever",), {"p": "p"})]),
        "unknown experiment in t 'sever'. Did you mean several",
    ),
    (
        lambda: declared(claims=[replace(study.claims[0], cell="p=0.4")]),
        "unknown cell of several in claim K1 'p=0.4'. Choose one of p=0.1",
    ),
    (lambda: declared(claims=[replace(study.claims[0], number="head")]), "unknown number in claim K1 'head'. Did you mean heads"),
    (lambda: declared(claims=[replace(study.claims[0], at=4)]), "heads has throw in 1, 2, 3"),
    (lambda: declared(claims=[replace(study.claims[0], at=None)]), "heads has throw in 1, 2, 3"),
]


def declared(*experiments: Draws, **changes) -> None:
    if experiments:
        changes |= {"claims": (), "tables": (), "figures": (), "experiments": list(experiments)}
    prepare(replace(study, **changes), None)


@pytest.mark.parametrize("make, said", WRONG, ids=[said[:40] for _, said in WRONG])
def test_invalid_draws_are_refused_by_name(make, said):
    with pytest.raises(UserError, match=said):
        make()
