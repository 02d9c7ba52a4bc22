"""Settings of JAX and of the processor that change numbers: some are fixed while a study runs, the others enter a digest."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relu_study.engine import cohorts, compilation
from relu_study.engine.trace_settings import PINNED

OF_LIBRARIES = (  # warnings of JAX on matters that this package has decided, as patterns of their texts
    "Explicitly requested dtype",  # a user's entry: its numbers get the precision in use
    "Some donated buffers were not usable",
    "Error (reading|writing) persistent compilation cache entry",  # another process is writing it: the program is compiled
)

LOGGERS = ("jax._src.callback", "jax._src.debugging", "absl")

INSTRUCTIONS = ("sse4_2", "avx", "fma", "avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")
HARMLESS = ("--xla_force_host_platform_device_count", "--xla_dump", "--xla_gpu_cuda_data_dir")  # flags that move no bit


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Set JAX's settings of a study in all threads, without JAX's warnings. Restores the earlier settings at the end."""
    before = {name: getattr(jax.config, name) for name in PINNED if hasattr(jax.config, name)}  # JAX drops some in time
    changed = {name: PINNED[name] for name, value in before.items() if value != PINNED[name]}
    try:
        for name, value in changed.items():
            jax.config.update(name, value)
        with no_library_warnings():
            yield
    finally:
        for name in changed:
            jax.config.update(name, before[name])


def digest() -> str | None:
    """The hash of a tiny network after a short training, on a CPU: instruction sets and flags of XLA change its bits.

    On other devices, whose sums have no fixed order, it is the text of the flags, or None without flags.
    """
    if jax.devices()[0].platform != "cpu":
        return " ".join(sorted(f for f in os.environ.get("XLA_FLAGS", "").split() if not f.startswith(HARMLESS))) or None
    return _digest(jax.config.jax_enable_x64, repr(cohorts.OPTIONS.get("cpu")), jax.config.jax_default_matmul_precision)


@functools.cache
def _digest(x64: bool, options: str, precision: str | None) -> str:
    grid = np.arange(1, 1 + 48 * 40).reshape(48, 40)
    x = jnp.asarray(np.sin(grid * 0.7), jnp.result_type(float))
    weights = {
        "first": jnp.asarray(np.cos(grid.T * 1.3)[:, :37] / 6, x.dtype),
        "last": jnp.asarray(np.sin(grid[:37, :3]), x.dtype),
    }
    trained = compilation.TracedOnce(_trained)(weights, x, jnp.tanh(x[:, :3]))
    jax.block_until_ready(trained)
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(trained))).hexdigest()[:12]


def _trained(weights: Any, x: Any, y: Any) -> Any:
    """Ten Adam-like steps: products, sums, roots, quotients and elementary functions."""

    def loss(weights: Any) -> Any:
        hidden = x @ weights["first"]
        hidden = jnp.tanh(hidden) + jax.nn.silu(hidden) * jax.lax.rsqrt(1 + jnp.var(hidden, axis=0))
        return jnp.mean((hidden @ weights["last"] - y) ** 2) + 1e-3 * jnp.mean(jax.nn.softplus(hidden))

    def step(_: Any, state: Any) -> Any:
        weights, square = state
        gradient = jax.grad(loss)(weights)
        square = jax.tree.map(lambda s, g: 0.9 * s + 0.1 * g * g, square, gradient)
        moved = jax.tree.map(lambda w, s, g: w - 0.01 * g / (jnp.sqrt(s) + 1e-8), weights, square, gradient)
        return moved, square

    return jax.lax.fori_loop(0, 10, step, (weights, jax.tree.map(jnp.zeros_like, weights)))


def processor() -> dict[str, str]:
    """The processor's model, its instruction sets and the flags of XLA, for the manifest. They are never compared."""
    model, flags = _model_and_flags()
    sets = [name for name in INSTRUCTIONS if name in flags]
    return {"processor": model, "instructions": " ".join(sets), "xla_flags": os.environ.get("XLA_FLAGS", "")}


def processor_hash() -> str:
    """The hash of the processor's model and all its features: programs compiled for another one may not run."""
    model, flags = _model_and_flags()
    return hashlib.sha256(" ".join([model, *sorted(flags)]).encode()).hexdigest()[:8]


def _model_and_flags() -> tuple[str, set[str]]:
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines() if Path("/proc/cpuinfo").is_file() else []
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(about.get("flags", about.get("Features", "")).split())
    return about.get("model name", platform.processor() or platform.machine()), flags


@contextlib.contextmanager
def no_library_warnings() -> Iterator[None]:
    """Leave out library messages that a user cannot act on. A user's own warnings stay; Python's -W keeps all of them."""
    loggers, quiet = [logging.getLogger(name) for name in LOGGERS], _NoUseless()  # contexts nest: each has its own filter
    with warnings.catch_warnings():
        for text in () if sys.warnoptions else OF_LIBRARIES:
            warnings.filterwarnings("ignore", text)
        for logger in loggers:
            logger.addFilter(quiet)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(quiet)


class _NoUseless(logging.Filter):
    """Drop library records that repeat the one line of an error, or that a user cannot act on."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not (text.endswith("callback failed") or "`params` has no attribute" in text)
