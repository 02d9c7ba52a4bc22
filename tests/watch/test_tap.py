"""Taps equal hand-placed ones. Outputs and gradients of a tapped function equal those of the function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from watched_activations import ACTIVATIONS
from watched_models import TOKENS, X, affine, dense, mlp, normal, put, stacked

from relu_study.errors import UserError
from relu_study.watch.tap import Tap, tap

PARAMS = [dense(0, 6, 8, 1), dense(1, 8, 8), dense(2, 8, 3)]
Y = jnp.asarray(normal(1, 64, 3))
WEIGHTS = stacked(*(dense(seed, 6, 6)["w"] for seed in range(3)))


def close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, tolerance, tolerance), found, expected)


def net(params: Any, x: Any, phi: Callable[[Any], Any], shifts: Any = (0.0, 0.0), placed: Any = None) -> Any:
    """Return the output of a network whose pre-activations have shifts. `placed` collects pre and post."""
    for layer, shift in zip(params[:-1], shifts, strict=True):
        pre = affine(layer, x) + shift if placed is not None else affine(layer, x)
        x = phi(pre)
        if placed is not None:
            placed.append((pre, x))
    return affine(params[-1], x)


@pytest.mark.parametrize("name", ["relu", "elu", "straight through", "another slope at 0", "maximum"])
def test_taps_equal_hand_placed_ones(name: str) -> None:
    phi = ACTIVATIONS[name]

    def loss(params: Any, x: Any, y: Any) -> Any:
        return jnp.mean((net(params, x, phi) - y) ** 2)

    def by_hand(shifts: Any) -> Any:
        placed: list[Any] = []
        loss = jnp.mean((net(PARAMS, X, phi, shifts, placed) - Y) ** 2)
        return loss, [(pre, post, jnp.abs(jax.vmap(jax.vmap(jax.grad(phi)))(pre))) for pre, post in placed]

    @jax.jit
    def expected(shifts: Any, params: Any) -> Any:
        return jax.grad(by_hand, has_aux=True)(shifts), jax.value_and_grad(loss)(params, X, Y)

    @jax.jit
    def tapped(params: Any) -> Any:
        return jax.value_and_grad(lambda params: tap(loss, gradients=True)(params, X, Y), has_aux=True)(params)

    (grads, placed), outputs = expected([np.zeros((64, 8), np.float32)] * 2, PARAMS)
    (out, taps), through = tapped(PARAMS)
    close((out, through), outputs)
    assert list(taps) == ["0", "1"]
    for found, numbers, grad in zip(taps.values(), placed, grads, strict=True):
        close(found, Tap(*numbers, grad))


@pytest.mark.parametrize("name", ["relu", "another slope at 0"])
def test_the_gradient_at_zero_is_that_of_the_function(name: str) -> None:
    def total(params: Any, x: Any) -> Any:
        return net(params, x, ACTIVATIONS[name]).sum()

    params = [layer | {"b": put(layer["b"], ..., 0)} for layer in PARAMS]
    zeros = np.zeros(X.shape, np.float32)
    grads, taps = jax.jit(jax.grad(lambda params: tap(total)(params, zeros), has_aux=True))(params)
    close(grads, jax.jit(jax.grad(total))(params, zeros), 0)
    slope = {"relu": 0.0, "another slope at 0": 0.3}[name]
    assert np.all(taps["0"].slope == np.float32(slope))


def scanned(weights: Any, x: Any, reverse: bool = False) -> Any:
    def layer(h: Any, w: Any) -> Any:
        h = jax.checkpoint(lambda h, w: jax.nn.relu(h @ w))(h, w)
        return jnp.tanh(h @ w), h.sum()

    h, sums = jax.lax.scan(layer, x, weights, reverse=reverse)
    return h.sum() + sums @ jnp.arange(3.0)


@pytest.mark.parametrize("reverse", [False, True])
def test_taps_of_a_scan_are_those_of_its_iterations(reverse: bool) -> None:
    out, taps = tap(lambda w, x: scanned(w, x, reverse), gradients=True)(WEIGHTS, X)
    expected, expected_grads = jax.jit(jax.value_and_grad(lambda w: scanned(w, X, reverse)))(WEIGHTS)
    close(out, expected)
    assert list(taps) == ["w[0]", "w[0].2", "w[1]", "w[1].2", "w[2]", "w[2].2"]
    h, weights = np.asarray(X), np.asarray(WEIGHTS)
    for step in reversed(range(3)) if reverse else range(3):
        close(taps[f"w[{step}]"].pre, pre := h @ weights[step])
        close(taps[f"w[{step}].2"].pre, pre := np.maximum(pre, 0) @ weights[step])
        close(taps[f"w[{step}].2"].slope, 1 - np.tanh(pre) ** 2)
        h = np.tanh(pre)
    close(taps[f"w[{0 if reverse else 2}].2"].grad, 1 - h**2)  # the loss sums the last h
    grads = jax.jit(jax.grad(lambda w: tap(lambda w, x: scanned(w, x, reverse))(w, X)[0]))(WEIGHTS)
    close(grads, expected_grads, 1e-4)


def branched(params: Any, x: Any, flag: Any) -> Any:
    h = affine(params[0], x)
    first, second = (lambda h: jax.nn.relu(affine(params[1], h))), (lambda h: jnp.tanh(affine(params[1], h) + 1))
    return jax.lax.cond(flag, first, second, h).sum()


def test_the_tap_of_a_branch_that_is_not_taken_is_missing() -> None:
    flags = np.array([True, False, True])
    outs, taps = jax.jit(jax.vmap(tap(branched, gradients=True), (None, None, 0)))(PARAMS, X, flags)
    close(outs, jax.jit(jax.vmap(branched, (None, None, 0)))(PARAMS, X, flags))
    missing = {name: [np.isnan(array).all((1, 2)).tolist() for array in found] for name, found in taps.items()}
    assert missing == {"1": [[True, False, True]] * 4, "1.2": [[False, True, False]] * 4}
    taps = jax.tree.map(np.asarray, taps)
    first, second = jax.tree.map(np.asarray, PARAMS[:2])
    pre = affine(second, affine(first, np.asarray(X)))
    close([taps["1"].pre[1], taps["1"].post[1]], [pre, np.tanh(pre + 1)])  # the branch for False comes first
    close([taps["1.2"].pre[2], taps["1.2"].post[2]], [pre, np.maximum(pre, 0)])


def test_taps_work_under_vmap_scan_and_shard_map() -> None:
    expected = jax.jit(tap(mlp))(PARAMS, X)[1]
    by_example = jax.jit(jax.vmap(tap(mlp), (None, 0)))(PARAMS, X)[1]
    close(by_example["1"], expected["1"])
    batches = np.asarray(X).reshape(4, 16, 6)
    in_scan = jax.lax.scan(lambda carry, x: (carry, tap(mlp)(PARAMS, x)[1]["1"].slope), 0, batches)[1]
    close(np.asarray(in_scan).reshape(64, 8), expected["1"].slope)
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    spec = jax.sharding.PartitionSpec
    sharded = jax.shard_map(
        lambda params, x: tap(mlp)(params, x)[1]["1"], mesh=mesh, in_specs=(spec(), spec("d")), out_specs=spec("d")
    )
    close(jax.jit(sharded)(PARAMS, X), expected["1"])


def test_taps_of_taps_and_of_gradients() -> None:
    loss = lambda params: jnp.mean((mlp(params, X) - Y) ** 2)  # noqa: E731
    (out, inner), outer = jax.jit(tap(tap(loss)))(PARAMS)

    @jax.jit
    def hessians(params: Any) -> Any:
        of = (loss, lambda p: tap(loss)(p)[0])
        return loss(params), *(jax.jvp(jax.grad(one), (params,), (params,))[1] for one in of)

    expected, hessian, tapped = hessians(PARAMS)
    close(out, expected)
    assert list(inner) == ["0", "1"] and set(outer) >= {"0", "1"}
    close(outer["1"].pre, inner["1"].pre)
    close(tapped, hessian, 1e-4)


def test_structures_of_arguments_and_outputs_are_kept() -> None:
    def fn(params: Any, *, inputs: Any, scale: float, name: str, flag: bool) -> Any:
        h = jax.nn.relu(affine(params, inputs["tokens"]) * (scale if flag else 1))
        return {"h": h, name: (h.sum(), None)}

    arguments: dict[str, Any] = {"inputs": {"tokens": TOKENS}, "scale": 2.0, "name": "total", "flag": True}
    out, taps = tap(fn)(PARAMS[0], **arguments)
    expected = fn(PARAMS[0], **arguments)
    assert jax.tree.structure(out) == jax.tree.structure(expected) and len(taps) == 1
    close(out, expected)


def test_the_order_of_taps_is_kept_under_jit() -> None:
    params = {"z": dense(0, 6, 8), "a": dense(1, 8, 8), "m": dense(2, 8, 8)}

    def chain(params: Any, x: Any) -> Any:
        for name in ("z", "a", "m"):
            x = jax.nn.relu(affine(params[name], x))
        return x

    assert list(jax.jit(tap(chain))(params, X)[1]) == ["z", "a", "m"]


def test_a_function_without_sites_has_no_taps() -> None:
    out, taps = tap(lambda w, x: x @ w)(WEIGHTS[0], X)
    assert taps == {}
    close(out, X @ WEIGHTS[0])


def test_gradients_need_a_scalar() -> None:
    with pytest.raises(UserError, match=r"one scalar.*\(64, 3\)"):
        tap(mlp, gradients=True)(PARAMS, X)
