"""`inspect` gives the columns of its tables, numbers equal to NumPy's, and <NA> for everything not measurable."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from watched_flax_models import residual
from watched_models import DEAD, IMAGES, MODELS, X, affine, dense, initial, mlp, normal, put

from relu_study.errors import UserError
from relu_study.watch.inspection import inspect

Y = jnp.asarray(normal(1, 64, 3))
FLAGS = ["dead", "nearly_dead", "always_on", "saturated", "dormant", "zero_gradient"]
UNITS = ["site", "unit", "n", "firing_rate", *FLAGS]
SITES = ["site", "activation", "units", "n", *(f"{flag}_fraction" for flag in FLAGS)]
SITES += ["post_mean", "post_std", "grad_norm", "zero_entries"]
PARAMS = [dense(0, 6, 8, 1, 4), dense(1, 8, 8, 0), dense(2, 8, 3)]
PARAMS[0]["b"] = put(PARAMS[0]["b"], 6, -DEAD)


def mse(out: Any, y: Any) -> Any:
    return jnp.mean((out - y) ** 2)


@pytest.fixture(scope="module")
def found() -> Any:
    return inspect((mlp, PARAMS), X, y=Y, loss=mse)


@functools.cache
def by_hand() -> tuple[list[np.ndarray], list[np.ndarray], list[Any]]:
    pres, h = [], np.asarray(X)
    for layer in PARAMS[:-1]:
        pres.append(h @ np.asarray(layer["w"]) + np.asarray(layer["b"]))
        h = np.maximum(pres[-1], 0)
    grads = jax.jit(jax.grad(lambda params: mse(mlp(params, X), Y)))(PARAMS)
    return pres, [np.maximum(pre, 0) for pre in pres], grads


def test_columns_and_their_types(found: Any) -> None:
    assert list(found.units) == UNITS and list(found.sites) == SITES
    assert all(found.units[flag].dtype == "boolean" for flag in UNITS[4:])
    assert found.units.firing_rate.dtype == "Float64" and found.units.n.dtype == found.units.unit.dtype == "int64"
    numbers = found.sites[SITES[4:]]
    assert all(dtype == "Float64" for dtype in numbers.dtypes) and found.sites.units.dtype == found.sites.n.dtype == "int64"


def test_numbers_of_units_equal_numpy(found: Any) -> None:
    pres, posts, grads = by_hand()
    for site, (pre, post, grad) in enumerate(zip(pres, posts, grads[:2], strict=True)):
        rows = found.units[found.units.site == str(site)]
        active = (pre > 0).sum(0)
        assert list(rows.unit) == list(range(8)) and set(rows.n) == {64}
        np.testing.assert_allclose(rows.firing_rate.to_numpy(float), active / 64)
        mean = post.mean(0)
        zero = (np.asarray(grad["w"]) == 0).all(0) & (np.asarray(grad["b"]) == 0)
        expected = {"dead": active == 0, "nearly_dead": (active > 0) & (active < 0.64), "always_on": active == 64}
        expected |= {"dormant": mean <= 0.025 * mean.mean(), "zero_gradient": zero}
        for flag, values in expected.items():
            np.testing.assert_array_equal(rows[flag].to_numpy(bool), values, flag)
        assert rows.saturated.isna().all()  # a ReLU does not saturate


def test_numbers_of_sites_equal_numpy(found: Any) -> None:
    _, posts, grads = by_hand()
    for row, post, grad in zip(found.sites.itertuples(), posts, grads[:2], strict=True):
        norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=float)) for leaf in grad.values()))
        numbers = [row.post_mean, row.post_std, row.grad_norm, row.zero_entries]
        np.testing.assert_allclose(numbers, [post.mean(), post.std(), norm, (post == 0).mean()], 1e-5)
        rows = found.units[found.units.site == row.site]
        for flag in ("dead", "nearly_dead", "always_on", "dormant", "zero_gradient"):
            assert getattr(row, f"{flag}_fraction") == rows[flag].mean()
        assert (row.activation, row.units, row.n) == ("relu", 8, 64) and pd.isna(row.saturated_fraction)


def test_nearly_dead_units_fire_on_less_than_one_percent() -> None:
    x = np.zeros((400, 2), np.float32)
    x[:3, 0] = x[:4, 1] = 1
    units = inspect((lambda w, x: jax.nn.relu(x @ w) @ w, jnp.asarray(np.eye(2, dtype=np.float32))), x).units
    assert list(units.nearly_dead) == [True, False] and list(units.firing_rate) == [3 / 400, 0.01]


def test_smooth_units_saturate_and_are_never_always_on() -> None:
    params = [dense(0, 6, 8, 3), dense(1, 8, 2)]

    def net(params: Any, x: Any) -> Any:
        return affine(params[1], jnp.tanh(affine(params[0], x)))

    found = inspect((net, params), X)
    assert set(found.units.unit[found.units.saturated]) == {3} and found.units.always_on.isna().all()
    assert found.sites.saturated_fraction.item() == 1 / 8 and pd.isna(found.sites.always_on_fraction.item())


def test_gradients_are_missing_without_a_loss() -> None:
    found = inspect((mlp, PARAMS), X)
    assert found.units.zero_gradient.isna().all() and found.sites[["zero_gradient_fraction", "grad_norm"]].isna().all().all()


def test_streamed_gradients_are_those_of_the_mean_loss(found: Any) -> None:
    streamed = inspect((mlp, PARAMS), X, y=Y, loss=mse, batch_size=40)
    pd.testing.assert_frame_equal(streamed.units, found.units)
    pd.testing.assert_frame_equal(streamed.sites, found.sites, rtol=1e-4)
    x, y = np.asarray(X), np.asarray(Y)
    batches = inspect((mlp, PARAMS), [x[:40], x[40:]], y=[y[:40], y[40:]], loss=mse)
    pd.testing.assert_frame_equal(batches.units, found.units)


def test_a_unit_with_positions_counts_every_entry() -> None:
    found = inspect(residual(), IMAGES, y=np.ones((16, 2), np.float32), loss=mse)
    rates = found.units[found.units.site == "norm"].firing_rate
    assert set(found.units.n) == {16} and rates[3] == 0 and all(rate * 16 * 64 == round(rate * 16 * 64) for rate in rates)
    assert list(found.sites.site) == ["norm", "conv2", "head"] and (found.sites.grad_norm > 0).all()
    dead = found.units[found.units.dead]
    assert dead.zero_gradient.all() and set(zip(dead.site, dead.unit, strict=True)) >= {("norm", 3), ("conv2", 5), ("head", 0)}


def test_a_branch_not_taken_is_missing_not_false() -> None:
    planted = MODELS["branch_not_taken"]()
    found = inspect(planted.model, planted.x, **planted.call)
    absent = found.units[found.units.site.isin(["a", "c"])]
    assert absent[UNITS[3:]].isna().all().all() and set(absent.n) == {0}
    sites = found.sites.set_index("site")
    assert sites.loc["a", SITES[4:]].isna().all() and sites.loc["b", "dead_fraction"] == 1 / 8


def test_units_with_nonfinite_entries_are_missing_not_false() -> None:
    params = [dense(0, 6, 8), dense(1, 8, 2)]
    params[0]["b"] = put(params[0]["b"], [2, 5], [np.nan, np.inf])
    found = inspect((mlp, params), X)
    missing = found.units.dead.isna()
    assert set(found.units.unit[missing]) == {2, 5} and pd.isna(found.sites.dead_fraction.item())
    assert found.units.firing_rate.isna().equals(missing)


def test_a_model_without_sites_gives_empty_tables_and_one_warning() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = inspect((lambda w, x: x @ w, jnp.ones((6, 3))), X)
    assert [str(warning.message)[:23] for warning in caught] == ["the model has no sites:"]
    assert found.units.empty and found.sites.empty and list(found.units) == UNITS and list(found.sites) == SITES
    full = inspect((mlp, PARAMS), X)
    assert found.units.dtypes.equals(full.units.dtypes) and found.sites.dtypes.equals(full.sites.dtypes)


def test_units_of_channels_first_convolutions() -> None:
    def net(params: Any, x: Any) -> Any:
        z = jax.lax.conv(x, params["conv"]["kernel"], (1, 1), "SAME") + params["conv"]["bias"][:, None, None]
        return jax.nn.relu(z).mean((2, 3))

    params = {"conv": {"kernel": jnp.asarray(normal(2, 5, 3, 3, 3)), "bias": put(np.zeros(5, np.float32), 2, DEAD)}}
    x = np.moveaxis(np.asarray(IMAGES), -1, 1)
    found = inspect((net, params), x, y=np.ones((16, 5), np.float32), loss=mse, unit_axis={"conv": 1})
    assert list(found.units.unit[found.units.dead]) == [2] == list(found.units.unit[found.units.zero_gradient])
    with pytest.raises(UserError, match="unknown site in unit_axis 'convolution'"):
        inspect((net, params), x, unit_axis={"convolution": 1})


def test_call_reaches_the_model() -> None:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            return nn.Dense(2)(nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))))

    variables, x = initial(Net(), X, train=False), np.asarray(X) + 5
    evaluated = inspect((Net(), variables), x, train=False)
    trained = inspect((Net(), variables), x, train=True, mutable=["batch_stats"])
    assert list(evaluated.sites.site) == list(trained.sites.site) == ["BatchNorm_0"]
    assert not evaluated.units.firing_rate.equals(trained.units.firing_rate)


def test_a_site_with_many_dead_units_is_a_finding() -> None:
    def model(params: Any, x: Any) -> Any:
        return jnp.tanh(jax.nn.relu(x @ params["one"] + params["bias"]) @ params["two"])

    rng = np.random.default_rng(0)
    params = {"one": rng.normal(size=(4, 20)), "two": rng.normal(size=(20, 5)), "bias": np.where(np.arange(20) < 19, -1e3, 0)}
    x = rng.normal(size=(64, 4))
    found = inspect((model, params), x)
    (finding,) = found.findings
    assert (finding.problem, finding.site, finding.units) == ("dying", "one", (19, 20))
    assert f"Finding: dying: {finding.evidence}." in " ".join(str(found).split()) and finding.advice in found._repr_html_()
    healthy = inspect((model, params | {"bias": np.zeros(20)}), x)
    assert healthy.findings == [] and "Finding" not in str(healthy)


def test_sites_with_nonfinite_entries_have_no_finding() -> None:
    found = inspect((lambda w, x: jax.nn.relu(x @ w), np.full((3, 4), np.nan)), np.ones((8, 3)))
    assert found.sites["dead_fraction"].isna().all() and found.findings == []
