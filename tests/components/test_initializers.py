"""Every registered initialiser against its definition, and its use by the engine."""

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
from tiers import tiered

from relu_study.components import random_streams
from relu_study.components.initializers import Initializer, Layer
from relu_study.components.registry import initializers
from relu_study.engine import compilation, train_step
from relu_study.study.run_spec import TRACED_FIELDS, RunSpec

NAMES = list(initializers)


class Form(NamedTuple):
    """What `of` the kernel's entries are drawn from, given fan_in and fan_out; the biases too where they are `biased`."""

    law: Callable[[int, int], Any]
    of: Callable[[np.ndarray], np.ndarray] = np.asarray
    biased: bool = False


class Mixture:
    """One of several laws, each as often as its weight says; of the moments the first four, by the raw ones."""

    def __init__(self, *parts: tuple[float, Any]):
        self.parts = parts

    def raw(self, order: int) -> float:
        return sum(weight * law.moment(order) for weight, law in self.parts)

    def stats(self, moments: str) -> tuple[float, ...]:
        assert moments == "mvsk"
        one, two, three, four = (self.raw(order) for order in (1, 2, 3, 4))
        variance = two - one**2
        return one, variance, np.nan, (four - 4 * one * three + 6 * one**2 * two - 3 * one**4) / variance**2 - 3

    def cdf(self, x: np.ndarray) -> np.ndarray:
        return sum(weight * law.cdf(x) for weight, law in self.parts)

    def support(self) -> tuple[float, float]:
        return min(law.support()[0] for _, law in self.parts), max(law.support()[1] for _, law in self.parts)


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
    "he_normal_random_bias": Form(lambda n, m: stats.norm(0, np.sqrt(2 / n)), biased=True),
    "pytorch_default": Form(lambda n, m: uniform(1 / np.sqrt(n)), biased=True),
    # A coordinate of a point on the sphere in as many dimensions as the longer side has.
    "orthogonal": Form(lambda n, m: stats.beta((max(n, m) - 1) / 2, (max(n, m) - 1) / 2, loc=-1, scale=2)),
    "rai": Form(
        lambda n, m: Mixture((n / (n + 1), stats.norm(0, 0.6007 / np.sqrt(n))), (1 / (n + 1), stats.beta(2, 1))), biased=True
    ),
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


def test_every_initialiser_has_a_closed_form():
    missing = sorted(set(NAMES) - set(FORMS))
    assert not missing, f"add the law of {', '.join(missing)} to FORMS, so that its moments are tested"


@pytest.mark.parametrize("name", tiered(NAMES, "he_normal", "orthogonal", "rai", "sign_flip"))
def test_moments_bounds_and_law(name):
    if name not in FORMS:
        pytest.fail(f"no closed form of {name} in FORMS")
    kernel, bias = drawn(name)
    assert kernel.shape == (128, 24, 40) and bias.shape == (128, 40)
    law, values = FORMS[name].law(LAYER.fan_in, LAYER.fan_out), FORMS[name].of(kernel).ravel()
    mean, variance, _, excess = (float(moment) for moment in law.stats("mvsk"))
    for drawn_values in (values, bias.ravel())[: 1 + FORMS[name].biased]:
        size = drawn_values.size
        assert abs(drawn_values.mean() - mean) <= 4 * np.sqrt(variance / size)
        assert abs(drawn_values.var() - variance) <= 4 * variance * np.sqrt((excess + 2) / size)
        low, high = law.support()
        assert np.all(drawn_values >= np.float32(low)) and np.all(drawn_values <= np.float32(high))
        assert stats.kstest(drawn_values, law.cdf).pvalue > 1e-3
    assert FORMS[name].biased or np.all(bias == 0)
    # Layers and units are drawn apart: no two share a column.
    assert len(np.unique(values.reshape(128, 24, 40).swapaxes(1, 2).reshape(-1, 24), axis=0)) == 128 * 40


@pytest.mark.parametrize(
    ("one", "other", "ratio"),
    [
        ("he_normal", "lecun_normal", np.sqrt(2)),
        ("he_normal_random_bias", "he_normal", 1.0),
        ("pytorch_default", "he_uniform", 1 / np.sqrt(6)),
        ("he_normal", "random_normal", np.sqrt(2 / 24) / 0.05),
        ("he_uniform", "lecun_uniform", np.sqrt(2)),
        ("he_uniform", "glorot_uniform", np.sqrt(64 / 24)),
        ("he_uniform", "random_uniform", np.sqrt(6 / 24) / 0.05),
    ],
)
def test_schemes_of_a_family_share_their_draws(one, other, ratio):
    np.testing.assert_allclose(drawn(one)[0], ratio * drawn(other)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", tiered(["random_normal", "he_normal", "lecun_normal"], "lecun_normal"))
def test_draw_of_one_row_equals_draw_of_a_matrix(name, monkeypatch):
    """To the bit, in the program that begins a run: committed results were made before they were drawn as rows."""
    seeds, hparams, x = jnp.arange(8, dtype=jnp.uint32), {name: jnp.ones(8) for name in TRACED_FIELDS}, jnp.ones((8, 16, 4))

    def begun() -> list[bytes]:
        init = compilation.TracedOnce(jax.vmap(train_step.make_init(RunSpec(initializer=name, depth=2), 4, 1)))
        return [leaf.tobytes() for leaf in jax.tree.leaves(init(seeds, hparams, x).params)]

    as_rows = begun()
    monkeypatch.setattr(
        "relu_study.components.initializers._normals",
        lambda key, rows, columns, std: std * jax.random.normal(key, (rows, columns)),
    )
    assert as_rows == begun()


def test_sign_flip_is_he_normal_with_negated_units():
    plain, turned = drawn("he_normal")[0], drawn("sign_flip")[0]
    sign = turned / plain
    assert np.all(np.abs(sign) == 1) and np.all(sign == sign[:, :1])
    assert 0.3 < np.mean(sign[:, 0] < 0) < 0.7


# ---------------------------------------------------------------------------------------------- orthogonal


def kernels(name: str, n: int, fan_in: int, fan_out: int, index: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(kernel, bias) of n layers of a network of five."""
    layer = Layer(index, 5, fan_in, fan_out, last=False)
    inputs = jnp.ones((3, fan_in))
    drawn = jax.jit(jax.vmap(lambda key: initializers[name](key, layer, inputs)))(jax.random.split(jax.random.key(3), n))
    return tuple(np.asarray(part, np.float64) for part in drawn)


@pytest.mark.parametrize(("fan_in", "fan_out"), tiered([(1, 7), (7, 1), (2, 2), (5, 13), (13, 5), (64, 64)], (5, 13), (7, 1)))
def test_orthogonal_has_orthonormal_columns_or_rows(fan_in, fan_out):
    kernel, bias = kernels("orthogonal", 50, fan_in, fan_out)
    short = kernel if fan_in >= fan_out else kernel.swapaxes(1, 2)
    np.testing.assert_allclose(short.swapaxes(1, 2) @ short, np.tile(np.eye(short.shape[2]), (50, 1, 1)), atol=3e-6)
    assert np.all(bias == 0)


@pytest.mark.parametrize("n", tiered([2, 3, 8], 3))
def test_orthogonal_is_of_haars_distribution(n):
    """Its trace, which the signs of a plain QR would shift, is as scipy's Haar matrices have it, and half of them reflect."""
    kernel, _ = kernels("orthogonal", 8000, n, n)
    traces = np.trace(kernel, axis1=1, axis2=2)
    assert abs(traces.mean()) < 4 / np.sqrt(8000) and abs((traces**2).mean() - 1) < 4 * np.sqrt(2 / 8000)
    assert abs((np.linalg.det(kernel) > 0).mean() - 0.5) < 2 / np.sqrt(8000)
    theirs = np.trace(stats.ortho_group.rvs(n, size=8000, random_state=1), axis1=1, axis2=2)
    assert stats.ks_2samp(traces.round(5), theirs.round(5)).pvalue > 1e-3  # of two dimensions half of the traces are exactly 0


# ----------------------------------------------------------------------------------------------------- rai


def test_rai_replaces_one_entry_of_each_unit_by_a_beta():
    """Against the same normal draws: in each unit one weight or the bias differs, anywhere as often, and is of Beta(2, 1)."""
    ours, plain = (
        np.concatenate([kernel, bias[:, None]], axis=1).swapaxes(1, 2).reshape(-1, 25)  # a row a unit
        for kernel, bias in map(drawn, ("rai", "he_normal_random_bias"))
    )
    changed = ~np.isclose(ours, 0.6007 / np.sqrt(2) * plain, rtol=1e-5, atol=1e-7)
    assert np.all(changed.sum(axis=1) == 1)
    assert stats.chisquare(changed.sum(axis=0)).pvalue > 1e-3
    values, places = ours[changed], changed.argmax(axis=1)
    assert values.size == 128 * 40 and stats.kstest(values, lambda x: np.clip(x, 0, 1) ** 2).pvalue > 1e-3
    assert abs(np.corrcoef(values, places)[0, 1]) < 4 / np.sqrt(values.size)


def test_first_layer_of_rai_is_he_normal():
    for ours, he in zip(kernels("rai", 3, 6, 4, index=0), kernels("he_normal", 3, 6, 4, index=0)):
        assert np.array_equal(ours, he)


# ------------------------------------------------------------------------------------------ whole networks

# The article's box, where many a unit of he_normal is off on most of the examples.
INPUTS = -jax.random.uniform(jax.random.key(2), (101, 4))


@cache
def begun(initializer: str, depth: int, width: int) -> Any:
    return jax.jit(train_step.make_init(RunSpec(initializer=initializer, depth=depth, width=width), 4, 2))


def weights(spec: RunSpec) -> list[tuple[np.ndarray, np.ndarray]]:
    """(kernel, bias) of each dense layer of a run before its first step, nearest the input first."""
    hparams = {name: np.float32(getattr(spec, name)) for name in TRACED_FIELDS}
    params = begun(spec.initializer, spec.depth, spec.width)(np.uint32(spec.seed), hparams, INPUTS).params
    layers = [*(params["hidden"][i]["dense"] for i in range(spec.depth)), params["output"]]
    return [(np.asarray(layer["kernel"][...]), np.asarray(layer["bias"][...])) for layer in layers]


def arriving(layers: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """What arrives at each layer of a relu network."""
    inputs = [np.asarray(INPUTS, np.float64)]
    for kernel, bias in layers[:-1]:
        inputs.append(np.maximum(inputs[-1] @ kernel + bias, 0))
    return inputs


@pytest.mark.parametrize("name", tiered(NAMES, "rai", "sign_flip"))
def test_hidden_layers_use_scheme_and_output_layer_glorot(name):
    spec = RunSpec(depth=2, width=5, initializer=name, seed=2**32 - 1)
    layers = weights(spec)
    assert [kernel.shape for kernel, _ in layers] == [(4, 5), (5, 5), (5, 2)]

    @jax.jit
    def wanted(inputs: list[Any]) -> list[Any]:
        found = []
        for i, (kernel, _) in enumerate(layers):
            entry = initializers[name if i < 2 or initializers[name].output else "glorot_uniform"]
            layer = Layer(i, 3, *kernel.shape, last=i == 2)
            found.append(entry(random_streams.stream(spec.seed, "init", i), layer, inputs[i]))
        return found

    for (kernel, bias), law in zip(layers, wanted([inputs.astype(np.float32) for inputs in arriving(layers)]), strict=True):
        np.testing.assert_allclose(kernel, law[0], rtol=1e-5, atol=1e-6 if name == "orthogonal" else 0)
        np.testing.assert_allclose(bias, law[1], rtol=1e-5)
    if not initializers[name].output:
        assert np.all(np.abs(layers[2][0]) <= np.sqrt(6 / (5 + 2)))


@pytest.mark.parametrize("name", ["he_normal", "negative_uniform", "sign_flip"])
def test_gain_and_bias_shift_affect_only_hidden_layers(name):
    spec = RunSpec(depth=2, width=5, initializer=name)
    plain, changed = weights(spec), weights(spec.replace(gain=2.5, bias_shift=0.25))
    for kernel, bias in changed[:2]:
        assert np.all(bias == 0.25) and np.all(kernel != 0)
    np.testing.assert_allclose(changed[0][0], 2.5 * plain[0][0], rtol=1e-6)
    np.testing.assert_allclose(np.abs(changed[1][0]), 2.5 * np.abs(plain[1][0]), rtol=1e-6)  # signs follow what arrives
    assert np.array_equal(changed[2][0], plain[2][0]) and np.all(changed[2][1] == 0)


def test_layers_and_seeds_have_separate_draws():
    spec = RunSpec(depth=3, width=4, initializer="he_normal")
    kernels = [kernel for seed in (0, 1) for kernel, _ in weights(spec.replace(seed=seed))[:3]]
    assert len({kernel.tobytes() for kernel in kernels}) == 6


def test_initialiser_may_set_the_output_layer_too():
    """`last` marks the output layer; only an initialiser that says so is asked for it."""

    def constant(key: Any, layer: Layer, inputs: Any) -> Any:
        return jnp.full((layer.fan_in, layer.fan_out), 7.0 if layer.last else float(layer.index)), jnp.full(layer.fan_out, 3.0)

    with pytest.MonkeyPatch.context() as patch:
        for output in (False, True):
            patch.setitem(initializers._entries, f"test_constant_{output}", Initializer(constant, output=output))
            layers = weights(RunSpec(depth=2, width=5, initializer=f"test_constant_{output}"))
            assert np.all(layers[0][0] == 0) and np.all(layers[1][0] == 1) and np.all(layers[1][1] == 3)
            assert np.all(layers[2][0] == 7) == output and np.all(layers[2][1] == 3) == output


# ----------------------------------------------------------------------------------------------- sign flip


def on_shares(layers: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, list[float]]:
    """The least share of arriving examples on which a unit is on, and the share of all that are alive after each layer."""
    least, alive = 1.0, []
    for inputs, (kernel, bias) in zip(arriving(layers), layers[:-1]):
        live = inputs[np.any(inputs != 0, axis=1)]
        on = live @ kernel + bias > 0
        least = min(least, on.mean(axis=0).min())
        alive.append(on.any(axis=1).sum() / len(inputs))
    return least, alive


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([(1, 1), (2, 16), (4, 3)]))  # each size is one program
def test_sign_flip_keeps_half_of_arriving_data(seed, size):
    depth, width = size
    least, alive = on_shares(weights(RunSpec(depth=depth, width=width, initializer="sign_flip", seed=seed)))
    assert least >= 0.5
    assert all(share >= 0.5 ** (i + 1) for i, share in enumerate(alive))


def test_he_normal_does_not():
    found = [on_shares(weights(RunSpec(depth=2, width=3, initializer="he_normal", seed=seed))) for seed in range(20)]
    assert min(least for least, _ in found) == 0 and min(alive[-1] for _, alive in found) < 0.25
