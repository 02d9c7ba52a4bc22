"""Checks of a user's networks: type, output shape, weights and sites. They run before anything compiles."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from relu_study.components import random_keys
from relu_study.components.entry_errors import calling
from relu_study.components.interval_bounds import Interval
from relu_study.components.layers import Context, Dense, FeatureMajorBatch, Norm, Site
from relu_study.components.networks import network_of
from relu_study.components.tasks.task import Signature
from relu_study.engine.train_step import make_init
from relu_study.errors import UserError
from relu_study.study.run_spec import TRACED_FIELDS, RunSpec

CALL = "Write an nnx.Module with a method __call__(self, x, ctx)."


def check_network(spec: RunSpec, signature: Signature) -> None:
    """Raise UserError if a network has no Site, wrong output shapes, or weights that the run's seed does not draw."""
    what, dtype = f"network {spec.network!r}", jnp.result_type(float)
    with calling(what):
        model = nnx.eval_shape(lambda: _module(spec, signature))
    x = jax.ShapeDtypeStruct((2, signature.d_in), dtype)
    applied, kinds = _forward_modules(spec, signature, x, (2, signature.d_out))
    if not random_keys.repeats(lambda x: _module(spec, signature)(x, _context()), x):  # type: ignore[operator]
        raise UserError(f"{what} is different each time it is traced. Read no random state of NumPy or Python, and no counter.")
    _check_weights(spec, signature, model, applied)
    if Site not in kinds:
        raise UserError(f"{what} has no Site, so none of its units is measured. Apply its nonlinearities with relu_study's Site.")
    if Dense not in kinds[: kinds.index(Site)]:
        raise UserError(f"{what} applies a Site before any Dense. Put a Dense before its first Site.")
    if getattr(model, "bounded", False):
        _check_bounded(spec, signature)


def check_kind(what: str, entry: Any) -> None:
    """Raise UserError if an entry is a Linen module, a network instance, or not callable."""
    build = "Register a class or a function build(spec, inputs, outputs, rngs)."
    if _is_linen(entry):
        name = getattr(entry, "__name__", type(entry).__name__)
        raise UserError(f"{what} is the Linen module {name}. Register a function that returns it, or write it as an nnx.Module.")
    if isinstance(entry, nnx.Module):
        raise UserError(f"{what} is an instance of {type(entry).__name__}. {build}")
    if not callable(entry):
        raise UserError(f"{what} is {type(entry).__name__}, not a function. {build}")


def _is_linen(value: Any) -> bool:
    """Return whether a value is a class or an instance of Linen, Flax's earlier interface."""
    kind = value if isinstance(value, type) else type(value)
    return any(base.__module__.startswith("flax.linen") for base in kind.__mro__)


def _takes_context(model: Any) -> bool:
    """Return whether a model can be called with an input and a context."""
    if not callable(model):
        return False
    try:
        inspect.signature(model).bind(None, None)
    except ValueError:  # the callable has no signature, so only the call itself can tell
        return True
    except TypeError:
        return False
    return True


def _module(spec: RunSpec, signature: Signature, seed: int = 0) -> nnx.Module:
    """Build a network. Raises UserError if the result is not an nnx.Module that takes an input and a context."""
    model = network_of(spec)(spec, signature.d_in, signature.d_out, rngs=nnx.Rngs(seed))
    what = f"network {spec.network!r}"
    if _is_linen(model):
        raise UserError(f"{what} returns the Linen module {type(model).__name__}. Write it as an nnx.Module.")
    if not isinstance(model, nnx.Module):
        raise UserError(f"{what} returns {type(model).__name__}. Return an nnx.Module.")
    if isinstance(model, nnx.Sequential):
        raise UserError(f"{what} returns nnx.Sequential, whose layers receive no context. {CALL}")
    if not _takes_context(model):
        raise UserError(f"{what} returns {type(model).__name__}, which has no __call__(self, x, ctx). {CALL}")
    return model


def _context() -> Context:
    """Return a context with traced fields of zero, for calls that compute only shapes."""
    return Context({name: jnp.zeros(()) for name in TRACED_FIELDS})


def _forward_modules(spec: RunSpec, signature: Signature, x: Any, shape: tuple[int, ...]) -> tuple[set[Any], list[type]]:
    """Return the paths of all Dense modules that a forward pass applies, and the kinds of applied modules in call order.

    A kind is Dense or Site. Raises UserError if the output does not have `shape`, or is not a float.
    """
    applied: set[Any] = set()
    kinds: list[type] = []

    def forward(x: Any) -> Any:
        model, ctx = _module(spec, signature), _context()
        out = model(x, ctx)  # type: ignore[operator]
        paths = {id(module): path for path, module in nnx.iter_modules(model)}
        for module, *_ in ctx.activations_log:
            kinds.append(Dense if isinstance(module, Dense) else Site)
            if isinstance(module, Dense) and id(module) in paths:  # the call may build modules that are no part of the model
                applied.add(paths[id(module)])
        return out

    with calling(f"network {spec.network!r}"):
        out = jax.eval_shape(forward, x)
    if getattr(out, "shape", None) != shape or not jnp.issubdtype(out.dtype, jnp.floating):
        returned = f"{out.dtype} of shape {out.shape}" if hasattr(out, "shape") else type(out).__name__
        raise UserError(
            f"network {spec.network!r} returns {returned} for {shape[0]} examples. "
            f"Return floats of shape {shape}: (examples, d_out)."
        )
    return applied, kinds


def _check_weights(spec: RunSpec, signature: Signature, model: nnx.Module, applied: set[Any]) -> None:
    """Raise UserError unless the run's seed draws every weight (in a Dense), or the weight is one constant in every run.

    `applied` has the paths of all applied Dense modules.
    """
    what = f"network {spec.network!r}"
    for path, variable in nnx.state(model).flat_state():
        if not isinstance(variable, nnx.Param | nnx.BatchStat):
            raise UserError(
                f"{what} keeps a {type(variable).__name__} in {_dotted(path)}, which runs do not train. Use relu_study's Dense, "
                "Norm, Dropout and Site."
            )
    _check_constants(spec, signature, model)
    dense = [path for path, module in nnx.iter_modules(model) if isinstance(module, Dense)]
    unused = [path for path in dense if path not in applied]
    if unused:
        raise UserError(f"{what} never applies its Dense {_dotted(unused[0])}, so its weights stay 0. Apply it or remove it.")
    _check_kernels(spec, signature, [(*path, "kernel") for path in dense])


def _check_constants(spec: RunSpec, signature: Signature, model: nnx.Module) -> None:
    """Raise UserError unless each parameter outside Dense and Norm is one repeated constant, equal for two seeds.

    A parameter with two axes longer than 1 is a kernel, and is refused.
    """
    what, owners = f"network {spec.network!r}", [p for p, m in nnx.iter_modules(model) if isinstance(m, Dense | Norm)]
    outside = [
        path
        for path, _ in nnx.state(model, nnx.Param).flat_state()
        if not any(path[: len(owner)] == tuple(owner) for owner in owners)
    ]
    if not outside:
        return
    with calling(what):
        one, two = (dict(nnx.state(_module(spec, signature, seed), nnx.Param).flat_state()) for seed in (0, 1))
    for path in outside:
        a, b = (np.asarray(values[path][...]) for values in (one, two))
        is_kernel = sum(axis > 1 for axis in a.shape) > 1
        is_constant = np.array_equal(a, b, equal_nan=True) and not (a.size and (a != a.flat[0]).any())
        if is_kernel or not is_constant:
            raise UserError(
                f"{what}: the weights {_dotted(path)} are not drawn by the run's seed, so all seeds would begin with "
                "the same ones. Use relu_study's Dense, whose weights the initializer draws."
            )


def _check_kernels(spec: RunSpec, signature: Signature, kernels: list[Any]) -> None:
    """Raise UserError if a kernel of a Dense is equal for two seeds. `check_initializer` checks the initialiser itself."""
    what, dtype = f"network {spec.network!r}", jnp.result_type(float)
    init = make_init(spec.replace(initializer="he_normal"), signature.d_in, signature.d_out)
    hparams = {field: jnp.asarray(getattr(RunSpec(), field), dtype) for field in TRACED_FIELDS}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, signature.d_in)), dtype)
    with calling(what):
        one, two = (dict(init(jnp.uint32(seed), hparams, x).params.flat_state()) for seed in (0, 1))
    for path in kernels:
        if path in one and np.array_equal(one[path][...], two[path][...], equal_nan=True):
            raise UserError(
                f"{what}: the weights {_dotted(path)} are the same for two seeds. Call its Dense, and do not assign the kernel."
            )


def _dotted(path: Any) -> str:
    """Return the path of a variable in messages."""
    return ".".join(map(str, path)) or "itself"


def _check_bounded(spec: RunSpec, signature: Signature) -> None:
    """Raise UserError if a network that is declared bounded does not map both special inputs to their own types."""
    what, dtype = f"network {spec.network!r} is declared bounded but", jnp.result_type(float)
    bound = jnp.zeros(signature.d_in, dtype)
    kinds: list[type] = []

    def forward(x: Any) -> bool:
        batch = _module(spec, signature)(FeatureMajorBatch(x.T), _context())  # type: ignore[operator]
        interval = _module(spec, signature)(Interval(bound, bound), _context())  # type: ignore[operator]
        kinds.extend((type(batch), type(interval)))
        return True  # `eval_shape` accepts no Interval as an output

    with calling(f"{what} on a FeatureMajorBatch or an Interval"):
        jax.eval_shape(forward, jax.ShapeDtypeStruct((2, signature.d_in), dtype))
    if kinds != [FeatureMajorBatch, Interval]:
        raise UserError(f"{what} does not return a FeatureMajorBatch and an Interval for these inputs. Omit `bounded`.")
