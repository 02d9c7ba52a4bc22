"""Messages for common mistakes with entries: one clear line with the offender and the action."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen, nnx

from relu_study.components.activations import activation
from relu_study.components.initializers import initializer
from relu_study.components.networks import network
from relu_study.components.optimizers import optimizer
from relu_study.components.registry import activations, initializers, networks, optimizers, tasks
from relu_study.components.tasks.task import Signature, Task
from relu_study.engine import cohorts
from relu_study.engine.check_tasks import check_task
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.study.run_spec import RunSpec

SPEC = RunSpec(rows=60, width=6, batch_size=8, epochs=1, initializer="he_normal")


@pytest.fixture(autouse=True)
def _own_entries() -> Iterator[None]:
    registries = (activations, initializers, networks, optimizers, tasks)
    for registry in registries:
        registry.load()
    before = [dict(registry._entries) for registry in registries]
    yield
    for registry, kept in zip(registries, before, strict=True):
        registry._entries = kept


def refused(spec: RunSpec, *words: str) -> str:
    with pytest.raises(UserError) as error:
        cohorts.check(spec, MeasureConfig(30, 20, histograms=False, metrics=("train_loss",)))
    line = str(error.value)
    assert "'own'" in line and "\n" not in line and all(word in line for word in words), line
    assert not any(internal in line for internal in ("Context", "ShapeDtypeStruct", "Traced", "site-packages")), line
    return line


class Flaxen(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dense(1)(x)


class Uncallable(nnx.Module):
    def __init__(self, spec: RunSpec, d_in: int, d_out: int, rngs: nnx.Rngs):
        self.layer = nnx.Linear(d_in, d_out, rngs=rngs)


class OneArgument(Uncallable):
    def __call__(self, x: Any) -> Any:
        return self.layer(x)


NETWORKS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "sequential": (lambda spec, d_in, d_out, rngs: nnx.Sequential(nnx.Linear(d_in, d_out, rngs=rngs)), ("Sequential", "ctx")),
    "no call": (Uncallable, ("Uncallable", "__call__(self, x, ctx)")),
    "one argument": (OneArgument, ("OneArgument", "__call__(self, x, ctx)")),
    "instance": (nnx.Linear(4, 1, rngs=nnx.Rngs(0)), ("instance of Linear", "Register a class or a function")),
    "linen class": (Flaxen, ("Linen module Flaxen", "nnx.Module")),
    "linen instance": (Flaxen(), ("Linen module Flaxen", "nnx.Module")),
    "linen returned": (lambda spec, d_in, d_out, rngs: Flaxen(), ("returns the Linen module Flaxen",)),
    "number": (3, ("is int, not a function",)),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_network_of_a_wrong_type_is_refused(kind: str) -> None:
    entry, words = NETWORKS[kind]
    networks._entries["own"] = entry
    refused(SPEC.replace(network="own"), *words)


@pytest.mark.parametrize("built", [optax.adam(0.1), optax.chain(optax.sgd(0.1)), optax.lion(1e-3), 0.1, "adam"])
def test_optimiser_instance_is_refused(built: Any) -> None:
    with pytest.raises(UserError, match=r"optimizer 'own' is .*no function\. Pass the function: optax\.adam, not"):
        optimizer("own")(built)


@pytest.mark.parametrize("name", ["he_normal", "glorot_uniform", "lecun_normal", "orthogonal"])
def test_jax_initialiser_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="initializer 'own'") as error:  # where it is registered, or before it is used
        initializer("own")(getattr(jax.nn.initializers, name))
        cohorts.check(SPEC.replace(initializer="own"), MeasureConfig(30, 20, histograms=False, metrics=("train_loss",)))
    line = str(error.value)
    assert "site-packages" not in line and "(key, layer, inputs) -> (kernel, bias)" in line


INITIALIZERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "nan kernel": (lambda k, layer, x: (jnp.full((layer.fan_in, layer.fan_out), jnp.nan), jnp.zeros(layer.fan_out)), ("NaN",)),
    "nan bias": (
        lambda k, layer, x: (jax.random.normal(k, (layer.fan_in, layer.fan_out)), jnp.full(layer.fan_out, jnp.nan)),
        ("NaN in layer 0",),
    ),
    "one array": (lambda k, layer, x: jax.random.normal(k, (layer.fan_in, layer.fan_out)), ("returns one array",)),
    "nothing": (lambda k, layer, x: None, ("returns one NoneType",)),
}


@pytest.mark.parametrize("kind", INITIALIZERS)
def test_initialiser_with_wrong_values_is_refused(kind: str) -> None:
    function, words = INITIALIZERS[kind]
    initializer("own")(function)
    refused(SPEC.replace(initializer="own"), *words)


def test_activation_with_half_its_units_is_refused() -> None:
    activation("own")(jax.nn.glu)
    refused(SPEC.replace(activation="own"))


def add(sample: Any, **more: Any) -> RunSpec:
    tasks._entries["own"] = lambda spec: Task(Signature(40, 20, 4, 1), sample, **more)
    return SPEC.replace(task="own")


def drawn(key: Any, phase: Any = 0) -> Any:
    x = jax.random.uniform(key, (60, 4))
    return x, x[:, :1]


def test_malformed_sample_is_refused() -> None:
    refused(add(lambda key: drawn(key)), "sample(key, phase)")
    refused(add(lambda: None), "sample(key, phase)")
    refused(add(lambda key, phase: drawn(key)[0]), "returns one array")
    line = refused(add(lambda key, phase: tuple(part[jnp.arange(70)][:60] for part in drawn(key))), "beyond the end")
    assert ". )" not in line and ".)" not in line


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("phases", [1, 3])
def test_fixed_matches_the_rows(fixed: bool, phases: int) -> None:
    assert len(check_task(add(lambda key, phase: drawn(jax.random.key(1)), fixed=fixed, phases=phases))) == (not fixed)
    for sample in (drawn, lambda key, phase: (drawn(jax.random.key(1))[0], drawn(key)[1])):
        spec = add(sample, fixed=fixed, phases=phases)
        if fixed:
            refused(spec, "fixed=True", "different rows", "Leave fixed out")
        else:
            assert check_task(spec) == []


def test_registration_returns_the_entry_unchanged() -> None:
    assert network("own")(OneArgument) is OneArgument
