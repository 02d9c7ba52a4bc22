"""SELU's moment map: mean and variance of each layer, the fixed point (0, 1) and its stability."""

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
Moments = tuple[float, float, float]  # mean, variance, and the derivative of the second moment by the input's


def moment_map(q: float) -> Moments:
    """Return the mean and variance of selu(z), z ~ N(0, q), and the derivative of its second moment by q, in closed form.

    E exp(k z) [z < 0] = exp(k^2 q / 2) Phi(-k sqrt q) =: e_k; by the heat equation d/dq E f(z) = E f''(z) / 2.
    """
    e1, e2 = (np.exp(k**2 * q / 2) * special.ndtr(-k * q**0.5) for k in (1, 2))
    density = (2 * np.pi * q) ** -0.5
    mean = SCALE * (q * density + ALPHA * (e1 - 0.5))
    second = SCALE**2 * (q / 2 + ALPHA**2 * (e2 - 2 * e1 + 0.5))
    slope = SCALE**2 * (0.5 + ALPHA**2 * (2 * e2 - e1))
    return mean, second - mean**2, slope


def _layers(cell: Cell) -> np.ndarray:
    return np.arange(1, cell["depth"] + 1)


def _theory(cell: Cell) -> Mapping[str, Theory]:
    def step(before: Moments, _: int) -> Moments:
        mean, variance, slope = moment_map(before[1] + before[0] ** 2)
        return mean, variance, slope * before[2]

    moments = list(accumulate(range(cell["depth"]), step, initial=(0.0, cell["variance"], 1.0)))[1:]
    mean, variance, slope = np.array(moments).round(12).T  # the error is below 1e-12: a fixed point stays exactly fixed
    return {"mean": Theory(mean), "variance": Theory(variance), "slope": Theory(slope)}


def _check(cell: Cell) -> None:
    require_int(2, width=cell["width"])
    require_int(depth=cell["depth"])
    if not cell["variance"] > 0:
        raise UserError(f"the variance of the inputs' coordinates must be above 0, not {cell['variance']!r}")


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

    def step(h: Float[Array, "1 U"], place: Int[Array, ""]) -> tuple[Float[Array, "1 U"], Float[Array, " 2"]]:
        kernel, bias = weights("lecun_normal", key, place, h, width, depth)
        h = jax.nn.selu(jnp.dot(h, kernel, precision=jax.lax.Precision.HIGHEST) + bias)
        return h, jnp.stack([jnp.mean(h), jnp.mean(h**2)])

    def through(variance: Float[Array, ""]) -> Float[Array, "L 2"]:
        return jax.lax.scan(step, jnp.full((1, width), jnp.sqrt(variance)), jnp.arange(depth))[1]

    moments, slopes = jax.jvp(through, (jnp.asarray(cell["variance"], float),), (jnp.ones((), float),))
    # Unbiased for independent units: deviations from the sample mean are smaller.
    variance = (moments[:, 1] - moments[:, 0] ** 2) * width / (width - 1)
    return {"mean": moments[:, 0], "variance": variance, "slope": slopes[:, 1]}
