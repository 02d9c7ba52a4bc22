"""Initialisers by name: `init(key, layer, inputs) -> (kernel, bias)` of one dense layer.

An initialiser sets the hidden layers. The output layer is `glorot_uniform`, unless the initialiser has `output=True`.
All schemes of a family use the same normal or uniform draws for a key: comparisons are paired.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from relu_study.components.registry import initializers
from relu_study.errors import UserError

Weights = tuple[Float[Array, "D U"], Float[Array, " U"]]


class Layer(NamedTuple):
    """The position and size of a dense layer in its network."""

    index: int  # type: ignore[assignment]  # 0 nearest the input
    depth: int  # number of dense layers, with the output layer
    fan_in: int
    fan_out: int
    last: bool


@dataclass(frozen=True)
class Initializer:
    """An initialiser. `output`: it also sets the output layer. `needs_inputs`: it reads the layer's inputs on the examples."""

    function: Callable[[Key[Array, ""], Layer, Float[Array, "N D"]], Weights]
    output: bool = False
    needs_inputs: bool = False

    def __call__(self, key: Key[Array, ""], layer: Layer, inputs: Float[Array, "N D"]) -> Weights:
        return self.function(key, layer, inputs)


def _takes_a_layer(function: Callable[..., Any]) -> bool:
    try:
        signature = inspect.signature(function)
        signature.bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # a builtin has no signature
        return True
    return "shape" not in signature.parameters


def initializer(name: str, output: bool = False, needs_inputs: bool = True) -> Callable[[Callable[..., Weights]], Initializer]:
    """Return a decorator that registers `init(key, layer, inputs) -> (kernel, bias)` as an `Initializer`.

    Args:
      output: the initialiser also sets the output layer.
      needs_inputs: it reads `inputs`. Without them, all activations share one compiled program.

    Raises:
      UserError: for a function of another form, such as the initialisers of `jax.nn.initializers`.
    """

    def decorate(function: Any) -> Initializer:
        if not callable(function) or not _takes_a_layer(function):
            raise UserError(
                f"initializer {name!r} must be a function (key, layer, inputs) -> (kernel, bias). Wrap one of (key, shape, "
                "dtype): lambda key, layer, inputs: (f(key, (layer.fan_in, layer.fan_out)), jnp.zeros(layer.fan_out))"
            )
        entry = Initializer(function, output, needs_inputs)
        initializers.add(name, entry)
        return entry

    return decorate


def _normals(key: Key[Array, ""], rows: int, columns: int, std: float) -> Float[Array, "D U"]:
    """Return N(0, std^2) samples, drawn as one long row: XLA vectorises only over the last axis, too short in a narrow layer.

    The row is scaled before the reshape: XLA then scales and rounds once, as without a reshape.
    """
    return (std * jax.random.normal(key, (rows * columns,))).reshape(rows, columns)


def _normal(key: Key[Array, ""], layer: Layer, std: float) -> Weights:
    return _normals(key, layer.fan_in, layer.fan_out, std), jnp.zeros(layer.fan_out)


def _uniform(key: Key[Array, ""], layer: Layer, low: float, high: float) -> Weights:
    return jax.random.uniform(key, (layer.fan_in, layer.fan_out), minval=low, maxval=high), jnp.zeros(layer.fan_out)


def _split(rows: Float[Array, "D1 U"]) -> Weights:
    """Split jointly drawn weights and biases. The biases are the last row. The weights equal weights drawn without biases."""
    return rows[:-1], rows[-1]


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


@initializer("he_normal_random_bias", needs_inputs=False)
def he_normal_random_bias(key: Key[Array, ""], layer: Layer, inputs: Any) -> Weights:
    """Weights and biases N(0, 2 / fan_in); the weights equal those of `he_normal`.

    Source: Lu, Shin, Su & Karniadakis 2020, arXiv 1903.06733, section 3 (He's scheme with biases drawn like the weights).
    """
    return _split(_normals(key, layer.fan_in + 1, layer.fan_out, (2 / layer.fan_in) ** 0.5))


@initializer("pytorch_default", output=True, needs_inputs=False)
def pytorch_default(key: Key[Array, ""], layer: Layer, inputs: Any) -> Weights:
    """Weights and biases U(+-1 / sqrt(fan_in)), also in the output layer: the default of torch.nn.Linear."""
    bound = layer.fan_in**-0.5
    return _split(jax.random.uniform(key, (layer.fan_in + 1, layer.fan_out), minval=-bound, maxval=bound))


@initializer("orthogonal", needs_inputs=False)
def orthogonal(key: Key[Array, ""], layer: Layer, inputs: Any) -> Weights:
    """Orthonormal columns, or rows if fan_in < fan_out, from the Haar distribution; zero bias.

    Source: Saxe, McClelland & Ganguli 2013, arXiv 1312.6120, section 3.
    """
    normal, _ = _normal(key, layer, 1.0)
    tall = layer.fan_in >= layer.fan_out
    kernel = _orthonormal(normal) if tall else _orthonormal(normal.T).T
    return kernel, jnp.zeros(layer.fan_out)


def _orthonormal(columns: Float[Array, "D U"]) -> Float[Array, "D U"]:
    """Return the Gram-Schmidt orthonormalisation of the columns, U <= D.

    Normal columns give the Haar distribution: the R factor has a positive diagonal. Each column is projected twice, which
    reaches orthogonality to rounding. Mapped over many small matrices, XLA runs this 3 to 5 times as fast as LAPACK's QR up
    to 8 x 8, and equally fast at 16 x 16.

    Source: Mezzadri 2007, arXiv math-ph/0609050, section 5; two projections: Giraud, Langou & Rozloznik 2005, section 3.
    """
    index = jnp.arange(columns.shape[1])

    def add(k: Int[Array, ""] | int, row: Float[Array, " DU"]) -> Float[Array, " DU"]:
        basis = row.reshape(columns.shape)
        column = basis[:, k]
        for _ in range(2):
            overlap = jnp.dot(column, basis, precision=jax.lax.Precision.HIGHEST)
            column -= jnp.dot(basis, jnp.where(index < k, overlap, 0), precision=jax.lax.Precision.HIGHEST)
        return basis.at[:, k].set(column / jnp.linalg.norm(column)).ravel()

    # The loop carries one flat row, the layout of the draw: no relayout.
    return jax.lax.fori_loop(0, columns.shape[1], add, columns.ravel()).reshape(columns.shape)


@initializer("rai", output=True, needs_inputs=False)
def rai(key: Key[Array, ""], layer: Layer, inputs: Any) -> Weights:
    """Randomised asymmetric initialisation: after the first layer every unit has one large positive weight or bias.

    The first layer is He normal with zero bias. In later layers and the output layer, a unit's fan_in weights and its bias
    are N(0, 0.6007^2 / fan_in). One uniformly chosen entry of these is replaced by a draw of Beta(2, 1).

    Source: Lu, Shin, Su & Karniadakis 2020, arXiv 1903.06733, section 4.
    """
    if layer.index == 0:
        return he_normal(key, layer, inputs)
    row = 0.6007 * layer.fan_in**-0.5 * jax.random.normal(key, ((layer.fan_in + 1) * layer.fan_out,))  # as in `_normals`
    position, value = jax.random.uniform(jax.random.fold_in(key, 1), (2, layer.fan_out))
    replaced = jnp.floor(position * (layer.fan_in + 1)).astype(int) * layer.fan_out + jnp.arange(layer.fan_out)
    row = row.at[replaced].set(jnp.sqrt(value))  # P(Beta(2, 1) <= v) = v^2
    return _split(row.reshape(layer.fan_in + 1, layer.fan_out))


@initializer("random_normal", needs_inputs=False)
def random_normal(key: Key[Array, ""], layer: Layer, inputs: Any) -> Weights:
    """N(0, 0.05^2), zero bias: Keras' `random_normal`, the initialiser of the article."""
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
    """He normal, with a unit's weights negated if it is off on more examples than on. Needs zero biases.

    Each unit is then on for at least half of the examples that reach its layer. At least 2^-k of the data therefore stay
    alive in a k-layer network.

    Source: Rister & Rubin 2020, arXiv 2007.06192 (sign flipping), here per unit on the probe batch.
    """
    kernel, bias = he_normal(key, layer, inputs)
    pre = jnp.dot(inputs, kernel, precision=jax.lax.Precision.HIGHEST)
    flip = jnp.sum(pre > 0, axis=0) < jnp.sum(pre < 0, axis=0)
    return jnp.where(flip, -kernel, kernel), bias
