"""Optimisers by name: each builds an optax transformation from a run's rate, weight decay and random key.

A registered function takes the learning rate first, then the weight decay if it has such a parameter. A parameter `key`
receives the run's random key. If the rate can be traced, all rates share one program.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, UInt32

from relu_study.components import random_keys, random_streams, schedules
from relu_study.components.entry_errors import calling
from relu_study.components.options import Scalar, check_declared
from relu_study.components.registry import optimizers
from relu_study.errors import UserError

Rate = float | Float[Array, ""]
RATES = ("learning_rate", "lr", "rate", "step_size", "max_learning_rate")
DECAYS = ("weight_decay", "wd")
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, eq=False)
class Optimizer:
    """A registered optimiser. A call with a run's numbers builds the optax transformation of the run."""

    name: str
    function: Callable[..., Any]
    options: Mapping[str, Scalar] = field(default_factory=dict)  # its options with their defaults
    traced: tuple[str, ...] = ()  # options that the compiled program takes as inputs

    def __post_init__(self) -> None:
        _ = self.arguments  # a function without a learning rate is refused where it is registered

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """The run's numbers for the function: "*rate", "*decay" and "*key" by position, others by their parameter's name.

        A name after "=" is a default that is passed by position.
        """
        try:
            parameters = inspect.signature(self.function).parameters
        except (TypeError, ValueError):  # compiled code without a signature
            return "*rate", "*decay"
        return tuple(_by_position(dict(parameters), list(_arguments(self.name, self.function, dict(parameters), self.options))))

    @property
    def takes_decay(self) -> bool:
        """Whether the function takes the run's weight decay."""
        return any(name == "*decay" or name in DECAYS for name in self.arguments)

    @property
    def takes_key(self) -> bool:
        """Whether the function takes the run's random key."""
        return "key" in self.arguments or "*key" in self.arguments

    @property
    def takes_steps(self) -> bool:
        """Whether the function takes the run's total number of steps, as a schedule does."""
        return "steps" in self.arguments

    def __call__(
        self,
        learning_rate: Rate,
        weight_decay: Rate,
        key: Key[Array, ""] | None = None,
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> optax.GradientTransformationExtraArgs:
        """The transformation of one run. Its `update` accepts `value`, `grad` and `value_fn`, which most optimisers ignore.

        Args:
            more: values of options, and the total number of `steps`. An option that is not there has its default.

        Raises:
            UserError: if the function raises, or returns no optax transformation.
        """
        key = key if key is not None else jax.random.key(0)
        numbers: dict[str, Any] = {"*rate": learning_rate, "*decay": weight_decay, "key": key, "*key": key}
        numbers |= {"steps": 1.0, **self.options, **{name: more[name] for name in (*self.options, "steps") if name in more}}
        numbers |= dict.fromkeys(RATES, learning_rate) | dict.fromkeys(DECAYS, weight_decay)
        if any(name.startswith("=") for name in self.arguments):
            numbers |= {f"={name}": p.default for name, p in inspect.signature(self.function).parameters.items()}
        by_position = [numbers[name] for name in self.arguments if name[0] in "*="]
        by_name = {name: numbers[name] for name in self.arguments if name[0] not in "*="}
        with calling(f"optimizer {self.name!r}", self.function):
            built = self.function(*by_position, **by_name)
        if isinstance(built, optax.MultiSteps):
            built = built.gradient_transformation()
        if not (callable(getattr(built, "init", None)) and callable(getattr(built, "update", None))):
            raise UserError(
                f"optimizer {self.name!r} returns {type(built).__name__}, no optax transformation. "
                "Return one with init and update, such as optax.sgd(learning_rate)."
            )
        return optax.with_extra_args_support(built)

    def first_state(
        self,
        params: Any,
        learning_rate: Rate,
        weight_decay: Rate,
        seed: UInt32[Array, ""],
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> Any:
        """The optimiser's state before the first step. Its random keys are folded with the stream (seed, optimizer).

        Raises:
            UserError: if the state has a raw key (uint32) under a name that does not say so.
        """
        key = random_streams.stream(seed, "optimizer")
        with calling(f"optimizer {self.name!r}", self.function):
            state = self(learning_rate, weight_decay, key, more).init(params)
        return jax.tree_util.tree_map_with_path(partial(self._seeded, key), state)

    def updates(
        self,
        grads: Any,
        state: Any,
        params: Any,
        learning_rate: Rate,
        weight_decay: Rate,
        seed: UInt32[Array, ""],
        value: Float[Array, ""],
        value_fn: Callable[[Any], Float[Array, ""]],
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> tuple[Any, Any]:
        """One step: the updates of the parameters and the next state. `value_fn` is the loss of the step's batch."""
        key = random_streams.stream(seed, "optimizer") if self.takes_key else None
        transformation = self(learning_rate, weight_decay, key, more)
        with calling(f"optimizer {self.name!r}", self.function):
            extra = {"value": value, "grad": grads, "value_fn": value_fn, "grad_fn": lambda at, _: jax.grad(value_fn)(at)}
            return transformation.update(grads, state, params, **_accepted(transformation.update, extra))

    def _seeded(self, key: Key[Array, ""], path: tuple[Any, ...], leaf: Any) -> Any:
        dtype = getattr(leaf, "dtype", None)
        if dtype is None:
            return leaf
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            return _folded(leaf, key)
        if dtype != jnp.uint32 or leaf.ndim == 0 or leaf.shape[-1] not in (2, 4):
            return leaf
        if _named_key(path) and leaf.shape[-1] == 2:
            return jax.random.key_data(_folded(jax.random.wrap_key_data(leaf, impl="threefry2x32"), key))
        where = jax.tree_util.keystr(path) or "its root"
        raise UserError(
            f"optimizer {self.name!r} has {leaf.dtype}{list(leaf.shape)} in its state at {where}: "
            "a raw random key would be the same for every seed. Make it with jax.random.key, or take a parameter `key`."
        )


def check_optimizer(optimizer: Optimizer, params: Any, learning_rate: float, weight_decay: float) -> bool:
    """Trace the first state and one step from the shapes of `params`. Return whether rate and decay can be traced.

    Raises:
        UserError: if neither traced nor constant rates work, if a step changes the shape or dtype of the state or of an update,
            or if the optimiser draws random numbers from a key that is the same for every seed.
    """

    def loss(params: Any) -> Array:
        return jax.tree.reduce(jnp.add, jax.tree.map(jnp.sum, params))

    def steps(count: int, params: Any, seed: Any, rate: Rate = learning_rate, decay: Rate = weight_decay) -> Any:
        after = state = optimizer.first_state(params, rate, decay, seed)
        for _ in range(count):
            updates, after = optimizer.updates(params, after, params, rate, decay, seed, loss(params), loss)
        return updates, state, after

    def trace(count: int, *arguments: Any) -> Any:
        return jax.make_jaxpr(partial(steps, count), return_shape=True)(*arguments)

    rate = jax.ShapeDtypeStruct((), jnp.result_type(float))
    arguments = [params, jax.ShapeDtypeStruct((), jnp.uint32)]
    try:
        jaxpr, (updates, state, after) = trace(1, *arguments, rate, rate)
        arguments += [rate, rate]
    except UserError:  # such as a schedule that compares its rate with a number
        jaxpr, (updates, state, after) = trace(1, *arguments)
    for kind, before, now in (("its state", state, after), ("the parameters", params, updates)):
        if (wrong := _changed(before, now)) is not None:
            raise UserError(f"optimizer {optimizer.name!r} changes {kind} in a step: {wrong}. Keep structure, shapes and dtypes.")
    if not random_keys.repeats(partial(steps, 1), *arguments):
        raise UserError(
            f"optimizer {optimizer.name!r} is different each time it is traced. Draw all random numbers with jax.random, from a "
            "parameter `key`, not from NumPy or Python's state."
        )
    if random_keys.draws(jaxpr):
        twice, _ = trace(2, *arguments)  # a first step may leave another key in the state
        marks = [place == len(jax.tree.leaves(params)) for place in range(len(twice.in_avals))]
        if random_keys.fixed_draw(twice, marks):
            raise UserError(
                f"optimizer {optimizer.name!r} draws random numbers from its own key, the same for every seed. "
                "Give its function a parameter `key`, which receives the run's random key, or keep the key in its state."
            )
    return len(arguments) == 4


def _changed(before: Any, now: Any) -> str | None:
    one, two = (str(jax.tree.structure(tree)) for tree in (before, now))
    if one != two and len(jax.tree.leaves(before)) == len(jax.tree.leaves(now)):
        return f"its structure is {one[13:-1][:100]} before and {two[13:-1][:100]} after"
    old, new = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (before, now))
    for path in [*old, *(path for path in new if path not in old)]:
        kinds = [f"{tree[path].dtype}{list(tree[path].shape)}" if path in tree else "nothing" for tree in (old, new)]
        if kinds[0] != kinds[1]:
            return f"{jax.tree_util.keystr(path) or 'it'} is {kinds[0]} before and {kinds[1]} after"
    return None


def _named_key(path: tuple[Any, ...]) -> bool:
    name = str(getattr(path[-1], "name", getattr(path[-1], "key", ""))).lower() if path else ""
    return "key" in name or "rng" in name


def _folded(leaf: Any, key: Key[Array, ""]) -> Any:
    words = jax.random.bits(key, (2,), jnp.uint32)

    def one(own: Any) -> Any:
        return jax.random.fold_in(jax.random.fold_in(own, words[0]), words[1])

    return jax.vmap(one)(leaf.reshape(-1)).reshape(leaf.shape)


def _arguments(name: str, function: Any, parameters: dict[str, inspect.Parameter], options: Mapping[str, Any]) -> Iterator[str]:
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters.values()) and not set(parameters) & {*RATES}:
        yield from ("*rate", "*decay")
        return
    ordered = [p for p in parameters.values() if p.kind in POSITIONAL and p.name != "key"]
    first = ordered[0] if ordered else None
    keyword = next((rate for rate in RATES if rate in parameters), None)
    if first is not None and (first.name in RATES or (keyword is None and first.default is inspect.Parameter.empty)):
        yield "*rate"
        ordered = ordered[1:]
    elif keyword is not None:
        yield keyword
    else:
        raise UserError(
            f"optimizer {name!r} takes no learning rate: its parameters are ({', '.join(parameters)}). "
            "Write it as f(learning_rate, weight_decay), with the rate first."
        )
    decay = next((p for p in parameters.values() if p.name in DECAYS), None)
    taken = {*RATES, *DECAYS, "key"}
    if decay is not None:
        yield decay.name
    elif ordered and ordered[0].default is inspect.Parameter.empty and ordered[0].name not in taken:
        yield "*decay"
        taken.add(ordered[0].name)
    given = [own for own in ("key", *options) if own in parameters]
    if "steps" in parameters and parameters["steps"].default is inspect.Parameter.empty:
        given.append("steps")
    yield from given
    taken.update(given)
    for p in [*ordered, *(p for p in parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY)]:
        if p.default is inspect.Parameter.empty and p.name not in taken:
            raise UserError(
                f"optimizer {name!r} needs a parameter {p.name!r} that no run has. "
                f"Give it a default, or bind it with functools.partial(..., {p.name}=...)."
            )


def _by_position(parameters: dict[str, inspect.Parameter], wanted: list[str]) -> list[str]:
    """The arguments, with all positional-only arguments first. Defaults fill the gaps between them."""
    only = [name for name, p in parameters.items() if p.kind is inspect.Parameter.POSITIONAL_ONLY]
    ordered = iter([name for name, p in parameters.items() if p.kind in POSITIONAL and name != "key"])
    taken = {next(ordered) if argument.startswith("*") else argument: argument for argument in wanted} if only else {}
    while only and only[-1] not in taken:
        only.pop()
    if not only:
        return wanted
    role = dict.fromkeys(RATES, "*rate") | dict.fromkeys(DECAYS, "*decay") | {"key": "*key"}
    front = [role.get(taken[name], taken[name]) if name in taken else f"={name}" for name in only]
    return front + [argument for name, argument in taken.items() if name not in only]


def _accepted(update: Callable[..., Any], extra: dict[str, Any]) -> dict[str, Any]:
    """The extra arguments of an update: the ones in its signature, or all of optax's if it takes `**`."""
    parameters = inspect.signature(update).parameters
    whole = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return {name: value for name, value in extra.items() if name in parameters or (whole and name != "grad_fn")}


def optimizer(name: str, *, options: Any = None, traced: Any = ()) -> Callable[[Callable[..., Any]], Optimizer]:
    """Register `f(learning_rate, weight_decay)`, or any optax constructor, as an optimiser.

    A constructor without a weight decay is called with the rate only. A parameter `key` receives the run's random key, a
    parameter `steps` without a default its total number of steps.

    Args:
        options: factors of this optimiser, with their defaults. The function has a parameter for each.
        traced: options whose values share one program. An option that a run does not set is a constant.

    Raises:
        UserError: if the function takes no learning rate, or needs a number that no run has.
    """

    def register(function: Any) -> Optimizer:
        if not callable(function):
            built = hasattr(function, "init") and hasattr(function, "update")
            kind = "an optax transformation" if built else type(function).__name__
            raise UserError(f"optimizer {name!r} is {kind}, no function. Pass the function: optax.adam, not optax.adam(0.1).")
        own = check_declared("optimizer", name, options or {}, traced)
        entry = Optimizer(name, function, own, tuple(traced))
        for option in own:
            if option not in entry.arguments:
                raise UserError(f"optimizer {name!r} declares the option {option!r}, no parameter of its function. Add it.")
        optimizers.add(name, entry)
        return entry

    return register


@optimizer("adam", options=schedules.DEFAULTS, traced=schedules.TRACED)
@schedules.scheduled
def adam(learning_rate: schedules.Rate, weight_decay: Rate) -> optax.GradientTransformation:
    """Adam (0.9, 0.999, 1e-8) with decoupled weight decay.

    Source: Kingma & Ba 2014, arXiv 1412.6980, algorithm 1; the decay: Loshchilov & Hutter 2017, arXiv 1711.05101.
    """
    return optax.adamw(learning_rate, weight_decay=weight_decay)


@optimizer("sgd", options=schedules.DEFAULTS, traced=schedules.TRACED)
@schedules.scheduled
def sgd(learning_rate: schedules.Rate, weight_decay: Rate) -> optax.GradientTransformation:
    """Stochastic gradient descent: theta <- theta - rate (gradient + decay theta). Source: Robbins & Monro 1951."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate))


@optimizer("momentum", options=schedules.DEFAULTS, traced=schedules.TRACED)
@schedules.scheduled
def momentum(learning_rate: schedules.Rate, weight_decay: Rate) -> optax.GradientTransformation:
    """Gradient descent with heavy-ball momentum 0.9. Source: Polyak 1964; Sutskever et al. 2013, section 2."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=0.9))


@optimizer("rmsprop", options=schedules.DEFAULTS, traced=schedules.TRACED)
@schedules.scheduled
def rmsprop(learning_rate: schedules.Rate, weight_decay: Rate) -> optax.GradientTransformation:
    """RMSProp with decay 0.9 and epsilon 1e-8, added inside the root. Source: Tieleman & Hinton 2012, lecture 6.5."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.rmsprop(learning_rate))
