"""Stored programs: equal bits without a trace, and another name for all that a trace can depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import flax
import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jaxlib import xla_client

from relu_study.components.registry import activations, initializers, metrics
from relu_study.components.tasks.task import LOSSES, METRICS, Signature
from relu_study.engine import compilation, stored_programs, train_tile
from relu_study.engine.compile_time import thread_cache_hits, thread_programs
from relu_study.engine.state import MeasureConfig
from relu_study.study.run_spec import RunSpec

SPEC = RunSpec(rows=60, width=3, batch_size=8, epochs=1)
SIGNATURE = Signature(2, 1, 40, 20, "squared_error", metrics=("accuracy",))
FEW = MeasureConfig(30, 20, histograms=False, metrics=("train_loss", "dead_fraction"))


class Memory(dict[str, bytes]):
    """A store in memory, which fulfils the protocol."""

    def put(self, name: str, content: bytes) -> None:
        self[name] = content


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    """A new store in use, for programs that no test has compiled."""
    memory = Memory()
    monkeypatch.setattr(stored_programs, "_store", memory)
    # In tests a function is within a wrapper that checks its annotations, and no fingerprint verifies that one.
    monkeypatch.setattr(stored_programs, "fingerprint", lambda entry: {"entry": repr(entry)})
    compilation.clear()
    yield memory
    compilation.clear()


@pytest.fixture
def empty_cache(tmp_path: Path) -> Iterator[None]:
    """JAX's cache in an empty folder."""
    before = jax.config.jax_compilation_cache_dir
    for folder in (str(tmp_path / "jax"), before):
        compilation_cache.reset_cache()
        jax.config.update("jax_compilation_cache_dir", folder)
        if folder != before:
            yield
    compilation_cache.reset_cache()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions of the engine that were traced and compiled."""
    names: list[str] = []
    lower = compilation.TracedOnce._lower

    def counted(program: compilation.TracedOnce, args: object) -> jax.stages.Lowered:
        names.append(vars(program.jitted)["__name__"])
        return lower(program, args)

    monkeypatch.setattr(compilation.TracedOnce, "_lower", counted)
    return names


def trained(spec: RunSpec = SPEC) -> dict[str, np.ndarray]:
    return train_tile.train_tile([spec.replace(seed=seed) for seed in (0, 1)], 2, measure_config=FEW, keep_params=True)


@pytest.mark.usefixtures("empty_cache")
def test_a_stored_program_gives_equal_bits_without_a_trace(store: Memory, compiled: list[str]) -> None:
    first = trained()
    assert sorted(compiled) == ["advance", "init", "init_optimizer", "measure", "sample"] and len(store) == 4
    compiled.clear()
    compilation.clear()
    programs = thread_programs()
    second = trained()
    assert compiled == ["sample"]
    assert thread_programs() - programs >= 5, "a program that is read counts like one that is compiled"
    assert first.keys() == second.keys() and all(first[name].tobytes() == second[name].tobytes() for name in first)


@pytest.mark.usefixtures("empty_cache")
def test_a_program_from_the_cache_of_jax_is_not_stored(store: Memory) -> None:
    """XLA leaves functions out of a program that it has itself read."""
    program = compilation.TracedOnce(lambda x: x * 3 + 1, ("one",))
    assert program(np.float32(2)) == 7 and len(store) == 1
    jax.clear_caches()
    again = compilation.TracedOnce(lambda x: x * 3 + 1, ("other",))
    assert again(np.float32(2)) == 7 and len(store) == 1


def test_a_program_of_an_earlier_compilation_is_not_stored(store: Memory) -> None:
    """JAX may have read it from its cache. Without listeners, which a user can remove, nothing tells."""
    lowered = jax.jit(lambda x: x * 5).lower(np.float32(2))
    lowered.compile()
    assert stored_programs.obtain(("one",), (np.float32(2),), lambda: lowered)(np.float32(3)) == 15 and not store


@pytest.mark.usefixtures("empty_cache")
def test_a_program_is_stored_even_if_its_trace_reads_the_cache_of_jax(store: Memory) -> None:
    """As random streams do for their keys, which are constants."""

    def constant() -> float:
        with jax.ensure_compile_time_eval():
            return float(jax.jit(lambda x: x * 11 + 3)(np.float32(2)))

    assert constant() == 25
    jax.clear_caches()
    hits = thread_cache_hits()
    program = compilation.TracedOnce(lambda x: x + constant(), ("one",))
    assert program(np.float32(2)) == 27 and len(store) == 1 and thread_cache_hits() > hits


def test_a_refused_program_is_compiled(store: Memory, compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "get", lambda name: b"no program")
    assert compilation.TracedOnce(lambda x: x + 4, ("one",))(np.float32(2)) == 6 and compiled == ["<lambda>"]


def names(store: Memory, spec: RunSpec = SPEC) -> set[str]:
    """The names that a program of this spec is looked up by."""
    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "get", asked.append)
        patch.setattr(store, "put", lambda name, content: None)
        compilation.TracedOnce(lambda x: x, ("advance", spec, SIGNATURE, FEW))(np.float32(0))
    return set(asked)


def test_the_name_changes_with_all_that_a_trace_depends_on(store: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [names(store), names(store, SPEC.replace(width=4))]
    with jax.default_matmul_precision("highest"):
        found.append(names(store))
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
        found.append(names(store))
    changed = (
        (activations._entries, "relu", dataclasses.replace(activations["relu"], function=activations["elu"].function)),
        (initializers._entries, "glorot_uniform", initializers["he_normal"]),  # that of output layers, with any other one
        (LOSSES, "squared_error", LOSSES["cross_entropy"]),
        (METRICS, "accuracy", METRICS["trained"]),
        (flax.config._values, "flax_always_shard_variable", not flax.config.flax_always_shard_variable),
    )
    for place, name, entry in changed:
        with monkeypatch.context() as patch:
            patch.setitem(place, name, entry)
            found.append(names(store))
    assert [len(one) for one in found] == [1] * 9 and len(set().union(*found)) == 9
    assert names(store) == found[0]


def test_the_name_changes_with_the_flags_that_xla_has_read(store: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment may have lost the flags that its programs are compiled with."""
    before = names(store)
    other = xla_client.CompileOptions()
    other.executable_build_options.debug_options.xla_cpu_enable_fast_math = True
    monkeypatch.setattr(stored_programs.xla_client, "CompileOptions", lambda: other)
    assert names(store) != before


def test_programs_of_own_entries_are_not_stored(store: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    relu = activations["relu"]
    monkeypatch.setitem(activations._entries, "mine", dataclasses.replace(relu, function=lambda pre: relu.function(pre)))
    assert names(store, SPEC.replace(activation="mine")) == set()
    assert len(names(store)) == 1
    dead = metrics["dead_fraction"]
    monkeypatch.setitem(metrics._entries, "mine", dataclasses.replace(dead, function=lambda snapshot: dead.function(snapshot)))
    assert names(store) == set(), "it may be measured by default"


def test_another_device_reads_no_program_of_the_first(store: Memory) -> None:
    program = compilation.TracedOnce(lambda x: x - 5, ("placed",))
    second = jax.device_put(np.float32(1), jax.devices()[1])
    assert program(second).devices() == {jax.devices()[1]} and not store
