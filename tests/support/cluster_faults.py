"""A study of many short tiles whose workers follow the faults in a folder, and records of the tiles that they began.

The study's file calls `install` in a worker only. The driver and a local run train the same file without faults.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

STUDY = """
import importlib
import os
import sys
from pathlib import Path

import jax

from relu_study import Experiment, RunSpec, Study, activation, grid

FAULTS = Path({faults!r})
IN_WORKER = "default_worker" in sys.argv[0]


@activation("bent", smooth=True)
def bent(x):
    return x * jax.nn.sigmoid(x)


@activation("poison", smooth=True)
def poison(x):
    # IN_WORKER would differ in the fingerprints of driver and workers.
    if (FAULTS / "poison").exists() and b"ray::Worker" in Path("/proc/self/cmdline").read_bytes():
        os._exit(7)
    return x * jax.nn.sigmoid(2 * x)


if IN_WORKER:
    importlib.import_module("cluster_faults").install(FAULTS)

base = RunSpec(rows=200, batch_size=32, width=4, epochs=1, optimizer="sgd")
arms = grid(base, activation=("bent", "tanh"), epochs=tuple(1 + i / 5 for i in range({lengths})))
arms |= {{name: base.replace(activation=name) for name in {more!r}}}
study = Study("grains", "Grains", "?", [Experiment("main", arms)], seeds={seeds}, metrics=("val_loss",))
"""


class Record(NamedTuple):
    """The beginning or the end of a tile in a process, or the number of programs that it needed."""

    when: int
    process: int
    tile: str
    programs: int = -1


class Faults:
    """The folder of a study and of its faults."""

    def __init__(self, folder: Path, lengths: int = 12, seeds: int = 2, more: tuple[str, ...] = ()) -> None:
        """Write the study with `lengths` tiles of each of two cohorts, and the tiles of `more` activations."""
        self.folder, self.study = folder / "faults", folder / "grains.py"
        self.folder.mkdir()
        self.study.write_text(STUDY.format(faults=str(self.folder), lengths=lengths, seeds=seeds, more=more))

    def set(self, *faults: dict[str, Any]) -> None:
        """Replace the faults: a `kind`, and conditions.

        The kinds are sleep (with `seconds`), memory (above a `width`), version and digest (in the first worker that starts).
        `tile` is a part of a tile's name; with `once`, only the first such tile of all workers has the fault.
        """
        path = self.folder / "faults.tmp"
        path.write_text(json.dumps(faults))
        path.replace(self.folder / "faults.json")

    def records(self, kind: str = "began") -> list[Record]:
        """The records of tiles (`began`, `queued` or `ended`), in their order."""
        found = [path.name.split("~") for path in self.folder.glob(f"*~{kind}~*")]
        return sorted(Record(int(when), int(process), tile, int(programs)) for when, _, process, tile, programs in found)


def install(folder: Path) -> None:
    """Make this process follow the faults of a folder."""
    from relu_study.engine import compile_time, train_tile
    from relu_study.runner import machine

    start, fetch, current = train_tile.start_tile, train_tile.fetch, threading.local()

    def faulty_start(runs: Any, width: int, *rest: Any, **more: Any) -> Any:
        current.tile = f"{runs[0].activation} {runs[0].epochs:.4f} seed {runs[0].seed} width {width}"
        _record(folder, "began", current.tile)
        for number, fault in enumerate(_faults(folder)):
            if fault.get("tile", "") not in current.tile or (fault.get("once") and not _first(folder, f"once{number}")):
                continue
            if fault["kind"] == "sleep":
                time.sleep(fault["seconds"])
            if fault["kind"] == "memory" and width > fault["width"]:
                raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1600 bytes.")
        before = compile_time.thread_programs()
        queued = start(runs, width, *rest, **more)
        _record(folder, "queued", current.tile, compile_time.thread_programs() - before)
        return queued

    def recorded_fetch(*rest: Any) -> Any:
        numbers = fetch(*rest)
        _record(folder, "ended", getattr(current, "tile", "of another thread"))
        return numbers

    train_tile.start_tile, train_tile.fetch = faulty_start, recorded_fetch
    for fault in _faults(folder):
        if fault["kind"] in ("version", "digest") and _first(folder, fault["kind"]):
            if fault["kind"] == "version":
                machine.version = lambda name: "0.0.1"
            else:
                machine.digest = lambda: "0" * 12


def _faults(folder: Path) -> list[dict[str, Any]]:
    path = folder / "faults.json"
    return list(json.loads(path.read_text())) if path.exists() else []


def _first(folder: Path, name: str) -> bool:
    """Whether no process has claimed a name before."""
    try:
        (folder / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _record(folder: Path, kind: str, tile: str, programs: int = -1) -> None:
    (folder / f"{time.time_ns()}~{kind}~{os.getpid()}~{tile}~{programs}").touch()
