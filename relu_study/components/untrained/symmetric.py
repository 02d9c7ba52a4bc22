"""Death probabilities that follow from the symmetry of the weights: of a second-layer unit, and of one input's signal."""

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
MAX_INPUTS = 3


def _check_initializer(cell: Cell) -> None:
    if cell["initializer"] not in (*BIASED, *ZERO):
        raise nearest(cell["initializer"], (*BIASED, *ZERO), "initializer with independent, symmetric weights")


# ------------------------------------------------------------------------------------------ a second-layer unit


def _unit_theory(cell: Cell) -> Mapping[str, Theory]:
    inputs, units = cell["d_in"], cell["width"]
    biased = cell["initializer"] in BIASED
    factor = 1 if biased else 2  # a zero bias of the second layer is no constraint
    if units <= inputs:
        return {"off": Theory(factor * 0.5 ** (units + 1))}
    if units == inputs + 1:
        return {"off": Theory(factor * (2**inputs + 1) / 4 ** (inputs + 1))}
    if not biased and inputs == 1:  # two rays: units fall on them as fair coins; each ray with a unit is off with P = 1/2
        return {"off": Theory(0.25 + 0.5 ** (units + 1))}
    return {"off": Theory(np.nan)}


def _check_unit(cell: Cell) -> None:
    _check_initializer(cell)
    require_int(d_in=cell["d_in"], width=cell["width"])
    if cell["d_in"] > MAX_INPUTS:
        raise UserError(f"d_in must be at most {MAX_INPUTS}, not {cell['d_in']}. The search visits every ray of R^d_in")


def _determinant(rows: list[list[Array]]) -> Array | float:
    if not rows:
        return 1.0
    parts = [(-1) ** k * entry * _determinant([row[:k] + row[k + 1 :] for row in rows[1:]]) for k, entry in enumerate(rows[0])]
    return sum(parts[1:], parts[0])


def _off_everywhere(planes: Float[Array, "n D"], outgoing: Float[Array, " n"], bias: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether bias + sum_j outgoing_j relu(w_j x + a_j) <= 0 for every x. The rows of `planes` are (w_j, a_j).

    F(x, t) = bias t + sum_j outgoing_j relu(w_j x + a_j t) is linear on each cone of the half-space t >= 0 between the planes
    w_j x + a_j t = 0. It is therefore <= 0 everywhere if it is <= 0 on the cones' edges: the vertices (t > 0), and directions
    to infinity (t = 0). An edge is the cross product of D - 1 planes, t = 0 among them. Units of these planes are exactly 0
    there.
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
    """Whether a second-layer unit is off for every input in R^d_in, decided exactly; the first layer has `width` units.

    With symmetric random biases P(off) = 2^-(width+1) if width <= d_in, and (2^d_in + 1) / 4^(d_in+1) if width = d_in + 1.
    For wider layers no formula is known. With zero biases P(off) is twice that, and 1/4 + 2^-(width+1) for every width at
    d_in = 1 (ours: a linear relation of the weights replaces the biases in the proof).

    Source: Brownlowe, Cornwell, Montes, Quijano, Stulman & Zhang 2024, arXiv 2412.06829, section 1.
    """
    d_in, width, name = cell["d_in"], cell["width"], cell["initializer"]
    first, offsets = weights(name, key, 0, jnp.zeros((1, d_in)), width, 2)
    second, bias = weights(name, key, 1, jnp.zeros((1, width)), 1, 2)
    # With fewer units than inputs, the first coordinates already reach every pre-activation.
    kernel = first[: min(d_in, width)]
    return {"off": _off_everywhere(jnp.concatenate([kernel, offsets[None]]).T, second[:, 0], bias[0])}


# -------------------------------------------------------------------------------------------------- a signal


def _widths(cell: Cell) -> list[int]:
    return [int(width) for width in cell["widths"].split("-")]


def _signal_theory(cell: Cell) -> Mapping[str, Theory]:
    return {"dead": Theory(1 - np.cumprod(1 - 0.5 ** np.array(_widths(cell))))}


def _check_signal(cell: Cell) -> None:
    _check_initializer(cell)
    if not all(width.isdecimal() and int(width) > 0 for width in cell["widths"].split("-")):
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
    """Whether one input's signal has met a layer with every unit off by layer k; `widths` are the hidden layers' widths.

    P = 1 - prod_(l <= k) (1 - 2^-n_l): given a live signal, every unit of a layer is a fair coin.

    Source: Rister & Rubin 2020, arXiv 2007.06192 (a single input, the limit of their bound).
    """
    signal, dead, dead_by_layer = jnp.ones((1, cell["d_in"])), jnp.array(False), []
    widths = _widths(cell)
    for place, width in enumerate(widths):
        pre = dense(cell["initializer"], key, place, signal, width, len(widths))
        dead |= jnp.all(pre <= 0)
        signal = jax.nn.relu(pre)
        dead_by_layer.append(dead)
    return {"dead": jnp.stack(dead_by_layer)}
