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
from relu_study.components.registry import activations, initializers, networks, ours
from relu_study.components.tasks.task import Signature
from relu_study.engine.check_tasks import kind_of
from relu_study.engine.state import build
from relu_study.errors import UserError
from relu_study.study.run_spec import TRACED_FIELDS, RunSpec

GRID = np.arange(-1024, 1025) / 64  # -16 to 16
FAR = np.array([-1e4, -200.0, -50.0, 50.0, 200.0, 1e4])
CLOSE = 1e-4  # relative: layouts may round differently
TURN = 1e-2  # of the largest slope: a smaller one is no sign of a turn
EXAMPLES = 5  # rows of inputs in a check of an initialiser
KEYS = 24  # keys of a refusal; +1 or -1 in a kernel of one weight is equal for all of them once in 2^23

# ------------------------------------------------------------------------------------- activations


def check_activation(name: str, hparams: Mapping[str, float], certified: bool) -> None:
    """Refuse an activation that is not what it declares (UserError).

    Its output has the shape that `fanout` says, and each unit depends on its own pre-activation. On a grid from -16 to 16 its
    values are numbers and its pieces hold. Undeclared turning points are refused where units are `certified`: bounds need them.
    """
    phi, dtype = activations[name], jnp.result_type(float)
    values = {field: jnp.asarray(hparams[field], dtype) for field in TRACED_FIELDS if field in hparams}
    what = f"activation {name!r}"
    with calling(what, phi.function):
        for shape in ((5, 3), (3,)):
            _check_shape(what, phi, values, jax.ShapeDtypeStruct(shape, dtype))
        _check_apart(what, phi, values)
        _check_known(what, phi, values)
        _check_pieces(what, phi, values)
        if certified:
            _check_turns(what, phi, values)


def _check_shape(what: str, phi: Activation, values: Mapping[str, Any], pre: Any) -> None:
    post = jax.eval_shape(lambda pre: phi.function(pre, **{name: values[name] for name in phi.hparams}), pre)
    wanted = (*pre.shape[:-1], pre.shape[-1] * phi.fanout)
    if getattr(post, "shape", None) != wanted or post.dtype != pre.dtype:
        found = f"{post.dtype} of shape {post.shape}" if hasattr(post, "shape") else type(post).__name__
        raise UserError(
            f"{what} gives {found} for a pre-activation of shape {pre.shape}. With fanout={phi.fanout} it must "
            f"give {pre.dtype} of shape {wanted}."
        )


def _check_apart(what: str, phi: Activation, values: Mapping[str, Any]) -> None:
    """Each unit of each example depends on its own pre-activation; repeated calls agree."""
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


def _on(phi: Activation, values: Mapping[str, Any], points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The points as computed with, and phi and its derivative there, a column for each of `fanout` coordinates."""
    pre = jnp.asarray(points, jnp.result_type(float))[:, None]
    post, slope = jax.jvp(lambda z: phi(z, values), (pre,), (jnp.ones_like(pre),))
    return (*(np.asarray(part, float) for part in (pre[:, 0], post, slope)),)  # type: ignore[return-value]


def _inside(piece: tuple[float, float]) -> np.ndarray:
    """Points in the interior of a piece: its ends are kinks, whose slope is a convention."""
    low, high = max(piece[0], -1e4), min(piece[1], 1e4)
    near = np.linspace(max(low, min(high, 0.0) - 16), min(high, max(low, 0.0) + 16), 203)[1:-1]
    points = np.concatenate([near, GRID, FAR])
    return points[(points > low) & (points < high)]


def _check_known(what: str, phi: Activation, values: Mapping[str, Any]) -> None:
    """Values are numbers; infinite ones are left to the status of a run."""
    z, post, _ = _on(phi, values, GRID)
    if (wrong := np.isnan(post).any(axis=1)).any():
        raise UserError(f"{what} gives NaN at {z[int(np.argmax(wrong))]:g}. Define it for every pre-activation.")


def _check_pieces(what: str, phi: Activation, values: Mapping[str, Any]) -> None:
    for piece in phi.flat:
        z, _, slope = _on(phi, values, _inside(piece))
        if (wrong := (slope != 0).any(axis=1)).any():
            at = int(np.argmax(wrong))
            raise UserError(
                f"{what} declares flat={piece}, and its slope at {z[at]:g} is {slope[at][slope[at] != 0][0]:.4g}. "
                "Correct the flat piece or leave it out."
            )
    if phi.identity is not None:
        z, post, _ = _on(phi, values, _inside(phi.identity))
        if (wrong := (post != z[:, None]).any(axis=1)).any():
            at = int(np.argmax(wrong))
            raise UserError(
                f"{what} declares identity={phi.identity}, and its value at {z[at]:g} is {post[at][0]:.6g}. "
                "Correct the identity piece or leave it out."
            )
    if phi.values != (-inf, inf):
        z, post, _ = _on(phi, values, np.concatenate([GRID, FAR]))
        if (wrong := ((post < phi.values[0]) | (post > phi.values[1])).any(axis=1)).any():
            at = int(np.argmax(wrong))
            low, high = post[at].min(), post[at].max()
            outside = low if low < phi.values[0] else high
            raise UserError(f"{what} declares values={phi.values}, and its value at {z[at]:g} is {outside:.9g}. Widen values.")


def _check_turns(what: str, phi: Activation, values: Mapping[str, Any]) -> None:
    """Where the derivative changes its sign, a turning point is declared, also where the extreme is a flat piece."""
    z, _, slope = _on(phi, values, GRID)
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
    """Refuse an initialiser that `check_layer` refuses in any layer of a spec's network (UserError)."""
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
        if (*shape, index == 0) in seen or (last and not initializers[spec.initializer].output):
            continue
        seen.add((*shape, index == 0))
        check_layer(spec.initializer, Layer(index, len(layers), *shape, last))


def check_layer(name: str, layer: Layer) -> None:
    """Refuse an initialiser whose kernel or bias has a wrong shape or dtype, or is not drawn from the key (UserError).

    A kernel that is equal for all of several keys ignores its key: a draw from a small set would differ for one of them.
    """
    scheme, what, dtype = initializers[name], f"initializer {name!r}", jnp.result_type(float)
    shape = (EXAMPLES, layer.fan_in)
    if str(getattr(scheme.function, "__module__", "")).startswith("jax."):
        raise UserError(f"{what} is jax.nn.initializers.{scheme.function.__name__} without its call. Register a function {FORM}.")
    with calling(what, scheme.function):
        found = jax.eval_shape(
            lambda key, x: scheme.function(key, layer, x),
            random_streams.stream(0, "init", layer.index),
            jax.ShapeDtypeStruct(shape, dtype),
        )
    if not isinstance(found, tuple | list) or len(found) != 2 or not all(hasattr(part, "shape") for part in found):
        many = f"{len(found)} values" if isinstance(found, tuple | list) else f"one {kind_of(found)}"
        raise UserError(f"{what} returns {many}. Return two arrays: {FORM}.")
    for part, word, wanted in (
        (found[0], "kernel", (layer.fan_in, layer.fan_out)),
        (found[1], "bias", (layer.fan_out,)),
    ):
        kind = jax.dtypes.canonicalize_dtype(part.dtype)
        if part.shape != wanted or kind != dtype:
            raise UserError(
                f"{what} returns a {word} of shape {part.shape} and dtype {kind} in layer {layer.index}. Return shape {wanted} "
                f"and dtype {dtype}: {FORM}."
            )
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


FORM = "(key, layer, inputs) -> (kernel, bias), kernel of shape (layer.fan_in, layer.fan_out), bias of shape (layer.fan_out,)"


def check_drawn(cell: Mapping[str, Any], seen: dict[Any, Any]) -> None:
    """The checks of every user's activation and initialiser that a cell of a draw study names."""
    width, d = (value if isinstance(value := cell.get(word), int) and value > 0 else other for word, other in SIZES)
    for factor, value in cell.items():
        for known in (activations, initializers):
            of_others = factor in FACTORS and FACTORS[factor] is not known
            if of_others or not isinstance(value, str) or value not in known or ours(known[value]):
                continue
            if (known.kind, value, width, d) in seen:
                continue
            seen[known.kind, value, width, d] = ()
            if known is activations:
                check_activation(value, {field: getattr(RunSpec(), field) for field in TRACED_FIELDS}, certified=False)
            else:
                for index, fan_in in enumerate((d, width)):
                    check_layer(value, Layer(index, 3, fan_in, width, False))


SIZES = (("width", 5), ("d_in", 3))
FACTORS = {"activation": activations, "initializer": initializers, "scheme": initializers}


def once(seen: dict[Any, Any], key: Any, check: Callable[[], Any]) -> None:
    """Run a check of this key once; its notes are kept in `seen`."""
    if key not in seen:
        seen[key] = check() or ()


def check_entries(spec: RunSpec, signature: Signature, boxed: bool, seen: dict[Any, Any]) -> None:
    """The checks of the activations and the initialiser of a spec that the user has registered."""
    hparams = {field: getattr(spec, field) for field in TRACED_FIELDS}
    phis = [activations[spec.activation], activations[spec.output]]
    bounded = boxed and bool(getattr(networks[spec.network], "bounded", False))
    certified = bounded and any(phi.flat or (phi.identity is not None and not phi.smooth) for phi in phis if phi.name != "linear")
    for name, phi in zip((spec.activation, spec.output), phis, strict=True):
        used = tuple(hparams[field] for field in phi.hparams)
        if not ours(phi):
            once(seen, ("activation", name, used, certified), lambda name=name: check_activation(name, hparams, certified))  # type: ignore[misc]
    if not ours(initializers[spec.initializer]):
        shapes = (spec.network, spec.depth, spec.width, spec.activation, signature.d_in, signature.d_out)
        once(seen, ("initializer", spec.initializer, shapes), lambda: check_initializer(spec, signature))
