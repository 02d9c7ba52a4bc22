"""Generated optimisers and chains against optax by hand, some with one known fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from user_optimizers import PARAMS, noise_of_a_step, raw_noise, refused

from relu_study.components.optimizers import Optimizer, check_optimizer
from relu_study.errors import UserError

pytestmark = pytest.mark.usefixtures("restored_optimizers")

RATED: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
    "rmsprop": optax.rmsprop,
    "lion": lambda rate: optax.lion(rate, weight_decay=0.0),
}
WRAPPERS: dict[str, Callable[[Callable[[Any], Any]], Callable[[Any], Any]]] = {
    "plain": lambda make: make,
    "rate in state": lambda make: lambda rate: optax.inject_hyperparams(make)(rate),
    "schedule": lambda make: lambda rate: make(optax.exponential_decay(rate, 2, 0.5)),
    "schedule of a number": lambda make: lambda rate: make(optax.warmup_cosine_decay_schedule(0.0, rate, 2, 6)),
    "accumulated": lambda make: lambda rate: optax.MultiSteps(make(rate), every_k_schedule=2),
    "masked": lambda make: lambda rate: optax.masked(make(rate), {"kernel": True, "bias": False}),
    "clipped": lambda make: lambda rate: optax.chain(optax.clip_by_global_norm(0.5), make(rate)),
}
GRADS = [{"kernel": jnp.arange(6.0).reshape(3, 2) - i, "bias": jnp.array([0.5, -i])} for i in range(3)]


def moved(optimizer: Optimizer, rate: float, seed: int, constant: bool) -> dict[str, np.ndarray]:
    """Parameters after three steps, under vmap over two runs of which the first is the one wanted."""
    traced = None if constant else jnp.array([rate, 0.3])

    def steps(seed: Any, own: Any = rate) -> Any:
        params, state = PARAMS, optimizer.first_state(PARAMS, own, 0.0, seed)
        for grads in GRADS:
            updates, state = optimizer.updates(grads, state, params, own, 0.0, seed, jnp.zeros(()), lambda p: jnp.zeros(()))
            params = optax.apply_updates(params, updates)
        return params

    seeds = jnp.array([seed, seed + 1], jnp.uint32)
    both = jax.vmap(steps)(seeds) if traced is None else jax.vmap(steps)(seeds, traced)
    return jax.tree.map(lambda leaf: np.asarray(leaf[0]), both)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(RATED)), st.sampled_from(sorted(WRAPPERS)), st.sampled_from([0.01, 0.2]))
def test_generated_optimiser_equals_optax(base: str, wrapper: str, rate: float):
    make = WRAPPERS[wrapper](RATED[base])
    entry = Optimizer("generated", lambda lr, wd: make(lr))
    traced = check_optimizer(entry, PARAMS, rate, 0.0)
    assert traced == (wrapper != "schedule of a number")
    found = moved(entry, rate, 3, constant=not traced)
    transformation = make(rate)
    params, state = PARAMS, transformation.init(PARAMS)
    for grads in GRADS:
        updates, state = transformation.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    for name, expected in params.items():
        np.testing.assert_allclose(found[name], expected, rtol=2e-5, atol=1e-6)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.sampled_from(sorted(RATED)), st.sampled_from(["typed", "number", "named raw", "unnamed raw", "closed over"]))
def test_generated_noise_differs_by_seed_or_is_refused(base: str, fault: str):
    noise = {
        "typed": lambda: optax.add_noise(0.1, 0.0, key=jax.random.key(1)),
        "number": lambda: optax.add_noise(0.1, 0.0, key=1),
        "named raw": lambda: raw_noise("rng"),
        "unnamed raw": lambda: raw_noise("state"),
        "closed over": lambda: noise_of_a_step(jax.random.key(1)),
    }[fault]
    entry = Optimizer("generated", lambda lr, wd: optax.chain(noise(), RATED[base](lr)))
    if fault in ("unnamed raw", "closed over"):
        with pytest.raises(UserError, match="generated"):
            check_optimizer(entry, PARAMS, 0.1, 0.0)
        return
    assert check_optimizer(entry, PARAMS, 0.1, 0.0)
    one, again, other = (moved(entry, 0.1, seed, constant=False)["kernel"] for seed in (1, 1, 2))
    assert np.array_equal(one, again) and (not np.allclose(one, other) or base == "lion")


TRANSFORMS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "clip": lambda: optax.clip(0.4),
    "norm": lambda: optax.clip_by_global_norm(0.7),
    "momentum": lambda: optax.trace(0.9),
    "nesterov": lambda: optax.trace(0.5, nesterov=True),
    "adam": optax.scale_by_adam,
    "rms": optax.scale_by_rms,
    "sign": optax.scale_by_sign,
    "average": lambda: optax.ema(0.5),
    "centre": optax.centralize,
    "step": lambda: optax.scale_by_schedule(lambda step: 1 / (1 + step)),
}
RATES: dict[str, Callable[[Any], Any]] = {
    "by hand": optax.scale_by_learning_rate,
    "rate in state": lambda rate: optax.inject_hyperparams(optax.scale_by_learning_rate)(rate),
    "schedule": lambda rate: optax.scale_by_learning_rate(optax.cosine_decay_schedule(rate, 5)),
    "schedule of a number": lambda rate: optax.scale_by_learning_rate(optax.warmup_cosine_decay_schedule(0.0, rate, 2, 6)),
    "schedule in state": lambda rate: optax.inject_hyperparams(optax.sgd)(optax.exponential_decay(rate, 2, 0.5)),
}
UNTRACED = "schedule of a number"


def fixed_noise(place: str) -> optax.GradientTransformation:
    """Noise from a fixed key, by itself or inside of a function that is jitted; or from NumPy's state."""

    def noisy(u: Any) -> Any:
        return u + (np.random.normal(size=u.shape) if place == "numpy" else jax.random.normal(jax.random.key(3), u.shape))

    noisy = noisy if place == "closure" else jax.jit(noisy)
    return optax.GradientTransformation(lambda params: (), lambda u, s, p=None: (jax.tree.map(noisy, u), s))


chains = st.lists(st.sampled_from(sorted(TRANSFORMS)), max_size=3)


@settings(max_examples=20, deadline=None)
@given(chains, st.sampled_from(sorted(RATES)), st.sampled_from([0.01, 0.2]), st.sampled_from([0.0, 0.5]))
def test_generated_chain_equals_optax(names: list[str], last: str, rate: float, decay: float):
    def build(lr: Any, weight_decay: Any) -> Any:
        return optax.chain(*(TRANSFORMS[name]() for name in names), optax.add_decayed_weights(weight_decay), RATES[last](lr))

    entry = Optimizer("generated", build)
    traced = check_optimizer(entry, PARAMS, rate, decay)
    assert traced == (last != UNTRACED)
    seed, zero = jnp.uint32(4), jnp.zeros(())
    numbers = [jnp.float32(rate), jnp.float32(decay)] if traced else [rate, decay]
    state, plain = entry.first_state(PARAMS, *numbers, seed), build(rate, decay)
    kept = plain.init(PARAMS)
    for grads in GRADS:
        found, state = entry.updates(grads, state, PARAMS, *numbers, seed, zero, lambda p: zero)
        expected, kept = plain.update(grads, kept, PARAMS)
        for name in PARAMS:
            np.testing.assert_allclose(found[name], expected[name], rtol=2e-5, atol=1e-6)


CHAIN_FAULTS = ("fixed key", "fixed key in jit", "numpy", "no decay", "shape", "grows", "raises", "nothing")


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(chains, st.sampled_from(sorted(RATES)), st.sampled_from(CHAIN_FAULTS), st.booleans(), st.data())
def test_generated_chain_with_a_fault_is_refused(names: list[str], last: str, fault: str, proper: bool, data: Any):
    def wrong(updates: Any, state: Any, params: Any = None) -> Any:
        if fault == "raises":
            raise ValueError("no step")
        return (jax.tree.map(jnp.sum, updates) if fault == "shape" else updates), state

    def start(params: Any) -> Any:
        return jnp.zeros(0)

    def longer(updates: Any, state: Any, params: Any = None) -> Any:
        return updates, jnp.zeros(state.shape[0] + 1)

    planted = {
        "fixed key": lambda: fixed_noise("closure"),
        "fixed key in jit": lambda: fixed_noise("jit"),
        "numpy": lambda: fixed_noise("numpy"),
        "no decay": optax.identity,
        "shape": lambda: optax.GradientTransformation(lambda params: (), wrong),
        "raises": lambda: optax.GradientTransformation(lambda params: (), wrong),
        "grows": lambda: optax.GradientTransformation(start, longer),
        "nothing": lambda: None,
    }[fault]
    place = data.draw(st.integers(0, len(names))) if fault != "shape" else len(names)

    def build(lr: Any) -> Any:
        parts: list[Any] = [TRANSFORMS[name]() for name in names]
        parts.insert(place, planted())
        whole = optax.chain(*([optax.add_noise(0.1, 0.5, key=jax.random.key(1))] if proper else []), *parts, RATES[last](lr))
        return None if fault == "nothing" else whole

    words = {
        "fixed key": "the same for every seed",
        "fixed key in jit": "the same for every seed",
        "numpy": "different each time it is traced",
        "no decay": "weight_decay",
        "shape": "the parameters",
        "grows": "changes its state in a step",
        "raises": "raises ValueError: no step",
        "nothing": "NoneType",
    }[fault]
    assert words in refused(build, weight_decay=0.5 * (fault == "no decay"))
