"""Cosine of the angle between two signals after every layer of a wide ReLU network."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from relu_study.components.untrained.dense_layers import dense, require_int
from relu_study.components.untrained.statistic import Cell, Quantity, Theory, statistic
from relu_study.errors import UserError


def next_cosine(cosine: float) -> float:
    """Return the cosine of two signals after an infinitely wide He normal ReLU layer, given their cosine before the layer."""
    cosine = min(cosine, 1.0)  # rounding can exceed 1
    return ((1 - cosine**2) ** 0.5 + cosine * (np.pi - np.arccos(cosine))) / np.pi


def _theory(cell: Cell) -> Mapping[str, Theory]:
    """Return the cosine after each layer at infinite width."""
    cosines = accumulate(range(cell["depth"]), lambda cosine, _: next_cosine(cosine), initial=cell["cosine"])
    return {"cosine_after": Theory(list(cosines)[1:])}


def _check(cell: Cell) -> None:
    """Raise UserError for an invalid factor."""
    require_int(2, width=cell["width"])
    require_int(depth=cell["depth"])
    if not -1 <= cell["cosine"] <= 1:
        raise UserError(f"factor cosine is {cell['cosine']!r}. Give a cosine of the angle between the two inputs in [-1, 1].")


@statistic(
    "cosine",
    factors={"cosine": 0.0, "width": 512, "depth": 10},
    numbers={"cosine_after": Quantity("Cosine of the angle between the two signals after the layer", along="layer")},
    along=lambda cell: {"layer": range(1, cell["depth"] + 1)},
    theory=_theory,
    check=_check,
    cost=lambda cell: 10.0 * cell["depth"] * cell["width"] ** 2,
)
def cosine(cell: Cell, key: Key[Array, ""]) -> Mapping[str, Array]:
    """Cosine of the signals of two inputs after every layer of a He normal ReLU net. Factor `cosine` is the inputs' cosine.

    At infinite width c <- (sqrt(1 - c^2) + c (pi - arccos c)) / pi, and 1 - c decreases as 9 pi^2 / (2 l^2) in layer l. At finite
    width the error is about l / width. The cosine is undefined if a signal has died.

    Source: Cho & Saul 2009, NeurIPS, section 2 (degree 1); Daniely, Frostig & Singer 2016, arXiv 1602.05897 (dual activations).
    """
    width, depth, start = cell["width"], cell["depth"], cell["cosine"]
    # Two unit vectors in the plane of the first two coordinates.
    first = jnp.zeros((2, width)).at[:, 0].set(jnp.array([1.0, start])).at[1, 1].set((1 - start**2) ** 0.5)

    def layer(signals: Float[Array, "2 U"], index: Int[Array, ""] | int) -> tuple[Float[Array, "2 U"], Float[Array, ""]]:
        signals = jax.nn.relu(dense("he_normal", key, index, signals, width, depth))
        one, other = signals
        return signals, jnp.sum(one * other) / (jnp.linalg.norm(one) * jnp.linalg.norm(other))

    _, cosines = jax.lax.scan(layer, first, jnp.arange(depth))
    return {"cosine_after": cosines}
