"""In random stacks of layers every activation is found, with its name and order, and nothing else."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from random_stacks import SHAPE, stacks, weights

from relu_study.watch.find import find_sites
from relu_study.watch.tap import tap

X, Y = weights(100, *SHAPE), weights(101, *SHAPE)


@given(stacks())
@settings(max_examples=6)
def test_every_activation_is_found_and_nothing_else(stack: Any) -> None:
    fn, params, expected = stack
    assert [(site.name, site.activation) for site in find_sites(fn, params, X, Y)] == expected


@pytest.mark.slow
@given(stacks(largest=6))
@settings(max_examples=200)
def test_every_activation_of_many_stacks_is_found(stack: Any) -> None:
    fn, params, expected = stack
    assert [(site.name, site.activation) for site in find_sites(fn, params, X, Y)] == expected


@given(stacks(largest=2))
@settings(max_examples=3)
def test_outputs_and_gradients_are_those_of_the_function(stack: Any) -> None:
    agree(*stack)


@pytest.mark.slow
@given(stacks())
@settings(max_examples=30)
def test_outputs_and_gradients_of_many_stacks_are_those_of_the_function(stack: Any) -> None:
    agree(*stack)


def agree(fn: Any, params: Any, expected: list[tuple[str, str]]) -> None:
    def loss(fn: Any) -> Any:
        def of(params: Any) -> Any:
            out = fn(params, X, Y)
            out, taps = out if isinstance(out, tuple) else (out, {})
            return jnp.sum(jnp.sin(out)), (out, taps)

        return jax.jit(jax.value_and_grad(of, has_aux=True))

    ((_, (out, taps)), grads), ((_, (out0, _)), grads0) = loss(tap(fn))(params), loss(fn)(params)
    assert list(taps) == [name for name, _ in expected]
    np.testing.assert_allclose(out, out0, 1e-4, 1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 2e-3, 2e-4 * (1 + jnp.abs(b).max())), grads, grads0)
    assert all(np.isnan(found.pre).any() == np.isnan(found.slope).any() for found in taps.values())
