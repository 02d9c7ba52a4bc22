"""The machine that computes a study: platform, devices and the part of the provenance that it decides."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from relu_study.engine import cohorts
from relu_study.engine.jax_settings import digest, processor

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Machine:
    """A machine, as the plan, the provenance and the manifest need it. Of a cluster: its workers together."""

    platform: str  # cpu, gpu or tpu
    kind: str  # of the first device
    devices: int  # number of devices, each a place for a tile
    host: dict[str, Any]  # the provenance common to all numbers
    processor: dict[str, str]  # for the manifest
    memory: int | None  # bytes of an accelerator that a process may use; None on a CPU
    digest: Callable[[], str | None]  # trains a tiny network at its first call


def local_machine() -> Machine:
    """Return this machine as JAX sees it."""
    device = jax.devices()[0]
    return Machine(device.platform, device.device_kind, len(jax.devices()), local_host(), processor(), device_memory(), digest)


def local_host() -> dict[str, Any]:
    """The provenance common to all numbers: versions of engine and packages, device, precision."""
    device = jax.devices()[0]
    return {**software(), "device": f"{device.platform}: {device.device_kind}", **precision()}


def software() -> dict[str, Any]:
    """The versions of engine and packages. Starts no device."""
    return {
        "engine": cohorts.ENGINE,
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
    }


def precision() -> dict[str, Any]:
    """The precision of numbers and products. Starts no device."""
    return {
        "precision": "float64" if jax.config.jax_enable_x64 else "float32",
        "matmul_precision": jax.config.jax_default_matmul_precision,
    }


def device_memory() -> int | None:
    """Bytes of an accelerator that this process may use; None on a CPU, or if the device does not tell."""
    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    return int(stats["bytes_limit"]) if stats and "bytes_limit" in stats else None


@functools.cache
def package_digest() -> str:
    """The hash of the package's source files: two processes with the same one run the same code."""
    content = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        if "benchmarks" not in path.relative_to(PACKAGE).parts:  # studies, which an installed wheel has inside the package
            content.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return content.hexdigest()[:12]
