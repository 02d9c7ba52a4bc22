"""Every registered initialiser is what its definition says, and the engine lays it where it belongs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from relu_study import engine, prng, programs
from relu_study.initializers import Initializer, Layer
from relu_study.registry import initializers
from relu_study.spec import KNOBS, RunSpec

NAMES = list(initializers)


class Form(NamedTuple):
    """What `of` the kernel's entries are drawn from, given fan_in and fan_out."""

    law: Callable[[int, int], Any]
    of: Callable[[np.ndarray], np.ndarray] = np.asarray


def uniform(bound: float) -> Any:
    return stats.uniform(-bound, 2 * bound)


FORMS = {
    "he_normal": Form(lambda n, m: stats.norm(0, np.sqrt(2 / n))),
    "he_uniform": Form(lambda n, m: uniform(np.sqrt(6 / n))),
    "lecun_normal": Form(lambda n, m: stats.norm(0, np.sqrt(1 / n))),
    "lecun_uniform": Form(lambda n, m: uniform(np.sqrt(3 / n))),
    "glorot_uniform": Form(lambda n, m: uniform(np.sqrt(6 / (n + m)))),
    "random_normal": Form(lambda n, m: stats.norm(0, 0.05)),
    "random_uniform": Form(lambda n, m: uniform(0.05)),
    "negative_uniform": Form(lambda n, m: stats.uniform(-1, 1)),
    "sign_flip": Form(lambda n, m: stats.halfnorm(0, np.sqrt(2 / n)), np.abs),  # signs follow the inputs
}
LAYER = Layer(index=1, depth=3, fan_in=24, fan_out=40, last=False)


@cache
def drawn(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Kernels and biases of 128 layers, 122,880 weights."""
    keys = jax.random.split(jax.random.key(11), 128)
    inputs = jax.random.normal(jax.random.key(5), (16, LAYER.fan_in))
    kernel, bias = jax.jit(jax.vmap(lambda key: initializers[name](key, LAYER, inputs)))(keys)
    return np.asarray(kernel, np.float64), np.asarray(bias)


def test_every_initialiser_has_its_closed_form_here():
    missing = sorted(set(NAMES) - set(FORMS))
    assert not missing, f"add the law of {', '.join(missing)} to FORMS, so that its moments are tested"


@pytest.mark.parametrize("name", NAMES)
def test_moments_bounds_and_law(name):
    if name not in FORMS:
        pytest.fail(f"no closed form of {name} in FORMS")
    kernel, bias = drawn(name)
    assert kernel.shape == (128, 24, 40) and np.all(bias == 0) and bias.shape == (128, 40)
    law, values = FORMS[name].law(LAYER.fan_in, LAYER.fan_out), FORMS[name].of(kernel).ravel()
    mean, variance, _, excess = (float(moment) for moment in law.stats("mvsk"))
    assert abs(values.mean() - mean) <= 4 * np.sqrt(variance / values.size)
    assert abs(values.var() - variance) <= 4 * variance * np.sqrt((excess + 2) / values.size)
    low, high = law.support()
    assert np.all(values >= np.float32(low)) and np.all(values <= np.float32(high))
    assert stats.kstest(values, law.cdf).pvalue > 1e-3
    # Layers and units are drawn apart: no two share a column.
    assert len(np.unique(values.reshape(128, 24, 40).swapaxes(1, 2).reshape(-1, 24), axis=0)) == 128 * 40


@pytest.mark.parametrize(
    ("one", "other", "ratio"),
    [
        ("he_normal", "lecun_normal", np.sqrt(2)),
        ("he_normal", "random_normal", np.sqrt(2 / 24) / 0.05),
        ("he_uniform", "lecun_uniform", np.sqrt(2)),
        ("he_uniform", "glorot_uniform", np.sqrt(64 / 24)),
        ("he_uniform", "random_uniform", np.sqrt(6 / 24) / 0.05),
    ],
)
def test_schemes_of_a_family_share_their_draws(one, other, ratio):
    np.testing.assert_allclose(drawn(one)[0], ratio * drawn(other)[0], rtol=1e-5, atol=1e-6)


def test_sign_flip_is_he_normal_with_whole_units_turned():
    plain, turned = drawn("he_normal")[0], drawn("sign_flip")[0]
    sign = turned / plain
    assert np.all(np.abs(sign) == 1) and np.all(sign == sign[:, :1])
    assert 0.3 < np.mean(sign[:, 0] < 0) < 0.7


# ------------------------------------------------------------------------------------------ whole networks

INPUTS = -jax.random.uniform(jax.random.key(2), (101, 4))  # the article's box: he_normal leaves units off on all of it


def weights(spec: RunSpec, **knobs: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """(kernel, bias) of each dense layer of a run before its first step, nearest the input first."""
    values = {name: jnp.float32(knobs.get(name, getattr(spec, name))) for name in KNOBS}
    params = programs.make_init(engine.cohort_start(spec), 4, 2)(jnp.uint32(spec.seed), values, INPUTS).params
    layers = [params["hidden"][i]["dense"] for i in range(spec.depth)] + [params["output"]]
    return [(np.asarray(layer["kernel"][...]), np.asarray(layer["bias"][...])) for layer in layers]
