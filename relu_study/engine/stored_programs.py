"""Compiled programs stored between processes, so that a later one neither traces nor lowers them. Pure JAX: no files.

JAX's own cache finds a program by its lowered text, which Python must trace and lower first: most of a warm start. Here a
program has a name from everything that it is traced from. Only programs of the package's own entries are stored. Their sources
are known, and the sources of other entries are not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, Protocol, runtime_checkable

import flax
import jax
from jax.experimental import serialize_executable
from jaxlib import xla_client

from relu_study.components.registry import REGISTRIES, metrics, ours
from relu_study.components.tasks.task import LOSSES, METRICS
from relu_study.engine.compile_time import record_read, thread_cache_hits, thread_programs
from relu_study.study.fingerprint import essence, fingerprint

Key = tuple[str, *tuple[Any, ...]]  # the kind of a program and the arguments of the function that makes it


@runtime_checkable
class Store(Protocol):
    """Stored bytes by name, of programs traced from these sources and libraries on this model of processor."""

    def get(self, name: str) -> bytes | None:
        """The bytes of this name; None if there are none, or if they are damaged."""

    def put(self, name: str, content: bytes) -> None:
        """Store bytes. A store that cannot be written stays as it is."""


_store: Store | None = None


def use(store: Store | None) -> None:
    """Store programs here from now on; None: nowhere."""
    global _store
    _store = store


def obtain(key: Key | None, args: Any, lower: Callable[[], jax.stages.Lowered]) -> jax.stages.Compiled:
    """Return the program of this key for arguments of these shapes: the stored one, or one compiled and stored now."""
    store, name = _store, None if _store is None or key is None else _name(key, args)
    if store is None or key is None or name is None:
        return lower().compile()
    started = time.perf_counter()
    if (program := _read(store, name)) is not None:
        record_read(key[0], time.perf_counter() - started)
        return program
    lowered = lower()
    programs, hits = thread_programs(), thread_cache_hits()  # a trace compiles and reads small programs of its own
    program = lowered.compile()
    # XLA leaves functions out of a program that JAX has read, now or before, and a call of the stored one would fail.
    if thread_programs() > programs and thread_cache_hits() == hits:
        with contextlib.suppress(Exception):  # it is then compiled by the next process too
            store.put(name, pickle.dumps(serialize_executable.serialize(program)))
    return program


def _read(store: Store, name: str) -> jax.stages.Compiled | None:
    """The stored program of this name; None if there is none, or if JAX or XLA refuse it for any reason."""
    with contextlib.suppress(Exception):
        if (content := store.get(name)) is not None:
            serialized, in_tree, out_tree = pickle.loads(content)
            device = jax.devices()[:1]
            return serialize_executable.deserialize_and_load(serialized, in_tree, out_tree, execution_devices=device)
    return None


def _name(key: Key, args: Any) -> str | None:
    """The hash of all that a program is traced from, without the sources; None if it cannot be known."""
    leaves, tree = jax.tree.flatten(args)
    devices = {leaf.sharding for leaf in leaves if getattr(leaf, "sharding", None) is not None}
    first, entries = jax.devices()[0], _entries(_texts(key))
    if first.platform != "cpu" or not devices <= {jax.sharding.SingleDeviceSharding(first)}:
        return None
    if not all(map(ours, entries.values())):
        return None
    parts = {name: _fingerprint(entry) for name, entry in sorted(entries.items())}
    if any({"unverifiable", "unverified"} & set(part) for part in parts.values()):
        return None
    shapes = [(leaf.shape, str(leaf.dtype), bool(getattr(leaf, "weak_type", False))) for leaf in leaves]
    settings = sorted(
        (name, repr(getattr(jax.config, name, value))) for name, value in jax.config.values.items() if "cache" not in name
    )
    flags = sorted((name, value) for name, value in os.environ.items() if name.startswith("XLA_"))
    used = xla_client.CompileOptions().SerializeAsString()  # XLA reads its flags once, and they may have changed since
    known = (key, parts, str(tree), shapes, settings, vars(flax.config), flags, used, first.device_kind)
    return hashlib.sha256(repr(known).encode()).hexdigest()[:32]


def _texts(value: Any) -> set[str]:
    """All texts within a key. The names of entries are among them."""
    if isinstance(value, str):
        return {value}
    if is_dataclass(value):
        return _texts(tuple(vars(value).values()))
    return set().union(*map(_texts, value)) if isinstance(value, tuple) else set()


def _entries(names: set[str]) -> dict[str, Any]:
    """The entries with these names, the initializer of output layers, and all metrics: a program may measure every one."""
    names = names | {"glorot_uniform"}
    entries: dict[str, Any] = {f"loss {name}": LOSSES[name] for name in names & LOSSES.keys()}
    entries |= {f"metric of a task {name}": METRICS[name] for name in names & METRICS.keys()}
    for registry in REGISTRIES:
        registry.load()
        named = {name: entry for name, entry in registry.registered().items() if registry is metrics or name in names}
        entries |= {f"{registry.kind} {name}": entry for name, entry in named.items()}
    return entries


_fingerprints: dict[int, tuple[Any, dict[str, str]]] = {}  # id of an entry -> the entry, which keeps its id, and its fingerprint


def _fingerprint(entry: Any) -> dict[str, str]:
    if id(entry) not in _fingerprints:
        _fingerprints[id(entry)] = entry, fingerprint(essence(entry))
    return _fingerprints[id(entry)][1]
