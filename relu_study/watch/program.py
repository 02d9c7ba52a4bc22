"""A JAX function as a flat list of equations over numbered values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from relu_study.watch import jax_internals

# Calls whose equations become part of the caller's program.
INLINED = {"jit", "pjit", "closed_call", "core_call", "call", "remat", "remat2", "checkpoint", "custom_lin"}
CUSTOM = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}  # calls with a derivative rule of the user


@dataclass(frozen=True)
class Op:
    """One equation. `bodies` are the programs that it calls: of a loop, a branch, or a custom derivative."""

    eqn: Any
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    scopes: tuple[str, ...]
    bodies: tuple[Program, ...] = ()

    @property
    def name(self) -> str:
        """The name of the primitive."""
        return str(self.eqn.primitive.name)

    @property
    def line(self) -> str:
        """The line of the user's code, "file.py:12"."""
        return jax_internals.source_line(self.eqn)


@dataclass
class Program:
    """A jaxpr with its nested calls inlined. Values are numbers, in program order."""

    avals: list[Any] = field(default_factory=list)
    constants: dict[int, Any] = field(default_factory=dict)  # literals and arrays that the function closes over
    ops: list[Op] = field(default_factory=list)
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()

    @classmethod
    def of(cls, closed: core.ClosedJaxpr, scopes: tuple[str, ...] = ()) -> Program:
        """Return the program of a jaxpr."""
        program = cls()
        program.inputs = tuple(program._value(v.aval) for v in closed.jaxpr.invars)
        outputs = program._inline(closed, program.inputs, scopes)
        program.outputs = tuple(outputs)
        return program

    def shape(self, value: int) -> tuple[int, ...]:
        """Return the shape of a value; () for a value that is no array."""
        return tuple(getattr(self.avals[value], "shape", ()))

    def is_floating(self, value: int, kind: Any = jnp.floating) -> bool:
        """Whether a value is an array of floats; with kind=jnp.inexact, of complex numbers too."""
        dtype = getattr(self.avals[value], "dtype", None)
        return dtype is not None and bool(jnp.issubdtype(dtype, kind))

    def makers(self) -> dict[int, int]:
        """Return the index of the op that computes each value."""
        return {value: index for index, op in enumerate(self.ops) for value in op.outs}

    def uses(self) -> dict[int, list[int]]:
        """Return the indices of the ops that read each value, in program order."""
        uses: dict[int, list[int]] = defaultdict(list)
        for index, op in enumerate(self.ops):
            for value in dict.fromkeys(op.ins):
                uses[value].append(index)
        return uses

    def _value(self, aval: Any) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1

    def _constant(self, constant: Any) -> int:
        value = self._value(jax.typeof(constant))
        self.constants[value] = constant
        return value

    def _inline(self, closed: core.ClosedJaxpr, inputs: Sequence[int], scopes: tuple[str, ...]) -> list[int]:
        env = dict(zip(closed.jaxpr.invars, inputs, strict=True))
        for var, constant in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            env[var] = self._constant(constant)

        def read(var: Any) -> int:
            return self._constant(var.val) if isinstance(var, core.Literal) else env[var]

        for eqn in closed.jaxpr.eqns:
            ins = [read(var) for var in eqn.invars]
            inner = scopes + jax_internals.name_scopes(eqn)
            jaxprs = list(_jaxprs(eqn.params))
            if eqn.primitive.name in INLINED and len(jaxprs) == 1:
                outs = self._inline(jaxprs[0], ins, inner)
            else:
                outs = [self._value(var.aval) for var in eqn.outvars]
                bodies = tuple(Program.of(jaxpr, inner) for jaxpr in jaxprs)
                self.ops.append(Op(eqn, tuple(ins), tuple(outs), inner, bodies))
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(var) for var in closed.jaxpr.outvars]


def _jaxprs(params: dict[str, Any]) -> list[core.ClosedJaxpr]:
    """Return the jaxprs among an equation's parameters, in order. `cond` has a tuple of them."""
    found = []
    for parameter in params.values():
        for item in parameter if isinstance(parameter, tuple | list) else (parameter,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item)
            elif isinstance(item, core.Jaxpr):
                found.append(core.ClosedJaxpr(item, ()))
    return found
