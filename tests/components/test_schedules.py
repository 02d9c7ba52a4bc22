"""Options of the package's optimisers: rates by step, clipping, one program for all values, and no change when unset."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from relu_study.components.optimizers import Optimizer
from relu_study.components.registry import optimizers, tasks
from relu_study.components.schedules import factor
from relu_study.engine import cohorts, compilation, train_step, train_tile
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.study.run_spec import TRACED_FIELDS, RunSpec

SPEC = RunSpec(rows=60, batch_size=10, width=3, epochs=2)
PARAMS = {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([0.1, -0.2])}
GRADS = {"kernel": jnp.array([[3.0, 0.0], [0.0, 0.0]]), "bias": jnp.array([0.0, 4.0])}  # of norm 5
PLAIN = {
    "adam": lambda lr, wd: optax.adamw(lr, weight_decay=wd),
    "sgd": lambda lr, wd: optax.chain(optax.add_decayed_weights(wd), optax.sgd(lr)),
    "momentum": lambda lr, wd: optax.chain(optax.add_decayed_weights(wd), optax.sgd(lr, momentum=0.9)),
    "rmsprop": lambda lr, wd: optax.chain(optax.add_decayed_weights(wd), optax.rmsprop(lr)),
}


def moved(name: str, steps: int, decay: float = 0.1, grads: Any = GRADS, **options: Any) -> list[dict[str, np.ndarray]]:
    """Parameters after each step with constant gradients."""
    transformation = optimizers[name](0.1, decay, None, {"steps": float(steps), **options})
    state, params, found = transformation.init(PARAMS), PARAMS, []
    for _ in range(steps):
        updates, state = transformation.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        found.append(jax.tree.map(np.asarray, params))
    return found


def by_hand(t: int, total: int, schedule: str, warmup: float) -> float:
    rise = round(warmup * total)
    if t < rise:
        return t / rise
    if schedule == "cosine":
        return (1 + math.cos(math.pi * (t - rise) / (total - rise))) / 2
    return 1.0 if schedule == "constant" or t < total / 2 else (0.1 if t < 0.75 * total else 0.01)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_rates_equal_the_closed_form(schedule: str) -> None:
    for total, warmup in itertools.product((1, 7, 40), (0.0, 0.1, 0.5, 1.0)):
        found = [float(factor(t, float(total), schedule, warmup)) for t in range(total)]
        expected = [by_hand(t, total, schedule, warmup) for t in range(total)]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7, err_msg=f"{total} steps, warmup {warmup}")
        traced = jax.jit(jax.vmap(lambda t, n, w: factor(t, n, schedule, w), (0, None, None)))
        np.testing.assert_allclose(
            traced(jnp.arange(total), jnp.float32(total), jnp.float32(warmup)), found, rtol=1e-5, atol=1e-7
        )


def test_rates_equal_those_of_optax() -> None:
    t = jnp.arange(40)
    cosine = jax.vmap(optax.warmup_cosine_decay_schedule(0.0, 1.0, 8, 40))(t)
    step = jax.vmap(optax.piecewise_constant_schedule(1.0, {20: 0.1, 30: 0.1}))(t)
    np.testing.assert_allclose(jax.vmap(lambda t: factor(t, 40.0, "cosine", 0.2))(t), cosine, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(jax.vmap(lambda t: factor(t, 40.0, "step"))(t), step, rtol=1e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_schedule_and_clipping_equal_optax(name: str) -> None:
    """Decoupled decay follows the schedule, and clipping precedes the decay."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 8)
    reference = optax.chain(optax.clip_by_global_norm(2.0), PLAIN[name](schedule, 0.1))  # type: ignore[arg-type]
    state, params = reference.init(PARAMS), PARAMS
    for found in moved(name, 8, schedule="cosine", warmup=jnp.float32(0.25), clip_norm=jnp.float32(2.0)):
        updates, state = reference.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, params)


def test_clipping_bounds_the_norm_and_keeps_smaller_gradients() -> None:
    def step(clip_norm: Any) -> float:
        (after,) = moved("sgd", 1, decay=0.0, clip_norm=clip_norm)
        return math.sqrt(sum(float(np.sum((after[k] - PARAMS[k]) ** 2)) for k in PARAMS)) / 0.1

    for clip_norm, norm in ((2.0, 2.0), (4.99, 4.99), (5.01, 5.0), (0.0, 5.0), (math.inf, 5.0)):
        assert step(jnp.float32(clip_norm)) == pytest.approx(norm, rel=1e-4), clip_norm
    assert step(0.0) == pytest.approx(5.0, rel=1e-6)


def advance_text(spec: RunSpec) -> str:
    """The program of the training steps of a spec."""
    signature = tasks[spec.task](spec).signature
    optimizer, forward = optimizers[spec.optimizer], train_step.forward_of(spec, signature)
    names = [*TRACED_FIELDS, *(name for name in cohorts.traced_numbers(spec) if name not in TRACED_FIELDS)]
    numbers = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in names}
    options = train_step.values(spec)

    def first(params: Any, numbers: Any) -> Any:
        return optimizer.first_state(
            params, numbers["learning_rate"], numbers["weight_decay"], jnp.uint32(0), {**options, **numbers}
        )

    state = train_step.State(forward.params, nnx.State({}), jax.eval_shape(first, forward.params, numbers))
    batched = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), (state, numbers))
    rows = jax.ShapeDtypeStruct((2, signature.train_rows, signature.d_in + signature.d_out), jnp.float32)
    whole = jax.ShapeDtypeStruct((), jnp.int32)
    seeds = jax.ShapeDtypeStruct((2,), jnp.uint32)
    advance = train_step.make_advance(spec, signature)
    return str(jax.make_jaxpr(advance)(batched[0], rows, seeds, batched[1], whole, whole, whole))


@pytest.mark.usefixtures("restored_optimizers")
@pytest.mark.parametrize("name", PLAIN)
def test_unset_options_add_nothing_to_the_program(name: str) -> None:
    optimizers.add("plain", Optimizer("plain", PLAIN[name]))
    plain, unset = SPEC.replace(optimizer="plain"), SPEC.replace(optimizer=name)
    text = advance_text(plain)
    assert advance_text(unset) == text
    assert advance_text(unset.replace(schedule="constant")) == text  # the default
    assert "steps" not in cohorts.traced_numbers(unset)
    others = [{"schedule": "cosine"}, {"schedule": "step"}, {"warmup": 0.1}, {"clip_norm": 1.0}]
    assert len({text, *(advance_text(unset.replace(**options)) for options in others)}) == 5


def test_values_share_one_program_and_schedules_do_not() -> None:
    cosine = SPEC.replace(schedule="cosine")
    same = [cosine.replace(warmup=warmup, clip_norm=clip_norm) for warmup in (0, 0.1) for clip_norm in (0.0, 1.0, 2.5)]
    assert len({cohorts.cost_of(spec).cohort for spec in same}) == 1
    different = [SPEC, cosine, SPEC.replace(schedule="step"), SPEC.replace(warmup=0.1), SPEC.replace(clip_norm=1.0), same[0]]
    assert len({cohorts.cost_of(spec).cohort for spec in different}) == len(different)
    numbers = cohorts.traced_numbers(same[-1])
    assert numbers["steps"] == 2 * math.ceil(tasks[SPEC.task](SPEC).signature.train_rows / 10)
    assert numbers["warmup"] == 0.1 and numbers["clip_norm"] == 2.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosin"}, r"^unknown schedule 'cosin'\. Did you mean cosine"),
        ({"schedule": 3}, r"^option 'schedule' must be a name, not 3"),
        ({"warmup": 1.5}, r"^warmup is 1\.5\. Give a share of the steps"),
        ({"warmup": -0.1}, r"^warmup is -0\.1\. Give a share of the steps"),
        ({"clip_norm": -1}, r"^clip_norm is -1\. Give a positive norm"),
        ({"clip_norm": "big"}, r"^option 'clip_norm' must be a number, not 'big'"),
        ({"clipnorm": 1.0}, r"^unknown RunSpec field or option 'clipnorm'\. Did you mean clip_norm"),
    ],
)
def test_faults_are_refused_before_training(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cohorts.check(SPEC.replace(**options), MeasureConfig())


@pytest.mark.parametrize("name", PLAIN)
def test_valid_options_pass_the_check(name: str) -> None:
    cohorts.check(SPEC.replace(optimizer=name, schedule="step", warmup=0.1, clip_norm=1.0), MeasureConfig())


def test_runs_of_all_values_train_with_one_program() -> None:
    """A clip norm of 0 trains like no clip norm, a tiny one keeps the weights, and the cosine ends below the full rate."""
    few = MeasureConfig(20, 10, histograms=False, metrics=("train_loss",))
    base = SPEC.replace(optimizer="sgd", learning_rate=0.05)

    def trained(*specs: RunSpec) -> list[np.ndarray]:
        tile = train_tile.train_tile(list(specs), 4, measure_config=few, keep_params=True)
        kernels = [tile[name].reshape(len(specs), -1) for name in sorted(tile) if name.startswith("param:")]
        return list(np.concatenate(kernels, axis=1))

    (plain,) = trained(base)
    before = set(compilation.advance_program.entries)
    set_ones = [base.replace(clip_norm=value, warmup=0.0) for value in (0.0, 1e3, 1e-6)]
    off, high, low = trained(*set_ones)
    again = trained(base.replace(clip_norm=0.5, warmup=0.25), base.replace(clip_norm=0, warmup=1))
    (new,) = set(compilation.advance_program.entries) - before
    assert len(compilation.advance_program.entries[new].programs) == 1
    np.testing.assert_allclose(off, plain, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(high, plain, rtol=1e-5, atol=1e-7)
    (first,) = trained(base.replace(epochs=0))
    np.testing.assert_allclose(low, first, atol=1e-5)
    assert np.abs(plain - first).max() > 1e-3
    assert not any(np.allclose(one, plain, atol=1e-4) for one in again)
