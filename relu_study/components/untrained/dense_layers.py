"""Dense layers of untrained networks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from relu_study.components.initializers import Layer, Weights
from relu_study.components.registry import initializers
from relu_study.errors import UserError

BIASED = ("he_normal_random_bias", "pytorch_default")  # schemes with random, symmetric biases


def weights(
    initializer: str, key: Key[Array, ""], place: int | Int[Array, ""], inputs: Float[Array, "N D"], width: int, depth: int
) -> Weights:
    """Return the kernel and bias of hidden layer `place` (0 nearest the input) of `depth`, with `width` units.

    `place` may be traced, as in a scan over the later layers. Initialisers distinguish only the first layer from the others.
    """
    first = isinstance(place, int) and place == 0
    layer = Layer(0 if first else 1, depth + 1, inputs.shape[-1], width, False)
    return initializers[initializer](jax.random.fold_in(key, place), layer, inputs)


def dense(
    initializer: str, key: Key[Array, ""], place: int | Int[Array, ""], inputs: Float[Array, "N D"], width: int, depth: int
) -> Float[Array, "N U"]:
    """Return the pre-activations of that layer, inputs kernel + bias."""
    kernel, bias = weights(initializer, key, place, inputs, width, depth)
    return jnp.dot(inputs, kernel, precision=jax.lax.Precision.HIGHEST) + bias


def require_int(least: int = 1, **values: float) -> None:
    """Raise UserError for a factor that is not an integer of at least `least`."""
    for name, value in values.items():
        if not isinstance(value, int) or value < least:
            raise UserError(f"{name} must be a whole number of at least {least}, not {value!r}")
