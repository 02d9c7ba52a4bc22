"""Optimisers of users: their rates, decays, keys and states are those of the run, or one line says why not."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relu_study import Experiment, RunSpec, Study, optimizer, run
from relu_study.components import registry
from relu_study.components.optimizers import Optimizer, check_optimizer
from relu_study.components.registry import optimizers
from relu_study.engine import cohorts
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.runner.prepare import prepare

BASE = RunSpec(rows=60, width=4, epochs=2, batch_size=10, initializer="he_normal", learning_rate=0.02)
PARAMS = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}


@pytest.fixture(autouse=True)
def entries() -> Iterator[None]:
    """The optimisers of a test leave the registry with it."""
    before = dict(optimizers._entries)
    yield
    optimizers._entries.clear()
    optimizers._entries.update(before)


def trained(functions: dict[str, Callable[..., Any]], **changes: Any) -> dict[str, list[dict[str, np.ndarray]]]:
    """name -> the final parameters of three seeds."""
    for name, function in functions.items():
        optimizer(name)(function)
    arms = {name: BASE.replace(optimizer=name, **changes) for name in functions}
    results = run(Study("optimizers", "Optimizers", "?", [Experiment("main", arms)], seeds=3), keep_params=True)
    assert (results.runs.status == "ok").all()
    return {
        name: [results.params[i] for i in results.runs[results.runs.optimizer == name].sort_values("seed").run_id]
        for name in functions
    }


def same(one: list[dict[str, np.ndarray]], other: list[dict[str, np.ndarray]]) -> bool:
    return all(np.allclose(a[name], b[name], rtol=1e-5, atol=1e-6) for a, b in zip(one, other, strict=True) for name in a)


def refused(function: Callable[..., Any], **changes: Any) -> str:
    """The one line with which a study of this optimiser is refused, before anything compiles."""
    optimizers._entries.pop("offender", None)
    with pytest.raises(UserError) as error:
        optimizer("offender")(function)
        study = Study("s", "S", "?", [Experiment("main", {"arm": BASE.replace(optimizer="offender", **changes)})], seeds=1)
        prepare(study, None, MeasureConfig())
    assert "'offender'" in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_a_rate_in_the_state_is_the_rate_of_the_run():
    found = trained(
        {
            "plain": lambda lr, wd: optax.adamw(lr, weight_decay=wd),
            "injected": lambda lr, wd: optax.inject_hyperparams(optax.adamw)(learning_rate=lr, weight_decay=wd),
            "by_name": optax.adamw,
            "partial": functools.partial(optax.adamw, b1=0.9),
        },
        weight_decay=0.1,
    )
    for name in ("injected", "by_name", "partial"):
        assert same(found[name], found["plain"]), name
    assert not same(found["plain"][:1], found["plain"][1:2])


def test_a_schedule_that_needs_its_rate_as_a_number_is_compiled_once_per_rate():
    def warm(lr: Any, wd: Any) -> Any:
        return optax.sgd(optax.warmup_cosine_decay_schedule(0.0, lr, 3, 8))

    def by_hand(lr: Any, wd: Any) -> Any:
        count = optax.warmup_cosine_decay_schedule(0.0, 1.0, 3, 8)
        return optax.chain(optax.sgd(count), optax.scale(lr))

    found = trained({"warm": warm, "by_hand": by_hand})
    assert same(found["warm"], found["by_hand"])
    signature = registry.tasks[BASE.task](BASE).signature
    rates = [BASE.replace(optimizer="warm", learning_rate=rate) for rate in (0.01, 0.02)]
    assert len({cohorts.cost_of(spec).cohort for spec in rates}) == 2
    assert "warm (compiled for learning_rate=0.01, weight_decay=0)" in cohorts.cost_of(rates[0]).title
    assert len({cohorts.cohort(spec.replace(optimizer="by_hand"), signature) for spec in rates}) == 1


def test_every_seed_has_its_own_noise_and_the_same_noise_again():
    noise = [optax.set_to_zero(), optax.add_noise(1.0, 0.0, key=0), optax.scale(-0.1)]
    found = trained(
        {
            "fixed": lambda lr, wd: optax.chain(*noise),
            "typed": lambda lr, wd: optax.chain(noise[0], optax.add_noise(1.0, 0.0, key=jax.random.key(7)), noise[2]),
            "with_key": lambda lr, key: optax.chain(noise[0], optax.add_noise(1.0, 0.0, key=key), noise[2]),
            "raw": lambda lr, wd: raw_noise("rng_key"),
            "by_step": lambda lr, key: noise_of_a_step(key),
            "frozen": lambda lr, wd: optax.set_to_zero(),
        }
    )
    for name in set(found) - {"frozen"}:
        moves = [
            np.concatenate([(now[k] - first[k]).ravel() for k in now])
            for now, first in zip(found[name], found["frozen"], strict=True)
        ]
        assert all(np.abs(move).max() > 0.01 for move in moves), name
        assert not any(np.allclose(a, b, atol=1e-3) for a, b in zip(moves, [*moves[1:], moves[0]], strict=True)), name
    again = trained({"again": lambda lr, wd: optax.chain(*noise)})
    assert same(found["fixed"], again["again"])


def raw_noise(name: str) -> optax.GradientTransformation:
    """Noise from a raw uint32 key under a name in the state."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        key, now = jax.random.split(state[name])
        return jax.tree.map(lambda u: -0.1 * jax.random.normal(now, u.shape), updates), {name: key}

    return optax.GradientTransformation(lambda params: {name: jax.random.PRNGKey(0)}, update)


def noise_of_a_step(key: Any) -> optax.GradientTransformation:
    """Noise from a key of the caller and the number of the step."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        now = jax.random.fold_in(key, state)
        return jax.tree.map(lambda u: -0.1 * jax.random.normal(now, u.shape), updates), state + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def test_a_key_that_is_the_same_for_every_seed_is_refused():
    assert "jax.random.key" in refused(lambda lr, wd: raw_noise("carry"))
    assert "`key`" in refused(lambda lr, wd: noise_of_a_step(jax.random.key(0)))


def test_masks_accumulation_and_optimisers_that_need_the_loss_train():
    found = trained(
        {
            "masked": lambda lr, wd: optax.chain(
                optax.masked(optax.set_to_zero(), lambda p: jax.tree.map(lambda x: x.ndim == 1, p)), optax.sgd(lr)
            ),
            "multi": lambda lr, wd: optax.MultiSteps(optax.sgd(lr), every_k_schedule=2),
            "plateau": lambda lr, wd: optax.chain(optax.sgd(lr), optax.contrib.reduce_on_plateau(patience=1, factor=0.1)),
            "polyak": optax.polyak_sgd,
            "frozen": lambda lr, wd: optax.set_to_zero(),
        }
    )
    for name in set(found) - {"frozen"}:
        assert not same(found[name], found["frozen"]), name
    biases = [name for name in found["frozen"][0] if name.endswith("bias")]
    assert all(np.array_equal(a[name], b[name]) for name in biases for a, b in zip(found["masked"], found["frozen"], strict=True))


@pytest.mark.slow
def test_lbfgs_lowers_the_loss_of_its_batch_with_a_line_search():
    found = trained({"lbfgs": optax.lbfgs, "frozen": lambda lr, wd: optax.set_to_zero()}, batch_size=30)
    assert not same(found["lbfgs"], found["frozen"])


def test_faults_are_one_line_before_anything_compiles():
    def grows(lr: Any, wd: Any) -> Any:
        return optax.GradientTransformation(lambda p: jnp.zeros(1), lambda u, s, p=None: (u, jnp.zeros(2)))

    def wrong_update(lr: Any, wd: Any) -> Any:
        return optax.GradientTransformation(lambda p: (), lambda u, s, p=None: (jax.tree.map(jnp.sum, u), s))

    def raises(lr: Any, wd: Any) -> Any:
        raise KeyError("momentum")

    assert "float32[1] before and float32[2] after" in refused(grows)
    assert "the parameters" in refused(wrong_update)
    assert "KeyError: 'momentum'" in (line := refused(raises)) and f"{__file__}, line " in line
    assert "NoneType" in refused(lambda lr, wd: None)
    assert "takes no learning rate" in refused(lambda: optax.sgd(0.1))
    assert "takes no learning rate" in refused(functools.partial(optax.adam, 0.1))
    assert "'momentum'" in refused(lambda lr, wd, momentum: optax.sgd(lr, momentum))
    assert "weight_decay" in refused(lambda lr: optax.sgd(lr), weight_decay=0.1)


def test_a_decay_goes_only_to_a_parameter_of_that_meaning():
    adam = Optimizer("adam_itself", optax.adam)
    assert not adam.takes_decay
    grads = {"w": jnp.array([1.0, -2.0])}
    for decay in (0.0, 0.5):
        expected, found = optax.adam(0.1), adam(0.1, decay)
        expected, found = (tx.update(grads, tx.init(grads), grads)[0]["w"] for tx in (expected, found))
        assert np.array_equal(expected, found)
    assert Optimizer("lion_itself", optax.lion).takes_decay
    assert Optimizer("two", lambda lr, anything: optax.sgd(lr)).takes_decay


@pytest.mark.parametrize("name", sorted(optimizers))
def test_registered_optimisers_pass_the_checks_of_users(name: str):
    assert check_optimizer(optimizers[name], PARAMS, 0.1, 0.0)
    assert optimizers[name].takes_decay


def test_an_error_at_run_time_names_file_and_line():
    def callback(lr: Any, wd: Any) -> Any:
        def fails(x: Any) -> Any:
            raise ValueError("a callback fails")

        def update(updates: Any, state: Any, params: Any = None) -> Any:
            shape = jax.tree.map(lambda u: jax.ShapeDtypeStruct(u.shape, u.dtype), updates)
            return jax.pure_callback(fails, shape, updates, vmap_method="expand_dims"), state

        return optax.GradientTransformation(lambda params: (), update)

    with pytest.raises(UserError, match=r"ValueError: a callback fails \(.*test_optimizers.py, line \d+\)"):
        trained({"callback": callback})


# ------------------------------------------------------------------ generated optimisers with one planted fault

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


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(RATED)), st.sampled_from(sorted(WRAPPERS)), st.sampled_from([0.01, 0.2]))
def test_a_generated_optimiser_moves_as_optax_by_hand(base: str, wrapper: str, rate: float):
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
def test_a_generated_chain_updates_as_optax_by_hand(names: list[str], last: str, rate: float, decay: float):
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


@settings(max_examples=25, deadline=None)
@given(chains, st.sampled_from(sorted(RATES)), st.sampled_from(CHAIN_FAULTS), st.booleans(), st.data())
def test_a_generated_chain_with_a_fault_is_refused(names: list[str], last: str, fault: str, proper: bool, data: Any):
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


def wrapped(update: Any, state: Any = ()) -> Callable[..., Any]:
    return lambda lr, wd: optax.GradientTransformation(lambda p: state, update)


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
def test_a_changed_structure_of_the_state_is_refused(kind: str, order: int) -> None:
    before, after = STRUCTURES[kind][::order]
    assert "changes its state in a step" in refused(wrapped(lambda u, s, p=None: (u, after), before))


def test_a_changed_structure_of_the_updates_is_refused() -> None:
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


def test_positional_only_parameters_train_as_named_ones() -> None:
    def by_position(lr, wd=0.0, /):
        return optax.adamw(lr, weight_decay=wd)

    found = trained({"named": lambda lr, wd: optax.adamw(lr, weight_decay=wd), "placed": by_position}, weight_decay=0.1)
    assert same(found["named"], found["placed"])


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


def test_lookahead_is_refused_without_a_record(caplog: pytest.LogCaptureFixture) -> None:
    assert "No attribute 'fast'" in refused(lambda lr, wd: optax.lookahead(optax.sgd(lr), 5, 0.5))
    assert not caplog.records
