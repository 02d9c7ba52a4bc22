"""Devices of this process and JAX's cache of compiled programs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import jax


def use_devices() -> None:
    """Configure JAX: one CPU device per core without an accelerator, and a compilation cache for every program."""
    with contextlib.suppress(RuntimeError):  # JAX is already initialised: its devices stay
        if jax.config.jax_num_cpu_devices < 0 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
            jax.config.update(
                "jax_num_cpu_devices", len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            )
    if not jax.config.jax_compilation_cache_dir:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "relu_study" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
