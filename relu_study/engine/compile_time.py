"""Wall time and compile time: tracing, lowering, and compilation or cache reads."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

import jax

STAGES = tuple(f"/jax/core/compile/{stage}_duration" for stage in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile"))

CACHE_EVENTS = tuple(f"/jax/compilation_cache/{event}" for event in ("compile_requests_use_cache", "cache_hits"))


class Stopwatch:
    """Wall time and compile time since its creation. The compile time is a sum over devices."""

    def __init__(self) -> None:
        _listen()
        self.started, self.compiled_before = time.perf_counter(), _total_compile_seconds()

    def spent(self) -> dict[str, float]:
        """Seconds so far: `wall_s` and `compile_s`."""
        return {"wall_s": time.perf_counter() - self.started, "compile_s": _total_compile_seconds() - self.compiled_before}


def thread_programs() -> int:
    """Number of programs that this thread has compiled or read from a cache. Use differences of two values."""
    _listen()
    return _programs[threading.get_ident()]


def thread_compile_seconds() -> float:
    """Total compile time of this thread in seconds. Use differences of two values."""
    _listen()
    return _compiling[threading.get_ident()]


def thread_cache_hits() -> int:
    """Number of programs that this thread has read from JAX's cache. Use differences of two values."""
    _listen()
    return _hits[threading.get_ident()]


def record_read(program: str, seconds: float) -> None:
    """Report a program from another cache to all listeners, by JAX's events of a cache read."""
    for event in CACHE_EVENTS:
        jax.monitoring.record_event(event)
    jax.monitoring.record_event_duration_secs(STAGES[-1], seconds, fun_name=program)


@contextlib.contextmanager
def timed_lock(lock: threading.Lock) -> Iterator[None]:
    """Hold a compilation lock. The waiting time counts as compile time of this thread."""
    started = time.perf_counter()
    with lock:
        _compiling[threading.get_ident()] += time.perf_counter() - started
        yield


_compiling: defaultdict[int, float] = defaultdict(float)  # thread -> seconds
_programs: defaultdict[int, int] = defaultdict(int)  # thread -> programs
_hits: defaultdict[int, int] = defaultdict(int)  # thread -> programs from JAX's cache


def _total_compile_seconds() -> float:
    return sum(tuple(_compiling.values()))  # a copy: other threads may add entries


@cache
def _listen() -> None:
    # JAX has no way to remove a listener, so one serves every stopwatch. It reports only the outermost trace.
    def on_duration(event: str, duration_secs: float, **_: str | int) -> None:
        if event in STAGES:
            _compiling[threading.get_ident()] += duration_secs
        if event == STAGES[-1]:
            _programs[threading.get_ident()] += 1

    def on_event(event: str, **_: str | int) -> None:
        _hits[threading.get_ident()] += event == CACHE_EVENTS[-1]

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    jax.monitoring.register_event_listener(on_event)
