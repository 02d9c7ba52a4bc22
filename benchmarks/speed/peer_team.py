"""The processes of one competitor, for peers.py: started once, asleep until they are asked, asked all at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peer

EACH, ALL = "a process a core", "one process"


@dataclass(frozen=True)
class Competitor:
    """How to start a competitor, and the ways of doing a job among which the fastest is measured."""

    name: str
    script: str
    watches: str
    layouts: tuple[str, ...] = (EACH,)
    choices: tuple[Any, ...] = (None,)
    argument: str = ""
    platform: str = "cpu"  # of the processes; on "gpu" and "tpu" one process uses the accelerator
    cores: int | None = None  # at most so many


class Missing(Exception):
    """A peer that cannot be started, or not with this job."""


class Process:
    """One process of a competitor, on some of the cores."""

    def __init__(self, competitor: Competitor, cores: Sequence[int], stack: ExitStack) -> None:
        self.errors = stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115  (the stack closes it)
        words = [sys.executable, str(Path(__file__).with_name(competitor.script)), *filter(None, [competitor.argument])]
        # A child is born with its parent's affinity: however a library counts cores, it counts these.
        env = {**os.environ, "OMP_NUM_THREADS": str(len(cores)), "PEER_PLATFORM": competitor.platform}
        if competitor.platform == "cpu":
            env |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        else:  # the processes of several competitors share the accelerator's memory
            env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        mine = allowed()
        pin(cores)
        try:
            self.process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=env
            )
        finally:
            pin(mine)
        stack.callback(self.stop)

    def ask(self, question: dict[str, Any]) -> None:
        """Send a question; `answer` waits for what it says."""
        assert self.process.stdin
        try:
            print(json.dumps(question), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer; where the process ended instead, its last words are the reason."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            words = [word for word in map(str.strip, self.errors) if word] or [f"exit status {code}"]
            raise Missing(words[-1] if code > 0 else f"ended by signal {-code}")
        said: dict[str, Any] = json.loads(line)
        return said

    def stop(self) -> None:
        """End the process by ending its input."""
        assert self.process.stdin
        try:
            self.process.stdin.close()
            self.process.wait(timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()


def allowed() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def pin(cores: Sequence[int]) -> None:
    """Keep this process, and those it starts, to some cores, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


class Team:
    """A competitor's processes in each layout that it may be measured in, and what was settled for the job at hand."""

    processes: list[Process]
    way: str
    width: int
    steps: int  # of each network in a piece

    def __init__(self, competitor: Competitor, stack: ExitStack) -> None:
        self.competitor, self.spinning = competitor, 0.0
        mine = allowed()[: competitor.cores]
        shares = {EACH: [[core] for core in mine], ALL: [mine]}
        self.layouts = [[Process(competitor, share, stack) for share in shares[name]] for name in competitor.layouts]

    def started(self) -> str:
        """Wait until all processes are there; returns their versions."""
        return [process.answer()["versions"] for processes in self.layouts for process in processes].pop()

    def ask(self, processes: Sequence[Process], **question: Any) -> list[dict[str, Any]]:
        """Ask processes the same at once and wait for all of them."""
        for process in processes:
            process.ask(question)
        said = [process.answer() for process in processes]
        self.spinning = max(self.spinning, *(s.get("spinning", 0.0) for s in said), 0.0)
        return said

    def settle(self, job: peer.Job, seconds: float, tries: int | None) -> None:
        """Try the ways of doing a job, and leave the processes ready for the fastest, in pieces of about `seconds`."""
        best, tried = 0.0, None
        for processes in self.layouts:
            before, worse = 0.0, 0
            for choice in self.competitor.choices[:tries]:
                tried = (processes, choice)
                said = self.ask(processes, job=job, choice=choice, seconds=min(seconds, 0.5))
                rate = sum(s["rate"] for s in said)
                if rate > best:
                    best, way = rate, tried
                    self.width, self.steps = said[0]["width"], max(round(min(s["pace"] for s in said) * seconds), 1)
                worse, before = (0, rate) if rate > before else (worse + 1, before)
                if worse == 2:  # a list of widths, and wider only gets slower
                    break
        self.processes, choice = way
        if way != tried:
            self.ask(self.processes, job=job, choice=choice, seconds=min(seconds, 0.5))
        self.way = choice if isinstance(choice, str) else ""

    def measure(self) -> float:
        """Steps a second of all networks together, in one piece that all processes begin at once."""
        said = self.ask(self.processes, steps=self.steps)
        self.steps = said[0]["steps"]
        return sum(s["rate"] for s in said)
