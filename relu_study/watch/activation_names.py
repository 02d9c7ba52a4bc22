"""Names of activations, recognised by their values and slopes on a grid."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
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
FAMILIES: dict[str, Callable[[Any, Any], Any]] = {
    "leaky_relu": lambda z, leak: jnp.where(z > 0, z, leak * z),
    "elu": jax.nn.elu,
    "celu": jax.nn.celu,
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
    with jax.core.eval_context():  # also inside a trace
        curves = {**_fixed(), **_fitted(*found)}
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
    return _arrays(FIXED, jax.jit(lambda grid: [_curve(function, grid) for function in FIXED.values()])(GRID))


@jax.jit
def _of_families(grid: Any, numbers: dict[str, Any]) -> list[tuple[Any, Any]]:
    return [_curve(function, grid, numbers[name]) for name, function in FAMILIES.items()]


def _curve(function: Callable[..., Any], grid: Any, *number: Any) -> tuple[Any, Any]:
    """Return the values and slopes of a function on the grid."""
    values, pull = jax.vjp(lambda z: function(z, *number), grid)
    return values, jnp.abs(pull(jnp.ones_like(values))[0])


def _arrays(names: Iterable[str], curves: Iterable[tuple[Any, Any]]) -> dict[str, Curve]:
    return {name: (np.asarray(v, float), np.asarray(s, float)) for name, (v, s) in zip(names, curves, strict=True)}


def _fitted(values: np.ndarray, slopes: np.ndarray) -> dict[str, Curve]:
    """Return the activations of one parameter, with the parameter that the values suggest."""
    lowest = int(np.argmin(GRID))
    leak, floor = float(values[lowest] / GRID[lowest]), float(-values[lowest])
    is_floor = 1e-6 < floor < -float(GRID[lowest])  # cubes and exponentials have none
    scale = floor if is_floor else 1.0
    for _ in range(50 if is_floor else 0):  # -floor = scale * expm1(z / scale) at the lowest z
        scale = -floor / float(np.expm1(GRID[lowest] / max(scale, 1e-6)))
    curves = _arrays(FAMILIES, _of_families(GRID, {"leaky_relu": leak, "elu": floor, "celu": scale}))
    fitted: dict[str, Curve] = {}
    if abs(leak) > 1e-6:
        fitted[f"leaky_relu({leak:.4g})"] = curves["leaky_relu"]
    if is_floor:
        fitted["elu" if abs(floor - 1) < 1e-4 else f"elu({floor:.4g})"] = curves["elu"]
        fitted[f"celu({scale:.4g})"] = curves["celu"]
    return fitted
