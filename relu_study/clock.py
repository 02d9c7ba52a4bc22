"""How long a sweep takes, and how much of that is compiling."""

from __future__ import annotations

import time
from functools import cache

import jax


class Clock:
    """Wall time since it was made, compiling (the sum over devices) apart."""

    def __init__(self) -> None:
        _listen()
        self.began, self.compiled = time.perf_counter(), _compiling["s"]

    def spent(self) -> dict[str, float]:
        """Seconds so far."""
        return {"wall_s": time.perf_counter() - self.began, "compile_s": self.compiling()}

    def compiling(self) -> float:
        """Seconds of compiling since it was made."""
        return _compiling["s"] - self.compiled


_compiling = {"s": 0.0}


@cache
def _listen() -> None:
    # JAX keeps a listener for as long as the process lives: one serves every clock.
    def hear(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            _compiling["s"] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(hear)
