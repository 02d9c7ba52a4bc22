"""Ctrl-C: a sweep keeps its stored tiles and resumes to the same bytes, and TensorBoard ends quietly."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from relu_study.cli.commands import main
from relu_study.report.tensorboard.event_files import EVENT_FILE
from relu_study.storage import manifest, tile_files

# One program and many tiles: a length touches no program, and a tile has one length.
STUDY = """
from relu_study import Experiment, RunSpec, Study, grid

arms = grid(RunSpec(rows=8000, batch_size=32, width=16, initializer="he_normal"), epochs=range(14, 24))
study = Study("long", "A long study", "Does it go on?", [Experiment("main", arms)], seeds=2, metrics=("val_loss",))
"""
# A shell that starts its jobs in the background has them ignore the signal: a person's own does not.
DOOR = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from relu_study.cli.commands import main; main()"


def begin(words: list[str], place: Path) -> subprocess.Popen[str]:
    """Start a study on one device: its tiles run one after another on any machine."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "60", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    command = [sys.executable, "-c", DOOR, *words]
    return subprocess.Popen(command, cwd=place, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(running: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit status and the remaining output."""
    _, said = running.communicate(timeout=120)
    return running.returncode, said


def csvs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.csv")}


@pytest.mark.slow
def test_interrupted_study_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text(STUDY)
    status, said = finish(begin(["run", "long.py", "--out", "whole"], tmp_path))
    assert status == 0, said
    cut, running = tmp_path / "cut", begin(["run", "long.py", "--out", "cut"], tmp_path)
    assert running.stderr is not None
    first = running.stderr.readline()
    running.send_signal(signal.SIGINT)
    status, said = finish(running)

    assert first.startswith("2/20 runs") and status == 130 and "Traceback" not in said, first + said
    found = re.search(r"^interrupted: (\d+) finished runs are kept in cut; resume with: relu-study (.*)$", said, re.MULTILINE)
    assert found, said
    kept = {path: path.read_bytes() for path in tile_files.tile_paths(cut)}
    assert int(found[1]) == len(tile_files.stored_runs(cut)) == 2 * len(kept) and 0 < len(kept) < 10
    counts = manifest.read_manifest(cut)["counts"]
    assert counts == {"ok": 2 * len(kept), "nonfinite": 0, "interrupted": 20 - 2 * len(kept)}
    assert not csvs(cut) and not list(cut.rglob("*.tmp")), "nothing half done looks done"

    status, said = finish(begin(shlex.split(found[2]), tmp_path))
    assert status == 0 and said.startswith(f"{2 * len(kept) + 2}/20 runs"), said
    assert {path: path.read_bytes() for path in kept} == kept and len(tile_files.tile_paths(cut)) == 10
    assert csvs(cut) == csvs(tmp_path / "whole") and len(csvs(cut)) == 6


SAID = ["NOTE: fast loading\n", "TensorBoard 2.21.0 at http://127.0.0.1:7007/ (Press CTRL+C to quit)\n", "a later warning\n"]


class Started:
    """A stand-in for TensorBoard: prints its address, then receives Ctrl-C or ends with `status`."""

    status: int | None = None
    said: list[str] = SAID

    def __init__(self, commands: list[list[str]], command: list[str]) -> None:
        commands.append(command)
        self.ended = False

    @property
    def stderr(self) -> Iterator[str]:
        yield from self.said
        if self.status is None:
            raise KeyboardInterrupt

    def terminate(self) -> None:
        self.ended = True

    def wait(self) -> int | None:
        assert self.ended or self.status is not None, "nobody ended it"
        return self.status


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands started by `view` in a folder with a TensorBoard run."""
    commands: list[list[str]] = []
    (tmp_path / "sweep" / "tensorboard").mkdir(parents=True)
    said = {"format": manifest.FORMAT, "study": "sweep", "provenance": {}, "widths": {}, "declaration": {}}
    manifest.write_manifest(tmp_path / "sweep", said)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: Started(commands, command))
    return commands


def view(*words: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "argv", ["relu-study", "view", *words])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code


def test_view_starts_tensorboard_and_prints_its_address(opened: Any, monkeypatch: Any, capsys: Any) -> None:
    assert view("sweep", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr()
    assert said.out == "http://127.0.0.1:7007/\n" and said.err == SAID[2]  # a remark before it listens is dropped
    assert view("sweep", "--port", "7007", "--host", "0.0.0.0", monkeypatch=monkeypatch) == 0
    tensorboard = [sys.executable, "-m", "tensorboard.main", "--logdir", str(Path("sweep/tensorboard"))]
    assert opened == [
        [*tensorboard, "--host", "127.0.0.1", "--port", "6006"],
        [*tensorboard, "--host", "0.0.0.0", "--port", "7007"],
    ]


def test_view_explains_how_to_select_many_runs(opened: Any, monkeypatch: Any, capsys: Any) -> None:
    for i in range(41):
        assert view("sweep", monkeypatch=monkeypatch) == 0
        assert "Toggle All Runs" not in capsys.readouterr().err
        path = Path("sweep/tensorboard/run", "" if i == 0 else f"seed-{i:03}", EVENT_FILE)  # single seeds count too
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert view("sweep", monkeypatch=monkeypatch) == 0
    assert "these 41 runs" in (said := capsys.readouterr().err) and "Toggle All Runs" in said


def test_view_prints_no_unused_address(opened: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(Started, "status", 1)
    monkeypatch.setattr(Started, "said", ["TensorBoard could not bind to port 6006, it was already in use\n"])
    assert view("sweep", monkeypatch=monkeypatch) == 2
    said = capsys.readouterr()
    assert not said.out and "already in use" in said.err and "--port 0" in said.err


def test_view_explains_how_to_create_missing_files(opened: Any, monkeypatch: Any, capsys: Any) -> None:
    Path("sweep/tensorboard").rmdir()
    assert view("sweep", monkeypatch=monkeypatch) == 2 and not opened
    assert "relu-study report sweep" in capsys.readouterr().err
