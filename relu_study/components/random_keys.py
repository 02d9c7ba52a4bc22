"""Randomness that does not come from a key of the run: draws with a fixed key, and state outside a function."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Literal

from relu_study.components.jaxprs import scan_operands

# Primitives that draw random numbers, each with its number of leading operands that are its key.
DRAWS = {"random_bits": 1, "random_gamma": 1, "rng_bit_generator": 1, "rng_uniform": 0, "threefry2x32": 4}

_traces = itertools.count()
Reached = tuple[list[bool], bool]


def draws(jaxpr: Any) -> bool:
    """Whether a closed jaxpr draws random numbers."""
    return _dependence(jaxpr.jaxpr, [False] * len(jaxpr.jaxpr.invars))[1]


def fixed_draw(jaxpr: Any, inputs: Sequence[bool]) -> bool:
    """Whether a closed jaxpr draws random numbers from a key that depends on none of the marked inputs.

    A value depends on an input if any path of computation connects them. A key selected among several depends on an input only
    if all of them do.
    """
    return _dependence(jaxpr.jaxpr, inputs)[1]


def repeats(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether two traces of a function are equal: no part of it reads NumPy's or Python's random state, or a counter.

    Inner jitted functions are traced again too: a cached trace belongs to its context, and each trace here has a new context.
    """
    one, two = (_fresh(function, *arguments) for _ in range(2))
    texts = [re.sub("0x[0-9a-f]+", "", str(jaxpr)) for jaxpr in (one, two)]  # addresses of functions
    constants = list(_constants(one)), list(_constants(two))
    return texts[0] == texts[1] and len(constants[0]) == len(constants[1]) and all(map(_equal, *constants))


def _fresh(function: Callable[..., Any], *arguments: Any) -> Any:
    with set_xla_metadata(relu_study_trace=str(next(_traces))):
        return jax.make_jaxpr(lambda *given: function(*given))(*arguments)


def _constants(jaxpr: Any) -> Iterator[Any]:
    """The constants of a closed jaxpr and of all jaxprs in it."""
    yield from getattr(jaxpr, "consts", ())
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        for inner in _jaxprs(eqn.params.values()):
            yield from _constants(inner)


def _equal(one: Any, two: Any) -> bool:
    if one is two or not hasattr(one, "dtype"):
        return True
    if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
        one, two = jax.random.key_data(one), jax.random.key_data(two)
    one, two = np.asarray(one), np.asarray(two)
    return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()


def _dependence(jaxpr: Any, inputs: Sequence[bool]) -> Reached:
    """Which outputs of a jaxpr depend on the marked inputs, and whether a draw depends on none."""
    known, fixed = dict(zip(jaxpr.invars, inputs, strict=True)), False
    for eqn in jaxpr.eqns:
        given = [_mark(known, operand) for operand in eqn.invars]
        marks, inside = _through(eqn, given)
        keys = DRAWS.get(eqn.primitive.name)
        fixed |= inside or (keys is not None and not any(given[:keys]))
        known.update(zip(eqn.outvars, marks, strict=True))
    return [_mark(known, result) for result in jaxpr.outvars], fixed


def _mark(known: dict[Any, bool], operand: Any) -> bool:
    return not isinstance(operand, Literal) and known.get(operand, False)


def _through(eqn: Any, given: list[bool]) -> Reached:
    """The same as `_dependence`, for one equation."""
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        return _loop(params["jaxpr"].jaxpr, given, *scan_operands(eqn))
    if name == "while":
        return _while(params, given)
    if name == "select_n":
        return [_chosen(eqn.outvars[0], given[0], given[1:])], False
    if name == "cond":
        outs, fixed = zip(*(_dependence(branch.jaxpr, given[1:]) for branch in params["branches"]), strict=True)
        return [_chosen(out, given[0], marks) for out, *marks in zip(eqn.outvars, *outs, strict=True)], any(fixed)
    inner = [getattr(jaxpr, "jaxpr", jaxpr) for jaxpr in _jaxprs(params.values())]
    if (
        len(inner) == 1 and len(inner[0].invars) == len(given) and len(inner[0].outvars) == len(eqn.outvars)
    ):  # jit and similar primitives
        return _dependence(inner[0], given)
    whole = [any(given)] * len(eqn.outvars)
    return whole, any(_dependence(jaxpr, [any(given)] * len(jaxpr.invars))[1] for jaxpr in inner)


def _chosen(out: Any, choice: bool, marks: Sequence[bool]) -> bool:
    """Whether one of several values depends on the inputs: for a key all of them must, for a number any, or the choice."""
    if jnp.issubdtype(out.aval.dtype, jax.dtypes.prng_key):
        return all(marks)
    return choice or any(marks)


def _loop(body: Any, given: list[bool], consts: int, carry: int) -> Reached:
    """The same for a body whose first outputs are its next carry. The last pass has all marks of the carry."""
    while True:
        marks, fixed = _dependence(body, given)
        grown = [a or b for a, b in zip(given[consts : consts + carry], marks[:carry], strict=True)]
        if grown == given[consts : consts + carry]:
            return [*grown, *marks[carry:]], fixed
        given = [*given[:consts], *grown, *given[consts + carry :]]


def _while(params: Any, given: list[bool]) -> Reached:
    of_test, of_body = params["cond_nconsts"], params["body_nconsts"]
    constants, start = given[:of_test], given[of_test + of_body :]
    marks, fixed = _loop(params["body_jaxpr"].jaxpr, given[of_test:], of_body, len(start))
    (goes_on,), inside = _dependence(params["cond_jaxpr"].jaxpr, [*constants, *marks])
    return [goes_on or mark for mark in marks], fixed or inside


def _jaxprs(values: Any) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation, closed or open."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from _jaxprs(value)
        elif hasattr(getattr(value, "jaxpr", value), "eqns"):
            yield value
