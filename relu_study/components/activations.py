"""Activation functions by name, with their flat and identity pieces.

An activation is one registered function `phi(pre, **hparams)`. Metrics, interval bounds and conformance tests read the
declared pieces:

    @activation("relu", flat=((-inf, 0.0),), identity=(0.0, inf), values=(0.0, inf))
    def relu(pre):
        return jax.nn.relu(pre)
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from relu_study.components.options import check_declared
from relu_study.components.registry import activations
from relu_study.errors import UserError, nearest
from relu_study.study.run_spec import TRACED_FIELDS

Piece = tuple[float, float]


@dataclass(frozen=True)
class Activation:
    """An elementwise nonlinearity phi and its declared pieces.

    Pieces are closed intervals of pre. The property of a piece also holds at its ends, in floating point. For example, a kink
    at the end of a flat piece has slope 0.
    """

    name: str
    function: Callable[..., Array]  # phi(pre, **hparams); further parameters are traced RunSpec fields or have defaults
    flat: tuple[Piece, ...] = ()  # pieces with phi' = 0
    identity: Piece | None = None  # the piece with phi(z) = z
    turning_points: tuple[float, ...] = ()  # local extrema outside flat pieces; empty: phi is monotone
    values: Piece = (-inf, inf)  # contains every computed value of phi
    smooth: bool = False  # True: phi is curved, and units can saturate. False: it is piecewise linear, and units can be always on
    fanout: int = 1  # coordinates of post per unit, in this many blocks of U coordinates
    options: Mapping[str, Any] = field(default_factory=dict, compare=False)  # its options with their defaults
    traced: tuple[str, ...] = ()  # options that the compiled program takes as inputs

    @property
    def hparams(self) -> tuple[str, ...]:
        """Names of the traced RunSpec fields and the options among phi's parameters, without those bound by a partial."""
        bound = self.function.keywords if isinstance(self.function, functools.partial) else {}
        names = {*TRACED_FIELDS, *self.options} - {*bound}
        return tuple(name for name in _parameters(self.function) if name in names)

    def __call__(self, pre: Float[Array, "*N U"], hparams: Mapping[str, Any]) -> Float[Array, "*N V"]:
        """Return post = phi(pre), with V = fanout * U. An option that is not in `hparams` has its default."""
        return self.function(pre, **self.arguments(hparams))

    def arguments(self, hparams: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of phi after the first."""
        return {name: hparams[name] if name in hparams else self.options[name] for name in self.hparams}

    def slope(self, pre: Float[Array, "*N U"], hparams: Mapping[str, Any]) -> Float[Array, "*N U"]:
        """Return abs(phi'(pre)) of each unit. With `fanout` coordinates, it is their maximum."""
        _, tangent = jax.jvp(lambda z: self(z, hparams), (pre,), (jnp.ones_like(pre),))
        slope = jnp.abs(tangent)
        if self.fanout == 1:
            return slope
        return slope.reshape(*pre.shape[:-1], self.fanout, pre.shape[-1]).max(axis=-2)

    def max_slope(self, hparams: Mapping[str, Any]) -> Float[Array, ""]:
        """Return the maximum of abs(phi') on a grid of pre from -8 to 8 in steps of 1/256, including 0."""
        return jnp.max(self.slope(jnp.arange(-2048, 2049)[:, None] / 256, hparams))

    def end_slopes(self, hparams: Mapping[str, Any]) -> dict[float, Float[Array, ""]]:
        """Return abs(phi') at the finite ends of the flat pieces. It is 1/2, not 0, at a kink of jnp.maximum."""
        ends = {end for piece in self.flat for end in piece if isfinite(end)}
        return {end: self.slope(jnp.full((1, 1), end), hparams)[0, 0] for end in sorted(ends)}


def _parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the named parameters after the first, with their defaults."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some builtins have no signature
        return {}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name: p.default for p in parameters[1:] if p.kind not in variadic}


def _check_function(name: str, function: Any, options: Mapping[str, Any]) -> None:
    """Raise UserError if an object cannot be called as phi(pre, **hparams), or does not take one of its options."""
    if not callable(function):
        raise UserError(f"activation {name!r} must be a function phi(pre), but is {function!r}. Decorate a function.")
    parameters = _parameters(function)
    for parameter, default in parameters.items():
        if parameter not in (*TRACED_FIELDS, *options) and default is inspect.Parameter.empty:
            raise nearest(parameter, (*TRACED_FIELDS, *options), f"parameter of activation {name}")
    for option in options:
        if option not in parameters:
            raise UserError(f"activation {name!r} declares the option {option!r}, which is no parameter of its function. Add it.")


def _check_pieces(name: str, flat: Any, identity: Any, values: Any) -> None:
    """Raise UserError if a declared piece is not an interval."""
    arguments = {"flat": flat, "identity": identity, "values": values}
    pieces = {"flat": flat, "identity": () if identity is None else (identity,), "values": (values,)}
    for argument, intervals in pieces.items():
        if not isinstance(intervals, tuple | list) or not all(map(_is_piece, intervals)):
            form = "a tuple of pairs, flat=((low, high),)," if argument == "flat" else f"a pair, {argument}=(low, high),"
            raise UserError(f"activation {name!r} has {argument}={arguments[argument]!r}. Give {form} with low <= high.")


def _is_piece(piece: Any) -> bool:
    """Whether an object is a pair of numbers in ascending order."""
    numbers = isinstance(piece, tuple | list) and len(piece) == 2 and all(isinstance(end, int | float) for end in piece)
    return numbers and piece[0] <= piece[1]


def activation(
    name: str,
    *,
    flat: Any = (),  # `Activation` documents these arguments as its fields
    identity: Any = None,
    turning_points: Any = (),
    values: Any = (-inf, inf),
    smooth: bool = False,
    fanout: Any = 1,
    options: Any = None,
    traced: tuple[str, ...] = (),
) -> Callable[[Any], Activation]:
    """Register `phi(pre, **hparams)` as an `Activation`.

    The decorated object may be a function, a partial, a callable object or a jitted function. Parameters after the first
    receive the traced RunSpec fields and the options of their names. Other parameters keep their defaults. All values of a
    `traced` option share one program.

    Raises:
      UserError: for an object that is not callable, a piece that is not an interval, or an invalid `fanout`. Also for a
        parameter that is not a traced field and has no default.
    """

    def register(function: Any) -> Activation:
        own = check_declared("activation", name, options or {}, traced)
        _check_function(name, function, own)
        _check_pieces(name, flat, identity, values)
        if not isinstance(fanout, int) or isinstance(fanout, bool) or fanout < 1:
            raise UserError(f"activation {name!r} has fanout={fanout!r}. Give a whole number of at least 1.")
        pieces = tuple(map(tuple, flat))
        entry = Activation(name, function, pieces, identity, turning_points, values, smooth, fanout, own, tuple(traced))
        activations.add(name, entry)
        return entry

    return register


@activation("relu", flat=((-inf, 0.0),), identity=(0.0, inf), values=(0.0, inf))
def relu(pre: Array) -> Array:
    """max(0, z), with slope 0 at z = 0.

    Source: Nair & Hinton 2010, ICML, "Rectified linear units improve restricted Boltzmann machines";
    Glorot, Bordes & Bengio 2011, AISTATS, "Deep sparse rectifier neural networks".
    """
    return jax.nn.relu(pre)


@activation("leaky_relu", identity=(0.0, inf))
def leaky_relu(pre: Array, leak: ArrayLike) -> Array:
    """z for z > 0, else leak * z. The slope at z = 0 is the leak: leak 0 is relu.

    Source: Maas, Hannun & Ng 2013, ICML workshop, "Rectifier nonlinearities improve neural network acoustic models".
    """
    return jnp.where(pre > 0, pre, leak * pre)


@activation("relu6", flat=((-inf, 0.0), (6.0, inf)), identity=(0.0, 6.0), values=(0.0, 6.0))
def relu6(pre: Array) -> Array:
    """min(max(0, z), 6), with slope 0 at both kinks (jax.nn.relu6 has 1/2 there).

    Source: Krizhevsky 2010, "Convolutional deep belief networks on CIFAR-10".
    """
    return jnp.where(pre <= 0, 0.0, jnp.where(pre >= 6, 6.0, pre))


@activation("hard_tanh", flat=((-inf, -1.0), (1.0, inf)), identity=(-1.0, 1.0), values=(-1.0, 1.0))
def hard_tanh(pre: Array) -> Array:
    """z clipped to [-1, 1], with slope 0 at both kinks.

    Source: Collobert 2004, PhD thesis, Universite Paris VI, "Large scale machine learning".
    """
    return jnp.where(pre <= -1, -1.0, jnp.where(pre >= 1, 1.0, pre))


@activation("crelu", values=(0.0, inf), fanout=2)
def crelu(pre: Array) -> Array:
    """[max(0, z), max(0, -z)]: two coordinates per unit, one of them active. It has no flat piece: only z = 0 is flat.

    Source: Shang, Sohn, Almeida & Lee 2016, arXiv 1603.05201, section 2.
    """
    return jnp.concatenate([jax.nn.relu(pre), jax.nn.relu(-pre)], axis=-1)


@activation("linear", identity=(-inf, inf))
def linear(pre: Array) -> Array:
    """z itself: no nonlinearity."""
    return pre


@activation("tanh", values=(-1.0, 1.0), smooth=True)
def tanh(pre: Array) -> Array:
    """Hyperbolic tangent.

    Source: LeCun, Bottou, Orr & Muller 1998, "Efficient backprop", section 4.4 (there scaled by 1.7159).
    """
    return jnp.tanh(pre)


@activation("sigmoid", values=(0.0, 1.0), smooth=True)
def sigmoid(pre: Array) -> Array:
    """1 / (1 + exp(-z)).

    Source: Rumelhart, Hinton & Williams 1986, Nature 323, equation 2.
    """
    return jax.nn.sigmoid(pre)


@activation("elu", identity=(0.0, inf), values=(-1.0, inf), smooth=True)
def elu(pre: Array) -> Array:
    """z for z > 0, else exp(z) - 1.

    Source: Clevert, Unterthiner & Hochreiter 2015, arXiv 1511.07289, section 3, with alpha = 1.
    """
    return jax.nn.elu(pre)


@activation("selu", values=(-1.7581, inf), smooth=True)
def selu(pre: Array) -> Array:
    """1.0507 z for z > 0, else 1.0507 * 1.6733 (exp(z) - 1). Preserves mean 0 and variance 1 across layers.

    Source: Klambauer, Unterthiner, Mayr & Hochreiter 2017, arXiv 1706.02515, equation 2 and section 2.
    """
    return jax.nn.selu(pre)


@activation("gelu", turning_points=(-0.7517915246935645,), values=(-0.17, inf), smooth=True)
def gelu(pre: Array) -> Array:
    """z Phi(z), Phi the normal distribution function; the exact form, not the tanh approximation.

    Source: Hendrycks & Gimpel 2016, arXiv 1606.08415, section 2.
    """
    return jax.nn.gelu(pre, approximate=False)


@activation("silu", turning_points=(-1.2784645427610738,), values=(-0.27847, inf), smooth=True)
def silu(pre: Array) -> Array:
    """z sigmoid(z), also called swish.

    Source: Elfwing, Uchibe & Doya 2017, arXiv 1702.03118, section 2.
    """
    return jax.nn.silu(pre)
