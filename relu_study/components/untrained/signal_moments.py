"""How long a signal is after l layers: moments of its squared length, and of the logarithm of that."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from scipy import special, stats

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
FAIR = 2.0  # where the fourth moment has grown by more, rare networks carry the mean and are not seen in so many draws


def log_factor(width: int, gain: float) -> tuple[float, float]:
    """Exact mean and variance of log of (gain / width) sum_i relu(g_i)^2, g normal, given that some g_i > 0.

    With j of them above 0, a binomial number, the sum is chi-squared with j degrees of freedom, whose logarithm has the mean
    digamma(j / 2) + log 2 and the variance trigamma(j / 2).
    """
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
    found = {"second": Theory(second)}
    if cell["initializer"] in NORMAL:
        mean, variance = log_factor(width, gain)
        found |= {"fourth": Theory(second**2 * growth), "log": Theory(mean * layers), "log_square": Theory(variance * layers)}
    return found


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
    """A signal's squared length after each of `depth` ReLU layers of `width` units, beside that of its input.

    With variance v / width of the weights and zero biases E|h_l|^2 = (v / 2)^l |h_0|^2, so that He's v = 2 keeps it and Xavier's
    v = 1 loses a factor 2 a layer; for normal weights E|h_l|^4 = (v / 2)^(2l) (1 + 5 / width)^l |h_0|^4, and |h_l|^2 / |h_0|^2 is
    a product of l independent (v / width) sum relu(g)^2, of whose logarithm `log_factor` has the moments. The means are compared
    where (1 + 5 / width)^l <= 2, the logarithms everywhere.

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
