"""Every metric against a slow reference, and the declaration of metrics."""

from __future__ import annotations

import json
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_reference import DEAD, MIXED, NAMES, ON, OUT, assert_agree, data, layer, measured, random_net, reference, snapshot
from tiers import tiered

from relu_study.components.metrics import metric as probes
from relu_study.components.metrics.metric import measure
from relu_study.components.metrics.metric import metric as new_metric
from relu_study.components.registry import metrics as registry
from relu_study.errors import UserError

NETS = [
    *(([4, *[9] * depth, 1], ["relu"] * depth) for depth in (1, 2, 3, 4)),
    ([4, 9, 7, 2], ["leaky_relu"] * 2),
    ([4, 9, 7, 1], ["tanh"] * 2),
    ([4, 9, 7, 1], ["sigmoid"] * 2),
    ([4, 9, 7, 1], ["selu"] * 2),
    ([4, 9, 7, 1], ["hard_tanh"] * 2),
    ([4, 9, 8, 7, 5, 2], ["relu", "tanh", "leaky_relu", "linear"]),
]


def scale_of(names, seed):
    """From small to large weights; not so large that a tanh behind a relu has slope 0 in float32, which float64 does not see."""
    return (0.7, 1.5, 4.0 if len(set(names)) == 1 else 1.5)[seed]


@pytest.mark.parametrize(
    ("sizes", "names"), tiered(NETS, NETS[0], NETS[-1]), ids=["-".join([*map(str, s), n[0]]) for s, n in NETS]
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_nets_agree_with_the_loops(sizes, names, seed):
    params, previous = (random_net(sizes, s, scale_of(names, seed)) for s in (seed, seed + 100))
    x, y = data(outputs=sizes[-1], seed=seed)
    assert_agree(measured(params, names, x, y, previous), reference(params, names, x, y, previous))


def test_random_nets_have_units_of_every_kind():
    """The comparison above would be empty if no unit were ever dead, certified, nearly dead, ..."""
    seen = dict.fromkeys(NAMES, 0.0)
    for sizes, names in NETS:
        for seed in (0, 1, 2):
            x, y = data(outputs=sizes[-1], seed=seed)
            values, _ = reference(random_net(sizes, seed, scale_of(names, seed)), names, x, y)
            for name in NAMES:
                seen[name] = max(seen[name], values.get(f"{name}/all", 0))
    assert {name for name, most in seen.items() if most == 0} <= {"update_norm", "constant", "collapsed"}, seen


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), depth=st.sampled_from([1, 4]), exponent=st.integers(-12, 12))
def test_certified_is_always_a_subset(seed, depth, exponent):
    params = random_net([4, *[9] * depth, 1], seed, scale=10.0**exponent, bias=10.0**exponent * (seed % 3))
    values, masks = measured(params, ["relu"] * depth, *data(seed=1), params)
    for site in range(1, depth + 1):
        assert np.all(masks[f"dead:site_{site}"] | ~masks[f"certified_dead:site_{site}"])
        assert values[f"certified_always_on_fraction/site_{site}"] <= values[f"always_on_fraction/site_{site}"]


def test_network_that_went_nonfinite_still_measures():
    x, y = data()
    values, masks = measured([(np.full((4, 3), np.nan, np.float32), OUT[1].repeat(3)), OUT], ["relu"], x, y)
    assert math.isnan(values["train_loss/all"]) and math.isnan(values["grad_norm/all"])
    assert not masks["certified_dead:site_1"].any()


def test_vmapped_measurement_equals_single_measurement():
    x, y = data()
    nets = [random_net([4, 6, 5, 1], seed) for seed in range(5)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *nets)
    many, masks = jax.jit(jax.vmap(lambda params: measure(snapshot(params, ["relu", "tanh"], x, y))))(stacked)
    for i, net in enumerate(nets):
        alone, flags = measured(net, ["relu", "tanh"], x, y)
        for key, value in alone.items():
            assert float(many[key][i]) == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), key
        assert all(np.array_equal(np.asarray(masks[key])[i], flag) for key, flag in flags.items())


def test_declared_is_plain_data_with_every_metric():
    declared = probes.declared()
    assert list(declared) == NAMES
    assert json.loads(json.dumps(declared, allow_nan=False)) == declared
    for name, metric in declared.items():
        assert (
            metric["direction"] in ("lower", "higher", "none")
            and metric["text"]
            and metric["source"]
            and isinstance(metric["sites"], bool)
        )
        assert list(metric) == ["unit", "direction", "low", "high", "sites", "text", "source"]
        assert metric["sites"] == (name not in ("train_loss", "val_loss", "collapsed", "constant"))


def test_values_are_in_declared_range_with_fixed_key_order():
    x, y = data()
    values, masks = measured(random_net([4, 6, 5, 1], 0), ["relu", "relu"], x, y, random_net([4, 6, 5, 1], 1))
    wanted = []
    for name, metric in probes.declared().items():
        wanted += [f"{name}/{site}" for site in (["all", "site_1", "site_2"] if metric["sites"] else ["all"])]
    assert sorted(values) == sorted(wanted)
    assert sorted(masks) == ["certified_dead:site_1", "certified_dead:site_2", "dead:site_1", "dead:site_2"]
    order = []
    jax.eval_shape(lambda net: order.extend(measure(snapshot(net, ["relu", "relu"], x, y))[0]), random_net([4, 6, 5, 1], 0))
    assert order == wanted
    for key, value in values.items():
        low, high = (probes.declared()[key.split("/")[0]][end] for end in ("low", "high"))
        assert math.isnan(value) or ((low is None or value >= low) and (high is None or value <= high))


def test_new_metric_is_one_function_and_misspelling_is_refused():
    for words, message in (
        (dict(per="layer", unit="1"), "per of metric _new 'layer'"),
        (dict(per="unit", unit="1", direction="up"), "direction of metric _new 'up'"),
        (dict(per="unit", unit="1", requires=("slop",)), "required field of metric _new 'slop'. Did you mean slope"),
    ):
        with pytest.raises(UserError, match=message):
            new_metric("_new", **words)
    try:

        @new_metric("_new_fraction", per="unit", unit="fraction", requires=("bias_step",), store_mask=True)
        def still(site):
            """Units whose bias did not move."""
            return site.bias_step == 0

        x, y = data()
        params = [layer(DEAD, ON, MIXED), OUT]
        moved = [(params[0][0], np.float32([0, 1, 1])), OUT]
        values, masks = measured(params, ["relu"], x, y, moved)
        assert values["_new_fraction/all"] == pytest.approx(1 / 3) and masks["_new:site_1"].tolist() == [True, False, False]
        values, masks = measured(params, ["relu"], x, y)
        assert math.isnan(values["_new_fraction/all"]) and "_new:site_1" not in masks
        assert probes.declared()["_new_fraction"]["text"] == "Units whose bias did not move."
    finally:
        registry._entries.pop("_new_fraction", None)
