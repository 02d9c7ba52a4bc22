"""Flax modules as pure functions: initial variables, forward pass, and the kernels that an initialiser can draw."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, UInt32

from relu_study.components import random_streams
from relu_study.components.layers import Traced
from relu_study.errors import UserError

# Keywords of modules that say whether a call is in training mode.
TRAINING = {"train": True, "training": True, "is_training": True, "is_train": True}
TRAINING |= {"deterministic": False, "use_running_average": False}
NNX_LAYERS = (nnx.Linear, nnx.LinearGeneral, nnx.Conv, nnx.ConvTranspose)
LINEN_LAYERS = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.ConvTranspose)
STREAMS = ("params", "dropout", "default")  # of random numbers, by the names that Flax's layers use


class Kernel(NamedTuple):
    """A kernel of a dense, convolutional or attention layer, with its bias, by their paths in the parameters."""

    path: tuple[str, ...]
    bias: tuple[str, ...] | None
    fan_in: int
    fan_out: int


@dataclass(frozen=True)
class FlaxModel:
    """A Flax module as functions.

    `init(seed, hparams)` returns parameters and the other variables, with the numbers of `hparams` in the `Traced` ones.
    `apply(params, rest, x, train, key)` returns outputs and the other variables after the call.
    """

    init: Callable[..., tuple[Any, Any]]
    apply: Callable[..., tuple[Any, Any]]
    params: Any  # shapes
    rest: Any
    kernels: tuple[Kernel, ...]  # in the order of the parameters
    traced: tuple[str, ...] = ()  # RunSpec fields and options that it reads as numbers of the run
    has_modes: bool = False  # it has a layer with another training mode


def as_functions(what: str, build: Callable[[Any], Any], inputs: jax.ShapeDtypeStruct) -> FlaxModel:
    """Return the module that `build(rngs)` makes as functions of batches of `inputs`.

    Raises:
      UserError: for anything but an `nnx.Module` or a Linen module.
    """
    made: list[Any] = []
    jax.eval_shape(lambda: made.append(build(_rngs(jnp.uint32(0)))))
    if isinstance(made[0], nn.Module):
        return _linen(build(_rngs(jnp.uint32(0))), inputs)  # outside of a trace, whose values it would keep
    if isinstance(made[0], nnx.Module):
        return _nnx(build)
    raise UserError(f"{what} returns {type(made[0]).__name__}. Return an nnx.Module or a Linen module.")


def _rngs(seed: UInt32[Array, ""]) -> nnx.Rngs:
    """Return the random streams of a run. A layer draws from its stream by name."""
    return nnx.Rngs(**_keys(seed))


def _keys(seed: UInt32[Array, ""]) -> dict[str, Key[Array, ""]]:
    names = {"params": ("init",), "dropout": ("dropout",), "default": ("network",)}
    return {name: random_streams.stream(seed, *names[name]) for name in STREAMS}


def _mode(module: Any, train: bool) -> dict[str, bool]:
    """Return the keywords by which a module is called in training or evaluation mode."""
    accepted = inspect.signature(type(module).__call__).parameters
    return {name: flag == train for name, flag in TRAINING.items() if name in accepted}


def _nnx(build: Callable[[Any], Any]) -> FlaxModel:
    graphs: dict[bool, Any] = {}
    kernels: list[Kernel] = []
    traced: list[str] = []
    layers: list[Any] = []

    def init(seed: UInt32[Array, ""], hparams: Mapping[str, Float[Array, ""]]) -> tuple[Any, Any]:
        model = build(_rngs(seed))
        model.eval()
        for _, variable in nnx.iter_graph(model):
            if isinstance(variable, Traced):
                traced.append(name := variable.get_metadata("field"))
                variable[...] = hparams.get(name, variable[...])
        if not graphs:
            kernels.extend(_nnx_kernels(model))
            layers.extend(module for _, module in nnx.iter_modules(model) if _has_modes(module))
            graphs[False] = nnx.graphdef(model)
            model.train()
            graphs[True] = nnx.graphdef(model)
            model.eval()
        _, params, rest = nnx.split(model, nnx.Param, ...)
        return params, rest

    def apply(params: Any, rest: Any, x: Any, train: bool, key: Any = None) -> tuple[Any, Any]:
        model = nnx.merge(graphs[train], params, rest, copy=True)
        with jax.default_matmul_precision("highest"):
            out = model(x, **_mode(model, train))
        return out, nnx.state(model, nnx.Not(nnx.Any(nnx.Param, nnx.Intermediate)))

    params, rest = jax.eval_shape(lambda seed: init(seed, {}), jnp.uint32(0))
    return FlaxModel(init, apply, params, rest, tuple(kernels), tuple(dict.fromkeys(traced)), bool(layers))


def _has_modes(module: Any) -> bool:
    """Whether a layer computes something else in training mode."""
    kinds = nnx.BatchNorm | nn.BatchNorm, nnx.Dropout | nn.Dropout
    return isinstance(module, kinds[0]) or (isinstance(module, kinds[1]) and module.rate > 0)


def _nnx_kernels(model: nnx.Module) -> list[Kernel]:
    found = []
    for path, module in nnx.iter_modules(model):
        kernel = getattr(module, "kernel", None)
        if not isinstance(kernel, nnx.Param) or not isinstance(module, NNX_LAYERS):
            continue
        if isinstance(module, nnx.LinearGeneral) and module.batch_axis:
            continue  # one kernel for each entry of the batch axes
        biased = isinstance(getattr(module, "bias", None), nnx.Param)
        found.append(_kernel(path, biased, _fan_in(module), module.out_features))
    return found


def _fan_in(module: Any) -> int:
    """Return the inputs of a unit of an NNX layer; its kernel may be stacked with others."""
    inputs = module.in_features if isinstance(module.in_features, int) else math.prod(module.in_features)
    if not isinstance(module, nnx.Conv | nnx.ConvTranspose):
        return inputs
    window = module.kernel_size if isinstance(module.kernel_size, tuple) else (module.kernel_size,)
    return math.prod(window) * inputs // getattr(module, "feature_group_count", 1)


def _kernel(layer: Sequence[Any], biased: bool, fan_in: int, outputs: int | Sequence[int]) -> Kernel:
    """Return the kernel of a layer by its path."""
    fan_out, path = outputs if isinstance(outputs, int) else math.prod(outputs), tuple(map(str, layer))
    return Kernel((*path, "kernel"), (*path, "bias") if biased else None, fan_in, fan_out)


def _linen(module: nn.Module, inputs: jax.ShapeDtypeStruct) -> FlaxModel:
    example = jnp.zeros((1, *inputs.shape), inputs.dtype)
    kernels: list[Kernel] = []
    layers: list[Any] = []

    def init(seed: UInt32[Array, ""], hparams: Mapping[str, Float[Array, ""]]) -> tuple[Any, Any]:
        with nn.intercept_methods(_recording(kernels, layers)):
            variables = dict(module.init(_keys(seed), example, **_mode(module, False)))
        variables.pop("intermediates", None)
        return variables.pop("params", {}), variables

    def apply(params: Any, rest: Any, x: Any, train: bool, key: Any = None) -> tuple[Any, Any]:
        rngs = {}
        if train and key is not None:  # Linen draws from `params` where a stream has no key
            rngs = {name: jax.random.fold_in(key, i) if i else key for i, name in enumerate(("dropout", "default", "params"))}
        mutable = list(rest) if train else False
        with jax.default_matmul_precision("highest"):
            out = module.apply({"params": params, **rest}, x, mutable=mutable, rngs=rngs, **_mode(module, train))
        return (out[0], dict(out[1])) if train else (out, rest)

    params, rest = jax.eval_shape(lambda seed: init(seed, {}), jnp.uint32(0))
    return FlaxModel(init, apply, params, rest, tuple(dict.fromkeys(kernels)), has_modes=bool(layers))


def _recording(kernels: list[Kernel], layers: list[Any]) -> Callable[..., Any]:
    """Return an interceptor of Linen that lists the kernels of the layers that are called, and layers with a training mode."""

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        out, module = call(*args, **kwargs), context.module
        outputs = module.features if isinstance(module, LINEN_LAYERS) else None
        if outputs is not None and context.method_name == "__call__" and not getattr(module, "batch_dims", ()):
            params, fan_out = module.variables["params"], outputs if isinstance(outputs, int) else math.prod(outputs)
            kernels.append(_kernel(module.path, "bias" in params, math.prod(jnp.shape(params["kernel"])) // fan_out, outputs))
        if _has_modes(module):
            layers.append(module)
        return out

    return intercept
