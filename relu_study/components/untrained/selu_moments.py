"""Mean and variance of every layer of a SELU network, and the stability of their fixed point (0, 1)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from scipy import special

from relu_study.components.untrained.dense_layers import require_int, weights
from relu_study.components.untrained.statistic import Cell, Quantity, Theory, statistic
from relu_study.errors import UserError

SCALE, ALPHA = 1.0507009873554805, 1.6732632423543772
Moments = tuple[float, float, float]  # mean, variance, d(second moment) / d(second moment of the inputs)


def moment_map(q: float) -> Moments:
    """Return the mean and variance of selu(z), z ~ N(0, q), and the derivative of its second moment with respect to q.

    All three have a closed form in e_k := E exp(k z) [z < 0] = exp(k^2 q / 2) Phi(-k sqrt q).
    The heat equation d/dq E f(z) = E f''(z) / 2 gives the derivative.
    """
    e1, e2 = (np.exp(k**2 * q / 2) * special.ndtr(-k * q**0.5) for k in (1, 2))
    density = (2 * np.pi * q) ** -0.5
    mean = SCALE * (q * density + ALPHA * (e1 - 0.5))
    second = SCALE**2 * (q / 2 + ALPHA**2 * (e2 - 2 * e1 + 0.5))
    slope = SCALE**2 * (0.5 + ALPHA**2 * (2 * e2 - e1))
    return mean, second - mean**2, slope


def _layers(cell: Cell) -> np.ndarray:
    """Return the indices of the layers, from 1."""
    return np.arange(1, cell["depth"] + 1)


def _theory(cell: Cell) -> Mapping[str, Theory]:
    """Return the iterates of the moment map, with the derivative by the chain rule."""

    def next_layer(previous: Moments, _: int) -> Moments:
        previous_mean, previous_variance, previous_slope = previous
        mean, variance, slope = moment_map(previous_variance + previous_mean**2)
        return mean, variance, slope * previous_slope

    moments = list(accumulate(range(cell["depth"]), next_layer, initial=(0.0, cell["variance"], 1.0)))[1:]
    # The error is below 1e-12, so rounding keeps a fixed point exactly fixed.
    mean, variance, slope = np.array(moments).round(12).T
    return {"mean": Theory(mean), "variance": Theory(variance), "slope": Theory(slope)}


def _check(cell: Cell) -> None:
    """Raise UserError for an invalid factor."""
    require_int(2, width=cell["width"])
    require_int(depth=cell["depth"])
    if not cell["variance"] > 0:
        raise UserError(f"factor variance is {cell['variance']!r}. Give a variance of the inputs above 0.")


@statistic(
    "selu_moments",
    factors={"variance": 1.0, "width": 256, "depth": 10},
    numbers={
        "mean": Quantity("Mean of a layer's outputs", along="layer"),
        "variance": Quantity("Variance of a layer's outputs", along="layer"),
        "slope": Quantity("Derivative of the outputs' second moment by the inputs' variance", along="layer"),
    },
    along=lambda cell: {"layer": _layers(cell).tolist()},
    theory=_theory,
    check=_check,
    cost=lambda cell: 10.0 * cell["depth"] * cell["width"] ** 2,
)
def selu_moments(cell: Cell, key: Key[Array, ""]) -> Mapping[str, Array]:
    """Mean and variance over the units of each layer of a SELU net with LeCun normal weights, and their input sensitivity.

    The theory of the first layer is exact at every width. Deeper layers converge to the map's iterates as the width grows. At
    the fixed point (0, 1) the slope is 0.7826479 per layer.

    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017, arXiv 1706.02515, section 2 and appendix A3 (the Jacobian at (0, 1)).
    """
    width, depth = cell["width"], cell["depth"]

    def layer(h: Float[Array, "1 U"], index: Int[Array, ""]) -> tuple[Float[Array, "1 U"], Float[Array, " 2"]]:
        kernel, bias = weights("lecun_normal", key, index, h, width, depth)
        h = jax.nn.selu(jnp.dot(h, kernel, precision=jax.lax.Precision.HIGHEST) + bias)
        return h, jnp.stack([jnp.mean(h), jnp.mean(h**2)])

    def layer_moments(variance: Float[Array, ""]) -> Float[Array, "L 2"]:
        return jax.lax.scan(layer, jnp.full((1, width), jnp.sqrt(variance)), jnp.arange(depth))[1]

    moments, slopes = jax.jvp(layer_moments, (jnp.asarray(cell["variance"], float),), (jnp.ones((), float),))
    # The factor makes the variance unbiased for independent units: deviations from the sample mean are too small.
    variance = (moments[:, 1] - moments[:, 0] ** 2) * width / (width - 1)
    return {"mean": moments[:, 0], "variance": variance, "slope": slopes[:, 1]}
