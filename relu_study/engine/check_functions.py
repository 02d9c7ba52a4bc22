"""Checks of the user's activations and initialisers against their contracts, before anything compiles."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from math import inf
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relu_study.components import random_keys, random_streams
from relu_study.components.activations import Activation
from relu_study.components.entry_errors import calling
from relu_study.components.initializers import Layer
from relu_study.components.layers import Context
from relu_study.components.networks import OWN, initializer_of, network_of
from relu_study.components.options import values
from relu_study.components.registry import activations, initializers, ours
from relu_study.components.tasks.task import Signature
from relu_study.engine.check_tasks import type_name
from relu_study.engine.flax_init import flax_layers
from relu_study.engine.state import build
from relu_study.errors import UserError
from relu_study.study.run_spec import TRACED_FIELDS, RunSpec

GRID = np.arange(-1024, 1025) / 64  # -16 to 16
FAR = np.array([-1e4, -200.0, -50.0, 50.0, 200.0, 1e4])
CLOSE = 1e-4  # relative: layouts may round differently
TURN = 1e-2  # of the largest slope: a smaller slope is no evidence of a turning point
EXAMPLES = 5  # rows of inputs in a check of an initialiser
KEYS = 24  # keys whose kernels are compared: a weight of +1 or -1 is equal for all of them once in 2^23

# ------------------------------------------------------------------------------------- activations


def check_activation(name: str, hparams: Mapping[str, Any], certified: bool) -> None:
    """Raise UserError if an activation contradicts its declaration.

    Its output has the shape declared by `fanout`. Each unit depends on its own pre-activation. On a grid from -16 to 16 its
    values are numbers and its pieces are correct. If units are `certified`, all turning points are declared: bounds need them.
    """
    phi, dtype = activations[name], jnp.result_type(float)
    numbers = {*TRACED_FIELDS, *phi.traced}
    values = {field: jnp.asarray(value, dtype) if field in numbers else value for field, value in hparams.items()}
    what = f"activation {name!r}"
    with calling(what, phi.function):
        for shape in ((5, 3), (3,)):
            _check_shape(what, phi, values, jax.ShapeDtypeStruct(shape, dtype))
        _check_elementwise(what, phi, values)
        _check_no_nan(what, phi, values)
        _check_pieces(what, phi, values)
        if certified:
            _check_turns(what, phi, values)


def _check_shape(what: str, phi: Activation, values: Mapping[str, Any], pre: Any) -> None:
    post = jax.eval_shape(lambda pre: phi.function(pre, **phi.arguments(values)), pre)
    wanted = (*pre.shape[:-1], pre.shape[-1] * phi.fanout)
    if getattr(post, "shape", None) != wanted or post.dtype != pre.dtype:
        returned = f"{post.dtype} of shape {post.shape}" if hasattr(post, "shape") else type(post).__name__
        raise UserError(
            f"{what} gives {returned} for a pre-activation of shape {pre.shape}. With fanout={phi.fanout} it must "
            f"give {pre.dtype} of shape {wanted}."
        )


def _check_elementwise(what: str, phi: Activation, values: Mapping[str, Any]) -> None:
    """Check that each unit of each example depends on its own pre-activation, and that repeated calls agree."""
    pre = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.result_type(float))
    whole = np.asarray(phi(pre, values), float).reshape(4, phi.fanout, 3)
    again = np.asarray(phi(pre, values), float).reshape(whole.shape)
    if not (np.array_equal(whole, again, equal_nan=True) and random_keys.repeats(lambda pre: phi(pre, values), pre)):
        raise UserError(f"{what} gives other values at each call. Write a pure function of the pre-activation.")
    for row in range(4):
        for unit in range(3):
            single = np.asarray(phi(pre[row : row + 1, unit : unit + 1], values), float).ravel()
            if not np.allclose(single, whole[row, :, unit], rtol=CLOSE, atol=CLOSE, equal_nan=True):
                raise UserError(
                    f"{what} mixes units or examples: {whole[row, 0, unit]:.6g} among others, {single[0]:.6g} for the same unit "
                    "by itself. Apply a function of each unit."
                )


def _values_and_slopes(
    phi: Activation, values: Mapping[str, Any], points: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The points in the precision in use, and phi and its derivative there, a column for each of `fanout` coordinates."""
    pre = jnp.asarray(points, jnp.result_type(float))[:, None]
    post, slope = jax.jvp(lambda z: phi(z, values), (pre,), (jnp.ones_like(pre),))
    return (*(np.asarray(part, float) for part in (pre[:, 0], post, slope)),)  # type: ignore[return-value]


def _inside(piece: tuple[float, float]) -> np.ndarray:
    """Points in the interior of a piece. Its ends are kinks, whose slope is a convention."""
    low, high = max(piece[0], -1e4), min(piece[1], 1e4)
    near = np.linspace(max(low, min(high, 0.0) - 16), min(high, max(low, 0.0) + 16), 203)[1:-1]
    points = np.concatenate([near, GRID, FAR])
    return points[(points > low) & (points < high)]


def _check_no_nan(what: str, phi: Activation, values: Mapping[str, Any]) -> None:
    """Check that no value is NaN. Infinite values are allowed: they show in the status of a run."""
    z, post, _ = _values_and_slopes(phi, values, GRID)
    if (wrong := np.isnan(post).any(axis=1)).any():
        raise UserError(f"{what} gives NaN at {z[int(np.argmax(wrong))]:g}. Define it for every pre-activation.")


def _check_pieces(what: str, phi: Activation, values: Mapping[str, Any]) -> None:
    for piece in phi.flat:
        z, _, slope = _values_and_slopes(phi, values, _inside(piece))
        if (wrong := (slope != 0).any(axis=1)).any():
            at = int(np.argmax(wrong))
            raise UserError(
                f"{what} declares flat={piece}, and its slope at {z[at]:g} is {slope[at][slope[at] != 0][0]:.4g}. "
                "Correct the flat piece or leave it out."
            )
    if phi.identity is not None:
        z, post, _ = _values_and_slopes(phi, values, _inside(phi.identity))
        if (wrong := (post != z[:, None]).any(axis=1)).any():
            at = int(np.argmax(wrong))
            raise UserError(
                f"{what} declares identity={phi.identity}, and its value at {z[at]:g} is {post[at][0]:.6g}. "
                "Correct the identity piece or leave it out."
            )
    if phi.values != (-inf, inf):
        z, post, _ = _values_and_slopes(phi, values, np.concatenate([GRID, FAR]))
        if (wrong := ((post < phi.values[0]) | (post > phi.values[1])).any(axis=1)).any():
            at = int(np.argmax(wrong))
            low, high = post[at].min(), post[at].max()
            outside = low if low < phi.values[0] else high
            raise UserError(f"{what} declares values={phi.values}, and its value at {z[at]:g} is {outside:.9g}. Widen values.")


def _check_turns(what: str, phi: Activation, values: Mapping[str, Any]) -> None:
    """Check that a turning point is declared at each sign change of the derivative, also around a flat piece."""
    z, _, slope = _values_and_slopes(phi, values, GRID)
    for column in slope.T:
        seen = np.flatnonzero(np.abs(column) > TURN * np.nanmax(np.abs(column), initial=0.0))
        for i, j in itertools.pairwise(seen):
            if column[i] * column[j] < 0 and not any(z[i] <= t <= z[j] for t in phi.turning_points):
                raise UserError(
                    f"{what} turns back between {z[i]:g} and {z[j]:g}, which certified metrics must know. Declare "
                    "turning_points=(...) with all its local extremes, or leave the task's box out."
                )


# ------------------------------------------------------------------------------------ initialisers


def check_initializer(spec: RunSpec, signature: Signature) -> None:
    """Raise UserError if an initialiser fails `check_layer` in any layer of a spec's network."""
    name = initializer_of(spec)
    if not network_of(spec).sized:
        for layer in flax_layers(spec, signature):
            if initializers[name].output or not layer.last:
                check_layer(name, layer)
        return
    layers: list[tuple[int, int]] = []

    def forward(x: Any) -> Any:
        model = build(spec, signature.d_in, signature.d_out)
        ctx = Context(
            {field: jnp.zeros(()) for field in TRACED_FIELDS},
            init_hook=lambda dense, inputs: layers.append(tuple(dense.kernel.shape)),
        )
        return model(x, ctx)  # type: ignore[operator]

    with calling(f"network {spec.network!r}"):
        jax.eval_shape(forward, jax.ShapeDtypeStruct((2, signature.d_in), jnp.result_type(float)))
    seen: set[tuple[int, int, bool]] = set()
    for index, shape in enumerate(layers):
        last = index == len(layers) - 1
        if (*shape, index == 0) in seen or (last and not initializers[name].output):
            continue
        seen.add((*shape, index == 0))
        check_layer(name, Layer(index, len(layers), *shape, last))


def check_layer(name: str, layer: Layer) -> None:
    """Raise UserError if an initialiser's kernel or bias has a wrong shape or dtype, or is not drawn from the key.

    A kernel that is equal for all of several keys ignores its key: a draw from a small set differs for one of them.
    """
    scheme, what, dtype = initializers[name], f"initializer {name!r}", jnp.result_type(float)
    if str(getattr(scheme.function, "__module__", "")).startswith("jax."):
        raise UserError(f"{what} is jax.nn.initializers.{scheme.function.__name__} without its call. Register a function {FORM}.")
    shape = (EXAMPLES, layer.fan_in)
    _check_layer_shapes(what, scheme.function, layer, jax.ShapeDtypeStruct(shape, dtype))
    inputs = jnp.asarray(np.random.default_rng(1).normal(size=(2, *shape)), dtype)

    def drawn(seed: int, x: Any) -> tuple[bytes, bytes]:
        with calling(what):
            kernel, bias = scheme(random_streams.stream(seed, "init", layer.index), layer, x)
        return np.asarray(kernel).tobytes(), np.asarray(bias).tobytes()

    first = drawn(0, inputs[0])
    if any(np.isnan(np.frombuffer(part, dtype)).any() for part in first):
        raise UserError(f"{what} gives NaN in layer {layer.index} ({layer.fan_in} x {layer.fan_out}). Return numbers.")
    key = random_streams.stream(0, "init", layer.index)
    if drawn(0, inputs[0]) != first or not random_keys.repeats(lambda key, x: scheme(key, layer, x), key, inputs[0]):
        raise UserError(
            f"{what} draws other weights for the same key. Draw all random numbers from the key, with jax.random, not from NumPy "
            "or Python's state."
        )
    if not scheme.needs_inputs and drawn(0, inputs[1]) != first:
        raise UserError(f"{what} declares needs_inputs=False and reads its inputs. Leave needs_inputs out.")
    if all(drawn(seed, inputs[0])[0] == first[0] for seed in range(1, KEYS)):
        raise UserError(
            f"{what} gives every seed the same kernel in layer {layer.index} ({layer.fan_in} x {layer.fan_out}). Draw it "
            "from the key, for example with jax.random.normal(key, (layer.fan_in, layer.fan_out))."
        )


def _check_layer_shapes(what: str, function: Callable[..., Any], layer: Layer, inputs: Any) -> None:
    """Check that an initialiser returns a kernel and a bias of the layer's shapes and of the dtype of its inputs."""
    with calling(what, function):
        returned = jax.eval_shape(lambda key, x: function(key, layer, x), random_streams.stream(0, "init", layer.index), inputs)
    if not isinstance(returned, tuple | list) or len(returned) != 2 or not all(hasattr(part, "shape") for part in returned):
        form = f"{len(returned)} values" if isinstance(returned, tuple | list) else f"one {type_name(returned)}"
        raise UserError(f"{what} returns {form}. Return two arrays: {FORM}.")
    shapes = (layer.fan_in, layer.fan_out), (layer.fan_out,)
    for part, role, shape in zip(returned, ("kernel", "bias"), shapes, strict=True):
        dtype = jax.dtypes.canonicalize_dtype(part.dtype)
        if part.shape != shape or dtype != inputs.dtype:
            raise UserError(
                f"{what} returns a {role} of shape {part.shape} and dtype {dtype} in layer {layer.index}. Return shape {shape} "
                f"and dtype {inputs.dtype}: {FORM}."
            )


FORM = "(key, layer, inputs) -> (kernel, bias), kernel of shape (layer.fan_in, layer.fan_out), bias of shape (layer.fan_out,)"


def check_drawn(cell: Mapping[str, Any], seen: dict[Any, Any]) -> None:
    """Check the user's activations and initialisers that a cell of a draw study names."""
    width, d = (value if isinstance(value := cell.get(name), int) and value > 0 else default for name, default in SIZES)
    for factor, value in cell.items():
        for registry in (activations, initializers):
            of_other_kind = factor in FACTORS and FACTORS[factor] is not registry
            if of_other_kind or not isinstance(value, str) or value not in registry or ours(registry[value]):
                continue
            if (registry.kind, value, width, d) in seen:
                continue
            seen[registry.kind, value, width, d] = ()
            if registry is activations:
                check_activation(value, {field: getattr(RunSpec(), field) for field in TRACED_FIELDS}, certified=False)
            else:
                for index, fan_in in enumerate((d, width)):
                    check_layer(value, Layer(index, 3, fan_in, width, False))


SIZES = (("width", 5), ("d_in", 3))
FACTORS = {"activation": activations, "initializer": initializers, "scheme": initializers}


def once(seen: dict[Any, Any], key: Any, check: Callable[[], Any]) -> None:
    """Run the check of a key once. Its notes are stored in `seen`."""
    if key not in seen:
        seen[key] = check() or ()


def check_entries(spec: RunSpec, signature: Signature, boxed: bool, seen: dict[Any, Any]) -> None:
    """Check the activations and the initialiser of a spec, if they are the user's."""
    hparams = {**values(spec), **{field: getattr(spec, field) for field in TRACED_FIELDS}}
    phis = [activations[spec.activation], activations[spec.output]]
    bounded = boxed and network_of(spec).bounded
    certified = bounded and any(phi.flat or (phi.identity is not None and not phi.smooth) for phi in phis if phi.name != "linear")
    for name, phi in zip((spec.activation, spec.output), phis, strict=True):
        used = tuple(phi.arguments(hparams).values())
        if not ours(phi):
            once(seen, ("activation", name, used, certified), lambda name=name: check_activation(name, hparams, certified))  # type: ignore[misc]
    initializer = initializer_of(spec)
    if (initializer != OWN or network_of(spec).sized) and not ours(initializers[initializer]):
        shapes = (spec.network, spec.depth, spec.width, spec.activation, signature.inputs, signature.outputs)
        once(seen, ("initializer", initializer, shapes), lambda: check_initializer(spec, signature))
