"""Deaths whose chance follows from the symmetry of the weights alone: a second-layer unit, and a signal on its way."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from relu_study.components.untrained.dense_layers import BIASED, dense, require_int, weights
from relu_study.components.untrained.statistic import Cell, Quantity, Theory, statistic
from relu_study.errors import UserError, nearest

ZERO = ("he_normal", "he_uniform", "glorot_uniform", "lecun_normal", "lecun_uniform")
MOST_INPUTS = 3


def _check_initializer(cell: Cell) -> None:
    if cell["initializer"] not in (*BIASED, *ZERO):
        raise nearest(cell["initializer"], (*BIASED, *ZERO), "initializer with independent, symmetric weights")


# ------------------------------------------------------------------------------------------ a second-layer unit


def _unit_theory(cell: Cell) -> Mapping[str, Theory]:
    inputs, units = cell["d_in"], cell["width"]
    biased = cell["initializer"] in BIASED
    twice = 1 if biased else 2  # without biases the second layer's throws no coin
    if units <= inputs:
        return {"off": Theory(twice * 0.5 ** (units + 1))}
    if units == inputs + 1:
        return {"off": Theory(twice * (2**inputs + 1) / 4 ** (inputs + 1))}
    if not biased and inputs == 1:  # two rays; the units split over them as coins, and each ray with a unit is a coin again
        return {"off": Theory(0.25 + 0.5 ** (units + 1))}
    return {"off": Theory(np.nan)}


def _check_unit(cell: Cell) -> None:
    _check_initializer(cell)
    require_int(d_in=cell["d_in"], width=cell["width"])
    if cell["d_in"] > MOST_INPUTS:
        raise UserError(f"d_in must be at most {MOST_INPUTS}, not {cell['d_in']}: all of R^d_in is searched ray by ray")


def _determinant(rows: list[list[Array]]) -> Array | float:
    if not rows:
        return 1.0
    parts = [(-1) ** k * entry * _determinant([row[:k] + row[k + 1 :] for row in rows[1:]]) for k, entry in enumerate(rows[0])]
    return sum(parts[1:], parts[0])


def _off_everywhere(planes: Float[Array, "n D"], outgoing: Float[Array, " n"], bias: Float[Array, ""]) -> Bool[Array, ""]:
    """Is bias + sum_j outgoing_j relu(w_j x + a_j) <= 0 for every x? `planes` has the rows (w_j, a_j).

    F(x, t) = bias t + sum_j outgoing_j relu(w_j x + a_j t) is linear on the cones into which the planes w_j x + a_j t = 0 cut
    the half-space t >= 0, so it is <= 0 on all of it where it is on their edges: the vertices (t > 0) and, at t = 0, the
    directions in which an edge goes to infinity. An edge lies in D - 1 of the planes, t = 0 among them, and is their cross
    product; the units of these planes are exactly 0 there.
    """
    n, dims = planes.shape
    every = jnp.concatenate([planes, jnp.zeros((1, dims)).at[0, -1].set(1.0)])
    chosen = np.array(list(combinations(range(n + 1), dims - 1)))
    open_ = ~np.any(chosen[:, :, None] == np.arange(n), axis=1)  # edge x unit
    rows = [[every[chosen[:, i], k] for k in range(dims)] for i in range(dims - 1)]
    edges = jnp.stack([(-1) ** k * _determinant([row[:k] + row[k + 1 :] for row in rows]) for k in range(dims)])
    pre = jnp.where(open_, jnp.sum(edges[:, :, None] * planes.T[:, None, :], axis=0), 0)

    def off(sign: int) -> Array:
        t = sign * edges[-1]
        value = bias * t + jnp.sum(jnp.maximum(sign * pre, 0) * outgoing, axis=-1)
        return jnp.all((value <= 0) | (t < 0))

    return off(1) & off(-1)


@statistic(
    "second_layer",
    factors={"initializer": "he_normal_random_bias", "d_in": 1, "width": 2},
    numbers={"off": Quantity("Share of second-layer units that are off on all of R^d_in", share=True)},
    theory=_unit_theory,
    check=_check_unit,
    cost=lambda cell: 20.0 * cell["width"] ** (cell["d_in"] + 1) + 100,
)
def second_layer(cell: Cell, key: Key[Array, ""]) -> Mapping[str, Array]:
    """Is a unit of the second layer off for every input in R^d_in, the first layer having `width` units? Decided exactly.

    With biases drawn symmetrically P(off) = 2^-(width+1) where width <= d_in, and (2^d_in + 1) / 4^(d_in+1) where
    width = d_in + 1; beyond that it is not known. With zero biases it is twice that, and 1/4 + 2^-(width+1) for every width
    at d_in = 1 (ours: a linear relation of the weights plays the part that the biases have in the proof).

    Source: Brownlowe, Cornwell, Montes, Quijano, Stulman & Zhang 2024, arXiv 2412.06829, section 1.
    """
    d_in, width, name = cell["d_in"], cell["width"], cell["initializer"]
    first, offsets = weights(name, key, 0, jnp.zeros((1, d_in)), width, 2)
    second, bias = weights(name, key, 1, jnp.zeros((1, width)), 1, 2)
    # Fewer units than inputs take every value by the first coordinates alone.
    seen = first[: min(d_in, width)]
    return {"off": _off_everywhere(jnp.concatenate([seen, offsets[None]]).T, second[:, 0], bias[0])}


# -------------------------------------------------------------------------------------------------- a signal


def _widths(cell: Cell) -> list[int]:
    return [int(word) for word in cell["widths"].split("-")]


def _signal_theory(cell: Cell) -> Mapping[str, Theory]:
    return {"dead": Theory(1 - np.cumprod(1 - 0.5 ** np.array(_widths(cell))))}


def _check_signal(cell: Cell) -> None:
    _check_initializer(cell)
    words = cell["widths"].split("-")
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UserError(f"widths must be whole numbers above 0 with hyphens between, such as 8-4-8, not {cell['widths']!r}")
    require_int(d_in=cell["d_in"])


@statistic(
    "signal_death",
    factors={"initializer": "he_normal", "widths": "4-4-4-4", "d_in": 4},
    numbers={
        "dead": Quantity(
            "Share of networks in which one input's signal has met a layer with every unit off", share=True, along="layer"
        )
    },
    along=lambda cell: {"layer": range(1, len(_widths(cell)) + 1)},
    theory=_signal_theory,
    check=_check_signal,
    cost=lambda cell: 10.0 * sum(a * b for a, b in zip([cell["d_in"], *_widths(cell)], _widths(cell), strict=False)),
)
def signal_death(cell: Cell, key: Key[Array, ""]) -> Mapping[str, Array]:
    """Has the signal of one input died by layer k, at a layer with every unit off? `widths` are those of the hidden layers.

    P = 1 - prod_(l <= k) (1 - 2^-n_l): given a signal that is alive, every unit of a layer is a fair coin.

    Source: Rister & Rubin 2020, arXiv 2007.06192 (the case of a single input, to which their bound tends).
    """
    signal, dead, found = jnp.ones((1, cell["d_in"])), jnp.array(False), []
    widths = _widths(cell)
    for place, width in enumerate(widths):
        pre = dense(cell["initializer"], key, place, signal, width, len(widths))
        dead |= jnp.all(pre <= 0)
        signal = jax.nn.relu(pre)
        found.append(dead)
    return {"dead": jnp.stack(found)}
