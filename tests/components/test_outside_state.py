"""State outside of a function, such as NumPy's generator, shows in repeated traces."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_draws import FIXED
from tiers import tiered

from relu_study.components import random_keys

calls = [0]


def counts(x: Any) -> Any:
    calls[0] += 1
    return x + calls[0]


IMPURE: dict[str, Callable[[Any], Any]] = {
    "numpy array": lambda x: x + np.random.normal(size=3),
    "numpy number": lambda x: x * np.random.uniform(),
    "counter": counts,
    "key of NumPy": lambda x: x + jax.random.normal(jax.random.key(np.random.randint(10**6)), (3,)),
    "length": lambda x: jnp.sin(x) if (counts(0) % 2) else jnp.cos(x),
    "key array": lambda x: x + jax.random.normal(jax.random.clone(jax.random.fold_in(FIXED, np.random.randint(10**6))), (3,)),
}
INNER: dict[str, Callable[[Any, Any], Any]] = {
    "inner jit": lambda inner, x: 2 * jax.jit(inner)(x),
    "scan": lambda inner, x: jax.lax.scan(lambda c, _: (inner(c), None), x, None, 3)[0],
    "cond": lambda inner, x: jax.lax.cond(x[0] > 0, inner, lambda x: x, x),
    "slope": lambda inner, x: jax.grad(lambda x: (inner(x) ** 2).sum())(x),
}


def hide(function: Callable[[Any], Any], place: str) -> Callable[[Any], Any]:
    if place == "plain":
        return function
    return jax.jit(function) if place == "jit" else functools.partial(INNER[place], jax.jit(function))


PLACES = ["plain", "jit", *INNER]
FAST = [*((name, "plain") for name in IMPURE), *(("numpy array", place) for place in PLACES[1:])]


@pytest.mark.parametrize("name, place", tiered([(name, place) for name in IMPURE for place in PLACES], *FAST))
def test_outside_state_shows_in_repeated_traces(name: str, place: str):
    function, x = hide(IMPURE[name], place), jnp.ones(3)
    function(x)
    assert not random_keys.repeats(function, x)
    function(x)
    assert not random_keys.repeats(function, x)


@pytest.mark.parametrize("place", tiered(PLACES, "plain", "jit", "scan"))
def test_pure_functions_repeat(place: str):
    table, key = np.random.normal(size=3), jax.random.key(2)

    def pure(x: Any) -> Any:
        x = x + table + jnp.asarray(table) * jax.random.normal(key, (3,)) + jnp.nan
        return jax.pure_callback(lambda y: y, jax.ShapeDtypeStruct((3,), x.dtype), x) if place == "plain" else jax.nn.relu(x)

    assert random_keys.repeats(hide(pure, place), jnp.ones(3)) and random_keys.repeats(hide(pure, place), jnp.ones(3))
