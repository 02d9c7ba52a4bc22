"""Metrics of constructed units: dead, always on, saturated, dormant, certified."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metric_reference import DEAD, MIXED, ON, OUT, PHI, assert_agree, data, layer, measured, read, reference, summing
from tiers import tiered

from relu_study.components.activations import relu
from relu_study.components.interval_bounds import Interval, dense
from relu_study.components.metrics.output_moments import moments
from relu_study.components.metrics.snapshot import SiteView, Snapshot
from relu_study.components.registry import activations
from relu_study.components.registry import metrics as registry


def test_one_dead_one_always_on_one_mixed():
    x, y = data()
    args = [layer(DEAD, ON, MIXED), OUT], ["relu"], x, y
    values, masks = measured(*args)
    assert masks["dead:site_1"].tolist() == masks["certified_dead:site_1"].tolist() == [True, False, False]
    for metric in ("dead", "certified_dead", "always_on", "certified_always_on", "dormant", "zero_gradient"):
        assert values[f"{metric}_fraction/site_1"] == values[f"{metric}_fraction/all"] == pytest.approx(1 / 3)
    assert values["nearly_dead_fraction/all"] == values["collapsed/all"] == values["constant/all"] == 0
    assert math.isnan(values["saturated_fraction/all"])
    assert_agree((values, masks), reference(*args))


def test_all_dead_and_none_dead():
    x, y = data()
    values, masks = measured([layer(DEAD, DEAD, DEAD), OUT], ["relu"], x, y)
    for metric in ("dead", "certified_dead", "dormant", "zero_gradient"):
        assert values[f"{metric}_fraction/all"] == values[f"{metric}_fraction/site_1"] == 1
    assert values["collapsed/all"] == values["constant/all"] == 1
    assert masks["dead:site_1"].all() and values["grad_norm/site_1"] == values["post_std/all"] == 0 < values["grad_norm/all"]
    values, masks = measured([layer(ON, MIXED, MIXED), OUT], ["relu"], x, y)
    assert values["dead_fraction/all"] == values["collapsed/all"] == 0 and not masks["dead:site_1"].any()


def test_dead_on_the_probe_set_is_not_certified():
    """Open only at corners of the box that no example reaches: dead, but not certified dead."""
    x, y = data()
    unit = ([-1, 0, 0, 0], -0.995)
    values, masks = measured([layer(unit, ON, MIXED), OUT], ["relu"], np.maximum(x, -0.99), y)
    assert masks["dead:site_1"].tolist() == [True, False, False]
    assert not masks["certified_dead:site_1"].any() and values["certified_dead_fraction/all"] == 0


@pytest.mark.parametrize(
    ("n", "open_on", "nearly"),
    [(1000, 0, False), (1000, 1, True), (1000, 9, True), (1000, 10, False), (99, 1, False), (100, 1, False), (101, 1, True)],
)
def test_nearly_dead_is_active_on_under_one_percent(n, open_on, nearly):
    slope = np.zeros((n, 2), np.float32)
    slope[n - open_on :, 0] = slope[:, 1] = 1e-3
    assert read("nearly_dead_fraction", slope=slope) == [nearly, False]
    assert read("dead_fraction", slope=slope) == [open_on == 0, False]


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "selu"])
def test_saturated_means_slope_below_one_percent_of_maximum(name):
    steepest = PHI[name][2]
    slope = steepest * np.float32([[0.0, 0.0099, 0.005], [0.001, 0.0098, 0.0101]])
    assert read("saturated_fraction", name, slope=slope, max_slope=steepest) == [True, True, False]


def test_either_flat_piece_certifies():
    bound = Interval(*np.float32([[-9.0, 1.0, -2.0, -1.0, -9.0], [-1.0, 9.0, 2.0, 1.0, -0.999]]))

    @jax.jit
    def masks(bound):
        site = SiteView(activations["hard_tanh"], *[None] * 9, bound, None)
        return [registry[f"certified_{kind}_fraction"].function(site) for kind in ("dead", "always_on")]

    assert np.array_equal(masks(bound), [[True, True, False, False, False], [False, False, False, True, False]])


def test_saturated_tanh_is_not_certified_and_hardly_dead():
    x, y = data()
    units = ([0, 0, 0, 0], 4.0), ([0, 0, 0, 0], -4.0), ([0.1, 0, 0, 0], 2.0)
    args = [layer(*units), OUT], ["tanh"], x, y
    values, masks = measured(*args)
    assert values["saturated_fraction/site_1"] == pytest.approx(2 / 3) and values["dead_fraction/all"] == 0
    for metric in ("always_on", "certified_dead", "certified_always_on"):
        assert math.isnan(values[f"{metric}_fraction/all"]) and math.isnan(values[f"{metric}_fraction/site_1"])
    assert list(masks) == ["dead:site_1"]
    assert_agree((values, masks), reference(*args))


@pytest.mark.parametrize("name", tiered(["leaky_relu", "selu", "elu", "gelu", "crelu", "linear"], "selu", "crelu"))
def test_units_without_a_flat_piece_are_never_certified_dead(name):
    """Negative pre everywhere, as far as -1e6: certified dead is empty, not 0."""
    x, y = data()
    units = ([1, 1, 1, 1], -1.0), ([1, 0, 0, 0], -1e3), ([1, 0, 0, 0], -1e6)
    fanout = activations[name].fanout
    values, masks = measured([layer(*units), summing(3 * fanout)], [name], x, y)
    assert math.isnan(values["certified_dead_fraction/all"]) and "certified_dead:site_1" not in masks
    assert math.isnan(values["certified_always_on_fraction/all"]) == (name not in ("leaky_relu", "linear"))
    if name in ("leaky_relu", "linear", "crelu"):
        assert values["dead_fraction/all"] == 0


def test_fraction_over_all_pools_units_where_it_is_defined():
    """12 units of relu (3 dead) and 4 of tanh: dead over 16, certified dead over 12, saturated over 4."""
    x, y = data()
    params = [layer(*[DEAD] * 3, *[ON] * 9), (np.full((12, 4), 0.1, np.float32), np.float32([30, 0, 0, 0])), summing(4)]
    values, _ = measured(params, ["relu", "tanh"], x, y)
    assert values["certified_dead_fraction/all"] == values["certified_dead_fraction/site_1"] == 0.25
    assert values["saturated_fraction/all"] == values["saturated_fraction/site_2"] == 0.25
    assert math.isnan(values["certified_dead_fraction/site_2"]) and math.isnan(values["saturated_fraction/site_1"])
    dead = 3 + 4 * values["dead_fraction/site_2"]  # tanh(30) has slope 0 in float32: the unit is dead there
    assert values["dead_fraction/all"] == pytest.approx(dead / 16)


def test_unit_dead_downstream_has_zero_gradient_but_is_alive():
    x, y = data()
    blind = np.array([[-1, -1], [0, 0], [-2, -1]], np.float32), np.zeros(2, np.float32)  # every unit of site_2 is dead
    values, _ = measured([layer(ON, MIXED, MIXED), blind, summing(2)], ["relu"] * 2, x, y)
    assert values["zero_gradient_fraction/site_1"] == 1 and values["dead_fraction/site_1"] == 0
    assert values["dead_fraction/site_2"] == values["collapsed/all"] == 1 and values["certified_dead_fraction/site_2"] == 1
    half = blind[0].copy()
    half[:, 0] = [1, 0, 0]  # the first unit of site_1 is heard again
    values, _ = measured([layer(ON, MIXED, MIXED), (half, blind[1]), summing(2)], ["relu"] * 2, x, y)
    assert values["zero_gradient_fraction/site_1"] == pytest.approx(2 / 3) and values["collapsed/all"] == 0


def test_only_the_bias_gradient_moves():
    """With inputs all zero the weights get no gradient, the bias does."""
    x, y = np.zeros((150, 4), np.float32), np.ones((150, 1), np.float32)
    params = [layer(([1, 1, 1, 1], 1.0), ([1, 1, 1, 1], -1.0), ([1, 1, 1, 1], 1.0)), OUT]
    values, _ = measured(params, ["relu"], x, y)
    assert values["zero_gradient_fraction/site_1"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(("factor", "wanted"), [(1.0, [0, 0, 0, 0, 0]), (0.5, [0, 0, 1, 1, 0]), (0.4, [0, 1, 1, 1, 0])])
def test_dormant_units_are_those_far_below_the_average(factor, wanted):
    """The average is 0.41, tau times it 0.0102; the sign of post does not matter, zero layers are all dormant."""
    scores = np.float32([1.0, 0.0246 * factor, 0.0121 * factor, 0.013 * factor, 1.0])
    post = scores * np.tile(np.float32([1, -1, 0.5, 1.5]), 5)[:, None]
    assert read("dormant_fraction", "tanh", post=post) == [bool(w) for w in wanted]
    assert read("dormant_fraction", "tanh", post=0 * post) == [True] * 5


@pytest.mark.parametrize("bias_grad", [None, [0.0, 0.0, 1e-30]])
def test_zero_gradient_requires_every_entry_to_be_zero(bias_grad):
    grad = np.float32([[0, 1e-30, 0], [-0.0, 0, 0]])
    fields = {} if bias_grad is None else {"bias_grad": np.float32(bias_grad)}
    assert read("zero_gradient_fraction", kernel_grad=grad, **fields) == [True, False, bias_grad is None]
    assert read("zero_gradient_fraction", kernel_grad=grad.reshape(1, 2, 3), **fields) == [True, False, bias_grad is None]


def test_crelu_unit_counts_both_coordinates():
    x, y = data()
    params = [layer(DEAD, ON, ([0, 0, 0, 0], 0.0)), summing(6)]
    values, masks = measured(params, ["crelu"], x, y)
    assert values["dormant_fraction/site_1"] == pytest.approx(1 / 3)
    assert masks["dead:site_1"].tolist() == [False, False, True]
    pre = np.asarray(x) @ params[0][0]
    post = np.concatenate([np.maximum(pre, 0), np.maximum(-pre, 0)], axis=1)
    assert values["post_mean/all"] == pytest.approx(post.mean(), rel=1e-5)
    assert values["post_std/all"] == pytest.approx(post.std(), rel=1e-5)


@jax.jit
def is_constant(prediction):
    return registry["constant"].function(Snapshot((), prediction, jnp.asarray(2.0), *[None] * 5))


@pytest.mark.parametrize(("spread", "wanted"), [(0.0, True), (0.0099, True), (0.0101, False), (1.0, False)])
def test_constant_is_a_variance_of_at_most_one_ten_thousandth(spread, wanted):
    """Targets of variance 2 in all; the prediction has `spread` of their amplitude in each of two outputs, far from 0."""
    sign = np.tile(np.float32([-1.0, 1.0]), 50)[:, None]
    prediction = (spread * sign + np.float32([7, -3])).astype(np.float32)
    assert bool(is_constant(prediction)) is wanted
    prediction[:, 0] = 0.1
    assert bool(is_constant(prediction)) is (spread < 0.0141)


def test_identical_predictions_are_constant_despite_rounding():
    """150 equal predictions, of one output each time: XLA contracts the variance of some to 1e-17 above 0."""
    values = np.random.default_rng(0).normal(scale=100, size=(40, 1, 1)).astype(np.float32)
    same = jnp.asarray(np.tile(values, (1, 150, 1)))
    variance = jax.jit(jax.vmap(lambda prediction: moments(prediction, axis=0)[1]))(same)
    assert float(variance.max()) > 0  # or this test would be empty
    shot = Snapshot((), None, jnp.asarray(0.0), *[None] * 5)
    assert jax.jit(jax.vmap(lambda prediction: registry["constant"].function(shot._replace(prediction=prediction))))(same).all()


def test_bypassed_dead_site_is_no_collapse():
    @jax.jit
    def found(slope, prediction):
        site = SiteView(relu, *[None] * 11)._replace(slope=slope)
        shot = Snapshot((site,), prediction, jnp.asarray(1.0), *[None] * 5)
        return registry["collapsed"].function(shot), registry["constant"].function(shot)

    off, on = np.zeros((50, 3), np.float32), np.ones((50, 3), np.float32)
    varied, flat = np.linspace(0, 1, 50, dtype=np.float32)[:, None], np.full((50, 1), 0.3, np.float32)
    cases = [[bool(part) for part in found(*case)] for case in ((off, varied), (off, flat), (on, flat))]
    assert cases == [[False, False], [True, True], [False, True]]


def test_target_without_variance_breaks_nothing():
    x, _ = data()
    y = np.full((len(x), 1), 0.3, np.float32)
    nets = [layer(DEAD, DEAD, DEAD), (OUT[0], np.float32([0.1]))], [layer(ON, ON, ON), OUT]
    for params, wanted in zip(nets, (1, 0), strict=True):
        values, _ = measured(params, ["relu"], x, y)
        assert values["constant/all"] == wanted and not math.isnan(values["train_loss/all"])


def test_no_box_no_certificates_and_no_update_before_training():
    x, y = data()
    values, masks = measured([layer(DEAD, ON, MIXED), OUT], ["relu"], x, y, box=None)
    empty = {"certified_dead_fraction", "certified_always_on_fraction", "saturated_fraction", "update_norm"}
    assert {key for key, value in values.items() if math.isnan(value)} == {f"{m}/{s}" for m in empty for s in ("all", "site_1")}
    assert list(masks) == ["dead:site_1"]
    nowhere = [(np.full_like(w, np.nan), np.full_like(b, np.nan)) for w, b in (layer(DEAD, ON, MIXED), OUT)]
    values, _ = measured([layer(DEAD, ON, MIXED), OUT], ["relu"], x, y, nowhere)
    assert math.isnan(values["update_norm/all"]) and math.isnan(values["update_norm/site_1"])


def sites_of(kernel, x):
    """A site of many units at once, seen by the probes."""
    pre = jnp.dot(x, kernel, precision="highest")
    bound = dense(Interval(-jnp.ones(4), jnp.zeros(4)), kernel, jnp.zeros(kernel.shape[1]))
    return SiteView(relu, pre, None, relu.slope(pre, {}), *[None] * 6, bound, None)


@jax.jit
def four_masks(kernel, x):
    site = sites_of(kernel, x)
    return [
        registry[f"{name}_fraction"].function(site) for name in ("certified_dead", "certified_always_on", "dead", "always_on")
    ]


def test_one_unit_in_sixteen_is_certified_dead_and_one_always_on():
    kernel = np.random.default_rng(5).normal(0, 0.05, (4, 120_000)).astype(np.float32)
    dead, on, plain_dead, plain_on = (np.asarray(mask) for mask in four_masks(kernel, data(n=64)[0]))
    assert np.array_equal(dead, (kernel >= 0).all(axis=0)) and np.array_equal(on, (kernel <= 0).all(axis=0))
    for mask in (dead, on):
        assert abs(mask.mean() - 1 / 16) < 4 * math.sqrt(15 / 256 / mask.size)
    assert np.all(plain_dead >= dead) and np.all(plain_on >= on) and plain_dead.sum() > dead.sum()


def test_negative_weights_are_exactly_never_dead_and_always_on():
    kernel = -np.random.default_rng(6).uniform(0, 1, (4, 100_000)).astype(np.float32)
    certified_dead, certified_on, dead, on = (np.asarray(mask) for mask in four_masks(kernel, data(n=64)[0]))
    assert certified_dead.mean() == dead.mean() == 0 and certified_on.mean() == on.mean() == 1
