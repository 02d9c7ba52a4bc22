"""Random keys of a traced function: whether a draw uses a fixed key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from random_draws import DRAWS, FIXED, SEED, late, normal, scanned, traced

from relu_study.components import random_keys


@pytest.mark.parametrize("name", DRAWS)
def test_seeded_and_fixed_keys_are_distinguished(name: str):
    proper, fixed = traced(DRAWS[name]), traced(DRAWS[name], lambda seed: FIXED)
    made = traced(DRAWS[name], lambda seed: jax.random.fold_in(jax.random.key(0), 5))
    assert random_keys.draws(proper) and not random_keys.fixed_draw(proper, [True])
    assert random_keys.fixed_draw(fixed, [True]) and random_keys.fixed_draw(made, [True])
    both = jax.make_jaxpr(lambda seed: (normal(jax.random.key(seed)), DRAWS[name](FIXED)))(SEED)
    assert random_keys.fixed_draw(both, [True])


def test_fixed_key_in_a_loop_is_found():
    def with_fixed_steps(seed: Any) -> Any:
        return scanned(jax.random.key(seed), jax.random.split(FIXED, 4))

    def with_fixed_carry(seed: Any) -> Any:
        return scanned(FIXED, jax.random.split(jax.random.key(seed), 4))

    for function in (with_fixed_steps, with_fixed_carry):
        assert random_keys.fixed_draw(jax.make_jaxpr(function)(SEED), [True])


def test_key_that_reaches_a_carry_late_counts():
    def keys(seed: Any) -> Any:
        return late((FIXED, FIXED, jax.random.key(seed)), FIXED)

    assert not random_keys.fixed_draw(jax.make_jaxpr(keys)(SEED), [True])
    assert random_keys.fixed_draw(jax.make_jaxpr(lambda seed: late((FIXED, FIXED, FIXED), FIXED))(SEED), [True])


CHOICES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "cond": lambda seed, one, two: jax.lax.cond(seed > 3, lambda: one, lambda: two),
    "switch": lambda seed, one, two: jax.lax.switch(seed.astype(int), [lambda: one, lambda: two, lambda: one]),
    "where": lambda seed, one, two: jnp.where(seed > 3, one, two),
    "select": lambda seed, one, two: jax.lax.select(seed > 3, one, two),
}


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("fixed", [0, 1, None])
def test_key_selected_among_fixed_and_seeded_keys_is_found(name: str, fixed: int | None):
    def function(seed: Any) -> Any:
        keys = [FIXED if i == fixed else jax.random.fold_in(jax.random.key(seed), i) for i in range(2)]
        return normal(CHOICES[name](seed, *keys))

    assert random_keys.fixed_draw(jax.make_jaxpr(function)(SEED), [True]) == (fixed is not None)


@pytest.mark.parametrize("name", CHOICES)
def test_key_made_from_a_selected_number_counts(name: str):
    def function(seed: Any) -> Any:
        return normal(jax.random.key(CHOICES[name](seed, jnp.uint32(3), seed)))

    assert not random_keys.fixed_draw(jax.make_jaxpr(function)(SEED), [True])


def test_fixed_key_in_a_branch_is_found():
    def function(seed: Any) -> Any:
        return jax.lax.cond(seed > 3, normal, lambda key: normal(FIXED), jax.random.key(seed))

    assert random_keys.fixed_draw(jax.make_jaxpr(function)(SEED), [True])


@pytest.mark.parametrize("function", [jnp.sin, jax.random.key, lambda seed: jax.random.split(jax.random.key(seed), 3), jnp.sort])
def test_functions_without_draws_have_none(function: Callable[[Any], Any]):
    x = SEED if function is not jnp.sort else jax.ShapeDtypeStruct((4,), jnp.float32)
    assert not random_keys.draws(jax.make_jaxpr(function)(x)) and not random_keys.fixed_draw(jax.make_jaxpr(function)(x), [False])
