"""Convolutions as products of windows, against JAX's convolutions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiers import tiered

from relu_study.engine.convolutions import with_products

FORMS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "same": ((7, 6, 2), (3, 3), {}),
    "strided": ((9, 8, 2), (3, 2), {"strides": (2, 3)}),
    "valid": ((7, 6, 3), (2, 3), {"padding": "VALID"}),
    "dilated": ((9, 9, 1), (3, 3), {"kernel_dilation": 2}),
    "padded": ((5, 5, 2), (3, 3), {"padding": ((2, 0), (1, 3))}),
    "one entry": ((4, 4, 3), (1, 1), {}),
    "sequence": ((11, 2), (4,), {"strides": 2}),
    "circular": ((6, 6, 1), (3, 3), {"padding": "CIRCULAR"}),
}


@pytest.mark.parametrize("form", tiered(FORMS, "same", "strided", "dilated", "sequence"))
def test_product_has_the_values_and_gradients_of_a_convolution(form: str) -> None:
    shape, window, options = FORMS[form]
    model = nnx.Conv(shape[-1], 5, window, rngs=nnx.Rngs(0), **options)
    graph, params = nnx.split(model)
    x = jax.random.normal(jax.random.key(1), (3, *shape))

    def forward(params: Any, x: Any) -> Any:
        return nnx.merge(graph, params)(x)

    def both(function: Any, params: Any, x: Any) -> Any:
        out, pull = jax.vjp(function, params, x)
        return out, pull(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

    wanted, found = jax.jit(lambda p, x: (both(forward, p, x), both(with_products(forward), p, x)))(params, x)
    for one, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)
    assert "conv_general_dilated" not in str(jax.make_jaxpr(with_products(forward))(params, x))


def test_grouped_and_large_convolutions_remain() -> None:
    for options in ({"kernel_size": (3, 3), "feature_group_count": 2}, {"kernel_size": (6, 6)}):
        graph, params = nnx.split(nnx.Conv(2, 4, rngs=nnx.Rngs(0), **options))
        jaxpr = jax.make_jaxpr(with_products(lambda p, x, graph=graph: nnx.merge(graph, p)(x)))(params, jnp.ones((1, 8, 8, 2)))
        assert "conv_general_dilated" in str(jaxpr)


def test_a_function_without_a_convolution_is_unchanged() -> None:
    assert str(jax.make_jaxpr(with_products(jnp.tanh))(1.0)) == str(jax.make_jaxpr(jnp.tanh)(1.0))
