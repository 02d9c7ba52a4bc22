"""Every registered activation against its declared pieces, turning points, values and slopes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, expit

from relu_study.components.activations import Activation, activation
from relu_study.components.registry import activations
from relu_study.errors import UserError

HPARAMS = {"leak": 0.25}
NAMES = list(activations)
SELU = 1.0507009873554805, 1.6732632423543772
FORMULAS = {
    "relu": lambda z: np.where(z > 0, z, 0),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.25 * z),
    "relu6": lambda z: np.clip(z, 0, 6),
    "hard_tanh": lambda z: np.clip(z, -1, 1),
    "crelu": lambda z: np.concatenate([np.where(z > 0, z, 0), np.where(z < 0, -z, 0)], axis=-1),
    "linear": lambda z: z,
    "tanh": np.tanh,
    "sigmoid": expit,
    "elu": lambda z: np.where(z > 0, z, np.exp(np.minimum(z, 0)) - 1),
    "selu": lambda z: SELU[0] * np.where(z > 0, z, SELU[1] * (np.exp(np.minimum(z, 0)) - 1)),
    "gelu": lambda z: z * (1 + erf(z / np.sqrt(2))) / 2,
    "silu": lambda z: z * expit(z),
}
MAX_SLOPES = {"sigmoid": 0.25, "selu": SELU[0] * SELU[1], "gelu": 1.12890412, "silu": 1.09983937}  # all others 1
GRID = np.linspace(-9, 9, 4001) + 0.00123456  # off every kink
FAR = np.array([-3e38, -1e30, -100.0, -1e-30, -0.0, 0.0, 1e-30, 100.0, 1e30, 3e38])


@partial(jax.jit, static_argnums=0)
def both(phi: Activation, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    return phi(z, HPARAMS), phi.slope(z, HPARAMS)


def padded(phi: Activation, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values and slopes at the points of a column, which is padded so that all tests share one program."""
    rows = np.zeros((4400, 1), z.dtype)
    rows[: len(z)] = z
    return tuple(np.asarray(part)[: len(z)] for part in both(phi, rows))


def value(phi: Activation, z: np.ndarray) -> np.ndarray:
    return padded(phi, z)[0]


def slope(phi: Activation, z: np.ndarray) -> np.ndarray:
    return padded(phi, z)[1]


def column(points) -> np.ndarray:
    return np.asarray(points, np.float32)[:, None]


def points_in(lo: float, hi: float) -> np.ndarray:
    lo, hi = max(lo, -3e38), min(hi, 3e38)
    inner = np.linspace(max(lo, -20), min(hi, 20), 301)
    return np.clip(np.concatenate([[lo, hi], inner]), lo, hi)


def inside(points: np.ndarray, pieces) -> np.ndarray:
    return np.any([(points >= lo) & (points <= hi) for lo, hi in pieces], axis=0) if pieces else np.zeros(points.shape, bool)


def test_registry_holds_those_the_studies_name():
    assert set(FORMULAS) <= set(NAMES)
    for name in NAMES:
        assert isinstance(activations[name], Activation) and activations[name].name == name
        hash(activations[name])


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_values_follow_the_formula(name):
    z = GRID.astype(np.float32)[:, None]
    got = value(activations[name], z)
    np.testing.assert_allclose(got, FORMULAS[name](z.astype(float)), rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("name", NAMES)
def test_flat_pieces_are_flat_to_their_very_ends(name):
    phi = activations[name]
    for piece in phi.flat:
        z = column(points_in(*piece))
        assert np.all(slope(phi, z) == 0)
        assert len(np.unique(value(phi, z), axis=0)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_nothing_else_is_flat(name):
    phi = activations[name]
    outside = GRID[~inside(GRID, phi.flat) & (abs(GRID) < (7 if phi.flat else 5))]  # tanh has slope 0 in float32 from 9 on
    assert np.all(slope(phi, column(outside)) != 0)
    assert not (phi.smooth and phi.flat)


@pytest.mark.parametrize("name", NAMES)
def test_identity_piece_is_maximal(name):
    phi = activations[name]
    pieces = (phi.identity,) if phi.identity else ()
    for piece in pieces:
        z = points_in(*piece)
        assert np.array_equal(value(phi, column(z)), column(z))
        interior = z[(z > piece[0]) & (z < piece[1])]
        assert np.all(slope(phi, column(interior)) == 1)
    if phi.fanout == 1:
        outside = GRID[~inside(GRID, pieces) & (abs(GRID) < 3)]
        assert np.all(value(phi, column(outside)) != column(outside))


@pytest.mark.parametrize("name", NAMES)
def test_turning_points_are_complete(name):
    phi = activations[name]
    with jax.enable_x64(True):
        rise = np.diff(value(phi, GRID[:, None]), axis=0)
        turns = [value(phi, (t + np.array([-1e-3, 0, 1e-3]))[:, None])[:, 0] for t in phi.turning_points]
        slopes = [float(slope(phi, np.full((1, 1), t))[0, 0]) for t in phi.turning_points]
    for coordinate in rise.T:
        signs = np.sign(coordinate)
        change = [i for i in range(1, len(signs)) if signs[i] * signs[i - 1] < 0]
        assert len(change) == len(phi.turning_points)
        for i, t in zip(change, sorted(phi.turning_points), strict=True):
            assert GRID[i - 1] <= t <= GRID[i + 1]
    for before, at, after in turns:
        assert (before - at) * (after - at) > 0
    np.testing.assert_allclose(slopes, 0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_slope_is_the_size_of_the_finite_difference(name):
    phi = activations[name]
    with jax.enable_x64(True):
        z, h = GRID[:, None], 1e-6
        difference = np.abs(value(phi, z + h) - value(phi, z - h)) / (2 * h)
        found = slope(phi, z)
    np.testing.assert_allclose(found[:, 0], difference.reshape(len(GRID), phi.fanout).max(axis=1), atol=2e-8)


@pytest.mark.parametrize("name", NAMES)
def test_max_slope_is_the_largest(name):
    phi = activations[name]
    most = float(phi.max_slope(HPARAMS))
    assert slope(phi, column(GRID)).max() <= most * (1 + 1e-5)
    if name in FORMULAS:
        assert most == pytest.approx(MAX_SLOPES.get(name, 1.0), rel=1e-5)


def test_max_slope_follows_a_traced_leak():
    leaks = jnp.array([0.0, 0.5, 3.0])
    assert jax.vmap(lambda leak: activations["leaky_relu"].max_slope({"leak": leak}))(leaks).tolist() == [1, 1, 3]


@pytest.mark.parametrize("name", NAMES)
def test_values_hold_every_value(name):
    phi = activations[name]
    z = column(np.concatenate([GRID, FAR, points_in(-200, 200)]))
    post = value(phi, z).astype(float)
    assert np.all((post >= phi.values[0]) & (post <= phi.values[1]))


@pytest.mark.parametrize("name", NAMES)
def test_units_are_separate_and_blocks_adjacent(name):
    phi = activations[name]
    z = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    post, slopes = both(phi, z)
    assert post.shape == (5, 3 * phi.fanout) and slopes.shape == z.shape
    alone = value(phi, z[:, 1:2])
    np.testing.assert_allclose(post.reshape(5, phi.fanout, 3)[:, :, 1], alone, rtol=1e-6)
    assert np.isnan(value(phi, np.full((1, 1), np.nan, np.float32))).all()


def test_relu_has_slope_zero_at_zero_and_leak_zero_is_relu():
    z = jnp.asarray(column([-1.0, -0.0, 0.0, 1.0]))
    relu, leaky = activations["relu"], activations["leaky_relu"]
    assert relu.slope(z, {}).ravel().tolist() == [0, 0, 0, 1]
    assert leaky.slope(z, {"leak": 0.0}).ravel().tolist() == [0, 0, 0, 1]
    assert leaky.slope(z, HPARAMS).ravel().tolist() == [0.25, 0.25, 0.25, 1]


def test_unknown_traced_parameter_is_refused():
    with pytest.raises(UserError, match=r"parameter of activation steep.*'leek'.*leak"):

        @activation("steep")
        def steep(pre, leek):
            return pre * leek

    assert "steep" not in activations


def test_name_is_given_once():
    with pytest.raises(UserError, match=r"'relu' is registered already"):

        @activation("relu")
        def other(pre):
            return pre
