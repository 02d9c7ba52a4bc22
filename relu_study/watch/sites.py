"""Sites of a program: its nonlinear regions without losses and statistics, with their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from relu_study.errors import UserError
from relu_study.watch.activation_names import UNKNOWN, activation_name
from relu_study.watch.facts import Analysis, Fact, Weight
from relu_study.watch.leaves import Leaf
from relu_study.watch.primitives import INVERSE_ROOTS, PRODUCTS, REDUCTIONS, SMOOTH, SUMS
from relu_study.watch.program import CUSTOM, Op, Program
from relu_study.watch.region_function import is_even, is_identity
from relu_study.watch.regions import Graph, Region, is_elementwise

LOOPS = {"scan"}
BRANCHES = {"cond"}


@dataclass(frozen=True)
class Place:
    """A site at one place of the analysis: its region in `program`, inside loops and branches of outer programs.

    `steps` are the iterations of the loops around it, outermost first.
    """

    program: Program
    region: Region
    name: str
    steps: tuple[int, ...] = ()
    conditional: bool = False  # inside a branch, which may not be taken

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of pre and post."""
        return self.program.shape(self.region.pre)


class Sites:
    """The sites of a program and of the loops and branches in it."""

    def __init__(self, program: Program, leaves: Sequence[Leaf]):
        self.program = program
        self.leaves = leaves
        self.analysis = Analysis(trained=frozenset(leaf.index for leaf in leaves if leaf.argument == leaves[0].argument))
        facts = [_input(leaf, program.shape(value)) for leaf, value in zip(leaves, program.inputs, strict=True)]
        self.analysis.run(program, facts)
        # The first argument holds the parameters, by convention; a later array that feeds no product is a target or a mask.
        self.targets = {leaf.index for leaf in leaves if leaf.argument != leaves[0].argument} - self.analysis.fed
        self.graphs: dict[int, Graph] = {}
        self.regions: dict[int, list[Region]] = {}
        self.loops: dict[int, tuple[int, ...]] = {}  # by id(program): the lengths of the loops around it
        self._analyse(program, ())
        self.places = self._named(program)

    def has(self, op: Op) -> bool:
        """Whether a loop or branch contains a site."""
        return any(self.regions[id(body)] or any(self.has(inner) for inner in body.ops) for body in op.bodies)

    def _analyse(self, program: Program, loops: tuple[int, ...]) -> None:
        self.loops[id(program)] = loops
        graph = self.graphs[id(program)] = Graph.of(program, self.analysis.facts[id(program)])
        outer = program is self.program
        found = graph.regions()
        losses = {region.pre for region in found if outer and self._is_loss(graph, region)}
        self.regions[id(program)] = [
            _trimmed(program, region)
            for region in found
            if region.pre not in losses and not self._is_statistic(graph, region, found) and not is_identity(program, region)
        ]
        for op in program.ops:
            for body in op.bodies:
                self._analyse(body, (*loops, op.eqn.params["length"]) if op.name in LOOPS else loops)
            if is_elementwise(op, program):
                self.regions |= {id(body): [] for body in op.bodies}
            elif op.name not in LOOPS | BRANCHES and self.has(op):
                if not (outer and op.name in CUSTOM and self._is_loss_call(graph, op)):
                    raise self._refused(op)
                self._emptied(op)

    def _refused(self, op: Op) -> UserError:
        region, program = next(self._inside(op))
        kind = {"while": "while loop", "custom_vjp_call": "custom_vjp function", "custom_jvp_call": "custom_jvp function"}
        name = self._base_name(program, region)
        action = (
            "Use jax.lax.scan, or fori_loop with a fixed number of steps." if op.name == "while" else "Apply `tap` inside it."
        )
        where = f" at {op.line}" if op.line else ""
        return UserError(f"the {kind.get(op.name, op.name)}{where} contains the site {name!r} and cannot be tapped. {action}")

    def _inside(self, op: Op) -> Iterator[tuple[Region, Program]]:
        for body in op.bodies:
            yield from ((region, body) for region in self.regions[id(body)])
            for inner in body.ops:
                yield from self._inside(inner)

    def _is_statistic(self, graph: Graph, region: Region, found: Sequence[Region]) -> bool:
        program, post = graph.program, region.post

        def reduced(region: Region) -> list[bool]:
            return [program.ops[use].name in REDUCTIONS for use in graph.uses.get(region.post, ())]

        if region.dependence == SMOOTH and any(any(reduced(other)) for other in found if _agree(program, region, other)):
            return True  # the square of a variance, the exponential of a softmax
        if region.dependence == SMOOTH and _only_summed(graph, post):
            return True  # a term of a divergence
        if (flags := reduced(region)) and all(flags) and post not in program.outputs and is_even(program, region):
            return True  # the mean absolute value of a norm or a loss
        return graph.facts[region.pre].reduced and _leads_to_root(graph, region.pre)  # of a variance

    def _is_loss(self, graph: Graph, region: Region) -> bool:
        """Whether a region compares a prediction with a target: an input that feeds no product, and no product follows."""
        facts, program = graph.facts, graph.program
        ahead = _ahead(graph, region.post)
        if any(program.ops[index].name in PRODUCTS or program.ops[index].bodies for index in ahead):
            return False

        def has_target(value: int) -> bool:
            return bool(facts[value].targets & self.targets)

        inner = {region.pre, *(value for index in region.ops for value in program.ops[index].ins)}
        if any(has_target(value) for value in inner):
            return True
        if any(facts[value].carries for value in program.outputs if value == region.post or graph.makers.get(value) in ahead):
            return False
        return bool(met := self._first_met(graph, region.post)) and met <= {"mul", "select_n"}

    def _is_loss_call(self, graph: Graph, op: Op) -> bool:
        """Whether a custom derivative without a product is part of a loss: no layer follows it, and no output has features."""
        if any(inner.name in PRODUCTS for body in op.bodies for inner in body.ops):
            return False
        ahead = {index for value in op.outs for index in _ahead(graph, value)}
        products = [ahead_op for ahead_op in map(graph.program.ops.__getitem__, ahead) if ahead_op.name in PRODUCTS]
        if any(graph.facts[value].carries for product in products for value in product.outs):
            return False
        ends = [value for value in graph.program.outputs if value in op.outs or graph.makers.get(value) in ahead]
        return not any(graph.facts[value].carries for value in ends)

    def _emptied(self, op: Op) -> None:
        for body in op.bodies:
            self.regions[id(body)] = []
            for inner in body.ops:
                self._emptied(inner)

    def _first_met(self, graph: Graph, post: int) -> set[str]:
        """Return the operations by which a value first meets a target, or a reduction, on each way onwards."""
        met, queue, seen = set[str](), [post], {post}
        while queue:
            for use in graph.uses.get(queue.pop(), ()):
                op = graph.program.ops[use]
                if op.name in REDUCTIONS or any(graph.facts[v].targets & self.targets for v in op.ins if v not in seen):
                    met.add(op.name)
                else:
                    queue += [value for value in op.outs if value not in seen]
                    seen.update(op.outs)
        return met

    def _named(self, program: Program) -> list[Place]:
        names: dict[str, int] = {}
        places = []
        for owner, region, steps, conditional in self._listed(program, (), False):
            base = self._base_name(owner, region) + "".join(f"[{step}]" for step in steps)
            names[base] = names.get(base, 0) + 1
            places.append(Place(owner, region, base if names[base] == 1 else f"{base}.{names[base]}", steps, conditional))
        return places

    def _listed(
        self, program: Program, steps: tuple[int, ...], conditional: bool
    ) -> Iterator[tuple[Program, Region, tuple[int, ...], bool]]:
        """Yield the sites of a program in order, in a loop once for each iteration."""
        makers = self.graphs[id(program)].makers
        own = {makers[region.post]: region for region in self.regions[id(program)]}
        for index, op in enumerate(program.ops):
            if index in own:
                yield program, own[index], steps, conditional
            elif op.name in LOOPS and self.has(op):
                for step in range(op.eqn.params["length"]):
                    yield from self._listed(op.bodies[0], (*steps, step), conditional)
            elif op.name in BRANCHES:
                for body in op.bodies:
                    yield from self._listed(body, steps, True)

    def _base_name(self, program: Program, region: Region) -> str:
        origin = self.analysis.facts[id(program)][region.pre].origin
        return origin.name if origin and origin.name else "site"

    def parameters(self, place: Place) -> tuple[Leaf, ...]:
        """Return the parameters that feed a site: of the last product, and of normalisations after it."""
        return self.analysis.facts[id(place.program)][place.region.pre].parameters

    def weights(self, place: Place) -> tuple[Weight, ...]:
        """Return the kernel and bias of the last product before a site."""
        return self.analysis.facts[id(place.program)][place.region.pre].weights

    def unit_axis(self, place: Place) -> int | None:
        """Return the axis of a site's units: the last, inside vmap too; None if the site is a single unit."""
        fact = self.analysis.facts[id(place.program)][place.region.pre]
        if fact.axis is None or any("vmap" in scope for scope in self.graphs[id(place.program)].post_op(place.region).scopes):
            return fact.axis  # vmap may put the examples last
        return len(place.shape) - 1

    def line(self, place: Place) -> str:
        """Return the line of the user's code that applies a site's activation."""
        return self.graphs[id(place.program)].post_op(place.region).line


def _input(leaf: Leaf, shape: tuple[int, ...]) -> Fact:
    index = frozenset({leaf.index})
    return Fact(leaves=(leaf,), roots=index, targets=index if shape else frozenset())


def _trimmed(program: Program, region: Region) -> Region:
    """Return a region without a final stop_gradient, and without a constant scale, as of dropout, of a known activation."""
    inside = {region.pre, *(program.ops[index].outs[0] for index in region.ops)}
    while len(region.ops) > 1 and program.ops[region.ops[-1]].name == "stop_gradient":  # its slope would be 0
        region = Region(region.pre, program.ops[region.ops[-1]].ins[0], region.ops[:-1], region.dependence)
    trimmed = region
    while len(trimmed.ops) > 1:
        *ops, last = trimmed.ops
        op = program.ops[last]
        sources = [value for value in op.ins if value in inside]
        scales = op.name == "mul" or (op.name == "div" and op.ins[0] in inside)
        if not scales or sources != [program.ops[ops[-1]].outs[0]] or activation_name(program, trimmed) != UNKNOWN:
            break
        trimmed = Region(region.pre, sources[0], tuple(ops), region.dependence)
    return region if trimmed is region or activation_name(program, trimmed) == UNKNOWN else trimmed


def _only_summed(graph: Graph, value: int) -> bool:
    """Whether a value enters only sums, with constant factors, and then a reduction."""
    uses = [graph.program.ops[use] for use in graph.uses.get(value, ())]
    if not uses or value in graph.program.outputs:
        return False
    scales = [op.name == "mul" and any(graph.facts[v].constant for v in op.ins) for op in uses]
    return all(
        op.name in REDUCTIONS or ((op.name in SUMS or scale) and _only_summed(graph, op.outs[0]))
        for op, scale in zip(uses, scales, strict=True)
    )


def _agree(program: Program, one: Region, other: Region) -> bool:
    """Whether two regions compute the same: a function that is called twice has two."""
    return one.pre == other.pre and [program.ops[i].name for i in one.ops] == [program.ops[i].name for i in other.ops]


def _leads_to_root(graph: Graph, value: int) -> bool:
    """Whether an inverse root is among the results of a reduced value, before it meets values that are not reduced."""
    queue, seen = [value], {value}
    while queue:
        for use in graph.uses.get(queue.pop(), ()):
            op = graph.program.ops[use]
            if op.name in INVERSE_ROOTS:
                return True
            onwards = [out for out in op.outs if graph.facts[out].reduced and out not in seen and op.name not in PRODUCTS]
            seen.update(onwards)
            queue += onwards
    return False


def _ahead(graph: Graph, value: int) -> set[int]:
    """Return the indices of the ops that depend on a value."""
    found: set[int] = set()
    queue = [value]
    while queue:
        for use in graph.uses.get(queue.pop(), ()):
            if use not in found:
                found.add(use)
                queue += graph.program.ops[use].outs
    return found
