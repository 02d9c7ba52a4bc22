"""Initial variables of Flax networks: as the modules draw them, or with kernels drawn by a registered initialiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from relu_study.components import random_streams
from relu_study.components.flax_models import FlaxModel, Kernel
from relu_study.components.initializers import Layer
from relu_study.components.networks import OWN, initializer_of, network_of
from relu_study.components.registry import initializers
from relu_study.components.tasks.task import Signature
from relu_study.engine.forward import Forward, flax_model, network_spec, probe_function
from relu_study.engine.state import TracedNumbers, Weights
from relu_study.study.run_spec import RunSpec
from relu_study.watch.program import Program


def make_flax_init(spec: RunSpec, inputs: jax.ShapeDtypeStruct, outputs: jax.ShapeDtypeStruct) -> Callable[..., Weights]:
    """Build `init(seed, hparams, x)`: the initial variables of one run of a Flax network. It does not read `x`.

    The initialiser `own` keeps the weights as the modules draw them. Any other one redraws the kernels and biases of dense,
    convolutional and attention layers, numbered in the order of their calls. `gain` and `bias_shift` change all but the last.
    """
    model = flax_model(network_of(spec), network_spec(spec), inputs, outputs)
    kernels = called_kernels(model, inputs)
    name = initializer_of(spec)
    scheme = None if name == OWN else initializers[name]

    def init(seed: UInt32[Array, ""], hparams: TracedNumbers, x: Any = None) -> Weights:
        params, rest = model.init(seed, hparams)
        arrays = by_path(params)
        for layer, kernel in zip(_layers(kernels), kernels, strict=True):
            paths = [path for path in (kernel.path, kernel.bias) if path is not None]
            weights = [arrays[path] for path in paths]
            if scheme is not None:
                draw = initializers["glorot_uniform"] if layer.last and not scheme.output else scheme
                drawn = draw(random_streams.stream(seed, "init", layer.index), layer, jnp.zeros((1, layer.fan_in)))
                weights = [new.reshape(old.shape).astype(old.dtype) for old, new in zip(weights, drawn, strict=False)]
            if not layer.last:
                weights = [hparams["gain"] * weights[0], *(bias + hparams["bias_shift"] for bias in weights[1:])]
            arrays |= zip(paths, weights, strict=True)
        return Weights(jax.tree_util.tree_map_with_path(lambda path, _: arrays[plain(path)], params), rest)

    return init


def flax_layers(spec: RunSpec, signature: Signature) -> list[Layer]:
    """Return the position and size of every kernel that an initialiser draws in a Flax network."""
    model = flax_model(network_of(spec), network_spec(spec), signature.inputs, signature.outputs)
    return _layers(called_kernels(model, signature.inputs))


def _layers(kernels: Sequence[Kernel]) -> list[Layer]:
    last = len(kernels) - 1
    return [Layer(i, len(kernels), kernel.fan_in, kernel.fan_out, last=i == last) for i, kernel in enumerate(kernels)]


def called_kernels(model: FlaxModel, inputs: jax.ShapeDtypeStruct) -> list[Kernel]:
    """Return the kernels that a forward pass reads, in the order of their first use."""
    x = jax.ShapeDtypeStruct((2, *inputs.shape), inputs.dtype)
    forward = Forward(lambda params, stats, x, ctx: model.apply(params, stats, x, False), model.params, False, model)
    closed = jax.make_jaxpr(probe_function(forward))(model.params, model.rest, x)
    program = Program.of(closed)
    paths = [plain(path) for path, _ in jax.tree_util.tree_leaves_with_path(model.params)]
    order = first_uses(program, {value: path for path, value in zip(paths, program.inputs, strict=False)})
    kernels = {kernel.path: kernel for kernel in model.kernels}
    return [kernels[path] for path in order if path in kernels]


def first_uses(program: Program, names: dict[int, tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the names of values in the order of their first use by the operations of a program and of its bodies."""
    order: dict[tuple[str, ...], None] = {}
    for op in program.ops:
        for body in op.bodies:
            if len(body.inputs) == len(op.ins):
                inner = {value: names[outer] for value, outer in zip(body.inputs, op.ins, strict=True) if outer in names}
                order |= dict.fromkeys(first_uses(body, inner))
        order |= dict.fromkeys(names[value] for value in op.ins if value in names)
    return list(order)


def plain(path: Sequence[Any]) -> tuple[str, ...]:
    """Return the names on a path of `jax.tree_util`, without the box of an NNX variable."""
    names = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    return tuple(names[:-1] if names[-1] in ("value", "raw_value") else names)


def by_path(params: Any) -> dict[tuple[str, ...], Any]:
    """Return the arrays of parameters by their paths."""
    return {plain(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
