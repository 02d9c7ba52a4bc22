"""Optimisers with a changing state, positional parameters, a second mode or a log record."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from user_optimizers import refused, same, trained, wrapped

from relu_study.components.optimizers import Optimizer

pytestmark = pytest.mark.usefixtures("restored_optimizers")

STRUCTURES = {
    "nested": ((), ((),)),
    "empty list": ((), []),
    "dict": ({}, ()),
    "names": ({"a": jnp.zeros(2)}, {"b": jnp.zeros(2)}),
    "list of numbers": ((jnp.zeros(2),), [jnp.zeros(2)]),
    "none": (None, ()),
    "moved": ((jnp.zeros(2), ()), ((), jnp.zeros(2))),
    "kind": (optax.EmptyState(), ()),
}


@pytest.mark.parametrize("kind", STRUCTURES)
@pytest.mark.parametrize("order", [1, -1])
def test_changed_state_structure_is_refused(kind: str, order: int) -> None:
    before, after = STRUCTURES[kind][::order]
    assert "changes its state in a step" in refused(wrapped(lambda u, s, p=None: (u, after), before))


def test_changed_update_structure_is_refused() -> None:
    assert "changes the parameters" in refused(wrapped(lambda u, s, p=None: (list(jax.tree.leaves(u)), s)))


def test_positional_only_parameters_receive_the_numbers() -> None:
    def rate_decay(rate, wd, /): ...
    def default(lr, wd=0.0, /): ...
    def between(lr, b=0.5, weight_decay=0.0, /, c=1): ...
    def with_key(lr, key, wd=0.0, /): ...
    def key_first(key, lr, /): ...
    def mixed(lr, /, wd): ...
    def unnamed(x, y, /): ...
    def rate_second(b=0.5, lr=0.1, /): ...
    def rate_only(rate, b=0.5, /): ...

    key = jax.random.key(3)
    wanted: dict[Any, dict[str, Any]] = {
        rate_decay: {"rate": 1, "wd": 2},
        default: {"lr": 1, "wd": 2},
        between: {"lr": 1, "b": 0.5, "weight_decay": 2},
        with_key: {"lr": 1, "key": key, "wd": 2},
        key_first: {"key": key, "lr": 1},
        mixed: {"lr": 1, "wd": 2},
        unnamed: {"x": 1, "y": 2},
        rate_second: {"b": 0.5, "lr": 1},
        rate_only: {"rate": 1},
    }
    for function, numbers in wanted.items():
        seen: dict[str, Any] = {}

        def called(*args: Any, _function: Any = function, _seen: dict[str, Any] = seen, **named: Any) -> Any:
            _seen.update(inspect.signature(_function).bind(*args, **named).arguments)
            return optax.sgd(0.1)

        entry = Optimizer("o", functools.wraps(function)(called))
        entry(1.0, 2.0, key)
        assert seen == numbers, function.__name__
        assert entry.takes_decay == bool({"wd", "weight_decay", "y"} & set(numbers)), function.__name__
        assert entry.takes_key == ("key" in numbers), function.__name__


@pytest.mark.slow
def test_positional_only_parameters_train_as_named_ones() -> None:
    def by_position(lr, wd=0.0, /):
        return optax.adamw(lr, weight_decay=wd)

    found = trained({"named": lambda lr, wd: optax.adamw(lr, weight_decay=wd), "placed": by_position}, weight_decay=0.1)
    assert same(found["named"], found["placed"])


@pytest.mark.slow
def test_sharpness_aware_minimisation_trains_in_both_modes() -> None:
    def sam(opaque: bool) -> Callable[..., Any]:
        return lambda lr, wd: optax.contrib.sam(optax.sgd(lr), optax.sgd(0.05), opaque_mode=opaque)

    def looks_ahead(lr: Any, wd: Any) -> Any:  # the same by hand: the gradient after a step uphill
        def update(grads: Any, state: Any, params: Any, *, value_fn: Any, **_: Any) -> Any:
            uphill = jax.tree.map(lambda p, g: p + 0.05 * g, params, grads)
            return jax.tree.map(lambda g: -lr * g, jax.grad(value_fn)(uphill)), state

        return optax.GradientTransformationExtraArgs(lambda p: (), update)

    found = trained({"sam": sam(False), "opaque": sam(True), "by_hand": looks_ahead})
    assert same(found["opaque"], found["by_hand"]) and not same(found["sam"], found["opaque"])


def test_lookahead_is_refused_without_a_log_record(caplog: pytest.LogCaptureFixture) -> None:
    assert "No attribute 'fast'" in refused(lambda lr, wd: optax.lookahead(optax.sgd(lr), 5, 0.5))
    assert not caplog.records
