"""Activations written in many ways: library functions, comparisons, masks, custom derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_vjp
def straight_through(z: Any) -> Any:
    return jnp.round(z)


straight_through.defvjp(lambda z: (jnp.round(z), None), lambda _, cotangent: (cotangent,))


@jax.custom_jvp
def another_slope_at_zero(z: Any) -> Any:
    return jnp.maximum(z, 0)


another_slope_at_zero.defjvps(lambda tangent, _, z: tangent * jnp.where(z > 0, 1.0, 0.3))

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": jax.nn.relu,
    "maximum": lambda z: jnp.maximum(z, 0),
    "where": lambda z: jnp.where(z > 0, z, 0.0),
    "mask": lambda z: z * (z > 0),
    "relu6": jax.nn.relu6,
    "clip": lambda z: jnp.clip(z, 0, 6),
    "leaky_relu": lambda z: jax.nn.leaky_relu(z, 0.1),
    "leak by where": lambda z: jnp.where(z > 0, z, 0.1 * z),
    "leak by maximum": lambda z: jnp.maximum(z, 0.1 * z),
    "elu": jax.nn.elu,
    "celu": lambda z: jax.nn.celu(z, 2.0),
    "selu": jax.nn.selu,
    "silu": jax.nn.silu,
    "silu by exp": lambda z: z / (1 + jnp.exp(-z)),
    "gelu by tanh": jax.nn.gelu,
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),
    "softplus": jax.nn.softplus,
    "mish": jax.nn.mish,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "log_sigmoid": jax.nn.log_sigmoid,
    "hard_tanh": jax.nn.hard_tanh,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_silu": jax.nn.hard_silu,
    "soft_sign": jax.nn.soft_sign,
    "squareplus": jax.nn.squareplus,
    "sparse_plus": jax.nn.sparse_plus,
    "sparse_sigmoid": jax.nn.sparse_sigmoid,
    "squared relu": lambda z: jnp.square(jax.nn.relu(z)),
    "sin": jnp.sin,
    "snake": lambda z: z + jnp.sin(z) ** 2,
    "abs": jnp.abs,
    "square": jnp.square,
    "gaussian": lambda z: jnp.exp(-(z**2)),
    "soft threshold": lambda z: jnp.sign(z) * jnp.maximum(jnp.abs(z) - 0.5, 0),
    "threshold": lambda z: jnp.where(z > 1, z, 0.0),
    "tanh shrink": lambda z: z - jnp.tanh(z),
    "straight through": straight_through,
    "another slope at 0": another_slope_at_zero,
}

# The names that `find_sites` gives; "elementwise" for the others.
NAMES = {name: name for name in ("relu", "relu6", "selu", "silu", "gelu", "softplus", "mish", "tanh", "sigmoid", "log_sigmoid")}
NAMES |= {name: name for name in ("hard_tanh", "hard_sigmoid", "hard_silu", "soft_sign", "squareplus", "sparse_plus", "sin")}
NAMES |= {"maximum": "relu", "where": "relu", "mask": "relu", "clip": "relu6", "silu by exp": "silu", "gelu by tanh": "gelu"}
NAMES |= dict.fromkeys(("leaky_relu", "leak by where", "leak by maximum"), "leaky_relu(0.1)")
NAMES |= {"elu": "elu", "celu": "celu(2)", "squared relu": "relu_squared", "abs": "abs", "square": "square"}
