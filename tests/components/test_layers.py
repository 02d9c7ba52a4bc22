"""Network modules: their log of activations, SELU's moments, and both kinds of dropout."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiers import tiered

from relu_study.components import random_streams
from relu_study.components.layers import ALPHA_PRIME, Context, Dense, Dropout, Norm, Site
from relu_study.components.registry import activations
from relu_study.engine import cohorts, state, train_step
from relu_study.errors import UserError
from relu_study.study.run_spec import TRACED_FIELDS, RunSpec

KINDS = ["dropout", "alpha_dropout"]
RATES = [0.05, 0.1, 0.2, 0.35, 0.5]


def hparams(**changes: Any) -> dict[str, Any]:
    spec = RunSpec()
    return {name: jnp.float32(changes.get(name, getattr(spec, name))) for name in TRACED_FIELDS}


def tape_of(spec: RunSpec, x: Any, train: bool = False, **changes: Any) -> tuple[Any, list[tuple[Any, ...]]]:
    """A forward pass of a network with the weights it starts from: the prediction, and what was on the way."""
    values = hparams(**changes)
    init = train_step.make_init(spec, x.shape[1], 1)
    init = init if spec.depth > 3 else jax.jit(init)  # the layers of a deep network share their programs without jit
    weights = init(jnp.uint32(spec.seed), values, x[:2])
    graph, _, _ = nnx.split(state.build(spec, x.shape[1], 1), nnx.Param, nnx.BatchStat)
    ctx = Context(values, train=train, key=random_streams.stream(spec.seed, "dropout", 0))
    prediction = nnx.merge(graph, weights.params, weights.stats)(x, ctx)
    return prediction, [(module, *map(np.asarray, arrays)) for module, *arrays in ctx.activations_log]


# ------------------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize("name", tiered(activations, "relu", "crelu"))
def test_network_is_dense_and_site_in_turn(name):
    spec = RunSpec(depth=3, width=5, activation=name, initializer="he_normal")
    x = jax.random.normal(jax.random.key(0), (7, 4))
    prediction, tape = tape_of(spec, x, leak=0.3)
    assert [type(entry[0]) for entry in tape] == [Dense, Site] * 3 + [Dense]
    arrives = x
    for (dense, inputs), (site, pre, post) in zip(tape[0:6:2], tape[1:6:2]):
        assert site.activation == name and np.array_equal(inputs, arrives)
        wanted = np.asarray(inputs, np.float64) @ np.asarray(dense.kernel[...], np.float64) + np.asarray(dense.bias[...])
        np.testing.assert_allclose(pre, wanted, rtol=1e-5, atol=1e-6)
        assert np.array_equal(post, activations[name](jnp.asarray(pre), hparams(leak=0.3)))
        assert post.shape == (7, 5 * activations[name].fanout)
        arrives = post
    dense, inputs = tape[-1]
    assert np.array_equal(inputs, arrives) and prediction.shape == (7, 1)


def test_output_activation_is_a_site_too():
    prediction, tape = tape_of(RunSpec(depth=1, width=5, output="sigmoid"), jnp.ones((3, 4)))
    assert [type(entry[0]) for entry in tape] == [Dense, Site, Dense, Site]
    assert np.array_equal(prediction, tape[-1][2]) and np.array_equal(tape[-1][2], jax.nn.sigmoid(tape[-1][1]))


def test_output_with_several_numbers_per_target_is_refused():
    with pytest.raises(UserError, match="'crelu' gives several numbers"):
        cohorts.check(RunSpec(rows=500, output="crelu"), state.MeasureConfig())


@pytest.mark.parametrize("kind", ["batch_norm", "layer_norm"])
def test_norm_is_between_dense_and_site(kind):
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (64, 4))
    _, tape = tape_of(RunSpec(depth=2, width=16, norm=kind, initializer="he_normal"), x, train=True)
    axis = 0 if kind == "batch_norm" else 1
    for _, pre, _ in tape[1:4:2]:
        np.testing.assert_allclose(np.mean(pre, axis=axis), 0, atol=1e-5)
        np.testing.assert_allclose(np.var(pre, axis=axis), 1, atol=1e-3)


def test_batch_norm_moves_its_averages_in_training_only():
    norm = Norm("batch_norm", 3, nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (50, 3)) * 2 + 5
    before = norm(x, Context(hparams()))
    np.testing.assert_allclose(before, x / np.sqrt(1 + 1e-5), rtol=1e-6)
    norm(x, Context(hparams(), train=True))
    np.testing.assert_allclose(norm.norm.mean[...], 0.01 * np.mean(x, axis=0), rtol=1e-5)
    np.testing.assert_allclose(norm.norm.var[...], 0.99 + 0.01 * np.var(x, axis=0), rtol=1e-5)
    assert not np.array_equal(norm(x, Context(hparams())), before)


# ---------------------------------------------------------------------------------------------------- SELU

WIDE = RunSpec(depth=16, width=512, activation="selu", initializer="lecun_normal")
# A layer hands on 0.78 of an error in its variance and 0.09 of it as an error of its mean (Klambauer et al. 2017, section 2), so
# what each layer adds is gathered 4.6-fold at most. A layer of 512 units seen on 512 examples adds a few 1/512: pooled over the
# units the spread of their weights' norms, over the examples that of theirs, each by its second order. Together below
# 24/512; but 1 % on the scale of selu already moves the variance by 9 %.
MEAN_WITHIN, VARIANCE_WITHIN = 8 / 512, 24 / 512


def moments(tape: list[tuple[Any, ...]]) -> list[tuple[float, float]]:
    posts = [np.asarray(entry[2], np.float64) for entry in tape if isinstance(entry[0], Site)]
    return [(float(post.mean()), float(post.var())) for post in posts]


@pytest.mark.parametrize("seed", tiered([0, 1], 0))
def test_selu_keeps_mean_0_and_variance_1_through_depth(seed):
    x = jax.random.normal(jax.random.key(seed), (512, 512))
    _, tape = tape_of(WIDE.replace(seed=seed), x)
    for mean, variance in moments(tape):
        assert abs(mean) <= MEAN_WITHIN and abs(variance - 1) <= VARIANCE_WITHIN


@pytest.mark.parametrize("changes", tiered([{"initializer": "he_normal"}, {"activation": "elu"}], {"initializer": "he_normal"}))
def test_others_do_not(changes):
    _, tape = tape_of(WIDE.replace(**changes), jax.random.normal(jax.random.key(0), (512, 512)))
    assert any(abs(mean) > 2 * MEAN_WITHIN or abs(variance - 1) > 2 * VARIANCE_WITHIN for mean, variance in moments(tape))


@pytest.mark.parametrize("rate", tiered([0.05, 0.2], 0.2))
def test_alpha_dropout_keeps_them_too(rate):
    spec = WIDE.replace(depth=8, dropout="alpha_dropout")
    _, tape = tape_of(spec, jax.random.normal(jax.random.key(3), (512, 512)), train=True, dropout_rate=rate)
    for mean, variance in moments(tape):
        assert abs(mean) <= MEAN_WITHIN and abs(variance - 1) <= VARIANCE_WITHIN
    # What arrives behind the last dropout.
    arrives = np.asarray(tape[-1][1], np.float64)
    assert abs(arrives.mean()) <= MEAN_WITHIN and abs(arrives.var() - 1) <= VARIANCE_WITHIN


# ------------------------------------------------------------------------------------------------- dropout


def apply(kind: str, x: Any, rate: float, *, seed: int = 0, step: int = 0, site: int = 0) -> np.ndarray:
    """One application in training, the rate traced."""
    ctx_key = random_streams.stream(seed, "dropout", step)
    return np.asarray(_apply[kind](x, jnp.float32(rate), ctx_key, site), np.float64)


def _jitted(kind: str) -> Any:
    def run(x: Any, rate: Any, key: Any, site: int) -> Any:
        return Dropout(kind, site)(x, Context(hparams() | {"dropout_rate": rate}, train=True, key=key))

    return jax.jit(run, static_argnums=3)


_apply = {kind: _jitted(kind) for kind in KINDS}
NORMAL = jax.random.normal(jax.random.key(9), (1000, 1000))


@pytest.mark.parametrize("rate", RATES)
def test_alpha_dropout_of_standard_normals_has_mean_0_and_variance_1(rate):
    out = apply("alpha_dropout", NORMAL, rate)
    q = 1 - rate
    a = (q + ALPHA_PRIME**2 * q * rate) ** -0.5
    # The output is a N(0, 1) + b with probability q, else a alpha' + b: its moments about 0.
    b = -a * rate * ALPHA_PRIME
    second = q * (a**2 + b**2) + rate * (a * ALPHA_PRIME + b) ** 2
    fourth = q * (3 * a**4 + 6 * a**2 * b**2 + b**4) + rate * (a * ALPHA_PRIME + b) ** 4
    assert abs(second - 1) < 1e-12
    assert abs(out.mean()) <= 4 / np.sqrt(out.size)
    assert abs(out.var() - 1) <= 4 * np.sqrt((fourth - 1) / out.size)
    dropped = np.isclose(out, a * ALPHA_PRIME + b, rtol=0, atol=1e-4)
    assert abs(dropped.mean() - rate) <= 4 * np.sqrt(rate * q / out.size)
    np.testing.assert_allclose(out[~dropped], (a * np.asarray(NORMAL, np.float64) + b)[~dropped], rtol=1e-4, atol=1e-5)


def test_alpha_prime_is_what_selu_tends_to():
    np.testing.assert_allclose(activations["selu"](jnp.full((1, 1), -50.0), hparams()), ALPHA_PRIME, rtol=1e-6)


@pytest.mark.parametrize("rate", RATES)
def test_dropout_keeps_the_mean(rate):
    out = apply("dropout", jnp.ones((1000, 1000)), rate)
    assert abs(out.mean() - 1) <= 4 * np.sqrt(rate / (1 - rate) / out.size)
    kept = out[out != 0]
    assert abs(kept.size / out.size - (1 - rate)) <= 4 * np.sqrt(rate * (1 - rate) / out.size)
    np.testing.assert_allclose(kept, 1 / (1 - rate), rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_one_program_for_every_rate(kind):
    for rate in (0.1, 0.3, 0.0):
        out = apply(kind, NORMAL, rate)
    assert _apply[kind]._cache_size() == 1
    np.testing.assert_allclose(out, NORMAL, rtol=1e-6)  # rate 0 changes nothing


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_the_identity(kind):
    x = NORMAL[:5]
    for key in (None, jax.random.key(0)):
        assert Dropout(kind, 0)(x, Context(hparams(dropout_rate=0.5), key=key)) is x


def _with_every_word(kind: str) -> Any:
    """The output for ones and its gradient, with every random word once, as a function of the rate."""

    def both(rate: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            every = jnp.arange(65536, dtype=jnp.uint32).reshape(256, 256) << 16
            patch.setattr(random_streams, "words", lambda key, shape: every)
            context = Context(hparams() | {"dropout_rate": rate}, train=True, key=jax.random.key(0))
            x = jnp.ones((256, 256))
            out, pull = jax.vjp(lambda x: Dropout(kind, 0)(x, context), x)
        return out, pull(x)[0]

    return jax.jit(both)


_every_word = {kind: _with_every_word(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(rate=st.floats(0, 1, exclude_max=True, width=32))
@example(rate=0.2)
@example(rate=1 / 65536)
@example(rate=1 - 2**-16)
@example(rate=1 - 2**-20)
def test_rates_are_met(kind, rate):
    """Shown every random word once, dropout drops the rate's share of them, to within 2^-17, and never all."""
    out, gradient = (np.asarray(part) for part in _every_word[kind](np.float32(rate)))
    values, counts = np.unique(out, return_counts=True)
    share = 0.0 if len(values) == 1 else counts[0] / 65536  # the dropped value is the lower: 0, or below what 1 becomes
    assert abs(share - min(rate, 1 - 2**-16)) <= 2**-17
    assert np.all(np.isfinite(out)) and np.all(np.isfinite(gradient))
    assert np.array_equal(gradient != 0, out == values[-1])
    if kind == "dropout":
        np.testing.assert_allclose(out.mean(dtype=np.float64), 1, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_of_seed_step_and_site(kind):
    """The same three give the same mask; another seed, step or site a stranger."""
    rate, ones = 0.25, np.ones((1000, 1000), np.float32)
    first = apply(kind, ones, rate)
    masks = {
        place: apply(kind, ones, rate, seed=place[0], step=place[1], site=place[2]) == first.max()
        for place in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1))
    }
    assert np.array_equal(masks[0, 0, 0], first == first.max())
    agree = (1 - rate) ** 2 + rate**2
    places = list(masks)
    for i, one in enumerate(places):
        for other in places[:i]:
            assert abs(np.mean(masks[one] == masks[other]) - agree) <= 4 * np.sqrt(agree * (1 - agree) / 1e6), (one, other)
