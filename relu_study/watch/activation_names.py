"""Names of activations, recognised by their values and slopes on a grid."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relu_study.watch.program import Program
from relu_study.watch.region_function import GRID, on_grid
from relu_study.watch.regions import Region

Curve = tuple[np.ndarray, np.ndarray]  # values and slopes on the grid
UNKNOWN = "elementwise"
FIXED: dict[str, Callable[[Any], Any]] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "selu": jax.nn.selu,
    "silu": jax.nn.silu,
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),
    "gelu ": jax.nn.gelu,  # the approximation by tanh has the same name
    "softplus": jax.nn.softplus,
    "soft_sign": jax.nn.soft_sign,
    "mish": jax.nn.mish,
    "hard_tanh": jax.nn.hard_tanh,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_silu": jax.nn.hard_silu,
    "log_sigmoid": jax.nn.log_sigmoid,
    "squareplus": jax.nn.squareplus,
    "sparse_plus": jax.nn.sparse_plus,
    "relu_squared": lambda z: jnp.square(jax.nn.relu(z)),
    "abs": jnp.abs,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "exp": jnp.exp,
    "square": jnp.square,
    "quick_gelu": lambda z: z * jax.nn.sigmoid(1.702 * z),
}
RTOL, ATOL = 1e-4, 1e-5  # float32 rounding of different formulas; also separates neighbours on the grid


def activation_name(program: Program, region: Region) -> str:
    """Return the name of a region's activation, for example "leaky_relu(0.1)"; "elementwise" if no known one agrees.

    Of several known ones the nearest counts: in bfloat16 the rounding is as large as the difference of similar activations.
    """
    found = on_grid(program, region)
    if found is None:
        return UNKNOWN
    eps = float(jnp.finfo(program.avals[region.pre].dtype).eps)
    rtol, atol, coarse = (RTOL, ATOL, False) if eps < RTOL else (8 * eps, 8 * eps, True)
    curves = {**_fixed(), **_curves(_fitted(*found))}
    distances = {}
    for name, known in curves.items():
        if all(np.allclose(part, other, rtol, atol) for part, other in zip(found, known, strict=True)):
            distances[name] = float(np.mean(np.abs(np.subtract(found, known))))
    if not distances:
        return UNKNOWN
    nearest = next(name for name, distance in distances.items() if distance <= min(distances.values()) + ATOL).strip()
    return re.sub(r"[\d.]+(?=\))", lambda number: f"{float(number[0]):.2g}", nearest) if coarse else nearest


@functools.cache
def _fixed() -> dict[str, Curve]:
    return _curves(FIXED)


def _curves(functions: Mapping[str, Callable[[Any], Any]]) -> dict[str, Curve]:
    """Return the values and slopes of functions on the grid. One program computes them all."""

    def on_grid(function: Callable[[Any], Any], grid: Any) -> tuple[Any, Any]:
        values, pull = jax.vjp(function, grid)
        return values, jnp.abs(pull(jnp.ones_like(values))[0])

    with jax.core.eval_context():
        curves = jax.jit(lambda grid: [on_grid(function, grid) for function in functions.values()])(jnp.asarray(GRID))
    return {name: (np.asarray(v, float), np.asarray(s, float)) for name, (v, s) in zip(functions, curves, strict=True)}


def _fitted(values: np.ndarray, slopes: np.ndarray) -> dict[str, Callable[[Any], Any]]:
    """Return the activations of one parameter, with the parameter that the values suggest."""
    lowest = int(np.argmin(GRID))
    leak, floor = float(values[lowest] / GRID[lowest]), float(-values[lowest])
    is_floor = 1e-6 < floor < -float(GRID[lowest])  # cubes and exponentials have none
    scale = floor
    for _ in range(50 if is_floor else 0):  # -floor = scale * expm1(z / scale) at the lowest z
        scale = -floor / float(np.expm1(GRID[lowest] / max(scale, 1e-6)))
    fitted: dict[str, Callable[[Any], Any]] = {}
    if abs(leak) > 1e-6:
        fitted[f"leaky_relu({leak:.4g})"] = lambda z: jnp.where(z > 0, z, leak * z)
    if is_floor:
        name = "elu" if abs(floor - 1) < 1e-4 else f"elu({floor:.4g})"
        fitted[name] = lambda z: jax.nn.elu(z, floor)
        fitted[f"celu({scale:.4g})"] = lambda z: jax.nn.celu(z, scale)
    return fitted
