"""A unit that is off on every one of m inputs: exchangeable pre-activations, and the inputs from which they come."""

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
UNITS = 64  # of a layer on the same inputs
WIDE, FEW = 256, 2000  # the least d and the most inputs at which inputs' own correlation stands for their law


def all_off(m: Sequence[int], c: float) -> Float[np.ndarray, " k"]:
    """D(m, c) = integral phi(t) Phi(-t sqrt(c / (1 - c)))^m dt, the chance that m normal numbers of correlation c are all <= 0.

    D(m, 0) = 2^-m and D(m, 1/2) = 1 / (m + 1). The integrand is smooth and the sum over a fine even grid exact to rounding.
    """
    t = np.linspace(-40, 40, 16001)
    log = -(t**2) / 2 + np.array(m)[:, None] * special.log_ndtr(-t * (c / (1 - c)) ** 0.5)
    return np.exp(log).sum(axis=-1) * (t[1] - t[0]) / np.sqrt(2 * np.pi)


def all_off_in(m: Sequence[int], g: float, d: int) -> Float[np.ndarray, " k"]:
    """The same for a unit on normal inputs of d >= 2 coordinates with mean / standard deviation g, exactly.

    Given its weights they are independent with mean g |w| sqrt(d) cos(angle of the weights with (1, ..., 1)); the angle's density
    is proportional to sin^(d - 2).
    """
    angle = (np.arange(20000) + 0.5) * np.pi / 20000
    log = (d - 2) * np.log(np.sin(angle))
    mass = np.exp(log) / np.exp(log).sum()
    off = np.array(m)[:, None] * special.log_ndtr(-g * d**0.5 * np.cos(angle))
    return (mass * np.exp(off)).sum(axis=-1)


def _along(cell: Cell) -> Mapping[str, list[int]]:
    return {"m": [m for m in COUNTS if m <= cell["examples"]]}


def _off_on(pre: Float[Array, "m *U"], counts: list[int]) -> Bool[Array, "k *U"]:
    """For each count: is a unit off on so many of the first rows?"""
    rows = len(pre)
    column = (-1, *[1] * (pre.ndim - 1))
    first = jnp.min(jnp.where(pre > 0, jnp.arange(rows).reshape(column), rows), axis=0)  # row on which it is on
    return first >= jnp.array(counts).reshape(column)


# ------------------------------------------------------------------------------------- exchangeable numbers


def _check_exchangeable(cell: Cell) -> None:
    require_int(examples=cell["examples"])
    if not 0 <= cell["c"] < 1:
        raise UserError(f"c is the correlation of exchangeable numbers and lies in [0, 1), not {cell['c']!r}")


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
    """Are m normal pre-activations of equal correlation c all <= 0, m = 1, 2, 5, ... up to `examples`? P = D(m, c).

    Source: Dunnett & Sobel 1955, Biometrika 42, 258-260 (one common factor makes equal correlations).
    """
    counts = _along(cell)["m"]
    common, own = jax.random.normal(key), jax.random.normal(jax.random.fold_in(key, 1), (counts[-1],))
    return {"off": _off_on(cell["c"] ** 0.5 * common + (1 - cell["c"]) ** 0.5 * own, counts)}


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
    """The share of a layer's units, of normal weights and zero bias, that are off on all of m inputs, m = 1, 2, 5, ...

    Inputs have d independent coordinates with mean / standard deviation g, normal ones or uniform ones, i.e. on a box; at
    g = sqrt 3 that is (0, 1)^d, up to a scale and by symmetry (-1, 0)^d too. For normal inputs P(off) is an integral over the
    weights' angle. As d grows it tends to D(m, g^2 / (1 + g^2)), which is within 10 % at d >= 256, m <= 2,000 and g >= 1 (at
    g = 1/2 it is three times too high there). For few coordinates it fails: as m grows P tends to the share of units that are
    off on the whole box, which is 2^-d for |g| >= sqrt 3, where all inputs have one sign, and else 0.

    Source: ours, of the article's box; correlation of pre-activations: Lee et al. 2018, arXiv 1711.00165, section 2.2.
    """
    counts, d, g = _along(cell)["m"], cell["d"], cell["g"]
    kernel = jax.random.normal(key, (d, UNITS))
    draw = jax.random.normal if cell["law"] == "normal" else _centred
    inputs = g + draw(jax.random.fold_in(key, 1), (counts[-1], d))
    pre = jnp.dot(inputs, kernel, precision=jax.lax.Precision.HIGHEST)
    return {"off": jnp.mean(_off_on(pre, counts), axis=1)}


def _centred(key: Key[Array, ""], shape: tuple[int, int]) -> Float[Array, "m d"]:
    return jax.random.uniform(key, shape, minval=-(3**0.5), maxval=3**0.5)
