"""Stillborn networks: the share with a dead layer before training, exact on a whole domain and for every depth at once."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from relu_study.components.registry import initializers
from relu_study.components.tasks.digits import images
from relu_study.components.untrained.chain import lower_bound, upper_bound
from relu_study.components.untrained.dense_layers import BIASED, require_int, weights
from relu_study.components.untrained.linear_pieces import affine, decide_layers, first_off, on_at
from relu_study.components.untrained.statistic import Cell, Quantity, Theory, statistic
from relu_study.errors import UserError, nearest

DOMAINS = {"interval": 1, "plane": 2, "digits": 64}  # domain -> number of coordinates
OTHER_NAMES = {"xavier": "glorot_uniform"}  # the literature's
GAUSSIAN = ("he_normal", "lecun_normal", "random_normal")  # independent Gaussian weights, zero bias
ZERO_BIAS = (*GAUSSIAN, "he_uniform", "lecun_uniform", "glorot_uniform", "orthogonal", "random_uniform")  # and symmetric
SYMMETRIC = (*ZERO_BIAS, *BIASED)
SQUARE = ((-1, -1), (-1, 1), (1, 1), (1, -1), (-1, -1))
POINTS = 4  # per path: enough to prove most layers on; 8 take 25 % more time


def _initializer(cell: Cell) -> str:
    return str(OTHER_NAMES.get(cell["scheme"], cell["scheme"]))


def _check(cell: Cell) -> None:
    if _initializer(cell) not in initializers:
        raise nearest(cell["scheme"], [*initializers, *OTHER_NAMES], "scheme")
    if cell["domain"] not in DOMAINS:
        raise nearest(cell["domain"], DOMAINS, "domain")
    require_int(width=cell["width"])
    require_int(2, max_layers=cell["max_layers"])
    if cell["d_in"] != DOMAINS[cell["domain"]]:
        raise UserError(f"the domain {cell['domain']!r} has d_in = {DOMAINS[cell['domain']]}, not {cell['d_in']}")
    if cell["domain"] == "plane" and _initializer(cell) not in ZERO_BIAS:
        raise UserError(f"the plane needs zero biases, and {cell['scheme']!r} has others. Choose one of {', '.join(ZERO_BIAS)}")


def _theory(cell: Cell) -> dict[str, Theory]:
    """Return proven bounds. For symmetric weights, also Haar's, the signs of pre-activations at one input are fair coins."""
    name, layers = _initializer(cell), np.arange(2, cell["max_layers"] + 1)
    if name not in SYMMETRIC:
        return {}
    rays = cell["domain"] == "interval" and name in ZERO_BIAS
    upper = upper_bound(cell["width"], layers, spared=2 if rays else 1)
    return {"born_dead": Theory(lower=lower_bound(cell["width"], layers) if rays and name in GAUSSIAN else np.nan, upper=upper)}


@functools.cache
def _inputs(domain: str) -> Float[np.ndarray, "G D"]:
    """Return the inputs of a finite domain, or points (with the corners) of the path that decides a continuous one."""
    if domain == "digits":
        return np.asarray(images()[0], np.float32)
    corners = np.array(SQUARE, float) if domain == "plane" else np.array([[-(3**0.5)], [3**0.5]])
    parts = np.linspace(0, 1, POINTS // (len(corners) - 1), endpoint=False)[:, None]
    edges = [a + parts * (b - a) for a, b in itertools.pairwise(corners)]
    return np.concatenate([*edges, corners[-1:]]).astype(np.float32)


@statistic(
    "stillborn",
    factors={"scheme": "he_normal", "domain": "interval", "d_in": 1, "width": 4, "max_layers": 40},
    numbers={"born_dead": Quantity("share of networks that are stillborn", share=True, along="layers")},
    along=lambda cell: {"layers": range(2, cell["max_layers"] + 1)},
    theory=_theory,
    check=_check,
    # Measured: 10 operations per sampled weight, 5 per unit and input; products are negligible up to width 16.
    cost=lambda cell: cell["max_layers"] * cell["width"] * (10.0 * cell["width"] + 5.0 * len(_inputs(cell["domain"]))),
)
def stillborn(cell: Cell, key: Key[Array, ""]) -> Mapping[str, Array]:
    """Whether some hidden layer of an L-layer network (with the output layer) is off in all units over the whole domain.

    A draw is one network of `max_layers` layers: a deeper network with the same first layers is stillborn if a shallower one
    is. Domains:

    - `interval`: [-sqrt 3, sqrt 3];
    - `plane`: all of R^2, decided on a square around 0 that meets every ray;
    - `digits`: all 1,797 images of scikit-learn's digits, divided by 16.

    Zero-bias networks on the interval are decided at its two ends. Other continuous domains are decided at a few points, and
    undecided layers on every linear piece. NaN: given up.

    Source: Lu, Shin, Su & Karniadakis 2020, arXiv 1903.06733, section 3 ("born dead" there).
    """
    name, domain, width, hidden = _initializer(cell), cell["domain"], cell["width"], cell["max_layers"] - 1
    homogeneous, inputs = name in ZERO_BIAS, _inputs(domain)
    first = weights(name, key, 0, jnp.zeros((1, cell["d_in"])), width, hidden)

    def later_layer(place: Array) -> tuple[Array, Array]:
        kernel, bias = weights(name, key, place, jnp.zeros((1, width)), width, hidden)
        return kernel.ravel(), bias

    layers = jax.vmap(later_layer)(jnp.arange(1, hidden))
    rays = domain == "interval" and homogeneous
    path = affine(jnp.asarray(inputs[[0, -1]] if rays else inputs), *first)
    on = on_at(path, layers, homogeneous)
    off, certain = first_off(on), jnp.array(True)
    if not rays and domain != "digits":
        off, certain = decide_layers(path, layers, on, homogeneous)
    dead = jnp.arange(hidden) >= off
    return {"born_dead": jnp.where(dead & ~certain, jnp.nan, dead)}
