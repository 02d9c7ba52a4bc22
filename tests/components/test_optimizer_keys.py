"""Random keys of optimisers: whether noise differs by seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_draws import DRAWS, FIXED, PARAMS, normal
from tiers import tiered

from relu_study.components.optimizers import Optimizer, check_optimizer
from relu_study.errors import UserError


class Kept(NamedTuple):
    count: Any
    rng_key: Any


def drawing(draw: Callable[[Any], Any], key_of: Callable[[Any, Any], Any], next_key: Callable[[Any], Any]) -> Any:
    """A transformation that adds what `draw` makes of the key `key_of(key, count)`; its state keeps a step count and a key."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        move = jnp.sum(jnp.asarray(draw(key_of(state.rng_key, state.count)), jnp.float32))
        now = next_key(jax.random.wrap_key_data(jax.random.key_data(state.rng_key)))
        return jax.tree.map(lambda u: u + move, updates), Kept(state.count + 1, now)

    return optax.GradientTransformation(lambda params: Kept(jnp.zeros((), jnp.int32), jax.random.key(0)), update)


def split(key: Any) -> Any:
    return jax.random.split(key)[0]


def checked(function: Callable[..., Any]) -> bool:
    return check_optimizer(Optimizer("mine", function), PARAMS, 0.1, 0.0)


def refused(function: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"^optimizer 'mine' draws random numbers .* the same for every seed\. .* `key`.*$"):
        checked(function)


FROM_STATE = {
    "the state's key": lambda key, count: key,
    "the state's key and the step": jax.random.fold_in,
}
FIXED_KEYS = {
    "a closure": lambda key, count: FIXED,
    "a key of the step only": lambda key, count: jax.random.key(count),
    "a closure and the step": lambda key, count: jax.random.fold_in(FIXED, count),
    "a constant": lambda key, count: jax.random.PRNGKey(3),
}


PAIRS = [(key, draw) for key in (*FROM_STATE, *FIXED_KEYS) for draw in ("plain", "inner jit", "scan", "loop", "cond", "gamma")]
FAST = [(key, draw) for key, draw in PAIRS if draw == "plain" or (key == "a closure and the step" and draw in ("loop", "cond"))]


@pytest.mark.parametrize("key, draw", tiered(PAIRS, *FAST))
def test_optimiser_with_a_fixed_key_is_refused(key: str, draw: str):
    key_of = {**FROM_STATE, **FIXED_KEYS}[key]
    noisy = drawing(DRAWS[draw], key_of, split)
    proper = optax.add_noise(0.1, 0.5, key=jax.random.key(1))

    def build(learning_rate: Any) -> Any:  # a proper key in the state of each of them
        return optax.chain(proper, noisy, optax.sgd(learning_rate))

    def with_key(learning_rate: Any, key: Any) -> Any:  # a `key` is no pass for another one
        return optax.chain(optax.add_noise(0.1, 0.5, key=key), noisy, optax.sgd(learning_rate))

    for function in (build, with_key):
        if key in FROM_STATE:
            assert checked(function)
        else:
            refused(function)


def test_key_fixed_by_the_first_step_is_refused():
    refused(lambda lr: optax.chain(drawing(normal, lambda key, count: key, lambda key: jax.random.key(0)), optax.sgd(lr)))


def test_key_reset_by_some_steps_is_refused():
    def reset(key: Any, count: Any) -> Any:
        return jax.lax.cond(count % 10 == 0, lambda key: FIXED, lambda key: key, key)

    refused(lambda lr: optax.chain(drawing(normal, reset, split), optax.sgd(lr)))


def test_initial_state_from_a_fixed_key_is_refused():
    def drawn(key: Any) -> Any:
        return optax.GradientTransformation(
            lambda params: jax.tree.map(lambda p: jax.random.normal(key, p.shape), params), lambda u, s, p=None: (s, s)
        )

    refused(lambda lr: drawn(FIXED))
    assert checked(lambda lr, key: drawn(key))


def test_fixed_key_is_refused_with_a_compiled_rate():
    def build(lr: Any, key: Any, fixed: bool = True) -> Any:
        schedule = optax.warmup_cosine_decay_schedule(0.0, lr, 3, 8)
        return optax.chain(optax.sgd(schedule), optax.add_noise(0.1, 0.5, key=key), *([constant] if fixed else []))

    constant = drawing(normal, FIXED_KEYS["a closure"], split)
    refused(build)
    assert not checked(lambda lr, key: build(lr, key, fixed=False))


# fmt: off
ALIASES = [
    "adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw", "adan", "amsgrad", "fromage",
    "lamb", "lars", "lbfgs", "lion", "noisy_sgd", "novograd", "optimistic_adam_v2", "optimistic_gradient_descent",
    "polyak_sgd", "radam", "rmsprop", "rprop", "sgd", "sign_sgd", "signum", "sm3", "yogi", "contrib.acprop",
    "contrib.ademamix", "contrib.adopt", "contrib.cocob", "contrib.dadapt_adamw", "contrib.dog", "contrib.dowg",
    "contrib.galore", "contrib.madgrad", "contrib.momo", "contrib.momo_adam", "contrib.muon", "contrib.prodigy",
    "contrib.schedule_free_adamw", "contrib.schedule_free_sgd", "contrib.simplified_ademamix",
]


@pytest.mark.parametrize("name", tiered(ALIASES, "adam", "adafactor", "lamb", "noisy_sgd", "contrib.muon"))
@pytest.mark.filterwarnings("ignore")
def test_no_optax_optimiser_counts_as_fixed_key(name: str):
    module = optax.contrib if name.startswith("contrib.") else optax
    function = getattr(module, name.removeprefix("contrib."))
    assert checked(function)
    assert checked(lambda learning_rate: optax.chain(optax.clip_by_global_norm(1.0), function(learning_rate)))


def test_refused_noise_is_equal_for_two_seeds():
    def moved(key_of: Any, seed: int) -> np.ndarray:
        entry = Optimizer("mine", lambda lr: drawing(normal, key_of, split))
        state, zeros = entry.first_state(PARAMS, 0.1, 0.0, jnp.uint32(seed)), jax.tree.map(jnp.zeros_like, PARAMS)
        both = []
        for _ in range(2):
            found, state = entry.updates(zeros, state, PARAMS, 0.1, 0.0, jnp.uint32(seed), jnp.zeros(()), lambda p: jnp.zeros(()))
            both.append(found["bias"])
        return np.stack(both)

    for key_of in FIXED_KEYS.values():
        assert np.array_equal(moved(key_of, 1), moved(key_of, 2))
    for key_of in FROM_STATE.values():
        assert not np.isclose(moved(key_of, 1), moved(key_of, 2)).any()


@pytest.mark.parametrize("place", ["first state", "update"])
def test_optimiser_with_numpy_noise_is_refused(place: str):
    inner = jax.jit(lambda u: u + np.random.normal(size=u.shape))

    def init(params: Any) -> Any:
        return jax.tree.map(inner, params) if place == "first state" else params

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return jax.tree.map(inner, updates) if place == "update" else updates, state

    with pytest.raises(UserError, match=r"optimizer 'mine' is different each time it is traced\. .* `key`"):
        checked(lambda learning_rate: optax.GradientTransformation(init, update))


WRAPPED: dict[str, Callable[[Any], Any]] = {
    "accumulated": lambda tx: optax.MultiSteps(tx, every_k_schedule=2),
    "finite": lambda tx: optax.apply_if_finite(tx, max_consecutive_errors=3),
    "masked": lambda tx: optax.masked(tx, {"kernel": True, "bias": False}),
    "at times": lambda tx: optax.conditionally_transform(tx, lambda step: step % 2 == 0),
    "partitioned": lambda tx: optax.partition({"a": tx, "b": optax.sgd(0.1)}, {"kernel": "a", "bias": "b"}),
    "looked ahead": lambda tx: optax.chain(tx, optax.scale_by_optimistic_gradient()),
}


@pytest.mark.parametrize("wrapper", tiered(WRAPPED, "accumulated", "partitioned"))
def test_noise_in_wrappers_of_optax_keeps_its_key(wrapper: str):
    def build(lr: Any) -> Any:
        return WRAPPED[wrapper](optax.chain(optax.add_noise(0.1, 0.5, key=jax.random.key(1)), optax.sgd(lr)))

    assert checked(build)
    refused(lambda lr: WRAPPED[wrapper](optax.chain(drawing(normal, FIXED_KEYS["a closure"], split), optax.sgd(lr))))
