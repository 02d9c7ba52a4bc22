"""A region as a function of its pre-activation, and the shape of that function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from relu_study.watch import jax_internals
from relu_study.watch.primitives import COMPARISONS, ELEMENTWISE, LOGICAL, SUMS
from relu_study.watch.program import CUSTOM, Op, Program
from relu_study.watch.regions import Region

# Odd multiples of 1/32: never on the kink of a common activation.
GRID = np.concatenate([(2 * np.arange(-96, 96) + 1) / 32, (2 * np.arange(-64, 64) + 1) / 8]).astype(np.float32)
CASTS = {"pvary", "pcast"}  # of types inside shard_map; they keep the value
SHAPES = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose"}  # they keep the values of a uniform array
CALLS = {"pjit": "jaxpr", "jit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


def function_of(program: Program, region: Region, env: Mapping[int, Any]) -> Callable[[Any], Any]:
    """Return phi, with post = phi(pre); `env` has the values of all other operands."""

    def phi(pre: Any) -> Any:
        known = {region.pre: pre}
        for index in region.ops:
            op = program.ops[index]
            values = [known[value] if value in known else env[value] for value in op.ins]
            known.update(zip(op.outs, jax_internals.evaluate(op.eqn, values), strict=True))
        return known[region.post]

    return phi


def slope_of(phi: Callable[[Any], Any], pre: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return abs(phi'(pre)) of an elementwise function, by reverse mode: it keeps every custom derivative."""
    post, pull = jax.vjp(phi, pre)
    return jnp.abs(pull(jnp.ones_like(post))[0])


def on_grid(program: Program, region: Region, grid: np.ndarray = GRID) -> tuple[np.ndarray, np.ndarray] | None:
    """Return phi and its slope on a grid, or None where phi has parameters or varies over the entries of pre."""
    aval = program.avals[region.pre]
    if jax_internals.differs_by_device(aval) and any(program.ops[index].name in CUSTOM for index in region.ops):
        return None  # a custom derivative has the type of its result, which no value outside shard_map has
    size = int(np.prod(aval.shape))
    with jax.core.eval_context():  # also inside a trace
        env = _constants(program, region)
        if env is None:
            return None
        phi = function_of(program, region, env)
        if (curve := _flat_curve(phi, aval, grid)) is not None:
            return curve
        parts = []
        for block in np.array_split(grid, -(-len(grid) // size)):
            pre = jnp.asarray(np.resize(block, aval.shape), aval.dtype)
            parts.append([np.ravel(values)[: len(block)].astype(float) for values in (phi(pre), slope_of(phi, pre))])
    values, slopes = (np.concatenate(part) for part in zip(*parts, strict=True))
    return values, slopes


def _flat_curve(phi: Callable[[Any], Any], aval: Any, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return phi and its slope on a grid, or None if they consist of other than elementwise operations on uniform arrays.

    The operations are evaluated in the shape of the grid, so activations of other shapes compile none of them again.
    """

    def curve(pre: Any) -> tuple[Any, Any]:
        post, pull = jax.vjp(phi, pre)
        return post, jnp.abs(pull(jnp.ones_like(post))[0])

    traced = jax.make_jaxpr(curve)(jax.ShapeDtypeStruct(aval.shape, aval.dtype))
    found = _flat(traced, [jnp.asarray(grid, aval.dtype)])
    if found is None:
        return None
    values, slopes = (np.array(np.broadcast_to(value, grid.shape), float) for value in found)
    return values, slopes


def _flat(closed: Any, operands: list[Any]) -> list[Any] | None:
    """Evaluate a jaxpr of elementwise operations for operands that are scalars or vectors, in place of arrays of its shapes."""
    known = dict(zip(closed.jaxpr.invars, operands, strict=True))
    for variable, constant in zip(closed.jaxpr.constvars, map(np.asarray, closed.consts), strict=True):
        if np.any(constant != np.ravel(constant)[0]):
            return None
        known[variable] = np.ravel(constant)[0]
    for eqn in closed.jaxpr.eqns:
        values = [atom.val if hasattr(atom, "val") else known[atom] for atom in eqn.invars]
        results: list[Any] | None = None
        if eqn.primitive.name in SHAPES or eqn.primitive.name in CASTS:
            results = values[:1]
        elif eqn.primitive.name in CALLS:
            results = _flat(eqn.params[CALLS[eqn.primitive.name]], values)
        elif eqn.primitive.name in ELEMENTWISE:
            results = jax_internals.evaluate(eqn, jnp.broadcast_arrays(*values))
        if results is None:
            return None
        known.update(zip(eqn.outvars, results, strict=True))
    return [atom.val if hasattr(atom, "val") else known[atom] for atom in closed.jaxpr.outvars]


def is_even(program: Program, region: Region) -> bool:
    """Whether phi(-z) = phi(z), as of abs, square and Huber's loss."""
    grid = np.concatenate([GRID[GRID > 0], -GRID[GRID > 0]])
    found = on_grid(program, region, grid)
    if found is None:
        return False
    right, left = np.split(found[0], 2)
    return bool(np.allclose(right, left, rtol=1e-5, atol=1e-6))


def is_identity(program: Program, region: Region) -> bool:
    """Whether phi only replaces values far from 0, infinite or NaN, as nan_to_num does."""
    guards = {"ne", "eq", "is_finite", "clamp", "max", "min"}
    if not guards & {program.ops[index].name for index in region.ops}:
        return False
    found = on_grid(program, region)
    return found is not None and bool(np.all(found[0] == GRID))


def max_slope(program: Program, region: Region) -> float | None:
    """Return the maximum of abs(phi') on a grid of pre from -8 to 8 in steps of 1/256; None where phi has parameters."""
    found = on_grid(program, region, np.arange(-2048, 2049, dtype=np.float32) / 256)
    return None if found is None else float(np.max(found[1]))


def has_identity_piece(program: Program, region: Region) -> bool:
    """Whether phi(z) = z on some piece; where phi has parameters, whether it may have one."""
    found = on_grid(program, region)
    return found is None or bool(np.any((found[0] == GRID) & (found[1] == 1)))


def is_piecewise_linear(program: Program, region: Region) -> bool:
    """Whether phi consists of sums, comparisons, selections and products with constants only."""
    varying = {region.pre}
    for index in region.ops:
        op = program.ops[index]
        if not _is_piecewise(op, program, varying):
            return False
        varying.update(op.outs)
    return True


def _is_piecewise(op: Op, program: Program, varying: set[int]) -> bool:
    if op.name in CUSTOM:
        (body,) = op.bodies
        inner = {value for value, outer in zip(body.inputs, op.ins, strict=True) if outer in varying}
        for equation in body.ops:
            if set(equation.ins) & inner:
                if not _is_piecewise(equation, body, inner):
                    return False
                inner.update(equation.outs)
        return True
    if op.name in ("mul", "div"):
        floats = [value for value in op.ins if value in varying and not _is_mask(program, value)]
        return len(floats) <= 1 and (op.name == "mul" or op.ins[1] not in varying)
    piecewise = SUMS | COMPARISONS | LOGICAL | {"max", "min", "clamp", "abs", "select_n", "convert_element_type", "sign"}
    return op.name in piecewise


def _is_mask(program: Program, value: int) -> bool:
    """Whether a value is a comparison, perhaps converted to a float."""
    maker = next((op for op in program.ops if value in op.outs), None)
    while maker and maker.name == "convert_element_type":
        source = maker.ins[0]
        maker = next((op for op in program.ops if source in op.outs), None)
    return maker is not None and maker.name in COMPARISONS | LOGICAL


def _constants(program: Program, region: Region) -> dict[int, Any] | None:
    """Evaluate the other operands of a region, or return None if one of them is not a constant."""
    made = {value: op for op in program.ops for value in op.outs}
    inside = {region.pre, *(value for index in region.ops for value in program.ops[index].outs)}
    env: dict[int, Any] = {}

    def value_of(value: int) -> bool:
        if value in env:
            return True
        if value in program.constants:
            env[value] = program.constants[value]
            return np.ndim(env[value]) == 0 and not isinstance(env[value], jax.core.Tracer)
        if value not in made or not all(value_of(operand) for operand in made[value].ins):
            return False
        op = made[value]
        operands = [env[operand] for operand in op.ins]
        results = operands if op.name in CASTS else jax_internals.evaluate(op.eqn, operands)
        env.update(zip(op.outs, results, strict=True))
        return True

    outer = {value for index in region.ops for value in program.ops[index].ins} - inside
    if not all(value_of(value) for value in outer):
        return None
    uniform = all(np.all(env[value] == np.ravel(env[value])[0]) for value in outer)
    return env if uniform else None
