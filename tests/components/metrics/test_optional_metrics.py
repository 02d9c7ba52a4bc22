"""Optional metrics against slow loops over single entries, and hand-computed cases."""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax_networks import IMAGES, registered
from metric_reference import (
    DEAD,
    HPARAMS,
    MIXED,
    NAMES,
    ON,
    OUT,
    compiled_snapshot,
    data,
    layer,
    measured_snapshot,
    random_net,
    read,
    snapshot,
    summing,
)
from paths import ROOT

from relu_study import inspect
from relu_study.components import random_streams
from relu_study.components.metrics.metric import declared, default_metrics, measure, metric
from relu_study.components.metrics.output_entries import percentile, size_counts
from relu_study.components.metrics.snapshot import SiteView, Snapshot
from relu_study.components.networks import network_of
from relu_study.components.registry import activations, tasks
from relu_study.components.registry import metrics as registry
from relu_study.engine import train_tile
from relu_study.engine.forward import network_spec
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.study.run_spec import RunSpec

OPTIONAL = (
    "grad_max_abs",
    "grad_mean_abs",
    "grad_ratio",
    "post_p95",
    "quiet_fraction",
    "silent_fraction",
    "update_ratio",
    "zero_entries",
    "zero_gradients",
)
RELATIVE = {"rel": 1e-5, "abs": 1e-12}


def f32(values: Any) -> Any:
    return np.array(values, np.float32)


def taken(shot: Snapshot) -> dict[str, float]:
    """Every optional metric of a snapshot."""
    values, masks = measured_snapshot(shot, OPTIONAL)
    assert not masks
    return {name: float(value) for name, value in values.items()}


def entries_of(arrays: Any) -> list[float]:
    return [float(value) for array in jax.tree.leaves(arrays) for value in np.ravel(np.asarray(array, float))]


def nearest_rank(values: list[float], percent: int) -> float:
    """The smallest value that at least `percent` % of the values do not exceed."""
    return min(v for v in values if 100 * sum(other <= v for other in values) >= percent * len(values))


def slow_unit_masks(site: SiteView) -> dict[str, list[bool]]:
    post, units = np.asarray(site.post), site.pre.shape[1]
    columns = {u: [post[:, c] for c in range(post.shape[1]) if c % units == u] for u in range(units)}
    quiet = [all(sum(abs(v) < np.float32(1e-5) for v in c) >= 0.95 * len(c) for c in columns[u]) for u in range(units)]
    silent = [all(v == 0 for c in columns[u] for v in c) for u in range(units)]
    return {"quiet_fraction": quiet, "silent_fraction": silent}


def slow(shot: Snapshot) -> dict[str, float]:
    """Every optional metric, entry by entry. `post_p95` is the percentile itself, without an error."""
    sites = shot.named()
    found: dict[str, float] = {}
    masks = {name: slow_unit_masks(site) for name, site in sites.items()}
    for kind in ("quiet_fraction", "silent_fraction"):
        flags = {name: mask[kind] for name, mask in masks.items()}
        flags["all"] = [flag for of_site in flags.values() for flag in of_site]
        found |= {f"{kind}/{name}": sum(of_site) / len(of_site) for name, of_site in flags.items()}
    posts = {name: entries_of(site.post) for name, site in sites.items()}
    posts["all"] = [value for of_site in posts.values() for value in of_site]
    grads = {name: entries_of((site.kernel_grad, site.bias_grad)) for name, site in sites.items()}
    grads["all"] = entries_of(shot.grads)
    for name, values in posts.items():
        found[f"zero_entries/{name}"] = sum(v == 0 for v in values) / len(values)
        found[f"post_p95/{name}"] = nearest_rank([abs(v) for v in values], 95)
    for name, values in grads.items():
        found[f"zero_gradients/{name}"] = sum(v == 0 for v in values) / len(values)
        found[f"grad_mean_abs/{name}"] = sum(abs(v) for v in values) / len(values)
        found[f"grad_max_abs/{name}"] = max(abs(v) for v in values)
    last = found[f"grad_mean_abs/site_{len(sites)}"]
    found["grad_ratio/all"] = found["grad_mean_abs/site_1"] / last if last else math.nan
    trees = {name: ((site.kernel_step, site.bias_step), (site.kernel, site.bias)) for name, site in sites.items()}
    for name, (steps, params) in {**trees, "all": (shot.steps, shot.params)}.items():
        size = [math.sqrt(sum(v * v for v in entries_of(tree))) for tree in (steps, params)]
        found[f"update_ratio/{name}"] = size[0] / size[1] if steps and jax.tree.leaves(steps) else math.nan
    return found


def assert_as_slow(shot: Snapshot) -> dict[str, float]:
    values, wanted = taken(shot), slow(shot)
    assert set(values) == set(wanted)
    for name, value in values.items():
        if name.startswith("post_p95/"):
            assert wanted[name] <= value <= 1.125 * wanted[name], name
        else:
            assert value == pytest.approx(wanted[name], nan_ok=True, **RELATIVE), name
    return values


NETS = {
    "one site": ([4, 9, 1], ["relu"]),
    "three sites": ([4, 9, 8, 7, 2], ["relu", "tanh", "leaky_relu"]),
    "crelu": ([4, 5, 1], ["crelu"]),
}


def net(sizes: list[int], names: list[str], seed: int) -> Any:
    params = random_net(sizes, seed)
    wide = [np.tile(kernel, (activations[name].fanout, 1)) for name, (kernel, _) in zip(names, params[1:], strict=True)]
    return [params[0], *((kernel, bias) for kernel, (_, bias) in zip(wide, params[1:], strict=True))]


@pytest.mark.parametrize("name", NETS)
def test_random_networks_agree_with_the_loops(name: str) -> None:
    sizes, names = NETS[name]
    x, y = data(n=60, outputs=sizes[-1])
    for seed in (0, 1):
        shot = compiled_snapshot(net(sizes, names, seed), names, x, y, net(sizes, names, seed + 50))
        values = assert_as_slow(shot)
    assert 0 < values["zero_entries/all"] < 1 and values["update_ratio/all"] > 0 and values["grad_max_abs/all"] > 0
    assert name == "three sites" or values["grad_ratio/all"] == 1


def test_a_dead_an_always_on_and_a_mixed_unit_by_hand() -> None:
    """x = (-1, 0, 0, 0) and (0, -1, 0, 0); the units put out (0, 0), (1, 1) and (0, 1). Their sum misses y = 0 by 1 and 2."""
    x, y = f32([[-1, 0, 0, 0], [0, -1, 0, 0]]), np.zeros((2, 1), np.float32)
    params = [layer(DEAD, ON, MIXED), OUT]
    moved = [(params[0][0] - np.float32(0.5), params[0][1]), OUT]
    values = assert_as_slow(compiled_snapshot(params, ["relu"], x, y, moved))
    assert values["zero_entries/site_1"] == values["zero_entries/all"] == 0.5
    assert values["silent_fraction/site_1"] == values["quiet_fraction/all"] == pytest.approx(1 / 3)
    assert values["post_p95/site_1"] == 1  # an end of a bin is exact
    # The gradient of the output is (1, 2): ON has kernel (-1, -2, 0, 0) and bias 3, MIXED has kernel (0, -2, 0, 0) and bias 2.
    assert values["zero_gradients/site_1"] == pytest.approx(10 / 15)
    assert values["grad_mean_abs/site_1"] == pytest.approx(10 / 15) and values["grad_max_abs/site_1"] == 3
    # The output layer has kernel (0, 3, 2) and bias 3.
    assert values["zero_gradients/all"] == pytest.approx(11 / 19) and values["grad_mean_abs/all"] == pytest.approx(18 / 19)
    assert values["update_ratio/site_1"] == pytest.approx(0.5)
    assert values["update_ratio/all"] == pytest.approx(math.sqrt(3 / 15))


def test_crelu_unit_counts_only_if_both_outputs_do() -> None:
    post = f32([[0, 0, 1, 0, 2, 0], [0, 1, 0, 0, 0, 0]])  # units (0, 3), (1, 4), (2, 5)
    assert read("silent_fraction", "crelu", pre=np.zeros((2, 3)), post=post) == [True, False, False]
    assert read("quiet_fraction", "crelu", pre=np.zeros((2, 3)), post=post) == [True, False, False]


@pytest.mark.parametrize(("examples", "loud", "quiet"), [(20, 1, True), (20, 2, False), (19, 1, False), (19, 0, True)])
def test_quiet_is_below_the_threshold_on_95_percent(examples: int, loud: int, quiet: bool) -> None:
    below = np.nextafter(np.float32(1e-5), np.float32(0))
    post = np.full((examples, 2), below, np.float32)
    post[:loud, 0] = np.float32(-1e-5)  # at the threshold: not below it
    assert read("quiet_fraction", pre=post, post=post) == [quiet, True]
    post[0] = np.nan
    assert read("quiet_fraction", pre=post, post=post) == [quiet and loud > 0, examples >= 20]
    assert read("silent_fraction", pre=post, post=0 * np.nan_to_num(post)) == [True, True]


def test_silent_units_of_a_relu_are_the_dead_ones() -> None:
    x, y = data()
    for seed in range(5):
        params = random_net([4, 12, 9, 1], seed, bias=1.0)
        shot = compiled_snapshot(params, ["relu", "relu"], x, y)
        values, dead = taken(shot), registry["dead_fraction"].read(shot)
        assert all(values[f"silent_fraction/{site}"] == float(share) for site, share in dead.items())


SIZES = [0.0, -0.0, 1e-45, 1e-30, 3e-8, 0.1, 1.0, 1.125, 1.2, -7.9, 300.0, 1e30, 3.4e38, math.inf]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_percentile_is_less_than_an_eighth_too_large_at_every_scale(dtype: Any) -> None:
    rng, info = np.random.default_rng(0), np.finfo(dtype)
    with jax.enable_x64(dtype is np.float64):
        of = jax.jit(lambda values: percentile(size_counts(values), values.size, 95, values.dtype))
        for scale in np.geomspace(float(info.tiny) * 1e6, float(info.max) / 1e6, 15):
            values = (scale * rng.standard_t(2, 5000)).astype(dtype)
            values[: rng.integers(4900)] = 0
            exact, found = np.quantile(np.abs(values), 0.95, method="inverted_cdf"), float(of(values))
            assert exact <= found < 1.125 * float(exact) or found == exact == 0
            assert float(of(2 * values)) == 2 * found  # the bins are the same in each power of two
        ends = np.array([1, 1.125, 1.5, 2, 0.25, 0], dtype)
        assert [float(of(np.full(4, end))) for end in ends] == ends.tolist()
        assert float(of(np.full(4, 1.1875, dtype))) == 1.25


def test_percentile_of_few_values_zeros_infinity_and_nan() -> None:
    of = jax.jit(lambda values: percentile(size_counts(values), values.size, 95, values.dtype))
    assert float(of(f32([0] * 19 + [5]))) == 0 and float(of(f32([0] * 18 + [5, -5]))) == 5
    assert float(of(f32([-3]))) == 3 and float(of(f32([1.0, math.inf]))) == math.inf
    assert math.isnan(float(of(f32([1, math.nan])))) and float(of(f32([1] * 19 + [math.nan]))) == 1
    counts = np.asarray(jax.jit(size_counts)(f32(SIZES)))
    assert counts.sum() == len(SIZES) and counts[-1] == 2, "above 15/8 of the largest power of two the end of a bin is infinity"


def blank(**fields: Any) -> Snapshot:
    return Snapshot(*[None] * len(Snapshot._fields))._replace(**({"sites": ()} | fields))  # type: ignore[arg-type]


def site(**fields: Any) -> SiteView:
    return SiteView(activations["relu"], *[None] * (len(SiteView._fields) - 1))._replace(**fields)  # type: ignore[arg-type]


def test_convolution_sites_count_positions_as_examples() -> None:
    """A kernel of 3 x 3 x 2 x 4 and no bias; post has 5 examples with 16 positions."""
    rng = np.random.default_rng(0)
    kernel, grad = (rng.normal(size=(3, 3, 2, 4)).astype(np.float32) for _ in range(2))
    grad[:, :, 0, 1] = 0
    post = np.maximum(rng.normal(size=(80, 4)), 0).astype(np.float32)
    post[:, 2] = 0
    view = site(pre=post, post=post, kernel=kernel, kernel_grad=grad, kernel_step=0.01 * kernel)
    head = np.ones(3, np.float32)
    values = assert_as_slow(blank(sites=(view,), params=[kernel, head], grads=[grad, head], steps=[0.01 * kernel, 0 * head]))
    assert values["silent_fraction/site_1"] == 0.25 and values["zero_gradients/site_1"] == pytest.approx(9 / 72)
    assert values["update_ratio/site_1"] == pytest.approx(0.01)


def test_undefined_values_are_empty() -> None:
    """A site without a kernel, a network without sites or gradients, weights and gradients of 0, no step yet."""
    post = np.ones((3, 2), np.float32)
    bare, fed = site(pre=post, post=post), site(pre=post, post=post, kernel=0 * post, kernel_grad=0 * post, kernel_step=post)
    values = taken(blank(sites=(bare, fed), params=[0 * post], grads=[0 * post], steps=[post]))
    empty = {name for name, value in values.items() if math.isnan(value)}
    of_gradients = {f"{name}/site_1" for name in ("grad_max_abs", "grad_mean_abs", "zero_gradients", "update_ratio")}
    assert empty == {*of_gradients, "update_ratio/site_2", "update_ratio/all", "grad_ratio/all"}
    assert values["zero_gradients/site_2"] == 1 and values["grad_max_abs/site_2"] == 0
    without = taken(blank(sites=(bare,), params=[post]))
    kinds = {name.partition("/")[0] for name, value in without.items() if not math.isnan(value)}
    assert kinds == {"post_p95", "quiet_fraction", "silent_fraction", "zero_entries"}
    none = taken(blank(params=[post], grads=[post], steps=[post]))
    assert {name for name, value in none.items() if not math.isnan(value)} == {
        "grad_max_abs/all", "grad_mean_abs/all", "zero_gradients/all", "update_ratio/all",
    }  # fmt: skip


@pytest.mark.parametrize("scale", [1e-36, 1.0, 1e36])
def test_gradients_keep_their_scale_without_overflow(scale: float) -> None:
    grad = f32(scale) * f32([[1, -2, 3, 0]] * 1000)
    first = site(pre=grad, post=grad, kernel=grad, kernel_grad=grad)
    last = first._replace(kernel_grad=2 * grad)
    values = taken(blank(sites=(first, last), grads=[grad, grad]))
    assert values["grad_mean_abs/site_1"] == pytest.approx(1.5 * scale, rel=1e-6, abs=0)
    assert values["grad_max_abs/all"] == pytest.approx(3 * scale, rel=1e-6, abs=0)
    assert values["grad_ratio/all"] == pytest.approx(0.5) and values["zero_gradients/all"] == 0.25


def test_counts_of_more_entries_than_float32_can_count() -> None:
    """2^24 + 2^23 zeros. A sum of ones in float32 would stop at 2^24."""
    post = jnp.zeros((2**13, 3 * 2**10), jnp.int8)
    assert float(jax.jit(lambda: registry["zero_entries"].function(blank(sites=(site(post=post),)))["site_1"])()) == 1


# ------------------------------------------------------------------------------------------- in the engine


def test_optional_metrics_of_a_tile_are_empty_before_training_only_where_they_read_updates() -> None:
    runs = [RunSpec(rows=300, batch_size=30, width=6, depth=2, epochs=2, initializer="he_normal", seed=seed) for seed in (0, 1)]
    chosen = MeasureConfig(100, 50, histograms=False, metrics=(*OPTIONAL, "update_norm", "weight_norm"))
    tile = train_tile.train_tile(runs, 2, measure_config=chosen)
    for site_name in ("all", "site_1", "site_2"):
        ratio, update, weight = (tile[f"metric:{name}/{site_name}"] for name in ("update_ratio", "update_norm", "weight_norm"))
        assert np.isnan(ratio[:, 0]).all() and np.isnan(update[:, 0]).all()
        np.testing.assert_allclose(ratio[:, 1:], update[:, 1:] / weight[:, 1:], rtol=1e-6)
    others = [tile[f"metric:{name}/all"] for name in OPTIONAL if name != "update_ratio"]
    assert all(np.isfinite(values).all() for values in others)


@pytest.mark.parametrize("activation", ["relu", "crelu"])
def test_flax_network_agrees_with_its_inspection(activation: str) -> None:
    with registered():
        spec = IMAGES.replace(network="cnn", activation=activation, epochs=0, width=4)
        config = MeasureConfig(16, 8, histograms=False, metrics=(*OPTIONAL, "dead_fraction"))
        begun = train_tile.init_tile([spec], jax.devices()[0], config)
        tile = train_tile.train_tile([spec], 1, measure_config=config)
        task = tasks[spec.task](spec)
        model = network_of(spec)(network_spec(spec), task.signature.inputs, task.signature.outputs, nnx.Rngs(0))
        nnx.update(model, jax.tree.map(lambda leaf: leaf[0], begun.state.params))
        x = np.asarray(task.sample(random_streams.stream(0, "data", 0), 0)[0])[:16]
        found = inspect(model, x).sites
    assert len(found) >= 2
    for number, zeros in enumerate(found.zero_entries, 1):
        assert tile[f"metric:zero_entries/site_{number}"][0, 0] == pytest.approx(zeros, abs=1e-6)
        assert 0 < tile[f"metric:grad_mean_abs/site_{number}"][0, 0] <= tile[f"metric:grad_max_abs/site_{number}"][0, 0]
        if activation == "relu":
            assert tile[f"metric:silent_fraction/site_{number}"] == tile[f"metric:dead_fraction/site_{number}"]
    assert (0 < tile["metric:zero_gradients/all"][0, 0] < 1) == (activation == "relu")  # a crelu passes every example on
    assert tile["metric:post_p95/all"][0, 0] > 0


# ------------------------------------------------------------------------------------------- declaration


def test_optional_metrics_are_registered_and_measured_only_by_name() -> None:
    assert [name for name in registry if not registry[name].default] == list(OPTIONAL)
    assert default_metrics() == tuple(NAMES) == tuple(declared())
    assert list(declared((*OPTIONAL, "dead_fraction"))) == sorted([*OPTIONAL, "dead_fraction"])
    x, y = data(n=20)
    params = [layer(DEAD, ON, MIXED), summing(3)]
    shapes = jax.eval_shape(lambda: measure(snapshot(params, ["relu"], x, y))[0])
    assert {name.partition("/")[0] for name in shapes} == set(NAMES) and HPARAMS["leak"]


@pytest.mark.parametrize("name", OPTIONAL)
def test_each_declares_text_unit_range_direction_and_source(name: str) -> None:
    about = declared((name,))[name]
    assert about["text"] and about["unit"] and about["low"] == 0 and about["source"]
    assert about["direction"] == ("lower" if name.endswith("_fraction") else "none")
    assert (about["high"] == 1) == (about["unit"] == "fraction")


def test_documentation_lists_every_optional_metric() -> None:
    page = (ROOT / "docs" / "concepts.md").read_text().partition("## Optional metrics")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == list(OPTIONAL)


def test_name_of_all_default_metrics_is_reserved() -> None:
    with pytest.raises(UserError, match="'default' stands for all default metrics"):
        metric("default", per="network", unit="1")
