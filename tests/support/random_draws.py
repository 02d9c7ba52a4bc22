"""Functions that draw random numbers through loops, branches and jitted functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PARAMS = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
SEED = jax.ShapeDtypeStruct((), jnp.uint32)
FIXED = jax.random.key(7)


def normal(key: Any) -> Any:
    return jax.random.normal(key, (3,))


@jax.custom_jvp
def own_slope(key: Any, x: Any) -> Any:
    return x * normal(key)


own_slope.defjvp(lambda primals, tangents: (own_slope(*primals), tangents[1]))


def looped(key: Any, start: Any) -> Any:
    """Draw in each step of a loop that carries the key."""
    return jax.lax.fori_loop(0, 3, lambda i, carry: (jax.random.split(carry[0])[0], carry[1] + normal(carry[0])), (key, start))[1]


def scanned(key: Any, keys: Any) -> Any:
    return jax.lax.scan(lambda carry, own: (carry, normal(own) + normal(carry)), key, keys)[1]


def late(key: Any, other: Any) -> Any:
    """Draw in a loop with a carried key that reaches the draw only in the third step."""
    return jax.lax.scan(
        lambda c, _: ((c[1], c[2], c[2]), normal(jax.random.fold_in(other, jax.random.bits(c[0])))), key, None, 4
    )[1]


def while_test(key: Any) -> Any:
    return jax.lax.while_loop(lambda n: normal(jax.random.fold_in(key, n))[0] > 0, lambda n: n + 1, 0)


DRAWS: dict[str, Callable[[Any], Any]] = {
    "plain": normal,
    "raw": lambda key: normal(jax.random.key_data(key)),
    "inner jit": lambda key: jax.jit(jax.jit(normal))(key),
    "folded": lambda key: normal(jax.random.fold_in(key, 3)),
    "scan": lambda key: scanned(key, jax.random.split(key, 4)),
    "loop": lambda key: looped(key, jnp.zeros(3)),
    "while": while_test,
    "cond": lambda key: jax.lax.cond(jnp.ones(())[...] > 0, normal, lambda k: jnp.zeros(3), key),
    "switch": lambda key: jax.lax.switch(jnp.zeros((), int), [normal, lambda k: normal(jax.random.split(k)[0])], key),
    "vmap": lambda key: jax.vmap(normal)(jax.random.split(key, 2)),
    "checkpoint": lambda key: jax.checkpoint(lambda x: x * normal(key))(jnp.ones(3)),
    "custom slope": lambda key: own_slope(key, jnp.ones(3)),
    "gradient": lambda key: jax.grad(lambda x: (own_slope(key, x) * normal(key)).sum())(jnp.ones(3)),
    "gamma": lambda key: jax.random.gamma(key, 2.0),
    "poisson": lambda key: jax.random.poisson(key, 2.0),
    "permutation": lambda key: jax.random.permutation(key, 5),
    "bit generator": lambda key: jax.lax.rng_bit_generator(jnp.tile(jax.random.key_data(key), 2), (3,))[1],
    "other hash": lambda key: jax.random.normal(jax.random.key(jax.random.bits(key), impl="rbg"), (3,)),
}


def traced(draw: Callable[[Any], Any], key: Callable[[Any], Any] = jax.random.key) -> Any:
    return jax.make_jaxpr(lambda seed: draw(key(seed)))(SEED)
