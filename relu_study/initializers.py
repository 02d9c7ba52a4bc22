"""Initialisers by name: `init(key, layer, inputs) -> (kernel, bias)` of one dense layer.

They set hidden layers; the output layer is `glorot_uniform` unless an initialiser is registered with `output=True`.
One key gives every scheme of a family the same underlying draws, so schemes are compared on paired networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from relu_study.registry import initializers

Weights = tuple[Float[Array, "D U"], Float[Array, " U"]]


class Layer(NamedTuple):
    """The place of a dense layer in its network."""

    index: int  # type: ignore[assignment]  # 0 nearest the input
    depth: int  # dense layers in all, the output layer included
    fan_in: int
    fan_out: int
    last: bool


@dataclass(frozen=True)
class Initializer:
    """A way to begin: `output` sets the output layer too, `needs_inputs` looks at the examples."""

    function: Callable[[Key[Array, ""], Layer, Float[Array, "N D"]], Weights]
    output: bool = False
    needs_inputs: bool = False

    def __call__(self, key: Key[Array, ""], layer: Layer, inputs: Float[Array, "N D"]) -> Weights:
        return self.function(key, layer, inputs)


def initializer(name: str, output: bool = False, needs_inputs: bool = True) -> Callable[[Callable[..., Weights]], Initializer]:
    """Register an initialiser; one that says it does not need its inputs shares its program among activations."""

    def keep(function: Callable[..., Weights]) -> Initializer:
        entry = Initializer(function, output, needs_inputs)
        initializers.add(name, entry)
        return entry

    return keep


def _normal(key: Key[Array, ""], layer: Layer, std: float) -> Weights:
    return std * jax.random.normal(key, (layer.fan_in, layer.fan_out)), jnp.zeros(layer.fan_out)


def _uniform(key: Key[Array, ""], layer: Layer, low: float, high: float) -> Weights:
    return jax.random.uniform(key, (layer.fan_in, layer.fan_out), minval=low, maxval=high), jnp.zeros(layer.fan_out)


@initializer("he_normal", needs_inputs=False)
def he_normal(key: Key[Array, ""], layer: Layer, inputs: Any) -> Weights:
    """N(0, 2 / fan_in), zero bias. Source: He et al. 2015, arXiv 1502.01852, section 2.2 (Keras truncates it)."""
    return _normal(key, layer, (2 / layer.fan_in) ** 0.5)


@initializer("he_uniform", needs_inputs=False)
def he_uniform(key: Key[Array, ""], layer: Layer, inputs: Any) -> Weights:
    """U(+-sqrt(6 / fan_in)), variance 2 / fan_in, zero bias. Source: He et al. 2015, arXiv 1502.01852, section 2.2."""
    bound = (6 / layer.fan_in) ** 0.5
    return _uniform(key, layer, -bound, bound)


@initializer("lecun_normal", needs_inputs=False)
def lecun_normal(key: Key[Array, ""], layer: Layer, inputs: Any) -> Weights:
    """N(0, 1 / fan_in), zero bias. Source: LeCun et al. 1998, "Efficient BackProp", section 4.6."""
    return _normal(key, layer, (1 / layer.fan_in) ** 0.5)


@initializer("lecun_uniform", needs_inputs=False)
def lecun_uniform(key: Key[Array, ""], layer: Layer, inputs: Any) -> Weights:
    """U(+-sqrt(3 / fan_in)), variance 1 / fan_in, zero bias. Source: LeCun et al. 1998, "Efficient BackProp", section 4.6."""
    bound = (3 / layer.fan_in) ** 0.5
    return _uniform(key, layer, -bound, bound)


@initializer("glorot_uniform", output=True, needs_inputs=False)
def glorot_uniform(key: Key[Array, ""], layer: Layer, inputs: Any) -> Weights:
    """U(+-sqrt(6 / (fan_in + fan_out))), zero bias. Source: Glorot & Bengio 2010, equation 16."""
    bound = (6 / (layer.fan_in + layer.fan_out)) ** 0.5
    return _uniform(key, layer, -bound, bound)


@initializer("random_normal", needs_inputs=False)
def random_normal(key: Key[Array, ""], layer: Layer, inputs: Any) -> Weights:
    """N(0, 0.05^2), zero bias: Keras' `random_normal`, the article's start."""
    return _normal(key, layer, 0.05)


@initializer("random_uniform", needs_inputs=False)
def random_uniform(key: Key[Array, ""], layer: Layer, inputs: Any) -> Weights:
    """U(-0.05, 0.05), zero bias: Keras' `random_uniform`."""
    return _uniform(key, layer, -0.05, 0.05)


@initializer("negative_uniform", needs_inputs=False)
def negative_uniform(key: Key[Array, ""], layer: Layer, inputs: Any) -> Weights:
    """U(-1, 0), zero bias: the article's "negative weights", positive pre-activations on a negative box."""
    return _uniform(key, layer, -1.0, 0.0)


@initializer("sign_flip")
def sign_flip(key: Key[Array, ""], layer: Layer, inputs: Float[Array, "N D"]) -> Weights:
    """He normal, each unit's weights negated where it would be off on more examples than on.

    At least half of the examples that reach a layer then pass each of its units, so at least
    2^-k of the data stay alive in a k-layer network. Needs zero biases.

    Source: Rister & Rubin 2020, arXiv 2007.06192 (sign flipping), per unit on the probe batch.
    """
    kernel, bias = he_normal(key, layer, inputs)
    pre = jnp.dot(inputs, kernel, precision=jax.lax.Precision.HIGHEST)
    flip = jnp.sum(pre > 0, axis=0) < jnp.sum(pre < 0, axis=0)
    return jnp.where(flip, -kernel, kernel), bias
