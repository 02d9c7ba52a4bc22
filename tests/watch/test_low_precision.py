"""Models in bfloat16 and float16: names of activations, dead units and moments."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import tiered

from relu_study import find_sites, inspect

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "quick_gelu": lambda z: z * jax.nn.sigmoid(1.702 * z),
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "tanh": jnp.tanh,
    "elu": jax.nn.elu,
    "leaky_relu(0.1)": lambda z: jax.nn.leaky_relu(z, 0.1),
}
DTYPES = (jnp.bfloat16, jnp.float16)


def forward(params: Any, x: Any) -> Any:
    for name, activation in ACTIVATIONS.items():
        x = activation(x @ params[name]["w"] + params[name]["b"])
    return x


def params(dtype: Any) -> Any:
    dead = np.where(np.isin(np.arange(16), [3, 8]), -1e3, 0.0)
    return {
        name: {
            "w": jnp.asarray(np.random.default_rng(index).normal(size=(16, 16)) / 2, dtype),
            "b": jnp.asarray(dead if name == "relu" else np.zeros(16), dtype),
        }
        for index, name in enumerate(ACTIVATIONS)
    }


@pytest.mark.parametrize("dtype", tiered(DTYPES, jnp.bfloat16))
def test_names_dead_units_and_moments(dtype: Any) -> None:
    x = jnp.asarray(np.random.default_rng(9).normal(size=(2048, 16)), dtype)
    assert [site.activation for site in find_sites(forward, params(dtype), x)] == [*ACTIVATIONS]
    found = inspect((forward, params(dtype)), x)
    assert found.units[found.units.dead][["site", "unit"]].to_numpy().tolist() == [["relu", 3], ["relu", 8]]
    first = params(dtype)["relu"]
    post = np.asarray(jax.jit(lambda x: jax.nn.relu(x @ first["w"] + first["b"]))(x), np.float32)
    np.testing.assert_allclose(found.sites.post_mean[0], post.mean(dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(found.sites.post_std[0], post.std(dtype=np.float64), rtol=1e-5)
