"""Taps: a JAX function together with pre, post and slope of every site in it."""

from __future__ import annotations

import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from relu_study.components.jaxprs import scan_operands
from relu_study.errors import UserError
from relu_study.watch import jax_internals
from relu_study.watch.leaves import Leaf, leaf_of
from relu_study.watch.program import Op, Program
from relu_study.watch.region_function import function_of, slope_of
from relu_study.watch.regions import Region
from relu_study.watch.sites import BRANCHES, LOOPS, Sites

Key = tuple[int, int, int]  # of a site: id(program), pre, post
ARRAYS = (jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic, int, float, complex)
Value = tuple[int, int]  # of a value: id(program), value
Taps = dict[Any, Any]  # a Tap by the Key of its site, an array by the Value that is kept


class Tap(NamedTuple):
    """Arrays of one site in one evaluation, all of the shape of pre.

    They are NaN throughout where the site's branch of a conditional is not taken.
    """

    pre: Float[Array, "..."]
    post: Float[Array, "..."]
    slope: Float[Array, "..."]  # abs(phi'(pre)); carries no gradient
    grad: Float[Array, "..."] | None = None  # d loss / d pre; with `gradients=True`


def tap(fn: Callable[..., Any], *, gradients: bool = False) -> Callable[..., tuple[Any, dict[str, Tap]]]:
    """Return a function like `fn` that also returns pre, post and slope of every site in it.

    post = phi(pre), slope = abs(phi'(pre)) and grad = d loss / d pre have the shape of pre. The slope follows the derivative
    rules of `fn`: jax.nn.relu has slope 0 at 0. Outputs and gradients equal the ones of `fn`. jit, vmap, grad, scan and
    shard_map apply to the result.

    Args:
      fn: a JAX function. With `gradients`, a loss: it returns a scalar.
      gradients: add d loss / d pre to each tap.

    Returns:
      A function of the same arguments. It returns `(fn(...), {name: Tap})`, with names as in `find_sites`, in program order.
      A tap is NaN throughout where its branch of a conditional is not taken.

    Raises:
      UserError: at a call, for a while loop, shard_map or custom derivative that contains a site, and for a loss that is no
        scalar.
    """

    @functools.wraps(fn)
    def tapped(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, Tap]]:
        traced = trace(fn, args, kwargs)
        tapping = Tapping(traced.sites)
        outs, taps = tapping.run(traced.program, traced.arrays, {})
        grads = tapping.gradients(traced.program, traced.arrays, _scalar, tapping.pre_values()) if gradients else {}
        return jax.tree.unflatten(traced.out_tree, outs), tapping.named(taps, grads)

    return tapped


class Traced(NamedTuple):
    """A traced call: its program, its arrays in the order of the program's inputs, and its sites."""

    program: Program
    arrays: list[Any]
    out_tree: Any
    sites: Sites


def trace(fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Traced:
    """Trace a call and find its sites. Arguments that are no arrays or numbers are static, as are booleans."""
    flat, tree = jax.tree_util.tree_flatten_with_path((tuple(args), kwargs))
    dynamic = [index for index, (_, leaf) in enumerate(flat) if _is_array(leaf)]

    def call(*arrays: Any) -> Any:
        leaves = [leaf for _, leaf in flat]
        for index, array in zip(dynamic, arrays, strict=True):
            leaves[index] = array
        args, kwargs = jax.tree.unflatten(tree, leaves)
        return fn(*args, **kwargs)

    arrays = [flat[index][1] for index in dynamic]
    closed, shapes = jax.make_jaxpr(call, return_shape=True)(*arrays)
    program = Program.of(closed)
    names = _argument_names(fn, len(args))
    leaves = [_leaf(number, flat[index][0], names, len(args)) for number, index in enumerate(dynamic)]
    return Traced(program, arrays, jax.tree.structure(shapes), Sites(program, leaves))


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, ARRAYS) and not isinstance(leaf, bool)


def _leaf(index: int, path: Sequence[Any], names: list[str], positional: int) -> Leaf:
    """Return the leaf at a path of (args, kwargs)."""
    group, key = path[0].idx, path[1]
    if group == 0:
        return leaf_of(index, key.idx, names[key.idx], path[2:])
    return leaf_of(index, positional, str(key.key), path[2:])


def _argument_names(fn: Callable[..., Any], count: int) -> list[str]:
    try:
        names = list(inspect.signature(fn).parameters)
    except (TypeError, ValueError):
        names = []
    return [names[index] if index < len(names) else f"arg{index}" for index in range(count)]


class Tapping:
    """Evaluation of a program with taps at its sites."""

    def __init__(self, sites: Sites, kept: Iterable[Value] = ()):
        """Prepare an evaluation. It also returns the `kept` values, of a loop stacked along their first axis."""
        self.sites = sites
        self.kept = frozenset(kept)
        self.posts = {id_: {region.post: region for region in regions} for id_, regions in sites.regions.items()}
        self.pres = {id_: {region.pre for region in regions} for id_, regions in sites.regions.items()}

    def run(self, program: Program, inputs: Sequence[Any], shifts: dict[Value, Any]) -> tuple[list[Any], Taps]:
        """Evaluate a program, with `shifts` added to its values. Taps of a loop are stacked along their first axis."""
        env: dict[int, Any] = dict(program.constants)
        taps: Taps = {}
        own = {value: shift for (owner, value), shift in shifts.items() if owner == id(program)}

        def store(value: int, array: Any) -> None:
            env[value] = array + own[value] if value in own else array
            if (id(program), value) in self.kept:
                taps[id(program), value] = env[value]

        for value, array in zip(program.inputs, inputs, strict=True):
            store(value, array)
        for op in program.ops:
            values = [env[value] for value in op.ins]
            if op.name in LOOPS | BRANCHES and self.sites.has(op):
                outs, inner = (self._scan if op.name in LOOPS else self._cond)(op, values, shifts)
                taps |= inner
            else:
                outs = jax_internals.evaluate(op.eqn, values)
            for value, array in zip(op.outs, outs, strict=True):
                store(value, array)
                if region := self.posts[id(program)].get(value):
                    taps[id(program), region.pre, value] = self._tap(program, region, env)
        return [env[value] for value in program.outputs], taps

    def _tap(self, program: Program, region: Region, env: dict[int, Any]) -> Tap:
        pre = env[region.pre]
        others = {v: jax.lax.stop_gradient(env[v]) for index in region.ops for v in program.ops[index].ins if v in env}
        slope = slope_of(function_of(program, region, others), jax.lax.stop_gradient(pre))
        return Tap(pre, env[region.post], slope)

    def _scan(self, op: Op, values: list[Any], shifts: dict[Value, Any]) -> tuple[list[Any], Taps]:
        params, (body,) = op.eqn.params, op.bodies
        n, carried = scan_operands(op.eqn)
        m = n + carried
        inner = {key: shift for key, shift in shifts.items() if key[0] in _ids(body)}

        def step(carry: list[Any], slices: tuple[list[Any], dict[Value, Any]]) -> tuple[list[Any], Any]:
            xs, shift = slices
            outs, taps = self.run(body, [*values[:n], *carry, *xs], shift)
            return outs[: m - n], (outs[m - n :], taps)

        carry, (ys, taps) = jax.lax.scan(
            step, values[n:m], (values[m:], inner), params["length"], params["reverse"], params["unroll"]
        )
        return [*carry, *ys], taps

    def _cond(self, op: Op, values: list[Any], shifts: dict[Value, Any]) -> tuple[list[Any], Taps]:
        index, *operands = values

        def of(body: Program) -> Callable[..., tuple[list[Any], Taps]]:
            return lambda *inputs: self.run(body, inputs, shifts)

        absent: Taps = {}
        for body in op.bodies:
            absent |= jax.eval_shape(of(body), *operands)[1]

        def branch(body: Program) -> Callable[..., tuple[list[Any], Taps]]:
            def evaluated(*inputs: Any) -> tuple[list[Any], Taps]:
                outs, taps = of(body)(*inputs)
                fill = {key: jax.tree.map(lambda a: jnp.full(a.shape, jnp.nan, a.dtype), tap) for key, tap in absent.items()}
                return outs, fill | taps

            return evaluated

        return jax.lax.switch(index, [branch(body) for body in op.bodies], *operands)

    def gradients(
        self, program: Program, arrays: Sequence[Any], loss: Callable[[list[Any]], Any], values: Iterable[Value]
    ) -> dict[Value, Any]:
        """Return the derivatives of `loss(outputs)` with respect to values; of a loop, stacked along the first axis.

        They are derivatives with respect to zeros that are added to the values.
        """
        fixed = jax.lax.stop_gradient(list(arrays))
        avals = {id(graph.program): graph.program.avals for graph in self.sites.graphs.values()}
        zeros = {
            (owner, value): jnp.zeros((*self.sites.loops[owner], *avals[owner][value].shape), avals[owner][value].dtype)
            for owner, value in values
        }
        return jax.grad(lambda shifts: loss(self.run(program, fixed, shifts)[0]))(zeros)

    def pre_values(self) -> list[Value]:
        """Return the pre-activations of all sites."""
        return [(owner, pre) for owner, pres in self.pres.items() for pre in pres]

    def named(self, taps: Taps, grads: dict[Value, Any]) -> dict[str, Tap]:
        """Return taps by the names of their sites, one for each iteration of a loop."""
        named = OrderedDict[str, Tap]()  # jit sorts the keys of a plain dictionary
        for place in self.sites.places:
            key = (id(place.program), place.region.pre, place.region.post)
            tap = taps[key]
            if grads:
                tap = tap._replace(grad=jnp.where(jnp.isnan(tap.pre), jnp.nan, grads[key[:2]]))
            for step in place.steps:
                tap = jax.tree.map(lambda array, step=step: array[step], tap)
            named[place.name] = tap
        return named


def _scalar(outs: list[Any]) -> Any:
    if len(outs) != 1 or jnp.shape(outs[0]) != ():
        shapes = [jnp.shape(out) for out in outs]
        raise UserError(f"gradients=True needs a function of one scalar, not of arrays of shapes {shapes}. Pass a loss.")
    return outs[0]


def _ids(program: Program) -> set[int]:
    """Return the ids of a program and of all programs in it."""
    return {id(program)}.union(*(_ids(body) for op in program.ops for body in op.bodies))
