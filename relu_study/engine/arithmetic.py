"""Arithmetic and memory of a network's forward pass, from its jaxpr."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax

from relu_study.components.tasks.task import Signature
from relu_study.engine.forward import Forward, probe_function
from relu_study.watch.program import Op, Program


class Arithmetic(NamedTuple):
    """Sizes of a forward pass of one example."""

    flops: int
    activations: int  # entries of the results of products
    weights: int


def arithmetic(forward: Forward, signature: Signature) -> Arithmetic:
    """Return the sizes of a Flax network. Only products and convolutions count."""
    assert forward.flax is not None
    x = jax.ShapeDtypeStruct((1, *signature.inputs.shape), signature.inputs.dtype)
    program = Program.of(jax.make_jaxpr(probe_function(forward))(forward.params, forward.flax.rest, x))
    flops, activations = _counted(program)
    return Arithmetic(flops, activations, sum(leaf.size for leaf in jax.tree.leaves(forward.params)))


def _counted(program: Program) -> tuple[int, int]:
    flops = activations = 0
    for op in program.ops:
        repeats = op.eqn.params.get("length", 1) if op.name == "scan" else 1
        inner = [_counted(body) for body in op.bodies]
        flops += _flops(program, op) + repeats * sum(count for count, _ in inner)
        activations += _entries(program, op) + repeats * sum(count for _, count in inner)
    return flops, activations


def _entries(program: Program, op: Op) -> int:
    is_product = op.name in ("dot_general", "conv_general_dilated")
    return math.prod(program.shape(op.outs[0])) if is_product else 0


def _flops(program: Program, op: Op) -> int:
    if op.name == "dot_general":
        (contracted, _), _ = op.eqn.params["dimension_numbers"]
        return 2 * _entries(program, op) * math.prod(program.shape(op.ins[0])[axis] for axis in contracted)
    if op.name == "conv_general_dilated":
        kernel = program.shape(op.ins[1])
        channels = kernel[op.eqn.params["dimension_numbers"].rhs_spec[0]]
        return 2 * _entries(program, op) * math.prod(kernel) // channels
    return 0
