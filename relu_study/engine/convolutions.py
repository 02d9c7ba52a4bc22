"""Convolutions as products of windows with the kernel, which XLA runs fast for many runs at once on a CPU."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from relu_study.watch import jax_internals
from relu_study.watch.program import Op, Program

LARGEST = 25  # entries of a window; the windows of larger ones take too much memory


def with_products(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that computes the same, with products in place of convolutions of small windows.

    Mapped over runs, each with its own kernel, a convolution becomes a grouped one. XLA computes it on a CPU ten times as slowly
    as the batched product. Grouped and transposed convolutions, and those inside loops, remain.
    """

    def call(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        program = Program.of(closed)
        if not any(_is_product(program, op) for op in program.ops):
            return function(*args)
        return jax.tree.unflatten(jax.tree.structure(shapes), _evaluated(program, jax.tree.leaves(args)))

    return call


def _evaluated(program: Program, inputs: Sequence[Any]) -> list[Any]:
    env = {**program.constants, **dict(zip(program.inputs, inputs, strict=True))}
    for op in program.ops:
        values = [env[value] for value in op.ins]
        outs = (
            [product(values[0], values[1], op.eqn.params)] if _is_product(program, op) else jax_internals.evaluate(op.eqn, values)
        )
        env.update(zip(op.outs, outs, strict=True))
    return [env[value] for value in program.outputs]


def _is_product(program: Program, op: Op) -> bool:
    """Whether an operation is a convolution with examples first, channels last, one group, and a small window."""
    if op.name != "conv_general_dilated":
        return False
    params, rank = op.eqn.params, len(program.shape(op.ins[0]))
    numbers, spatial = params["dimension_numbers"], tuple(range(1, rank - 1))
    last = (0, rank - 1, *spatial)
    return (
        (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec) == (last, (rank - 1, rank - 2, *range(rank - 2)), last)
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and set(params["lhs_dilation"]) <= {1}
        and math.prod(program.shape(op.ins[1])[:-2]) <= LARGEST
    )


def product(x: Float[Array, "B *S C"], kernel: Float[Array, "*K C U"], params: dict[str, Any]) -> Float[Array, "B *s U"]:
    """Return a convolution, with the parameters of `jax.lax.conv_general_dilated`, as one product of all windows."""
    window, units = kernel.shape[:-2], kernel.shape[-1]
    zero = jnp.zeros((), x.dtype)
    padded = jax.lax.pad(x, zero, [(0, 0, 0), *((low, high, 0) for low, high in params["padding"]), (0, 0, 0)])
    strides, dilation = params["window_strides"], params["rhs_dilation"]
    spans = [(size - 1) * gap + 1 for size, gap in zip(window, dilation, strict=True)]
    ends = [size - span + 1 for size, span in zip(padded.shape[1:-1], spans, strict=True)]

    def entry(at: Sequence[int]) -> Float[Array, "B *s C"]:
        """Return one entry of all windows."""
        starts = [place * gap for place, gap in zip(at, dilation, strict=True)]
        axes = [slice(start, start + end, stride) for start, end, stride in zip(starts, ends, strides, strict=True)]
        return padded[(slice(None), *axes)]

    parts = [entry(at) for at in itertools.product(*map(range, window))]
    windows = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
    types = {"precision": params["precision"], "preferred_element_type": params["preferred_element_type"]}
    return jax.lax.dot_general(windows, kernel.reshape(-1, units), (((windows.ndim - 1,), (0,)), ((), ())), **types)
