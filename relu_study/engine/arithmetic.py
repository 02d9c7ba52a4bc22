"""Arithmetic and memory of a network's forward pass, from its jaxpr."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax

from relu_study.components.networks import Network
from relu_study.engine.forward import flax_model
from relu_study.study.run_spec import RunSpec
from relu_study.watch.program import Op, Program


class Arithmetic(NamedTuple):
    """Sizes of a forward pass of one example."""

    flops: int
    activations: int  # entries of the results of products
    weights: int


@functools.lru_cache(maxsize=256)
def arithmetic(network: Network, spec: RunSpec, inputs: jax.ShapeDtypeStruct, outputs: jax.ShapeDtypeStruct) -> Arithmetic:
    """Return the sizes of a Flax network. Only products and convolutions count. `spec` has the fields that the network reads."""
    model = flax_model(network, spec, inputs, outputs)
    x = jax.ShapeDtypeStruct((1, *inputs.shape), inputs.dtype)

    def outputs_of(params: Any, rest: Any, x: Any) -> Any:
        return model.apply(params, rest, x, False)[0]

    flops, activations = _counted(Program.of(jax.make_jaxpr(outputs_of)(model.params, model.rest, x)))
    return Arithmetic(flops, activations, sum(leaf.size for leaf in jax.tree.leaves(model.params)))


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
