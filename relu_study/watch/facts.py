"""Facts about every value of a program: whether it carries features, and which layer it comes from.

A value carries features if it descends from a product with a parameter or a convolution, and no reduction has removed its
feature axis. Statistics of normalisations, attention weights and losses by example carry none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp

from relu_study.components.jaxprs import scan_operands
from relu_study.watch.leaves import Leaf
from relu_study.watch.primitives import ELEMENTWISE, INVERSE_ROOTS, PRODUCTS, REDUCTIONS, SUMS
from relu_study.watch.program import Op, Program

PASSES = 5  # of a loop's body, until the facts of its carry no longer change
RANDOM = ("random_", "threefry", "rng_")
FALLBACKS = {"dot_general": "dense", "conv_general_dilated": "conv"}


@dataclass(frozen=True)
class Origin:
    """The last product, convolution or normalisation before a value: its place in program order, and its layer's name."""

    order: int
    name: str
    product: bool = True  # False: a normalisation
    final: bool = True  # False: a normalisation whose parameters enter later


@dataclass(frozen=True)
class Weight:
    """A value that weighs or shifts units: the kernel of a product, or its bias."""

    program: int  # id of the program that reads it
    value: int
    axis: int  # of the units


@dataclass(frozen=True)
class Fact:
    """The properties of one value."""

    carries: bool = False
    axis: int | None = None  # of the features; None: a single feature
    constant: bool = False
    origin: Origin | None = None
    leaves: tuple[Leaf, ...] = ()  # parameters that reach it without a product
    roots: frozenset[int] = frozenset()  # indices of all inputs that it depends on
    targets: frozenset[int] = frozenset()  # indices of the inputs that it has an entry of for every example
    statistic: bool = False  # an inverse root: the scale of a normalisation
    reduced: bool = False  # by a sum or maximum, as a mean or norm
    parameters: tuple[Leaf, ...] = ()  # of the last product and later
    weights: tuple[Weight, ...] = ()  # the kernel of the last product and its bias


@dataclass
class Analysis:
    """Facts of a program and of its bodies, by `id(program)`."""

    facts: dict[int, list[Fact]] = field(default_factory=dict)
    trained: frozenset[int] = frozenset()  # indices of the inputs that are parameters
    fed: set[int] = field(default_factory=set)  # indices of the inputs that reach an operand of a product
    order: int = 0

    def run(self, program: Program, inputs: Sequence[Fact]) -> list[Fact]:
        """Compute the facts of every value from the facts of the inputs, and return the facts of the outputs."""
        facts = [Fact()] * len(program.avals)
        for value in program.constants:
            facts[value] = Fact(constant=program.shape(value) == ())
        for value, fact in zip(program.inputs, inputs, strict=True):
            facts[value] = fact
        self.facts[id(program)] = facts
        for op in program.ops:
            self.order += 1
            for value, fact in zip(op.outs, self._outs(program, op, [facts[value] for value in op.ins]), strict=True):
                floating = program.is_floating(value, jnp.inexact)
                facts[value] = fact if floating or not fact.carries else replace(fact, carries=False, origin=None)
        return [facts[value] for value in program.outputs]

    def _outs(self, program: Program, op: Op, ins: list[Fact]) -> list[Fact]:
        base = _joined(ins)
        if op.name == "scan":
            return self._scan(program, op, ins)
        if op.name == "cond":
            branches = [_outer_weights(program, body, op.ins[1:], self.run(body, ins[1:])) for body in op.bodies]
            return [_either(facts) for facts in zip(*branches, strict=True)]
        if op.name == "while":
            n, m = op.eqn.params["cond_nconsts"], op.eqn.params["body_nconsts"]
            self.run(op.bodies[0], [*ins[:n], *ins[n + m :]])
            outs = self._loop(op.bodies[1], ins[n : n + m], ins[n + m :], [])
            return _outer_weights(program, op.bodies[1], op.ins[n:], outs)
        if op.bodies and all(len(body.inputs) == len(ins) and len(body.outputs) == len(op.outs) for body in op.bodies):
            outs, *_ = [self.run(body, ins) for body in op.bodies]
            return _outer_weights(program, op.bodies[0], op.ins, outs)
        for body in op.bodies:  # of a linear solve: its operands are those of several bodies
            self.run(body, [Fact(roots=base.roots)] * len(body.inputs))
        if base.constant:  # random numbers are none: the mask of a dropout is no part of an activation
            return [replace(base, constant=not op.name.startswith(RANDOM))] * len(op.outs)
        if op.name in PRODUCTS:
            self.fed |= base.roots
            return [self._product(program, op, ins, base)] * len(op.outs)
        if op.name in ELEMENTWISE:
            return [self._elementwise(program, op, ins, base)] * len(op.outs)
        return [_reshaped(program, op, value, ins, base) for value in op.outs]

    def _scan(self, program: Program, op: Op, ins: list[Fact]) -> list[Fact]:
        n, m = scan_operands(op.eqn)
        sliced = [replace(fact, axis=max(fact.axis - 1, 0) if fact.axis else None) for fact in ins[n + m :]]
        outs = self._loop(op.bodies[0], ins[:n], ins[n : n + m], sliced)
        outs = _outer_weights(program, op.bodies[0], op.ins[:n], outs)
        return [*outs[:m], *(replace(fact, axis=None if fact.axis is None else fact.axis + 1) for fact in outs[m:])]

    def _loop(self, body: Program, consts: list[Fact], carry: list[Fact], xs: list[Fact]) -> list[Fact]:
        """Return the facts of a body's results, with its carry at the fixed point."""
        carry = [replace(fact, weights=()) for fact in carry]  # the previous iteration has other weights
        for _ in range(PASSES):
            outs = self.run(body, [*consts, *carry, *xs])
            joined = [_either(pair) for pair in zip(carry, outs, strict=False)]
            if [_shape_of(fact) for fact in joined] == [_shape_of(fact) for fact in carry]:
                break
            carry = [replace(fact, weights=()) for fact in joined]
        return outs

    def _product(self, program: Program, op: Op, ins: list[Fact], base: Fact) -> Fact:
        kernel = self._computed_kernel(ins)
        leaves: tuple[Leaf, ...] = ()
        if kernel is not None:
            leaves = ins[kernel].parameters[::-1]  # of w + a @ b, that of w is the last
        elif (kernel := _kernel(op, ins)) is not None:
            leaves = ins[kernel].leaves
        name = _layer(op, leaves)
        origin = Origin(self.order, name or _inherited(ins) or FALLBACKS.get(op.name, "product"))
        carries, axis = _feature_axis(program, op, ins, kernel)
        carries &= program.shape(op.outs[0]) != ()
        if not carries:
            return Fact(roots=base.roots)
        weights = () if kernel is None else _weights(program, op, kernel)
        return Fact(True, axis, origin=origin, roots=base.roots, parameters=leaves, weights=weights)

    def _computed_kernel(self, ins: list[Fact]) -> int | None:
        """Return which operand is a kernel with a product of parameters in it, as w + a @ b. None: neither, or both."""
        made = [i for i, fact in enumerate(ins[:2]) if fact.carries and fact.parameters and fact.roots <= self.trained]
        return made[0] if len(made) == 1 and not ins[1 - made[0]].roots <= self.trained else None

    def _elementwise(self, program: Program, op: Op, ins: list[Fact], base: Fact) -> Fact:
        shape = program.shape(op.outs[0])
        carrying = [fact for value, fact in zip(op.ins, ins, strict=True) if fact.carries and program.shape(value) == shape]
        reduced = bool(carrying) and all(fact.reduced for fact in carrying)
        if not carrying or (reduced and op.name in INVERSE_ROOTS):
            statistic = op.name in INVERSE_ROOTS or (op.name in ("mul", "div") and base.statistic)
            return replace(base, statistic=statistic)
        others = [fact for fact in ins if not fact.carries and not fact.constant]
        origin = max((fact.origin for fact in carrying if fact.origin), key=lambda origin: origin.order, default=None)
        leaves = [leaf for fact in others for leaf in fact.leaves]
        scaled = op.name in ("mul", "div") and any(fact.statistic for fact in others)
        if len(carrying) == 1 and (scaled or (op.name == "div" and ins[1].reduced and not ins[1].carries)):
            name = _layer(op, leaves, within=False)
            origin = Origin(self.order, name or (origin.name if origin else "norm"), False, bool(name))
        elif origin and not origin.final and leaves:
            origin = Origin(origin.order, leaves[0].layer, False)
        parameters: tuple[Leaf, ...] = ()
        weights: tuple[Weight, ...] = ()
        if _is_affine(op, ins):  # the weights before a nonlinearity do not feed the sites after it
            parameters = tuple(dict.fromkeys([*(leaf for fact in carrying for leaf in fact.parameters), *leaves]))
            weights = tuple(dict.fromkeys(weight for fact in carrying for weight in fact.weights))
        if op.name == "add" and len(carrying) == 1 and origin and origin.product:
            biases = [value for value, fact in zip(op.ins, ins, strict=True) if not fact.carries and not fact.constant]
            weights += tuple(Weight(id(program), value, -1) for value in biases)
        axis = carrying[0].axis
        return Fact(True, axis, False, origin, (), base.roots, base.targets, False, reduced, parameters, weights)


def _is_affine(op: Op, ins: list[Fact]) -> bool:
    """Whether the result of an elementwise operation is affine in its operands with features."""
    if op.name == "mul":
        return sum(fact.carries for fact in ins) == 1
    if op.name in ("div", "select_n"):  # the divisor and the predicate
        return not ins[1 if op.name == "div" else 0].carries
    return op.name in SUMS or op.name == "convert_element_type"


def _outer_weights(program: Program, body: Program, ins: Sequence[int], outs: list[Fact]) -> list[Fact]:
    """Return the facts of a call's results, with only those weights of its body that are operands of the call."""
    operands = dict(zip(body.inputs, ins, strict=False))

    def moved(weight: Weight) -> list[Weight]:
        if weight.program != id(body):
            return [weight]
        return [replace(weight, program=id(program), value=operands[weight.value])] if weight.value in operands else []

    return [replace(fact, weights=tuple(w for weight in fact.weights for w in moved(weight))) for fact in outs]


def _joined(ins: Sequence[Fact]) -> Fact:
    """Return the fact of a value that depends on `ins` and carries no features."""
    leaves = tuple(dict.fromkeys(leaf for fact in ins if not fact.carries for leaf in fact.leaves))
    return Fact(
        constant=all(fact.constant for fact in ins),
        leaves=leaves,
        roots=_union(fact.roots for fact in ins),
        targets=_union(fact.targets for fact in ins),
        statistic=any(fact.statistic for fact in ins),
        reduced=any(fact.reduced for fact in ins if not fact.carries),
    )


def _union(sets: Iterable[frozenset[int]]) -> frozenset[int]:
    return frozenset().union(*sets)


def _either(facts: Sequence[Fact]) -> Fact:
    """Return the fact of a value with one of several facts, for example the result of a branch."""
    joined = _joined(facts)
    carrying = [fact for fact in facts if fact.carries]
    if not carrying:
        return joined
    last = carrying[-1]
    return replace(last, constant=False, leaves=(), roots=joined.roots, targets=joined.targets)


def _shape_of(fact: Fact) -> tuple[Any, ...]:
    return fact.carries, fact.axis, fact.constant, fact.roots, fact.targets, fact.reduced


def _kernel(op: Op, ins: list[Fact]) -> int | None:
    """Return which operand of a product is its parameter, or None for a product of two activations."""
    candidates = [index for index, fact in enumerate(ins[:2]) if not fact.carries]
    if not candidates:
        return None
    if op.name == "conv_general_dilated" or not all(ins[index].leaves for index in candidates):
        return candidates[-1]
    # In a first layer neither carries features. A leaf inside an argument counts, and the earlier argument; then the right side.
    leaves = {index: ins[index].leaves[0] for index in candidates}
    first = min(leaf.argument for leaf in leaves.values())
    later = max(leaf.argument for leaf in leaves.values())
    return max(candidates, key=lambda index: ((not leaves[index].bare) + (leaves[index].argument == first != later), index))


def _layer(op: Op, leaves: Sequence[Leaf], within: bool = True) -> str:
    """Return the layer of a product: of its parameter, or else of the innermost Linen module around it."""
    if leaves:
        return leaves[0].layer
    return ".".join(op.scopes[1:]) if within else ""


def _inherited(ins: list[Fact]) -> str:
    origins = [fact.origin for fact in ins if fact.origin]
    return max(origins, key=lambda origin: origin.order).name if origins else ""


def _feature_axis(program: Program, op: Op, ins: list[Fact], kernel: int | None) -> tuple[bool, int | None]:
    """Return whether a product's result carries features, and their axis."""
    if op.name == "conv_general_dilated":
        return True, op.eqn.params["dimension_numbers"].out_spec[1]
    if op.name != "dot_general":
        return True, len(program.shape(op.outs[0])) - 1
    free = _free_axes(program, op)
    if kernel is not None and free[kernel]:
        return True, free[kernel][max(free[kernel])]
    for side in (1, 0):
        axis = ins[side].axis
        if ins[side].carries and axis is not None and axis in free[side]:
            return True, free[side][axis]
    return kernel is not None, None


def _weights(program: Program, op: Op, kernel: int) -> tuple[Weight, ...]:
    """Return the kernel of a product with the axis of its units, if it has one."""
    value = op.ins[kernel]
    if op.name == "conv_general_dilated":
        return (Weight(id(program), value, op.eqn.params["dimension_numbers"].rhs_spec[0]),)
    free = _free_axes(program, op)[kernel] if op.name == "dot_general" else {}
    return (Weight(id(program), value, max(free)),) if free else ()


def _free_axes(program: Program, op: Op) -> tuple[dict[int, int], dict[int, int]]:
    """Return, for both operands, the axes that are not contracted and their places in the result."""
    contracted, batch = op.eqn.params["dimension_numbers"]
    places: list[dict[int, int]] = [{}, {}]
    place = len(batch[0])
    for side in (0, 1):
        for axis in range(len(program.shape(op.ins[side]))):
            if axis not in contracted[side] and axis not in batch[side]:
                places[side][axis] = place
                place += 1
    return places[0], places[1]


def _reshaped(program: Program, op: Op, out: int, ins: list[Fact], base: Fact) -> Fact:
    """Return the fact of a result that moves, selects or reduces entries of its operands."""
    source = next((index for index, fact in enumerate(ins) if fact.carries), None)
    targets = base.targets if _keeps_examples(program, op, out) else frozenset()
    if source is None:
        return replace(base, targets=targets)
    before, after = program.shape(op.ins[source]), program.shape(out)
    gone, axis = _moved(op, ins[source].axis, before, after)
    lost = Fact(roots=base.roots, targets=targets, reduced=op.name in REDUCTIONS)
    reduced = ins[source].reduced or op.name in REDUCTIONS
    return lost if gone else replace(ins[source], axis=axis, roots=base.roots, targets=targets, reduced=reduced)


def _keeps_examples(program: Program, op: Op, out: int) -> bool:
    """Whether the first axis of a broadcast's operand remains the first axis of its result."""
    if op.name != "broadcast_in_dim":
        return True
    kept: bool = op.eqn.params["broadcast_dimensions"][:1] == (0,)
    return kept and program.shape(op.ins[0])[0] == program.shape(out)[0]


def _moved(op: Op, axis: int | None, before: tuple[int, ...], after: tuple[int, ...]) -> tuple[bool, int | None]:
    """Return whether the feature axis is gone, and else its new place."""
    params = op.eqn.params
    if axis is None or not after:
        return not after, None
    last = len(after) - 1
    if op.name in ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin", "reduce"):
        axes = params.get("axes", params.get("dimensions", ()))
        return axis in axes, axis - sum(int(other < axis) for other in axes)  # vmap makes them NumPy integers
    if op.name == "top_k":
        return axis == last, axis
    if op.name == "broadcast_in_dim":
        return False, int(params["broadcast_dimensions"][axis])
    if op.name == "transpose":
        return False, params["permutation"].index(axis)
    if op.name == "squeeze":
        dimensions = {d % len(before) for d in params["dimensions"]}
        return False, None if axis in dimensions else axis - sum(d < axis for d in dimensions)
    if op.name == "expand_dims":
        return False, axis + sum(d <= axis for d in params["dimensions"])
    if op.name == "gather":
        return _gathered(params, axis, before)
    if op.name == "reshape":
        if before[axis] == 1 and len(after) < len(before):
            return False, None
        kept = axis < min(len(before) - 1, len(after)) and before[: axis + 1] == after[: axis + 1]
        return False, axis if kept else last
    return False, axis if len(after) == len(before) else last


def _gathered(params: dict[str, Any], axis: int, before: tuple[int, ...]) -> tuple[bool, int | None]:
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    dropped = {*numbers.collapsed_slice_dims, *getattr(numbers, "operand_batching_dims", ())}
    if axis in dropped or sizes[axis] < before[axis]:
        return True, None
    return False, int(numbers.offset_dims[sum(other not in dropped for other in range(axis))])
