"""Flax networks that would train silently wrong: each is refused, or named in a note."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax_networks import FEW, IMAGES, registered

from relu_study.components.networks import network, network_of
from relu_study.engine import cohorts
from relu_study.engine.forward import flax_model, network_spec
from relu_study.errors import UserError
from relu_study.study.run_spec import RunSpec


@pytest.fixture(autouse=True)
def entries() -> Iterator[None]:
    with registered():
        yield


class Faulty(nnx.Module):
    """A network of two layers with one fault."""

    def __init__(self, fault: str, spec: RunSpec, outputs: Any, rngs: nnx.Rngs):
        self.fault = fault
        self.first = nnx.Linear(16, spec.width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0) if fault == "fixed key" else rngs)
        self.free = nnx.Param(jax.random.normal(rngs.params(), (spec.width, spec.width))) if fault == "free kernel" else None
        if fault == "stacked":
            self.stack = nnx.vmap(lambda rngs: nnx.Linear(3, 3, rngs=rngs))(nnx.Rngs(jax.random.split(rngs.params(), 5)))
        self.last = nnx.Linear(spec.width, outputs.shape[-1], rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = jax.nn.relu(self.first(x.reshape(len(x), -1)))
        x = x if self.free is None else x @ self.free[...]
        x = self.dropout(x, deterministic=True) if self.fault == "no mode" else self.dropout(x)
        if self.fault == "stacked":
            x = x @ self.stack.kernel[...].sum(axis=0)
        return self.last(x)


class LinenDropout(nn.Module):
    """A Linen network whose dropout has the mode of a keyword that no one passes."""

    outputs: int

    @nn.compact
    def __call__(self, x: Any, noisy: bool = False) -> Any:
        return nn.Dense(self.outputs)(nn.Dropout(0.5, deterministic=not noisy)(nn.relu(nn.Dense(4)(x.reshape(len(x), -1)))))


def checked(fault: str, **changes: Any) -> list[str]:
    """Return the notes of the check of a network with a fault."""
    if fault == "linen":
        network("test_faulty")(lambda spec, inputs, outputs, rngs: LinenDropout(outputs.shape[-1]))
    else:
        network("test_faulty", options={"kind": 1})(lambda spec, inputs, outputs, rngs: Faulty(fault, spec, outputs, rngs))
    notes: dict[Any, Any] = {}
    cohorts.check(IMAGES.replace(network="test_faulty", **changes), FEW, notes)
    return [note for lines in notes.values() for note in lines]


@pytest.mark.parametrize(
    ("fault", "changes", "words"),
    [
        ("none", {"norm": "layer_norm"}, "does not read norm, so norm='layer_norm' would do nothing"),
        ("none", {"activation": "leaky_relu", "leak": 0.3}, "does not read leak"),
        ("none", {"kind": 2}, "does not read kind, so kind=2 would do nothing"),
        ("fixed key", {}, "the random key dropout.rngs.key is the same for all seeds"),
        ("stacked", {"initializer": "he_normal"}, "stack.kernel stacks several kernels"),
    ],
)
def test_a_fault_is_refused(fault: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        checked(fault, **{"depth": 1} | changes)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("fault", "changes", "words"),
    [
        ("no mode", {}, "has dropout or batch normalisation, and computes the same in training mode"),
        ("none", {"depth": 3}, "does not read depth, so depth=3 does nothing"),
        ("none", {"activation": "tanh"}, "does not read activation"),
        ("linen", {}, "has dropout or batch normalisation, and computes the same in training mode"),
        ("free kernel", {"initializer": "he_normal"}, "initializer 'he_normal' leaves free as the modules draw them"),
    ],
)
def test_a_fault_is_named_in_a_note(fault: str, changes: dict[str, Any], words: str) -> None:
    assert any(words in note for note in checked(fault, **{"depth": 1} | changes))
    assert not checked("none", depth=1)


def test_a_linen_network_trains_with_the_keywords_of_its_mode() -> None:
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x: Any, use_running_average: bool = True) -> Any:
            return nn.Dense(3)(nn.relu(nn.BatchNorm(use_running_average=use_running_average)(x.reshape(len(x), -1))))

    network("test_normed")(lambda spec, inputs, outputs, rngs: Normed())
    spec = IMAGES.replace(network="test_normed", depth=1, width=32)
    assert cohorts.check(spec, FEW) is None
    row = jax.ShapeDtypeStruct((4, 4, 1), jnp.float32), jax.ShapeDtypeStruct((3,), jnp.float32)
    model = flax_model(network_of(spec), network_spec(spec), *row)
    params, rest = model.init(jnp.uint32(0), {})
    x = jax.random.normal(jax.random.key(0), (8, 4, 4, 1)) + 3
    changed = model.apply(params, rest, x, True)[1]
    assert not np.array_equal(changed["batch_stats"]["BatchNorm_0"]["mean"], rest["batch_stats"]["BatchNorm_0"]["mean"])
