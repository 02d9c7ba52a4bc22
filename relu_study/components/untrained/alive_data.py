"""The share of the data that is alive in each layer of an untrained ReLU network."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from relu_study.components.registry import initializers
from relu_study.components.untrained.dense_layers import dense, require_int
from relu_study.components.untrained.statistic import Cell, Quantity, Theory, statistic

GUARDED = ("sign_flip",)


def _layers(cell: Cell) -> np.ndarray:
    return np.arange(1, cell["depth"] + 1)


def _theory(cell: Cell) -> Mapping[str, Theory]:
    if cell["initializer"] not in GUARDED:
        return {}
    return {"alive": Theory(lower=0.5 ** _layers(cell)), "below": Theory(np.zeros(cell["depth"]))}


def _check(cell: Cell) -> None:
    initializers[cell["initializer"]]
    require_int(**{name: cell[name] for name in ("d", "width", "depth", "examples")})


@statistic(
    "alive_data",
    factors={"initializer": "sign_flip", "d": 4, "width": 4, "depth": 10, "examples": 64},
    numbers={
        "alive": Quantity("Share of the data whose signal is alive in the layer", along="layer", spread=(0.0, 1.0)),
        "below": Quantity("Share of networks that keep less than 2^-layer of the data alive", share=True, along="layer"),
    },
    along=lambda cell: {"layer": _layers(cell).tolist()},
    theory=_theory,
    check=_check,
    cost=lambda cell: 10.0 * cell["depth"] * cell["width"] * (cell["width"] + 2 * cell["examples"]),
)
def alive_data(cell: Cell, key: Key[Array, ""]) -> Mapping[str, Array]:
    """Share of the data with some unit on (alive), in every layer of a ReLU net; data uniform on (-1, 0)^d.

    With sign flipping every unit is on for at least half of the live data. At least 2^-k of the data are therefore alive in
    layer k, for every network: `below` is exactly 0.

    Source: Rister & Rubin 2020, arXiv 2007.06192 (sign flipping).
    """
    name, width, depth = cell["initializer"], cell["width"], cell["depth"]
    data = -jax.random.uniform(jax.random.fold_in(key, depth), (cell["examples"], cell["d"]))

    def step(signals: Float[Array, "N D"], place: Int[Array, ""] | int) -> tuple[Float[Array, "N U"], Float[Array, ""]]:
        signals = jax.nn.relu(dense(name, key, place, signals, width, depth))
        return signals, jnp.sum(jnp.any(signals > 0, axis=1), dtype=float)

    signals, begun = step(data, 0)
    _, later = jax.lax.scan(step, signals, jnp.arange(1, depth))
    alive = jnp.concatenate([begun[None], later])
    return {"alive": alive / cell["examples"], "below": alive < cell["examples"] * 0.5 ** _layers(cell)}
