"""Checks of a user's initialisers, and of the entries of a draw study."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from user_entries import FEW, MINE, SPEC, add_task, refused, sampled, study_of

from relu_study.components.activations import activation
from relu_study.components.initializers import Layer, initializer
from relu_study.components.registry import initializers
from relu_study.engine import check_functions, check_tasks, cohorts
from relu_study.errors import UserError
from relu_study.runner.prepare import prepare
from relu_study.study.draw_study import Draws, DrawStudy
from relu_study.study.study import Experiment

pytestmark = pytest.mark.usefixtures("restored_registries")


def shaped(rows: int, columns: int, biases: tuple[int, ...], dtype: Any) -> Any:
    def draw(key: Any, layer: Any, inputs: Any) -> Any:
        return jax.random.normal(key, (layer.fan_in + rows, layer.fan_out + columns)).astype(dtype), jnp.zeros(biases, dtype)

    return draw


@given(
    rows=st.integers(0, 1),
    columns=st.integers(0, 1),
    bias=st.sampled_from([(), (6,), (6, 1), (5,)]),
    dtype=st.sampled_from("fei"),
)
@settings(max_examples=30)
def test_initialiser_must_return_the_shapes_of_the_layer(rows: int, columns: int, bias: Any, dtype: str) -> None:
    initializers._entries.pop("mine", None)
    initializer("mine")(shaped(rows, columns, bias, dtype))
    if (rows, columns, bias, dtype) == (0, 0, (6,), "f"):
        cohorts.check(SPEC.replace(initializer="mine", depth=2), FEW)
    else:
        refused(SPEC.replace(initializer="mine", depth=2), "initializer 'mine' returns a", "Return shape", "(kernel, bias)")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda key, layer, x: jnp.zeros((layer.fan_in, layer.fan_out)), ["returns one", "(kernel, bias)"]),
        (lambda key, layer, x: (jnp.zeros((layer.fan_in, layer.fan_out)), jnp.zeros(layer.fan_out), 1), ["3 values"]),
        (lambda key, layer, x: layer.no_such, ["raises AttributeError"]),
        (
            lambda key, layer, x: (
                jnp.asarray(np.random.normal(size=(layer.fan_in, layer.fan_out)), float),
                jnp.zeros(layer.fan_out),
            ),
            ["other weights for the same key"],
        ),
        (
            jax.jit(
                lambda key, layer, x: (jnp.full((layer.fan_in, layer.fan_out), np.random.normal()), jnp.zeros(layer.fan_out)),
                static_argnums=1,
            ),
            ["other weights for the same key"],
        ),
    ],
)
def test_faulty_initialisers_are_refused(function: Any, words: list[str]) -> None:
    initializer("mine")(function)
    refused(SPEC.replace(initializer="mine"), "initializer 'mine'", *words)


def test_initialiser_with_undeclared_inputs_is_refused() -> None:
    def looks(key: Any, layer: Any, inputs: Any) -> Any:
        return jax.random.normal(key, (layer.fan_in, layer.fan_out)) * jnp.std(inputs), jnp.zeros(layer.fan_out)

    initializer("mine", needs_inputs=False)(looks)
    refused(SPEC.replace(initializer="mine"), "needs_inputs=False")
    initializers._entries.pop("mine")
    initializer("mine")(looks)
    cohorts.check(SPEC.replace(initializer="mine"), FEW)


@pytest.mark.parametrize("function", [jax.nn.initializers.he_normal(), jax.nn.initializers.zeros, lambda key, layer: None])
def test_malformed_initialisers_are_refused_with_the_expected_form(function: Any) -> None:
    with pytest.raises(UserError, match=r"\(key, layer, inputs\) -> \(kernel, bias\).*layer\.fan_in"):
        initializer("mine")(function)


def one_weight(key: Any, layer: Any, inputs: Any) -> Any:
    """Ones, but for the last layer of the network, which is drawn."""
    drawn = jax.random.normal(key, (layer.fan_in, layer.fan_out))
    return drawn if layer.last else jnp.ones_like(drawn), jnp.zeros(layer.fan_out)


def of_a_fixed_key(key: Any, layer: Any, inputs: Any) -> Any:
    """A kernel of a fixed key and a bias of the run's."""
    kernel = jax.random.normal(jax.random.key(layer.index), (layer.fan_in, layer.fan_out))
    return kernel, jax.random.normal(key, (layer.fan_out,))


def of_inputs(key: Any, layer: Any, inputs: Any) -> Any:
    return jnp.ones((layer.fan_in, layer.fan_out)) * inputs.mean(), jnp.zeros(layer.fan_out)


def deep_layer(key: Any, layer: Any, inputs: Any) -> Any:
    """Drawn in the first layer and constant in later ones."""
    drawn = jax.random.normal(key, (layer.fan_in, layer.fan_out))
    return drawn if layer.index == 0 else jnp.ones_like(drawn), jnp.zeros(layer.fan_out)


@pytest.mark.parametrize("function", [one_weight, of_a_fixed_key, of_inputs, jax.jit(of_a_fixed_key, static_argnums=1)])
def test_initialiser_that_ignores_its_key_is_refused(function: Any) -> None:
    initializer("mine", output=True)(function)
    refused(
        SPEC.replace(initializer="mine"),
        "initializer 'mine' gives every seed the same kernel in layer 0",
        "jax.random.normal(key",
    )


def test_each_layer_of_an_initialiser_uses_its_key() -> None:
    initializer("mine")(deep_layer)
    cohorts.check(SPEC.replace(initializer="mine"), FEW)  # its only later layer is the output, which it does not set
    refused(SPEC.replace(initializer="mine", depth=3), "initializer 'mine' gives every seed the same kernel in layer 1", "6 x 6")


def test_a_draw_from_a_small_set_uses_its_key() -> None:
    def signs(key: Any, layer: Any, inputs: Any) -> Any:
        return jax.random.rademacher(key, (layer.fan_in, layer.fan_out), jnp.float32), jnp.zeros(layer.fan_out)

    initializer("mine", needs_inputs=False)(signs)
    for index in range(8):
        check_functions.check_layer("mine", Layer(index, 9, 1, 1, False))


def test_draw_studies_check_their_entries() -> None:
    def study(**cell: Any) -> DrawStudy:
        return DrawStudy("mine", "Mine", "?", [Draws("main", "gradients", {"a": {"width": 4, "depth": 3, **cell}}, 16)])

    activation("mine")(jax.nn.softmax)
    initializer("mine")(shaped(1, 0, (4,), "f"))
    prepare(study(), None)
    with pytest.raises(UserError, match="activation 'mine' mixes units"):
        prepare(study(activation="mine"), None)
    with pytest.raises(UserError, match=r"initializer 'mine' returns a kernel of shape \("):
        prepare(study(initializer="mine"), None)
    initializers._entries.pop("mine")
    initializer("mine")(of_a_fixed_key)
    with pytest.raises(UserError, match="initializer 'mine' gives every seed the same kernel"):
        prepare(study(initializer="mine"), None)


def test_each_entry_is_checked_once_per_study(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    add_task(sampled())
    real = check_tasks.check_task
    monkeypatch.setattr(check_tasks, "check_task", lambda spec: calls.append(spec.task) or real(spec))
    study = study_of(MINE)
    prepare(replace(study, experiments=[Experiment("main", {str(i): MINE.replace(width=i) for i in range(3, 9)})]), None, FEW)
    assert calls == ["mine"]
