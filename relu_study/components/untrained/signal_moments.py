"""Moments of a signal's squared length after l ReLU layers, and of its logarithm."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from scipy import special

from relu_study.components.untrained.dense_layers import dense, require_int
from relu_study.components.untrained.statistic import Cell, Quantity, Theory, statistic
from relu_study.errors import nearest

GAINS = {  # fan_in times the variance of a weight, where fan_in = fan_out
    "he_normal": 2.0,
    "he_uniform": 2.0,
    "glorot_uniform": 1.0,
    "lecun_normal": 1.0,
    "lecun_uniform": 1.0,
}
NORMAL = ("he_normal", "lecun_normal")
FAIR = 2.0  # largest growth of the fourth moment; beyond it rare networks, missed by the draws, dominate the mean


def log_factor(width: int, gain: float) -> tuple[float, float]:
    """Return the exact mean and variance of log of (gain / width) sum_i relu(g_i)^2, g normal, given that some g_i > 0.

    The number j of positive g_i is binomial. The sum is then chi-squared with j degrees of freedom; its logarithm has mean
    digamma(j / 2) + log 2 and variance trigamma(j / 2).
    """
    from scipy import stats  # at first use: its import takes half a second

    j = np.arange(1, width + 1)
    chance = stats.binom.pmf(j, width, 0.5) / (1 - 0.5**width)
    mean = np.sum(chance * special.digamma(j / 2))
    variance = np.sum(chance * (special.polygamma(1, j / 2) + (special.digamma(j / 2) - mean) ** 2))
    return float(mean + np.log(2 * gain / width)), float(variance)


def _layers(cell: Cell) -> np.ndarray:
    return np.arange(1, cell["depth"] + 1)


def _theory(cell: Cell) -> Mapping[str, Theory]:
    layers, gain, width = _layers(cell), GAINS[cell["initializer"]], cell["width"]
    growth = (1 + 5 / width) ** layers
    second = np.where(growth <= FAIR, (gain / 2) ** layers, np.nan)
    theory = {"second": Theory(second)}
    if cell["initializer"] in NORMAL:
        mean, variance = log_factor(width, gain)
        theory |= {"fourth": Theory(second**2 * growth), "log": Theory(mean * layers), "log_square": Theory(variance * layers)}
    return theory


def _check(cell: Cell) -> None:
    if cell["initializer"] not in GAINS:
        raise nearest(cell["initializer"], GAINS, "initializer with independent, symmetric weights and zero bias")
    require_int(width=cell["width"], depth=cell["depth"])


@statistic(
    "signal_moments",
    factors={"initializer": "he_normal", "width": 64, "depth": 10},
    numbers={
        "second": Quantity("|h_l|^2 / |h_0|^2, the signal's squared length", along="layer"),
        "fourth": Quantity("|h_l|^4 / |h_0|^4", along="layer"),
        "log": Quantity("log |h_l|^2 / |h_0|^2, where the signal is alive", along="layer"),
        "log_square": Quantity("Square of its deviation from the exact mean, whose mean is the variance", along="layer"),
    },
    along=lambda cell: {"layer": _layers(cell).tolist()},
    theory=_theory,
    check=_check,
    cost=lambda cell: 8.0 * cell["depth"] * cell["width"] ** 2,
)
def signal_moments(cell: Cell, key: Key[Array, ""]) -> Mapping[str, Array]:
    """A signal's squared length after each of `depth` ReLU layers of `width` units, relative to its input.

    With weights of variance v / width and zero biases, E|h_l|^2 = (v / 2)^l |h_0|^2. He's v = 2 preserves it; Xavier's v = 1
    loses a factor 2 per layer. For normal weights E|h_l|^4 = (v / 2)^(2l) (1 + 5 / width)^l |h_0|^4. |h_l|^2 / |h_0|^2 is then
    a product of l independent factors (v / width) sum relu(g)^2; `log_factor` gives the moments of their logarithm. Theory of
    the means applies where (1 + 5 / width)^l <= 2, theory of the logarithms everywhere.

    Source: He et al. 2015, arXiv 1502.01852, section 2.2; Hanin & Rolnick 2018, arXiv 1803.01719, section 3; the logarithm: ours.
    """
    width, depth = cell["width"], cell["depth"]
    mean, _ = log_factor(width, GAINS[cell["initializer"]])

    def step(signal: Float[Array, "1 U"], place: Int[Array, ""]) -> tuple[Float[Array, "1 U"], Float[Array, ""]]:
        signal = jax.nn.relu(dense(cell["initializer"], key, place, signal, width, depth))
        return signal, jnp.sum(signal**2)

    _, second = jax.lax.scan(step, jnp.full((1, width), width**-0.5), jnp.arange(depth))
    log = jnp.where(second > 0, jnp.log(second), jnp.nan)
    return {"second": second, "fourth": second**2, "log": log, "log_square": (log - mean * _layers(cell)) ** 2}
