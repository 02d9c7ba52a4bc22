"""What every process that peers.py measures has in common: it is told of a job, trains pieces of it, and answers in JSON.

Between two questions a process sleeps in a read from its standard input. With each answer it says how much processor time
it took while it was not asked: a library whose idle threads spin would slow down everybody else.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

PROBE_EXAMPLES = 8192


class Job(NamedTuple):
    """A network with its batch size and training rows; `layers` are the sizes from the inputs to the outputs."""

    net: str
    layers: tuple[int, ...]
    batch: int
    rows: int

    @property
    def steps(self) -> int:
        """Full batches in an epoch."""
        return self.rows // self.batch

    def seconds(self) -> float:
        """Roughly what a step of one network takes one core, to choose the length of a piece by."""
        weights = sum(a * b for a, b in zip(self.layers, self.layers[1:], strict=False))
        return 2e-6 + 55e-9 * self.batch + 6 * self.batch * weights / 43e9


class Peer(Protocol):
    """One way of training, ready for one job."""

    width: int  # networks in one program
    networks: int  # trained at once by this process

    def piece(self, steps: int) -> tuple[int, float]:
        """Train each network for about `steps` steps: how many it were, and the seconds, an epoch's own work in proportion."""
        ...


def data(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Rows like those of our own tasks: the article's box and wave, or ten smooth functions of sixty-four inputs."""
    rng, (d_in, *_, d_out) = np.random.default_rng(), job.layers
    if d_in == 4:
        x = -rng.random((job.rows, d_in), np.float32)
        return x, (np.sin(2 * np.pi * x[:, :1]) + np.cos(2 * np.pi * x[:, 1:2])).astype(np.float32)
    x = rng.standard_normal((job.rows, d_in), np.float32)
    return x, np.sin(x @ rng.standard_normal((d_in, d_out), np.float32) / d_in**0.5).astype(np.float32)


def in_proportion(shuffle: Callable[[], None], train: Callable[[], int], per_epoch: int) -> tuple[int, float]:
    """Time a piece of training and one shuffle, and count the shuffle as many times as the piece is epochs long."""
    began = time.perf_counter()
    shuffle()
    shuffled = time.perf_counter()
    steps = train()
    return steps, time.perf_counter() - shuffled + (shuffled - began) * steps / per_epoch


def pace(peer: Peer, seconds: float) -> float:
    """Steps a second of each network, from pieces that grow until one takes about `seconds`."""
    steps, took = peer.piece(1)
    while took < seconds / 2:
        steps, took = peer.piece(math.ceil(steps * max(seconds / max(took, seconds / 16), 2)))
    return steps / took


def serve(versions: str, make: Callable[[Job, Any], Peer]) -> None:
    """Answer questions on standard input until it is closed.

    `{"job": ..., "choice": ..., "seconds": ...}` prepares a job in one of the ways there are to do it and says how fast that
    is; `{"steps": ...}` trains a piece of it.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

    def answer(**said: Any) -> tuple[float, float]:
        print(json.dumps(said), file=answers, flush=True)
        return time.process_time(), time.perf_counter()

    used, since = answer(versions=versions)
    peer: Peer | None = None
    for line in sys.stdin:
        asleep = time.perf_counter() - since
        spinning = (time.process_time() - used) / asleep if asleep > 0.5 else 0.0
        asked = json.loads(line)
        if "job" in asked:
            peer = None  # the last job's memory is free before the next one's is taken
            net, layers, batch, rows = asked["job"]
            peer = make(Job(net, tuple(layers), batch, rows), asked["choice"])
            steps_per_s = pace(peer, asked["seconds"])
            used, since = answer(width=peer.width, pace=steps_per_s, rate=steps_per_s * peer.networks, spinning=spinning)
        else:
            assert peer is not None, "a job comes before its pieces"
            steps, took = peer.piece(asked["steps"])
            used, since = answer(steps=steps, rate=steps * peer.networks / took, spinning=spinning)
