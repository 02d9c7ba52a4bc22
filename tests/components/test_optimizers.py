"""Optimisers: rates, keys and decay of a run, and the refusal of faults."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiers import tiered
from user_optimizers import BASE, PARAMS, noise_of_a_step, raw_noise, refused, same, trained

from relu_study.components import registry
from relu_study.components.optimizers import Optimizer, check_optimizer
from relu_study.components.registry import optimizers
from relu_study.engine import cohorts
from relu_study.errors import UserError

pytestmark = pytest.mark.usefixtures("restored_optimizers")


FORMS = {
    "plain": lambda lr, wd: optax.adamw(lr, weight_decay=wd),
    "injected": lambda lr, wd: optax.inject_hyperparams(optax.adamw)(learning_rate=lr, weight_decay=wd),
    "by_name": optax.adamw,
    "partial": functools.partial(optax.adamw, b1=0.9),
}


@pytest.mark.parametrize("form", tiered(["injected", "by_name", "partial"], "injected"))
def test_rate_in_the_state_is_the_rate_of_the_run(form: str):
    found = trained({name: FORMS[name] for name in ("plain", form)}, weight_decay=0.1)
    assert same(found[form], found["plain"])
    assert not same(found["plain"][:1], found["plain"][1:2])


def test_forms_of_an_optimiser_take_equal_steps():
    @jax.jit
    def moved(rate: Any, decay: Any) -> dict[str, Any]:
        found = {}
        for name, function in FORMS.items():
            entry, seed = Optimizer(name, function), jnp.uint32(0)
            state = entry.first_state(PARAMS, rate, decay, seed)
            for _ in range(2):
                found[name], state = entry.updates(
                    PARAMS, state, PARAMS, rate, decay, seed, jnp.zeros(()), lambda p: jnp.zeros(())
                )
        return found

    steps = [moved(np.float32(rate), np.float32(decay)) for rate, decay in ((0.02, 0.1), (0.03, 0.1), (0.02, 0.0))]
    for found in steps:
        for name in FORMS:
            np.testing.assert_allclose(found[name]["kernel"], found["plain"]["kernel"], rtol=1e-5, err_msg=name)
    kernels = [float(found["plain"]["kernel"][0, 0]) for found in steps]
    assert len(set(kernels)) == 3, "rate and decay count"


def test_schedule_of_a_constant_rate_compiles_once_per_rate():
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


@pytest.mark.slow
def test_noise_differs_by_seed_and_repeats():
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


def test_key_equal_for_all_seeds_is_refused():
    assert "jax.random.key" in refused(lambda lr, wd: raw_noise("carry"))
    assert "`key`" in refused(lambda lr, wd: noise_of_a_step(jax.random.key(0)))


@pytest.mark.slow
def test_masked_accumulating_and_loss_based_optimisers_train():
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


def test_faults_are_refused_in_one_line_before_compilation():
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


def test_only_a_decay_parameter_receives_the_decay():
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


def test_run_time_error_names_file_and_line():
    def callback(lr: Any, wd: Any) -> Any:
        def fails(x: Any) -> Any:
            raise ValueError("a callback fails")

        def update(updates: Any, state: Any, params: Any = None) -> Any:
            shape = jax.tree.map(lambda u: jax.ShapeDtypeStruct(u.shape, u.dtype), updates)
            return jax.pure_callback(fails, shape, updates, vmap_method="expand_dims"), state

        return optax.GradientTransformation(lambda params: (), update)

    with pytest.raises(UserError, match=r"ValueError: a callback fails \(.*test_optimizers.py, line \d+\)"):
        trained({"callback": callback})
