"""Kills at any moment: a restarted study gives the same bytes, and a signal prints the command to resume with."""

from __future__ import annotations

import itertools
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from kill_harness import LITTLE, PHASES, STUDY, WHEN, WHERE, Blow, Moment, born, ended, held, lives, once, reached, told, until
from paths import ROOT

from relu_study.storage import tile_files

HERE = ROOT / "tests" / "support"


class Whole(NamedTuple):
    """A study run without interruption: its folder, arguments and number of tiles."""

    place: Path
    words: list[str]
    tiles: int

    def again(self, place: Path) -> tuple[Path, list[str]]:
        """Return a fresh folder and arguments for the same study."""
        shutil.copy(self.place / self.words[1], place)
        return place / "cut", [*self.words[:-1], str(place / "cut")]


def carried_out(place: Path, name: str, text: str) -> Whole:
    (place / name).write_text(text)
    words = ["run", name, "--out", str(place / "whole")]
    assert ended(born(words, place, keeps_programs=True)) == 0, (place / "said.txt").read_text()
    return Whole(place, words, len(held(place / "whole").tiles))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return carried_out(tmp_path_factory.mktemp("trained"), "short.py", LITTLE)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The same with every metric and histograms."""
    return carried_out(tmp_path_factory.mktemp("measured"), "short.py", STUDY)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return carried_out(tmp_path_factory.mktemp("drawn"), "coins.py", (HERE / "small_draw_study.py").read_text())


def check(folder: Path, whole: Whole) -> None:
    assert told(folder) == told(whole.place / "whole")
    assert once(folder) and not held(folder).unfinished and not list(folder.rglob("*.tmp"))
    assert {path.suffix for path in (folder / "raw").iterdir()} == {".npz"}


def killed(whole: Whole, place: Path, kills: int, keeps_programs: bool = False) -> Counter[str]:
    """Kill the study this many times, equally often in each phase, in a new folder after each completion."""
    (place / "warm").mkdir()
    folder, words = whole.again(place / "warm")
    child, before = born(words, place / "warm", keeps_programs), held(folder)
    began = {now: time.monotonic() for now in reached(child, folder, before, whole.tiles)}
    assert ended(child) == 0 and list(began) == list(PHASES)
    chance, phases = random.Random(kills), Counter[str]()
    lengths = {now: began[then] - began[now] for now, then in itertools.pairwise(PHASES)}
    moments = [Moment(now, chance.uniform(0, lengths[now])) for now in itertools.islice(itertools.cycle(lengths), kills)]
    chance.shuffle(moments)

    def ends() -> Iterator[Moment | float]:
        while moments:
            yield (moment := moments.pop())
            if moment.phase == "reporting":  # all runs are trained: a later kill hits the last phase
                break
        yield 3600.0

    for n in itertools.count():
        (at := place / str(n)).mkdir()
        folder, words = whole.again(at)
        for death in lives(words, folder, ends(), whole.tiles, keeps_programs):
            phases[death.phase if death.status else "ended"] += 1
        check(folder, whole)
        if not moments:
            return phases


# ------------------------------------------------------------------------------------ SIGKILL


def test_study_killed_three_times_ends_with_the_same_bytes(trained: Whole, tmp_path: Path) -> None:
    folder, words = trained.again(tmp_path)
    somewhere = Moment("compiling", random.Random(0).uniform(0, 0.1))
    blows = [Blow(*WHERE["later tile"], "half written"), somewhere, Blow(*WHERE["page"], "written"), 3600.0]
    first, _, third, last = lives(words, folder, iter(blows), trained.tiles)
    assert (first.phase, third.phase, last.phase) == ("training", "reporting", "closing")
    assert [len(death.unfinished) for death in (first, third, last)] == [1, 1, 0] and ".report.md." in third.unfinished[0]
    check(folder, trained)


def test_draw_study_killed_twice_ends_with_the_same_bytes(drawn: Whole, tmp_path: Path) -> None:
    folder, words = drawn.again(tmp_path)
    blows = [Blow(*WHERE["later tile"], "written"), Blow(*WHERE["numbers"], "half written"), 3600.0]
    deaths = list(lives(words, folder, iter(blows), drawn.tiles))
    assert [death.phase for death in deaths] == ["training", "reporting", "closing"]
    assert [len(death.unfinished) for death in deaths] == [1, 1, 0]
    check(folder, drawn)


@pytest.mark.slow
@pytest.mark.parametrize(("study", "kills"), [("measured", 35), ("drawn", 15)])
def test_kill_at_any_time_loses_no_stored_run(study: str, kills: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    whole = request.getfixturevalue(study)
    phases = killed(whole, tmp_path, kills, keeps_programs=True)
    print(f"{study}: killed {kills} times: {dict(phases)}")
    assert all(phases[phase] for phase in PHASES[:-1]), phases


@pytest.mark.slow
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("study", ["measured", "drawn"])
def test_kill_at_any_write_loses_no_stored_run(
    study: str, where: str, when: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    whole = request.getfixturevalue(study)
    if study == "drawn" and where == "TensorBoard":
        pytest.skip("a draw study has none")
    folder, words = whole.again(tmp_path)
    first, *_, last = lives(words, folder, iter([Blow(*WHERE[where], when), 3600.0]), whole.tiles)
    assert first.status == -signal.SIGKILL and last.status == 0
    assert bool(first.unfinished) == (when != "renamed")
    check(folder, whole)


# --------------------------------------------------------------------------- SIGTERM and Ctrl-C


@pytest.mark.parametrize(
    ("study", "number", "seen"),
    [
        ("trained", signal.SIGTERM, "manifest.json"),
        pytest.param("drawn", signal.SIGTERM, "raw/block-*", marks=pytest.mark.slow),
        pytest.param("trained", signal.SIGTERM, "raw/tile-*", marks=pytest.mark.slow),
        pytest.param("trained", signal.SIGINT, "manifest.json", marks=pytest.mark.slow),
        pytest.param("trained", signal.SIGTERM, "summary.csv", marks=pytest.mark.slow),
        pytest.param("drawn", signal.SIGINT, "manifest.json", marks=pytest.mark.slow),
    ],
)
def test_first_signal_stops_with_a_summary_and_next_step(
    study: str, number: signal.Signals, seen: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    whole = request.getfixturevalue(study)
    folder, words = whole.again(tmp_path)
    child = born(words, tmp_path)
    until(folder, seen)
    assert child.pid is not None
    os.kill(child.pid, number)
    status, said = ended(child), (tmp_path / "said.txt").read_text()
    assert status == 128 + number and "Traceback" not in said, said
    found = re.search(r"^interrupted: ([\d,]+) (finished runs|draws) are kept in \S+; resume with: relu-study (.*)$", said, re.M)
    assert found, said
    kept = held(folder)
    stored = (
        sum(int(name.split("-")[3].partition(".")[0]) for name in kept.tiles)
        if study == "drawn"
        else len(tile_files.stored_runs(folder))
    )
    assert int(found[1].replace(",", "")) == stored and not kept.unfinished
    assert ended(born(shlex.split(found[3]), tmp_path)) == 0
    assert kept.tiles.items() <= held(folder).tiles.items()
    check(folder, whole)


@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_second_signal_stops_at_once(numbers: tuple[signal.Signals, signal.Signals]) -> None:
    code = """
import signal, time
from relu_study.cli.signals import handle_signals
signal.signal(signal.SIGINT, signal.default_int_handler)
with handle_signals():
    try:
        print("on", flush=True)
        time.sleep(60)
    except KeyboardInterrupt as stop:
        print(stop.status, flush=True)
        time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for number, line in zip(numbers, ("on", "143"), strict=True):
        assert child.stdout.readline().strip() == line
        child.send_signal(number)
    assert child.wait(30) == 128 + numbers[1]
    child.stdout.close()


def test_ignored_signals_stay_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    from relu_study.cli.signals import StopSignal, handle_signals

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(StopSignal) as stop, handle_signals():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        assert stop.value.status == 143 and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
