"""The probability that one unit is off on a whole ball (by Student's t) or on a whole box (by its signs)."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from relu_study.components.untrained.dense_layers import require_int
from relu_study.components.untrained.statistic import Cell, Quantity, Theory, statistic
from relu_study.errors import UserError, nearest

LAWS = ("normal", "uniform")


def _theory(cell: Cell) -> Mapping[str, Theory]:
    law, d, r = cell["law"], cell["d"], cell["r"]
    if law == "normal":
        from scipy import stats  # at first use: its import takes half a second

        return {"dead": Theory(stats.t.sf(r * d**0.5, d))}
    if d == 1:  # the mean over |w| ~ U(0, 1) of P(bias <= -r |w|) = (1 - r |w|)^+ / 2
        return {"dead": Theory(1 / (4 * r) if r >= 1 else (2 - r) / 4)}
    return {"dead": Theory(np.nan)}


def _check(cell: Cell) -> None:
    if cell["law"] not in LAWS:
        raise nearest(cell["law"], LAWS, "law of a unit's weights")
    require_int(d=cell["d"])
    if not cell["r"] > 0:
        raise UserError(f"the radius r must be above 0, not {cell['r']!r}")


@statistic(
    "dead_unit",
    factors={"law": "normal", "d": 1, "r": 3**0.5},
    numbers={"dead": Quantity("Share of units that are off on the whole ball", share=True)},
    theory=_theory,
    check=_check,
    cost=lambda cell: 10.0 * (cell["d"] + 1),
)
def dead_unit(cell: Cell, key: Key[Array, ""]) -> Mapping[str, Array]:
    """Whether a unit is off on every input of length at most r: bias + r |weights| <= 0.

    The d weights and the bias have the same `law`, normal or uniform on (-1, 1). For the normal law P(dead) = P(t_d >= r sqrt d),
    Student's t with d degrees of freedom (1/6 at d = 1, r = sqrt 3). For the uniform law at d = 1 it is 1 / (4 r) if r >= 1,
    else (2 - r) / 4.

    Source: ours; -bias / (|weights| / sqrt d) is Student's t by its definition (Student 1908, Biometrika 6, 1-25).
    """
    if cell["law"] == "normal":
        drawn = jax.random.normal(key, (cell["d"] + 1,))
    else:
        drawn = jax.random.uniform(key, (cell["d"] + 1,), minval=-1.0, maxval=1.0)
    return {"dead": drawn[-1] + cell["r"] * jnp.linalg.norm(drawn[:-1]) <= 0}


@statistic(
    "box_unit",
    factors={"d": 4},
    numbers={"dead": Quantity("Share of units that are off on the whole box (-1, 0)^d", share=True)},
    theory=lambda cell: {"dead": Theory(0.5 ** cell["d"])},
    check=lambda cell: require_int(d=cell["d"]),
    cost=lambda cell: 10.0 * cell["d"],
)
def box_unit(cell: Cell, key: Key[Array, ""]) -> Mapping[str, Array]:
    """Whether a unit with normal weights and zero bias is off on all of (-1, 0)^d: none of its weights is negative, P = 2^-d.

    Source: ours (the article's box).
    """
    return {"dead": jnp.all(jax.random.normal(key, (cell["d"],)) >= 0)}
