"""Small studies, their derived files, and assertions that readers refuse them, for tests of corrupt folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_draw_study import study as coins
from small_study import study as small

from relu_study import compare, figure, load, table
from relu_study.engine.plan import Tile
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.report.report import report
from relu_study.runner import execute
from relu_study.runner import run as runner
from relu_study.runner.callback import Callback

STUDY = replace(small, figures=(), sections=(), seeds=2)

DRAWS = replace(coins.with_preset(draws=300), figures=())

ABOUT = {"command": "test", "preset": "default"}


class Heard(Callback):
    """A callback that records trained tiles or drawn blocks, and messages."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.said: list[str] = []

    def on_tile_end(self, tile: Any, *_: Any) -> None:
        self.made += [run.run_id for run in tile.runs] if isinstance(tile, Tile) else [tile.cohort]

    def on_message(self, line: str) -> None:
        self.said.append(line)


def train(folder: Path) -> Heard:
    runner.run(STUDY, folder, callback=(heard := Heard()))
    return heard


def draw(folder: Path) -> Heard:
    execute.execute(DRAWS, folder, MeasureConfig(), heard := Heard(), ABOUT)
    return heard


def derived(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (*folder.glob("*.csv"), *folder.glob("tables/*"), folder / "SHA256SUMS")}


def flipped(content: bytes) -> bytes:
    return content[:900] + bytes([content[900] ^ 4]) + content[901:]


def refuses(folder: Path, said: str, *uses: Callable[[Path], Any]) -> None:
    for use in uses or (
        report,
        load,
        lambda f: table(f, epoch=1),
        lambda f: compare(f, epoch=1),
        lambda f: figure(f, "survival"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            use(folder)
        assert str(caught.value).isprintable()
