"""Devices of this process and JAX's cache of compiled programs."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
from pathlib import Path

import jax

from relu_study.engine import stored_programs
from relu_study.runner.program_folder import cache_folder, program_folder

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt, from malloc.h
KEPT_BYTES = (64 << 20, 32 << 20)  # of one array; an older glibc accepts the second value only
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
        folder = cache_folder(home / "relu_study")
        stored_programs.use(program_folder(folder) if jax.config.jax_enable_compilation_cache else None)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def keep_memory() -> bool:
    """Let glibc keep freed arrays of up to 64 MiB. Return whether it does.

    By default glibc returns freed arrays above 32 MiB to the system. A program with more temporary memory then gets new pages at
    each call, one fault a page: a third of the processor time of measuring a 64-128-128-10 network.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False  # another C library, or the user's choice
    return any(mallopt(M_MMAP_THRESHOLD, kept) and mallopt(M_TRIM_THRESHOLD, 2 * kept) for kept in KEPT_BYTES)
