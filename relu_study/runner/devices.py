"""Devices of this process and JAX's cache of compiled programs."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
from pathlib import Path

import jax

from relu_study.engine.jax_settings import processor_hash

# parameters of glibc's mallopt, from malloc.h, and their values in bytes
KEEP_MEMORY = {"M_MMAP_THRESHOLD": (-3, 64 << 20), "M_TRIM_THRESHOLD": (-1, 128 << 20)}
_restricted: list[str] = []  # not empty if `use_cpu` has turned off the accelerators of this process


def use_cpu() -> None:
    """Use the CPU only from now on, as the driver of a cluster: its workers need the accelerators.

    Without effect if JAX has started before.
    """
    if jax.config.jax_platforms != "cpu":
        jax.config.update("jax_platforms", "cpu")
        _restricted.append("cpu")


def cpu_note() -> str:
    """Return a line if this process computes on its CPU because of an earlier cluster run; empty otherwise."""
    plugins = bool(importlib.metadata.entry_points(group="jax_plugins")) or importlib.util.find_spec("libtpu") is not None
    if not _restricted or not plugins or jax.default_backend() != "cpu":
        return ""
    return "computing on the CPU: an earlier run of this process used a cluster. Start a new process to use accelerators."


def use_devices() -> None:
    """Configure JAX: one CPU device per core without an accelerator, and a compilation cache for every program.

    The allocator of the process keeps freed arrays for the next ones.
    """
    keep_memory()
    with contextlib.suppress(RuntimeError):  # JAX is already initialised: its devices stay
        if jax.config.jax_num_cpu_devices < 0 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
            jax.config.update(
                "jax_num_cpu_devices", len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            )
    if not jax.config.jax_compilation_cache_dir:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # A home folder may be shared by machines with other processors.
        jax.config.update("jax_compilation_cache_dir", str(home / "relu_study" / f"xla-{processor_hash()}"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def keep_memory() -> bool:
    """Let glibc keep freed arrays of up to 64 MiB. Return whether it does.

    It returns arrays above 32 MiB to the system, at most. A program that needs more then faults its memory in at every call,
    page by page: a third of the processor time of measuring a 64-128-128-10 network.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):  # another C library, or the user's choice
        return False
    return all(mallopt(number, value) == 1 for number, value in KEEP_MEMORY.values())
