"""How long a sweep takes, and how much of that goes into programs: tracing, lowering, and compiling or reading them back."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

import jax

STAGES = tuple(f"/jax/core/compile/{stage}_duration" for stage in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile"))


class Stopwatch:
    """Wall time since it was made, and what of it went into programs (the sum over devices)."""

    def __init__(self) -> None:
        _listen()
        self.began, self.before = time.perf_counter(), _in_all()

    def spent(self) -> dict[str, float]:
        """Seconds so far."""
        return {"wall_s": time.perf_counter() - self.began, "compile_s": _in_all() - self.before}


def thread_compile_seconds() -> float:
    """Seconds that this thread has spent on programs so far: a difference of two such figures says what lay between them."""
    _listen()
    return _compiling[threading.get_ident()]


@contextlib.contextmanager
def timed_lock(lock: threading.Lock) -> Iterator[None]:
    """Hold a lock of those who make programs: what this thread waits for it is spent on programs as well."""
    began = time.perf_counter()
    with lock:
        _compiling[threading.get_ident()] += time.perf_counter() - began
        yield


_compiling: defaultdict[int, float] = defaultdict(float)  # thread -> seconds


def _in_all() -> float:
    return sum(tuple(_compiling.values()))  # a copy: other threads may begin to compile meanwhile


@cache
def _listen() -> None:
    # JAX keeps a listener for as long as the process lives: one serves every clock. It reports the outermost trace alone.
    def hear(event: str, duration_secs: float, **_: str | int) -> None:
        if event in STAGES:
            _compiling[threading.get_ident()] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(hear)
