"""Dense layers of a network that is drawn and never trained."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from relu_study.components.initializers import Layer, Weights
from relu_study.components.registry import initializers
from relu_study.errors import UserError

BIASED = ("he_normal_random_bias", "pytorch_default")  # schemes whose biases are drawn as their weights are, symmetrically


def weights(
    initializer: str, key: Key[Array, ""], place: int | Int[Array, ""], inputs: Float[Array, "N D"], width: int, depth: int
) -> Weights:
    """Kernel and bias of hidden layer `place` (0 nearest the input) of `depth`, with `width` units.

    `place` may be traced, as in a scan over the layers after the first; an initialiser tells these from the first alone.
    """
    first = isinstance(place, int) and place == 0
    layer = Layer(0 if first else 1, depth + 1, inputs.shape[-1], width, False)
    return initializers[initializer](jax.random.fold_in(key, place), layer, inputs)


def dense(
    initializer: str, key: Key[Array, ""], place: int | Int[Array, ""], inputs: Float[Array, "N D"], width: int, depth: int
) -> Float[Array, "N U"]:
    """Pre-activations of that layer: inputs kernel + bias."""
    kernel, bias = weights(initializer, key, place, inputs, width, depth)
    return jnp.dot(inputs, kernel, precision=jax.lax.Precision.HIGHEST) + bias


def require_int(least: int = 1, **values: float) -> None:
    """Refuse a factor that is not a whole number of at least `least`."""
    for name, value in values.items():
        if not isinstance(value, int) or value < least:
            raise UserError(f"{name} must be a whole number of at least {least}, not {value!r}")
