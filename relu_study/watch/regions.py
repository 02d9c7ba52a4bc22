"""The elementwise regions of a program: from a value that carries features to the values that leave.

A region is cut into sites where a parameter enters by an affine operation, as the shift of a normalisation does, and where a
value is used outside. A learned slope enters inside a branch (PReLU: x and alpha * x meet again) and cuts nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp

from relu_study.watch.facts import Fact
from relu_study.watch.primitives import AFFINE, CONSTANT, ELEMENTWISE, STEP, Dependence, dependence
from relu_study.watch.program import CUSTOM, Op, Program


@dataclass(frozen=True)
class Region:
    """The operations between a pre-activation and its post-activation, by index in the program."""

    pre: int
    post: int
    ops: tuple[int, ...]
    dependence: Dependence  # of post on pre


@dataclass(frozen=True)
class Graph:
    """A program with its facts, and with the operations that compute and read each value."""

    program: Program
    facts: list[Fact]
    uses: dict[int, list[int]]
    makers: dict[int, int]

    @classmethod
    def of(cls, program: Program, facts: list[Fact]) -> Graph:
        """Return the graph of a program."""
        return cls(program, facts, program.uses(), program.makers())

    def regions(self) -> list[Region]:
        """Return every nonlinear region, in the order of its post."""
        found: dict[tuple[int, int], Region] = {}
        seen: set[int] = set()
        for start in (*self.program.inputs, *(value for op in self.program.ops for value in op.outs)):
            if start in seen or not self._starts(start):
                continue
            ops, inside = self._grown(start)
            seen |= inside
            for post in self._leaving(ops):
                for region in self._cut(start, post, ops):
                    found.setdefault((region.pre, region.post), region)
        return sorted(found.values(), key=lambda region: self.makers[region.post])

    def post_op(self, region: Region) -> Op:
        """Return the operation that computes a region's post."""
        return self.program.ops[self.makers[region.post]]

    def _starts(self, value: int) -> bool:
        return self.facts[value].carries and self.program.shape(value) != () and self.program.is_floating(value)

    def _grown(self, start: int) -> tuple[list[int], set[int]]:
        """Return the operations, in program order, whose only operand with features is `start` or a result of them."""
        shape = self.program.shape(start)
        inside, region, queue = {start}, [], list(self.uses.get(start, ()))
        heapq.heapify(queue)
        queued = set(queue)
        while queue:
            index = heapq.heappop(queue)
            op = self.program.ops[index]
            if not self._belongs(op, inside, shape):
                continue
            region.append(index)
            inside.update(op.outs)
            for use in self.uses.get(op.outs[0], ()):
                if use not in queued:
                    queued.add(use)
                    heapq.heappush(queue, use)
        return region, inside

    def _belongs(self, op: Op, inside: set[int], shape: tuple[int, ...]) -> bool:
        if len(op.outs) != 1 or self.program.shape(op.outs[0]) != shape:
            return False
        if self.program.is_floating(op.outs[0], jnp.complexfloating):
            return False
        for value in op.ins:
            if value not in inside and (self.facts[value].carries or not _broadcasts(self.program.shape(value), shape)):
                return False
        of = [AFFINE if value in inside else CONSTANT for value in op.ins]
        return op_dependence(op, of, self.program) is not None

    def _leaving(self, ops: list[int]) -> list[int]:
        members = set(ops)
        results = [self.program.ops[index].outs[0] for index in ops]
        return [value for value in results if self._is_used_outside(value, members)]

    def _is_used_outside(self, value: int, members: set[int]) -> bool:
        return value in self.program.outputs or any(use not in members for use in self.uses.get(value, ()))

    def _cut(self, start: int, post: int, ops: list[int]) -> list[Region]:
        """Return the nonlinear regions of the way from `start` to `post`."""
        way = self._way(post, ops)
        members = set(way)
        regions, pre, run = [], start, list[int]()
        for segment, end in self._segments(start, post, way):
            if self._shifts(segment):
                regions += self._region(pre, run)
                pre, run = end, []
                continue
            run += segment
            if self._is_used_outside(end, members):
                regions += self._region(pre, run)
                pre, run = end, []
        return regions + self._region(pre, run)

    def _way(self, post: int, ops: list[int]) -> list[int]:
        """Return the part of `ops` that `post` depends on."""
        needed, way = {post}, []
        for index in reversed(ops):
            op = self.program.ops[index]
            if op.outs[0] in needed:
                way.append(index)
                needed.update(op.ins)
        return way[::-1]

    def _segments(self, start: int, post: int, way: list[int]) -> list[tuple[list[int], int]]:
        """Cut a way at every value that all paths pass through. Return each segment's operations and its last value."""
        remaining: dict[int, int] = {}
        for index in way:
            for value in set(self.program.ops[index].ins):
                remaining[value] = remaining.get(value, 0) + 1
        live, segments, segment = {start}, [], list[int]()
        inside = {start}
        for index in way:
            op = self.program.ops[index]
            segment.append(index)
            for value in set(op.ins) & inside:
                remaining[value] -= 1
                if not remaining[value]:
                    live.discard(value)
            inside.add(op.outs[0])
            live.add(op.outs[0])
            if live == {op.outs[0]}:
                segments.append((segment, op.outs[0]))
                segment = []
        return segments

    def _shifts(self, segment: list[int]) -> bool:
        """Whether a segment is affine and has a parameter or an input as an operand."""
        of = self._dependences(segment)
        last = self.program.ops[segment[-1]].outs[0]
        operands = (self.facts[value] for index in segment for value in self.program.ops[index].ins if value not in of)
        return of[last] == AFFINE and any(not fact.carries and not fact.constant for fact in operands)

    def _dependences(self, ops: Sequence[int]) -> dict[int, Dependence]:
        """Return the dependence of every result of a run on the value that it starts from."""
        of: dict[int, Dependence] = {}
        results = {self.program.ops[index].outs[0] for index in ops}
        for index in ops:
            op = self.program.ops[index]
            ins = [of.get(v, AFFINE if self.facts[v].carries and v not in results else CONSTANT) for v in op.ins]
            found = op_dependence(op, ins, self.program)
            assert found is not None
            of[op.outs[0]] = found
        return of

    def _region(self, pre: int, run: list[int]) -> list[Region]:
        if not run:
            return []
        of = self._dependences(run)
        post = self.program.ops[run[-1]].outs[0]
        if of[post] in (CONSTANT, AFFINE, STEP) or not (self.program.is_floating(pre) and self.program.is_floating(post)):
            return []
        return [Region(pre, post, tuple(run), of[post])]


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether an operand of this shape gives an entry to each entry of a result of shape `to`."""
    return shape == () or (len(shape) == len(to) and all(size in (1, other) for size, other in zip(shape, to, strict=True)))


def op_dependence(op: Op, of: Sequence[Dependence], program: Program) -> Dependence | None:
    """Return the dependence of an operation's result, or None if the operation is not elementwise."""
    if max(of, default=CONSTANT) == CONSTANT:
        return CONSTANT
    if op.name in CUSTOM and len(op.outs) == 1:
        found = _body_dependence(op.bodies[0], of)
        # A step with a custom derivative, such as a straight-through estimator, is an activation.
        return Dependence.DECISIVE if found == STEP else found
    if op.name not in ELEMENTWISE:
        return None
    return dependence(op.name, of, program.is_floating(op.outs[0]))


def _body_dependence(body: Program, of: Sequence[Dependence]) -> Dependence | None:
    known = dict.fromkeys(range(len(body.avals)), CONSTANT) | dict(zip(body.inputs, of, strict=True))
    shape = body.shape(body.outputs[0])
    for op in body.ops:
        ins = [known[value] for value in op.ins]
        found = op_dependence(op, ins, body)
        if found is None or (found != CONSTANT and body.shape(op.outs[0]) != shape):
            return None
        known.update(dict.fromkeys(op.outs, found))
    return known[body.outputs[0]]


def is_elementwise(op: Op, program: Program) -> bool:
    """Whether a call with a custom derivative is elementwise: it then counts as one operation."""
    if op.name not in CUSTOM:
        return False
    shape = program.shape(op.outs[0])  # operands of other shapes are parameters, as the slope of a leaky ReLU
    of = [AFFINE if program.shape(value) == shape else CONSTANT for value in op.ins]
    return op_dependence(op, of, program) not in (None, CONSTANT)
