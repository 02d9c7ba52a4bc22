"""The command in child processes that are killed at any moment or at chosen file writes, and checks of their folders."""

from __future__ import annotations

import fnmatch
import multiprocessing
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

import jax
from tiers import QUICK

from relu_study.cli import commands
from relu_study.report.tensorboard.event_files import RecordWriter
from relu_study.storage import block_files, locks, tile_files
from relu_study.storage.manifest import read_manifest

warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
CHILDREN = multiprocessing.get_context("forkserver")
# Children are forked from a server with the slow imports already done, so a child takes one second instead of five.
# The server silently skips modules that it cannot import. It cannot import test modules, so the list has none.
CHILDREN.set_forkserver_preload(
    ["relu_study.cli.commands", "relu_study.report.report", "relu_study.runner.run", "relu_study.report.tensorboard.event_files"]
)

STUDY = """
from relu_study import Claim, Experiment, Figure, RunSpec, Study, Table, grid

base = RunSpec(rows=3000, batch_size=32, width=8, initializer="he_normal")
arms = grid(base, activation=("relu", "tanh"), epochs=(2, 3, 4))
one, other, *_ = arms
study = Study(
    "short", "A short study", "Does it go on?", [Experiment("main", arms)], seeds=2,
    claims=[Claim("C", "They differ", "val_loss", other, one, "less", margin=0.1)],
    tables=[Table("main", "Loss.", ("main",), ("val_loss",))],
    figures=[Figure("main", "Loss.", "curves", ("main",), metrics=("val_loss",))],
)
"""
LITTLE = STUDY.replace("seeds=2,", 'seeds=2, metrics=("val_loss",),')  # the same number of files in half the time
WHERE = {  # the writes of a child, in order: the pattern of the file, and the number of the write
    "manifest": ("manifest.json", 1),
    "tile": ("raw/*-*.npz", 1),
    "later tile": ("raw/*-*.npz", 3),
    "last manifest": ("manifest.json", 2),
    "TensorBoard": ("tensorboard/*/events*", 2),
    "numbers": ("*s.csv", 1),
    "verdicts": ("verdicts.csv", 1),
    "table": ("tables/*.md", 1),
    "figure": ("figures/*.png", 1),
    "page": ("report.md", 1),
}
WHEN = ("half written", "written", "renamed")


class Blow(NamedTuple):
    """A point at which a child is killed: during the nth write of a file, before its rename, or after it."""

    file: str
    nth: int
    when: str


def struck(folder: Path, blow: Blow) -> None:
    """Patch this process so that it kills itself with SIGKILL at the given point."""
    times, replace, write, record = [0], os.replace, Path.write_bytes, RecordWriter.write

    def falls(path: Path | str, when: str) -> bool:
        # A temporary file's name begins with the name of its final file, except for event files.
        name = re.sub(r"\.(.+?\.\w+)\.\S+\.tmp", r"\1", Path(path).name).replace(".half-written", "events")
        aimed = when == blow.when and fnmatch.fnmatch(str((Path(path).parent / name).relative_to(folder)), blow.file)
        times[0] += aimed
        return aimed and times[0] == blow.nth

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def writes(path: Path, content: bytes) -> int:
        if falls(path, "half written"):
            write(path, content[: len(content) // 2])
            die()
        return write(path, content)

    def replaces(source: Path | str, target: Path | str) -> None:
        if falls(target, "written"):
            die()
        replace(source, target)
        if falls(target, "renamed"):
            die()

    def records(self: RecordWriter, event: bytes) -> None:
        record(self, event)
        if falls(self.path, "half written"):
            die()

    os.replace, Path.write_bytes, RecordWriter.write = replaces, writes, records


def live(words: Sequence[str], place: Path, said: Path, keeps_programs: bool, blow: Blow | None) -> None:
    """Run the command in the child process: with these arguments, in the folder `place`, with its output in the file `said`."""
    os.chdir(place)
    with said.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}"  # the numbers are compared between children only
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_platforms", "cpu")
    if not keeps_programs:  # a partial cache entry of a killed process would be read by every later process
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    if blow is not None:
        struck(Path(words[words.index("--out") + 1]), blow)
    sys.argv = ["relu-study", *words]
    commands.main()


def born(words: Sequence[str], place: Path, keeps_programs: bool = False, blow: Blow | None = None) -> ForkServerProcess:
    """Start a child. Its output goes to `place`/said.txt."""
    child = CHILDREN.Process(target=live, args=(words, place, place / "said.txt", keeps_programs, blow))
    child.start()
    return child


def ended(child: ForkServerProcess, seconds: float = 300) -> int:
    """Return the exit status of a child (negative: its signal). A child that does not end is killed and fails the test."""
    child.join(seconds)
    if child.exitcode is None:
        child.kill()
        child.join()
        raise AssertionError(f"a child did not end in {seconds} s")
    return child.exitcode


class Held(NamedTuple):
    """The state of a results folder. Equal values mean unchanged files."""

    tiles: dict[str, tuple[int, int, bytes]]
    manifest: int
    page: int
    unfinished: list[str]


def held(folder: Path) -> Held:
    """Return the state of a folder: inode, time and bytes of raw files, times of manifest and page, names of temporary files."""

    def time_of(name: str) -> int:
        return (folder / name).stat().st_mtime_ns if (folder / name).exists() else 0

    found = {}
    for path in (*tile_files.tile_paths(folder), *block_files.block_paths(folder)):
        found[path.name] = (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
    return Held(found, time_of("manifest.json"), time_of("report.md"), [path.name for path in locks.temporaries(folder)])


def phase(before: Held, after: Held, tiles: int) -> str:
    """Return the phase in which a child died, from its files. `tiles` is the number of tiles of the whole study."""
    if after.manifest == before.manifest:
        return "starting"
    if len(after.tiles) < tiles:
        return "training" if len(after.tiles) > len(before.tiles) else "compiling"
    return "reporting" if after.page == before.page else "closing"


PHASES = ("starting", "compiling", "training", "reporting", "closing")


class Moment(NamedTuple):
    """A kill a number of seconds after a phase begins."""

    phase: str
    seconds: float


def reached(child: ForkServerProcess, folder: Path, before: Held, tiles: int) -> Iterator[str]:
    """Yield each phase when the child reaches it."""
    seen = -1
    while True:
        over, now = child.exitcode is not None, PHASES.index(phase(before, held(folder), tiles))
        yield from PHASES[seen + 1 : now + 1]
        seen = max(seen, now)
        if over:
            return
        child.join(0.005)


class Death(NamedTuple):
    """The end of a child: its exit status, its phase, and the names of its temporary files."""

    status: int
    phase: str
    unfinished: list[str]


def lives(
    words: Sequence[str], folder: Path, ends: Iterator[float | Moment | Blow], tiles: int, keeps_programs: bool = False
) -> Iterator[Death]:
    """Repeat the same command, and kill it each time at the next of `ends`, until it ends normally. Yield the end of each child.

    No child may change a raw file that an earlier child finished.
    """
    for end in ends:
        before, blow = held(folder), end if isinstance(end, Blow) else None
        child = born(words, folder.parent, keeps_programs, blow)
        if isinstance(end, Moment):
            next((now for now in reached(child, folder, before, tiles) if now == end.phase), None)
            end = end.seconds
        if isinstance(end, float):
            with suppress(Exception):
                child.join(end)
            child.kill()
        status = ended(child)
        after = held(folder)
        assert before.tiles.items() <= after.tiles.items(), "a finished tile was lost, changed or made again"
        assert status in (0, -signal.SIGKILL), (folder.parent / "said.txt").read_text()
        yield Death(status, phase(before, after, tiles), after.unfinished)
        if status == 0:
            return


def told(folder: Path) -> dict[str, object]:
    """Return the contents of a finished folder that must not depend on interruptions: all but tiles, clock and command."""
    found: dict[str, object] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.parent.name != "raw"):
        name = str(path.relative_to(folder))
        if name == "manifest.json":
            manifest = read_manifest(folder)
            found[name] = {key: value for key, value in manifest.items() if key not in ("command", "timing")}
        elif name in ("report.md", "report.html"):
            found[name] = [line for line in path.read_text().splitlines() if "command: " not in line]
        else:
            found[name] = path.read_bytes()
    return found


def once(folder: Path) -> bool:
    """Whether no run is stored twice."""
    runs = [str(run) for path in tile_files.tile_paths(folder) for run in tile_files.read_tile(path, ("run_id",))["run_id"]]
    return len(runs) == len(set(runs))


def until(folder: Path, condition: str, seconds: float = 120) -> None:
    """Wait until a file matching this pattern exists in the folder."""
    last = time.monotonic() + seconds
    while not list(folder.glob(condition)):
        assert time.monotonic() < last, f"no {condition} in {folder}"
        time.sleep(0.005)
