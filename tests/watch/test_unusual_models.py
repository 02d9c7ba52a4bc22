"""Models beyond plain layers: low-rank updates, complex numbers, random masks, norms of activations."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from watched_models import put, stacked, weights

from relu_study import find_sites, inspect, tap


def normal(seed: int, *shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


X = normal(11, 6, 8)


def sites(fn: Any, *args: Any) -> list[tuple[str, str]]:
    return [(site.name, site.activation) for site in find_sites(fn, *args)]


@pytest.mark.parametrize("hidden", [False, True])
def test_a_low_rank_update_of_a_kernel_is_part_of_it(hidden: bool) -> None:
    params = {"w": normal(1, 8, 16), "a": normal(2, 8, 2), "b": normal(3, 2, 16), "in": normal(4, 8, 8)}
    params["w"] = put(params["w"], np.s_[:, 3], 0)
    params["b"] = put(params["b"], np.s_[:, 3], 0)  # the gradient of the kernel's column is not 0, that of relu at 0 is

    def model(params: Any, x: Any) -> Any:
        x = jnp.tanh(x @ params["in"]) if hidden else x
        return jax.nn.relu(x @ (params["w"] + 0.5 * (params["a"] @ params["b"])))

    assert sites(model, params, X)[-1] == ("w", "relu")
    found = inspect((model, params), X, y=jnp.zeros((6, 16)), loss=lambda out, y: jnp.mean(jnp.square(out - y)))

    def shifted(shift: Any) -> Any:
        moved = params | {"w": params["w"] + shift}
        return jnp.mean(jnp.square(model(moved, X)))

    kernel = jax.jit(jax.grad(shifted))(np.zeros((8, 16), np.float32))
    np.testing.assert_allclose(float(found.sites.grad_norm.iloc[-1]), np.linalg.norm(kernel), rtol=1e-5)
    units = found.units[found.units.site == "w"]
    assert list(units.unit[units.dead & units.zero_gradient]) == [3]


def test_learned_tokens_are_no_kernel() -> None:
    params = {"tokens": normal(1, 4, 8), "w": normal(2, 8, 16)}
    assert sites(lambda p, x: jax.nn.relu(p["tokens"] @ p["w"]).sum(0) + x @ p["w"], params, X) == [("w", "relu")]


@pytest.mark.parametrize("name", ["crelu", "modrelu", "fourier"])
def test_real_activations_of_complex_products(name: str) -> None:
    params = {
        "w": jnp.asarray(np.asarray(normal(1, 8, 16)) + np.complex64(1j) * np.asarray(normal(2, 8, 16))),
        "b": normal(3, 16),
    }

    def crelu(z: Any) -> Any:
        return jax.nn.relu(z.real) + 1j * jax.nn.relu(z.imag)

    def modrelu(z: Any) -> Any:
        return jax.nn.relu(jnp.abs(z) + params["b"]) * z / jnp.abs(z)

    def fourier(z: Any) -> Any:
        return jax.nn.relu(jnp.fft.irfft(2 * jnp.fft.rfft(z.real, axis=-1), axis=-1))

    phi = {"crelu": crelu, "modrelu": modrelu, "fourier": fourier}[name]
    expected = [("w", "relu"), ("w.2", "relu")][: 1 + (name == "crelu")]

    def model(params: Any, x: Any) -> Any:
        return phi(x @ params["w"])

    assert sites(model, params, X) == expected
    np.testing.assert_allclose(jax.jit(tap(model))(params, X)[0], jax.jit(model)(params, X), rtol=1e-6)


def test_a_random_mask_is_no_part_of_an_activation() -> None:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.relu(nn.Dense(16)(x))
            return nn.Dense(1)(nn.Dropout(0.5, deterministic=False)(x))

    key = jax.random.key(1)  # inside the function it is a constant
    variables = weights(jax.eval_shape(Net().init, {"params": key, "dropout": key}, X))
    found = inspect((Net(), variables), X, rngs={"dropout": key})
    pre = np.asarray(X) @ np.asarray(variables["params"]["Dense_0"]["kernel"])
    assert list(found.sites.activation) == ["relu"]
    np.testing.assert_allclose(found.units.firing_rate.astype(float), np.mean(pre > 0, axis=0), rtol=1e-6)


def test_the_norm_of_an_activation_is_no_site() -> None:
    def model(params: Any, x: Any) -> Any:
        hidden = jax.nn.relu(x @ params["w"])
        return hidden / jnp.linalg.norm(hidden, axis=-1, keepdims=True)

    assert sites(model, {"w": normal(1, 8, 16)}, X) == [("w", "relu")]


def test_a_loss_with_a_custom_derivative_is_not_refused() -> None:
    def loss(params: Any, x: Any, labels: Any) -> Any:
        return optax.losses.multiclass_sparsemax_loss(jax.nn.relu(x @ params["w"]) @ params["v"], labels).mean()

    assert sites(loss, {"w": normal(1, 8, 16), "v": normal(2, 16, 8)}, X, jnp.arange(6)) == [("w", "relu")]


def test_a_custom_derivative_with_a_parameter_is_one_site() -> None:
    @jax.custom_jvp
    def leaky(z: Any, slope: Any) -> Any:
        return jnp.where(z > 0, z, slope * z)

    leaky.defjvp(lambda primals, tangents: (leaky(*primals), jnp.where(primals[0] > 0, 1.0, primals[1]) * tangents[0]))
    assert sites(lambda p, x: leaky(x @ p["w"], 0.2), {"w": normal(1, 8, 16)}, X) == [("w", "leaky_relu(0.2)")]
    learned = {"w": normal(1, 8, 16), "slope": jnp.float32(0.2)}
    assert sites(lambda p, x: leaky(x @ p["w"], p["slope"]), learned, X) == [("w", "elementwise")]


def test_an_activation_below_stop_gradient_keeps_its_slope() -> None:
    params = {"w": put(normal(1, 8, 16), np.s_[:, 5], 0), "v": normal(2, 16, 2)}

    def model(params: Any, x: Any) -> Any:
        return jax.lax.stop_gradient(jax.nn.relu(x @ params["w"])) @ params["v"]

    assert sites(model, params, X) == [("w", "relu")]
    found = inspect((model, params), X)
    pre = np.asarray(X) @ np.asarray(params["w"])
    np.testing.assert_allclose(found.units.firing_rate.astype(float), np.mean(pre > 0, axis=0), rtol=1e-6)


def test_a_scalar_may_come_before_the_examples() -> None:
    params = {"w": normal(1, 8, 16)}
    found = inspect((lambda p, time, x: jax.nn.relu(time * x @ p["w"]), params), (0.5, X))
    assert found.sites.n.tolist() == [6]


@pytest.mark.parametrize("power", [3, 5])
def test_an_activation_without_a_lower_bound_has_no_fitted_name(power: int) -> None:
    assert sites(lambda p, x: (x @ p["w"]) ** power, {"w": normal(1, 8, 16)}, X) == [("w", "elementwise")]
    assert sites(lambda p, x: -jnp.exp(-(x @ p["w"]) * power), {"w": normal(1, 8, 16)}, X) == [("w", "elementwise")]


def test_a_kernel_from_a_linear_solve() -> None:
    def model(params: Any, x: Any) -> Any:
        skew = params["w"] - params["w"].T
        return jax.nn.relu(x @ jnp.linalg.solve(jnp.eye(8) + skew, jnp.eye(8) - skew))

    params = {"w": normal(1, 8, 8)}
    assert [activation for _, activation in sites(model, params, X)] == ["relu"]
    np.testing.assert_allclose(jax.jit(tap(model))(params, X)[0], jax.jit(model)(params, X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shared", [False, True], ids=["kernel by iteration", "one kernel"])
def test_weights_inside_a_loop_give_no_gradient_to_a_site_outside(shared: bool) -> None:
    kernel = jnp.asarray(np.asarray(normal(0, 6, 6)) / 2)
    x, y = normal(1, 16, 6), np.ones((16, 6), np.float32)

    def last(kernels: Any, x: Any) -> Any:
        if shared:
            return jax.lax.scan(lambda h, _: (h @ kernels, None), x, None, length=3)[0]
        return jax.lax.scan(lambda h, w: (h @ w, None), x, kernels)[0]

    def mse(out: Any, y: Any) -> Any:
        return jnp.mean((out - y) ** 2)

    kernels = kernel if shared else stacked(*[kernel] * 3)
    found = inspect((lambda p, x: jax.nn.relu(last(p, x)), kernels), x, y=y, loss=mse)
    assert not found.units.zero_gradient.any() and not found.units.dead.any()
    true = np.linalg.norm(jax.jit(jax.grad(lambda p: mse(jax.nn.relu(last(p, x)), y)))(kernels))
    assert found.sites.grad_norm[0] == pytest.approx(float(true), rel=1e-5) if shared else pd.isna(found.sites.grad_norm[0])


def test_the_carry_of_a_loop_has_no_weights() -> None:
    kernels = np.stack([np.eye(6, dtype=np.float32)] * 3)
    kernels[1, 2], kernels[1, 0, 2] = 0, 1  # unit 2 feeds none, and unit 0 feeds unit 2
    x, y = 1 + np.random.default_rng(1).uniform(size=(16, 6)).astype(np.float32), np.zeros((16, 6), np.float32)

    def fn(kernels: Any, x: Any) -> Any:
        return jax.lax.scan(lambda h, w: (jax.nn.relu(h) @ w, None), x @ np.eye(6, dtype=np.float32), kernels)[0]

    found = inspect((fn, kernels), x, y=y, loss=lambda out, y: jnp.mean((out - y) ** 2))
    zero = found.units[found.units.zero_gradient]
    assert {(site[-3:], unit) for site, unit in zip(zero.site, zero.unit, strict=True)} == {("[0]", 2), ("[1]", 2)}
