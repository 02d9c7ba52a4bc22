"""A Markov chain of two rays through a deep ReLU network: the probability that a network on a line is stillborn.

With zero bias and one input, the rays x = 1 and x = -1 determine the network: it is stillborn if some layer is off for both.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from relu_study.components.untrained.dense_layers import require_int
from relu_study.components.untrained.statistic import Cell, Quantity, Theory, statistic

EVERY = 40  # every depth up to here is reported, then depths in steps of 5 %


def upper_bound(width: int, layers: np.ndarray, spared: int = 1) -> np.ndarray:
    """Return 1 - (1 - 2^-N)^(L - spared): the probability that one input's signal dies in a layer, 2^-N at each.

    `spared` is 1 for symmetric weights. It is 2 with zero bias and one input: one of the two rays survives the first layer.

    Source: Lu et al. 2020, arXiv 1903.06733, theorem 3.3.
    """
    return np.asarray(-np.expm1((np.asarray(layers) - spared) * np.log1p(-(2.0**-width))))


def lower_bound(width: int, layers: np.ndarray) -> np.ndarray:
    """Return 1 - a1^(L-2) + C (a2^(L-2) - a1^(L-2)), for independent Gaussian weights, zero bias and one input.

    a1 = 1 - 2^-N, a2 = 1 - 2^(1-N) - (N - 1) 4^-N, C = (1 - 2^(1-N)) (1 - 2^-N) / (1 + (N - 1) 2^-N).

    Source: Lu et al. 2020, arXiv 1903.06733, theorem 3.3.
    """
    n, k = width, np.asarray(layers) - 2.0
    first, second = 1 - 2.0**-n, 1 - 2.0 ** (1 - n) - (n - 1) * 4.0**-n
    factor = (1 - 2.0 ** (1 - n)) * (1 - 2.0**-n) / (1 + (n - 1) * 2.0**-n)
    return np.asarray(1 - first**k + factor * (second**k - first**k))


def _layers(cell: Cell) -> list[int]:
    most, layers = cell["max_layers"], list(range(2, min(cell["max_layers"], EVERY) + 1))
    while layers[-1] < most:
        layers.append(min(most, layers[-1] + max(1, layers[-1] // 20)))
    return layers


def _theory(cell: Cell) -> dict[str, Theory]:
    layers = np.array(_layers(cell))
    return {"born_dead": Theory(lower=lower_bound(cell["width"], layers), upper=upper_bound(cell["width"], layers, spared=2))}


def _check(cell: Cell) -> None:
    require_int(width=cell["width"])
    require_int(2, max_layers=cell["max_layers"])


@statistic(
    "chain",
    factors={"width": 4, "max_layers": 40},
    numbers={"born_dead": Quantity("probability of being stillborn, given the angles of one draw", along="layers")},
    along=lambda cell: {"layers": _layers(cell)},
    theory=_theory,
    check=_check,
    cost=lambda cell: 8.0 * cell["width"] * cell["max_layers"],
)
def chain(cell: Cell, key: Key[Array, ""]) -> Mapping[str, Array]:
    """P(stillborn by L), given one random path of the angle theta between the two live rays. The mean over draws is unbiased.

    A unit is on for both rays with probability p = 1/2 - theta / (2 pi), off for both with p, and on for only one with
    theta / (2 pi) each. Transitions: both -> none p^N, both -> one 2 (2^-N - p^N), one -> none 2^-N. After the first layer
    both are alive with probability 1 - 2^(1-N), at theta = pi / 2, else one is. The next angle is drawn given that both stay
    alive. If both pass only through the same unit (probability N p^N), the angle is 0: they are one ray from then on.

    Source: the states of the proof of theorem 3.3 in Lu et al. 2020, arXiv 1903.06733; the angle is ours.
    """
    width = cell["width"]
    both = 1 - 2.0 ** (1 - width)

    def layer(state: tuple[Array, Array, Array, Array], place: Array) -> tuple[tuple[Array, Array, Array, Array], Array]:
        angle, both, one, dead = state
        p = 0.5 - angle / (2 * jnp.pi)
        none, single = p**width, 2 * (2.0**-width - p**width)
        # Summed directly: 1 - both - one would lose rare events in single precision.
        dead = dead + both * none + one * 2.0**-width
        one = one * (1 - 2.0**-width) + both * single
        both = both * (1 - none - single)
        angle = _next_angle(angle, width, jax.random.fold_in(key, place))
        return (angle, both, one, dead), dead

    begin = (jnp.asarray(jnp.pi / 2), jnp.asarray(both), jnp.asarray(1 - both), jnp.zeros(()))
    _, dead = jax.lax.scan(layer, begin, jnp.arange(cell["max_layers"] - 2, dtype=jnp.uint32))
    dead = jnp.concatenate([jnp.zeros(1), dead])
    return {"born_dead": dead[np.array(_layers(cell)) - 2]}


def _next_angle(angle: Float[Array, ""], width: int, key: Key[Array, ""]) -> Float[Array, ""]:
    """Return the angle after one more layer, given that both rays survive it.

    Units are drawn one by one, conditioned on the probability that the remaining units let both rays survive. The
    pre-activations of a unit are r cos(phi) and r cos(phi - angle), r Rayleigh and phi uniform: signs are arcs of phi.
    """
    p = 0.5 - angle / (2 * jnp.pi)
    arcs = jnp.stack([jnp.pi - angle, angle, angle])  # on for both, only for the first, only for the second
    begins = jnp.stack([angle - jnp.pi / 2, -jnp.pi / 2 * jnp.ones(()), jnp.pi / 2 * jnp.ones(())])
    chances = jnp.stack([p, 0.5 - p, 0.5 - p, p])

    def unit(alive: tuple[Array, Array], drawn: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        rest, uniform = drawn
        first, second = alive[0] | np.array([1, 1, 0, 0], bool), alive[1] | np.array([1, 0, 1, 0], bool)
        lacks = (~first).astype(float) + (~second).astype(float)
        still = 1 - lacks * 2.0**-rest + jnp.where(lacks == 2, p**rest, 0.0)
        weights = jnp.cumsum(chances * still)
        kind = jnp.sum(uniform[0] * weights[-1] >= weights[:3])
        on = jnp.minimum(kind, 2)
        phi, r = begins[on] + uniform[1] * arcs[on], jnp.sqrt(-2 * jnp.log1p(-uniform[2]))
        out = r * jnp.stack([(kind < 2) * jnp.cos(phi), (kind % 2 == 0) * jnp.cos(phi - angle)])
        return (first[kind], second[kind]), jnp.maximum(out, 0.0)

    rest = jnp.arange(width - 1, -1, -1, dtype=float)
    # At 0 or 1 a ray could have length 0 and no angle, about once in 1e5 draws.
    uniform = jax.random.uniform(key, (width, 3), minval=2.0**-22, maxval=1 - 2.0**-22)
    _, posts = jax.lax.scan(unit, (jnp.array(False), jnp.array(False)), (rest, uniform))
    ends = posts / jnp.sqrt(jnp.sum(posts**2, axis=0))
    return 2 * jnp.arcsin(jnp.minimum(jnp.sqrt(jnp.sum((ends[:, 0] - ends[:, 1]) ** 2)) / 2, 1.0))
