"""The probability that a unit is off on each of m inputs: exchangeable pre-activations, and random inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key
from scipy import special

from relu_study.components.untrained.dense_layers import require_int
from relu_study.components.untrained.statistic import Cell, Quantity, Theory, statistic
from relu_study.errors import UserError, nearest

COUNTS = [digit * 10**power for power in range(7) for digit in (1, 2, 5)]
LAWS = ("normal", "uniform")
UNITS = 64  # per layer, on the same inputs
WIDE, FEW = 256, 2000  # smallest d and largest m at which the inputs' correlation predicts the probability


def all_off(m: Sequence[int], c: float) -> Float[np.ndarray, " k"]:
    """Return D(m, c) = integral phi(t) Phi(-t sqrt(c / (1 - c)))^m dt, P(m normal numbers of correlation c are all <= 0).

    D(m, 0) = 2^-m and D(m, 1/2) = 1 / (m + 1). For this smooth integrand a fine uniform grid is exact to rounding.
    """
    t = np.linspace(-40, 40, 16001)
    log = -(t**2) / 2 + np.array(m)[:, None] * special.log_ndtr(-t * (c / (1 - c)) ** 0.5)
    return np.exp(log).sum(axis=-1) * (t[1] - t[0]) / np.sqrt(2 * np.pi)


def all_off_in(m: Sequence[int], g: float, d: int) -> Float[np.ndarray, " k"]:
    """Return the exact probability for a unit on normal inputs of d >= 2 coordinates with mean / standard deviation g.

    Given the weights w, pre-activations are independent with mean g |w| sqrt(d) cos(angle between w and (1, ..., 1)). The
    density of the angle is proportional to sin^(d - 2).
    """
    angle = (np.arange(20000) + 0.5) * np.pi / 20000
    log = (d - 2) * np.log(np.sin(angle))
    mass = np.exp(log) / np.exp(log).sum()
    off = np.array(m)[:, None] * special.log_ndtr(-g * d**0.5 * np.cos(angle))
    return (mass * np.exp(off)).sum(axis=-1)


def _along(cell: Cell) -> Mapping[str, list[int]]:
    return {"m": [m for m in COUNTS if m <= cell["examples"]]}


def _off_on(pre: Float[Array, "m *U"], counts: list[int]) -> Bool[Array, "k *U"]:
    """Return for each count whether a unit is off on that many first rows."""
    rows = len(pre)
    column = (-1, *[1] * (pre.ndim - 1))
    first = jnp.min(jnp.where(pre > 0, jnp.arange(rows).reshape(column), rows), axis=0)  # first row on which the unit is on
    return first >= jnp.array(counts).reshape(column)


# ------------------------------------------------------------------------------------- exchangeable numbers


def _check_exchangeable(cell: Cell) -> None:
    require_int(examples=cell["examples"])
    if not 0 <= cell["c"] < 1:
        raise UserError(f"the correlation c of exchangeable numbers must be in [0, 1), not {cell['c']!r}")


@statistic(
    "exchangeable",
    factors={"c": 0.5, "examples": 1000},
    numbers={"off": Quantity("Share of draws in which m pre-activations of correlation c are all <= 0", share=True, along="m")},
    along=_along,
    theory=lambda cell: {"off": Theory(all_off(_along(cell)["m"], cell["c"]))},
    check=_check_exchangeable,
    cost=lambda cell: 8.0 * cell["examples"],
)
def exchangeable(cell: Cell, key: Key[Array, ""]) -> Mapping[str, Array]:
    """Whether m normal pre-activations of equal correlation c are all <= 0, m = 1, 2, 5, ... up to `examples`. P = D(m, c).

    Source: Dunnett & Sobel 1955, Biometrika 42, 258-260 (one common factor makes equal correlations).
    """
    counts = _along(cell)["m"]
    common, independent = jax.random.normal(key), jax.random.normal(jax.random.fold_in(key, 1), (counts[-1],))
    return {"off": _off_on(cell["c"] ** 0.5 * common + (1 - cell["c"]) ** 0.5 * independent, counts)}


# ------------------------------------------------------------------------------------------- units on inputs


def _inputs_theory(cell: Cell) -> Mapping[str, Theory]:
    g, d, m = cell["g"], cell["d"], _along(cell)["m"]
    if cell["law"] == "normal":
        return {"off": Theory(all_off_in(m, g, d))}
    predicted = np.where((np.array(m) <= FEW) & (d >= WIDE and abs(g) >= 1), all_off(m, g**2 / (1 + g**2)), np.nan)
    return {"off": Theory(predicted, lower=0.5**d if abs(g) >= 3**0.5 else 0.0)}


def _check_inputs(cell: Cell) -> None:
    if cell["law"] not in LAWS:
        raise nearest(cell["law"], LAWS, "law of the inputs")
    require_int(examples=cell["examples"])
    require_int(2, d=cell["d"])


@statistic(
    "off_on_inputs",
    factors={"law": "uniform", "d": 4, "g": 3**0.5, "examples": 1000},
    numbers={"off": Quantity(f"Share of {UNITS} units that are off on m inputs", along="m")},
    along=_along,
    theory=_inputs_theory,
    check=_check_inputs,
    cost=lambda cell: cell["examples"] * cell["d"] * (UNITS + (8.0 if cell["law"] == "normal" else 2.0)),
)
def off_on_inputs(cell: Cell, key: Key[Array, ""]) -> Mapping[str, Array]:
    """Share of a layer's units, with normal weights and zero bias, that are off on all of m inputs, m = 1, 2, 5, ...

    Inputs have d independent coordinates with mean / standard deviation g, normal or uniform. At g = sqrt 3 the uniform inputs
    fill (0, 1)^d up to scale, by symmetry also (-1, 0)^d. For normal inputs P(off) is an integral over the weights' angle. As
    d grows, P(off) tends to D(m, g^2 / (1 + g^2)). This is within 10 % at d >= 256, m <= 2,000 and g >= 1, and three times too
    high at g = 1/2. It fails for few coordinates: as m grows, P tends to the share of units that are off on the whole box.
    That share is 2^-d for |g| >= sqrt 3, where all inputs have one sign, else 0.

    Source: ours, for the article's box; correlation of pre-activations: Lee et al. 2018, arXiv 1711.00165, section 2.2.
    """
    counts, d, g = _along(cell)["m"], cell["d"], cell["g"]
    kernel = jax.random.normal(key, (d, UNITS))
    draw = jax.random.normal if cell["law"] == "normal" else _centred
    inputs = g + draw(jax.random.fold_in(key, 1), (counts[-1], d))
    pre = jnp.dot(inputs, kernel, precision=jax.lax.Precision.HIGHEST)
    return {"off": jnp.mean(_off_on(pre, counts), axis=1)}


def _centred(key: Key[Array, ""], shape: tuple[int, int]) -> Float[Array, "m d"]:
    return jax.random.uniform(key, shape, minval=-(3**0.5), maxval=3**0.5)
