"""A random draw with a key that does not come from the run's seed is found wherever it hides."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from relu_study.components import random_keys
from relu_study.components.optimizers import Optimizer, check_optimizer
from relu_study.errors import UserError

PARAMS = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
SEED = jax.ShapeDtypeStruct((), jnp.uint32)
FIXED = jax.random.key(7)


def normal(key: Any) -> Any:
    return jax.random.normal(key, (3,))


@jax.custom_jvp
def own_slope(key: Any, x: Any) -> Any:
    return x * normal(key)


own_slope.defjvp(lambda primals, tangents: (own_slope(*primals), tangents[1]))


def looped(key: Any, start: Any) -> Any:
    """A draw in each step of a loop whose carry is a key."""
    return jax.lax.fori_loop(0, 3, lambda i, carry: (jax.random.split(carry[0])[0], carry[1] + normal(carry[0])), (key, start))[1]


def scanned(key: Any, keys: Any) -> Any:
    return jax.lax.scan(lambda carry, own: (carry, normal(own) + normal(carry)), key, keys)[1]


def late(key: Any, other: Any) -> Any:
    """A loop that draws with a key which arrives in the carry after two passes."""
    return jax.lax.scan(
        lambda c, _: ((c[1], c[2], c[2]), normal(jax.random.fold_in(other, jax.random.bits(c[0])))), key, None, 4
    )[1]


def while_test(key: Any) -> Any:
    return jax.lax.while_loop(lambda n: normal(jax.random.fold_in(key, n))[0] > 0, lambda n: n + 1, 0)


DRAWS: dict[str, Callable[[Any], Any]] = {
    "plain": normal,
    "raw": lambda key: normal(jax.random.key_data(key)),
    "inner jit": lambda key: jax.jit(jax.jit(normal))(key),
    "folded": lambda key: normal(jax.random.fold_in(key, 3)),
    "scan": lambda key: scanned(key, jax.random.split(key, 4)),
    "loop": lambda key: looped(key, jnp.zeros(3)),
    "while": while_test,
    "cond": lambda key: jax.lax.cond(jnp.ones(())[...] > 0, normal, lambda k: jnp.zeros(3), key),
    "switch": lambda key: jax.lax.switch(jnp.zeros((), int), [normal, lambda k: normal(jax.random.split(k)[0])], key),
    "vmap": lambda key: jax.vmap(normal)(jax.random.split(key, 2)),
    "checkpoint": lambda key: jax.checkpoint(lambda x: x * normal(key))(jnp.ones(3)),
    "custom slope": lambda key: own_slope(key, jnp.ones(3)),
    "gradient": lambda key: jax.grad(lambda x: (own_slope(key, x) * normal(key)).sum())(jnp.ones(3)),
    "gamma": lambda key: jax.random.gamma(key, 2.0),
    "poisson": lambda key: jax.random.poisson(key, 2.0),
    "permutation": lambda key: jax.random.permutation(key, 5),
    "bit generator": lambda key: jax.lax.rng_bit_generator(jnp.tile(jax.random.key_data(key), 2), (3,))[1],
    "other hash": lambda key: jax.random.normal(jax.random.key(jax.random.bits(key), impl="rbg"), (3,)),
}


def traced(draw: Callable[[Any], Any], key: Callable[[Any], Any] = jax.random.key) -> Any:
    return jax.make_jaxpr(lambda seed: draw(key(seed)))(SEED)


@pytest.mark.parametrize("name", DRAWS)
def test_a_key_of_the_seed_is_told_from_a_fixed_one(name: str):
    proper, fixed = traced(DRAWS[name]), traced(DRAWS[name], lambda seed: FIXED)
    made = traced(DRAWS[name], lambda seed: jax.random.fold_in(jax.random.key(0), 5))
    assert random_keys.draws(proper) and not random_keys.fixed_draw(proper, [True])
    assert random_keys.fixed_draw(fixed, [True]) and random_keys.fixed_draw(made, [True])
    both = jax.make_jaxpr(lambda seed: (normal(jax.random.key(seed)), DRAWS[name](FIXED)))(SEED)
    assert random_keys.fixed_draw(both, [True])


def test_one_fixed_key_of_a_loop_is_found():
    def with_fixed_steps(seed: Any) -> Any:
        return scanned(jax.random.key(seed), jax.random.split(FIXED, 4))

    def with_fixed_carry(seed: Any) -> Any:
        return scanned(FIXED, jax.random.split(jax.random.key(seed), 4))

    for function in (with_fixed_steps, with_fixed_carry):
        assert random_keys.fixed_draw(jax.make_jaxpr(function)(SEED), [True])


def test_a_key_that_arrives_late_in_a_carry_counts():
    def keys(seed: Any) -> Any:
        return late((FIXED, FIXED, jax.random.key(seed)), FIXED)

    assert not random_keys.fixed_draw(jax.make_jaxpr(keys)(SEED), [True])
    assert random_keys.fixed_draw(jax.make_jaxpr(lambda seed: late((FIXED, FIXED, FIXED), FIXED))(SEED), [True])


CHOICES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "cond": lambda seed, one, two: jax.lax.cond(seed > 3, lambda: one, lambda: two),
    "switch": lambda seed, one, two: jax.lax.switch(seed.astype(int), [lambda: one, lambda: two, lambda: one]),
    "where": lambda seed, one, two: jnp.where(seed > 3, one, two),
    "select": lambda seed, one, two: jax.lax.select(seed > 3, one, two),
}


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("fixed", [0, 1, None])
def test_a_key_chosen_among_a_fixed_and_a_proper_one_is_found(name: str, fixed: int | None):
    def function(seed: Any) -> Any:
        keys = [FIXED if i == fixed else jax.random.fold_in(jax.random.key(seed), i) for i in range(2)]
        return normal(CHOICES[name](seed, *keys))

    assert random_keys.fixed_draw(jax.make_jaxpr(function)(SEED), [True]) == (fixed is not None)


@pytest.mark.parametrize("name", CHOICES)
def test_a_key_made_of_a_chosen_number_counts(name: str):
    def function(seed: Any) -> Any:
        return normal(jax.random.key(CHOICES[name](seed, jnp.uint32(3), seed)))

    assert not random_keys.fixed_draw(jax.make_jaxpr(function)(SEED), [True])


def test_a_branch_with_a_fixed_key_is_found():
    def function(seed: Any) -> Any:
        return jax.lax.cond(seed > 3, normal, lambda key: normal(FIXED), jax.random.key(seed))

    assert random_keys.fixed_draw(jax.make_jaxpr(function)(SEED), [True])


@pytest.mark.parametrize("function", [jnp.sin, jax.random.key, lambda seed: jax.random.split(jax.random.key(seed), 3), jnp.sort])
def test_functions_without_draws_have_none(function: Callable[[Any], Any]):
    x = SEED if function is not jnp.sort else jax.ShapeDtypeStruct((4,), jnp.float32)
    assert not random_keys.draws(jax.make_jaxpr(function)(x)) and not random_keys.fixed_draw(jax.make_jaxpr(function)(x), [False])


# ---------------------------------------------------------------------------------------- in optimisers


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


@pytest.mark.parametrize("draw", ["plain", "inner jit", "scan", "loop", "cond", "gamma"])
@pytest.mark.parametrize("key", [*FROM_STATE, *FIXED_KEYS])
def test_an_optimiser_with_a_fixed_key_is_refused(draw: str, key: str):
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


def test_a_key_that_the_first_step_replaces_with_a_fixed_one_is_refused():
    refused(lambda lr: optax.chain(drawing(normal, lambda key, count: key, lambda key: jax.random.key(0)), optax.sgd(lr)))


def test_a_key_that_some_steps_reset_is_refused():
    def reset(key: Any, count: Any) -> Any:
        return jax.lax.cond(count % 10 == 0, lambda key: FIXED, lambda key: key, key)

    refused(lambda lr: optax.chain(drawing(normal, reset, split), optax.sgd(lr)))


def test_a_first_state_that_is_drawn_from_a_fixed_key_is_refused():
    def drawn(key: Any) -> Any:
        return optax.GradientTransformation(
            lambda params: jax.tree.map(lambda p: jax.random.normal(key, p.shape), params), lambda u, s, p=None: (s, s)
        )

    refused(lambda lr: drawn(FIXED))
    assert checked(lambda lr, key: drawn(key))


def test_a_fixed_key_is_refused_where_the_rate_is_compiled():
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
# fmt: on


@pytest.mark.parametrize("name", ALIASES)
@pytest.mark.filterwarnings("ignore")
def test_no_optimiser_of_optax_is_taken_for_one_with_a_fixed_key(name: str):
    module = optax.contrib if name.startswith("contrib.") else optax
    function = getattr(module, name.removeprefix("contrib."))
    assert checked(function)
    assert checked(lambda learning_rate: optax.chain(optax.clip_by_global_norm(1.0), function(learning_rate)))


def test_refused_noise_would_indeed_be_the_same_for_two_seeds():
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


# ------------------------------------------------------------------------------------ state outside


calls = [0]


def counts(x: Any) -> Any:
    calls[0] += 1
    return x + calls[0]


IMPURE: dict[str, Callable[[Any], Any]] = {
    "numpy array": lambda x: x + np.random.normal(size=3),
    "numpy number": lambda x: x * np.random.uniform(),
    "counter": counts,
    "key of NumPy": lambda x: x + jax.random.normal(jax.random.key(np.random.randint(10**6)), (3,)),
    "length": lambda x: jnp.sin(x) if (counts(0) % 2) else jnp.cos(x),
    "key array": lambda x: x + jax.random.normal(jax.random.clone(jax.random.fold_in(FIXED, np.random.randint(10**6))), (3,)),
}
INNER: dict[str, Callable[[Any, Any], Any]] = {
    "inner jit": lambda inner, x: 2 * jax.jit(inner)(x),
    "scan": lambda inner, x: jax.lax.scan(lambda c, _: (inner(c), None), x, None, 3)[0],
    "cond": lambda inner, x: jax.lax.cond(x[0] > 0, inner, lambda x: x, x),
    "slope": lambda inner, x: jax.grad(lambda x: (inner(x) ** 2).sum())(x),
}


def hide(function: Callable[[Any], Any], place: str) -> Callable[[Any], Any]:
    if place == "plain":
        return function
    return jax.jit(function) if place == "jit" else functools.partial(INNER[place], jax.jit(function))


@pytest.mark.parametrize("place", ["plain", "jit", *INNER])
@pytest.mark.parametrize("name", IMPURE)
def test_state_outside_of_a_function_shows_in_its_traces(name: str, place: str):
    function, x = hide(IMPURE[name], place), jnp.ones(3)
    function(x)
    assert not random_keys.repeats(function, x)
    function(x)
    assert not random_keys.repeats(function, x)


@pytest.mark.parametrize("place", ["plain", "jit", *INNER])
def test_pure_functions_repeat(place: str):
    table, key = np.random.normal(size=3), jax.random.key(2)

    def pure(x: Any) -> Any:
        x = x + table + jnp.asarray(table) * jax.random.normal(key, (3,)) + jnp.nan
        return jax.pure_callback(lambda y: y, jax.ShapeDtypeStruct((3,), x.dtype), x) if place == "plain" else jax.nn.relu(x)

    assert random_keys.repeats(hide(pure, place), jnp.ones(3)) and random_keys.repeats(hide(pure, place), jnp.ones(3))


@pytest.mark.parametrize("place", ["first state", "update"])
def test_an_optimiser_with_noise_of_numpy_is_refused(place: str):
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


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_noise_in_wrappers_of_optax_keeps_its_key(wrapper: str):
    def build(lr: Any) -> Any:
        return WRAPPED[wrapper](optax.chain(optax.add_noise(0.1, 0.5, key=jax.random.key(1)), optax.sgd(lr)))

    assert checked(build)
    refused(lambda lr: WRAPPED[wrapper](optax.chain(drawing(normal, FIXED_KEYS["a closure"], split), optax.sgd(lr))))
