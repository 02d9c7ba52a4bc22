"""Every metric against a slow reference: float64 loops over units and examples."""

import functools
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import tiered

from relu_study.components.activations import relu
from relu_study.components.interval_bounds import Interval, dense, through
from relu_study.components.metrics import metric as probes
from relu_study.components.metrics.metric import measure
from relu_study.components.metrics.metric import metric as new_metric
from relu_study.components.metrics.norms import norm
from relu_study.components.metrics.output_moments import moments
from relu_study.components.metrics.snapshot import SiteView, Snapshot
from relu_study.components.registry import activations
from relu_study.components.registry import metrics as registry
from relu_study.errors import UserError

KNOBS = {"leak": 0.01}
BOX = (-1.0, 0.0)
NAMES = [
    "always_on_fraction",
    "certified_always_on_fraction",
    "certified_dead_fraction",
    "collapsed",
    "constant",
    "dead_fraction",
    "dormant_fraction",
    "grad_norm",
    "nearly_dead_fraction",
    "post_mean",
    "post_std",
    "saturated_fraction",
    "train_loss",
    "update_norm",
    "val_loss",
    "weight_norm",
    "zero_gradient_fraction",
]

# ------------------------------------------------------------- the plain network that is measured


def predict(params, names, x):
    """Dense layers with a linear output: the prediction, and the pre and post of each site."""
    sites = []
    for (kernel, bias), name in zip(params, names, strict=False):
        pre = jnp.dot(x, kernel, precision="highest") + bias
        x = activations[name](pre, KNOBS)
        sites.append((pre, x))
    return jnp.dot(x, params[-1][0], precision="highest") + params[-1][1], sites


def snapshot(params, names, x, y, previous=None, box=BOX) -> Snapshot:
    """What the engine would show the probes of this network."""
    params = [(jnp.asarray(kernel), jnp.asarray(bias)) for kernel, bias in params]
    x, y = jnp.asarray(x), jnp.asarray(y)

    def mean_loss(params):
        prediction, sites = predict(params, names, x)
        return jnp.mean((prediction - y) ** 2), (prediction, sites)

    (value, (prediction, sites)), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
    steps = None if previous is None else jax.tree.map(jnp.subtract, params, previous)
    bound = None if box is None else Interval(jnp.full(x.shape[1], box[0]), jnp.full(x.shape[1], box[1]))
    views = []
    for i, (name, (pre, post)) in enumerate(zip(names, sites, strict=True)):
        phi = activations[name]
        pre_bound = None if bound is None else dense(bound, *params[i])
        bound = None if pre_bound is None else through(phi, pre_bound, KNOBS)
        views.append(
            SiteView(
                activation=phi,
                pre=pre,
                post=post,
                slope=phi.slope(pre, KNOBS),
                kernel=params[i][0],
                bias=params[i][1],
                kernel_grad=grads[i][0],
                bias_grad=grads[i][1],
                kernel_step=None if steps is None else steps[i][0],
                bias_step=None if steps is None else steps[i][1],
                bound=pre_bound,
                max_slope=phi.max_slope(KNOBS),
            )
        )
    return Snapshot(tuple(views), prediction, jnp.sum(jnp.var(y, axis=0)), value, jnp.asarray(0.5), params, grads, steps)


@functools.cache
def program(names, box=BOX, metrics=()):
    """The compiled program that measures such networks, as in the engine; `metrics`: names to compile it anew for."""
    options = {"xla_backend_optimization_level": 0}  # compiles in half the time
    return jax.jit(lambda *args: measure(snapshot(args[0], names, *args[1:], box)), compiler_options=options)


def measured(params, names, x, y, previous=None, box=BOX):
    """All metrics as floats and all masks as arrays."""
    values, masks = program(tuple(names), box, tuple(registry))(params, x, y, previous)
    return {k: float(v) for k, v in values.items()}, {k: np.asarray(v) for k, v in masks.items()}


# --------------------------------------------------------------------------- the slow reference

SELU = 1.0507009873554805, 1.6732632423543772
PHI = {  # value, slope, largest slope, flat pieces, identity piece, smooth
    "relu": (lambda z: max(z, 0.0), lambda z: float(z > 0), 1, [(-math.inf, 0)], (0, math.inf), False),
    "leaky_relu": (lambda z: z if z > 0 else 0.01 * z, lambda z: 1.0 if z > 0 else 0.01, 1, [], (0, math.inf), False),
    "hard_tanh": (
        lambda z: min(max(z, -1.0), 1.0), lambda z: float(-1 < z < 1), 1, [(-math.inf, -1), (1, math.inf)], (-1, 1), False,
    ),
    "linear": (lambda z: z, lambda z: 1.0, 1, [], (-math.inf, math.inf), False),
    "tanh": (math.tanh, lambda z: 1 / math.cosh(z) ** 2, 1, [], None, True),
    "sigmoid": (
        lambda z: 1 / (1 + math.exp(-z)), lambda z: 1 / (1 + math.exp(-z)) / (1 + math.exp(z)), 0.25, [], None, True,
    ),
    "selu": (
        lambda z: SELU[0] * (z if z > 0 else SELU[1] * math.expm1(z)),
        lambda z: SELU[0] * (1 if z > 0 else SELU[1] * math.exp(z)), SELU[0] * SELU[1], [], None, True,
    ),
}  # fmt: skip


def reference(params, names, x, y, previous=None, box=BOX):
    """Every metric of the network, unit by unit and example by example, in float64."""
    params = [(np.asarray(w, float), np.asarray(b, float)) for w, b in params]
    x, y = np.asarray(x, float), np.asarray(y, float)
    n, posts, pres, grads = len(x), [x], [], []
    for name, (w, b) in zip(names, params, strict=False):
        pre = np.array([[sum(row[d] * w[d, u] for d in range(len(w))) + b[u] for u in range(len(b))] for row in posts[-1]])
        pres.append(pre)
        posts.append(np.array([[PHI[name][0](z) for z in row] for row in pre]))
    prediction = posts[-1] @ params[-1][0] + params[-1][1]
    delta = 2 * (prediction - y) / y.size
    for i in reversed(range(len(params))):
        grads.insert(0, (posts[i].T @ delta, delta.sum(axis=0)))
        if i:
            slope = np.array([[PHI[names[i - 1]][1](z) for z in row] for row in pres[i - 1]])
            delta = (delta @ params[i][0].T) * slope

    units: dict[str, dict[str, list[bool]]] = {name: {} for name in NAMES if name.endswith("_fraction")}
    box_units = certified(params, names, box) if box else [(None, None)] * len(names)
    for i, name in enumerate(names):
        site, (_, slope_of, steepest, flat, identity, smooth) = f"site_{i + 1}", PHI[name]
        average = np.mean([np.mean([abs(posts[i + 1][e, u]) for e in range(n)]) for u in range(pres[i].shape[1])])
        rows: dict[str, list[bool]] = {}
        for u in range(pres[i].shape[1]):
            slopes = [slope_of(z) for z in pres[i][:, u]]
            lit = sum(s != 0 for s in slopes)
            rows.setdefault("dead_fraction", []).append(lit == 0)
            rows.setdefault("nearly_dead_fraction", []).append(0 < lit < 0.01 * n)
            rows.setdefault("dormant_fraction", []).append(np.mean(np.abs(posts[i + 1][:, u])) <= 0.025 * average)
            still = all(g == 0 for g in grads[i][0][:, u]) and grads[i][1][u] == 0
            rows.setdefault("zero_gradient_fraction", []).append(still)
            if smooth:
                rows.setdefault("saturated_fraction", []).append(all(s < 0.01 * steepest for s in slopes))
            elif identity:
                rows.setdefault("always_on_fraction", []).append(all(identity[0] <= z <= identity[1] for z in pres[i][:, u]))
        for metric, pieces, sure in zip(
            ("certified_dead_fraction", "certified_always_on_fraction"),
            (flat, [identity] if identity and not smooth else []),
            box_units[i],
            strict=True,
        ):
            if pieces and sure is not None:
                rows[metric] = sure
        for metric, flags in rows.items():
            units[metric][site] = flags

    def size(arrays):
        return math.sqrt(sum(float(v) ** 2 for a in arrays for v in np.ravel(a)))

    values = {f"{m}/all": np.mean([flag for flags in s.values() for flag in flags]) for m, s in units.items() if s}
    values |= {f"{m}/{site}": np.mean(flags) for m, s in units.items() for site, flags in s.items()}
    sites = {f"site_{i + 1}": i for i in range(len(names))}
    trees = {"grad_norm": grads, "weight_norm": params}
    if previous:
        trees["update_norm"] = [tuple(a - b for a, b in zip(*pair, strict=True)) for pair in zip(params, previous, strict=True)]
    for metric, tree in trees.items():
        values[f"{metric}/all"] = size(a for pair in tree for a in pair)
        values |= {f"{metric}/{site}": size(tree[i]) for site, i in sites.items()}
    everything = np.concatenate([np.ravel(p) for p in posts[1:]])
    for site, post in (("all", everything), *((s, posts[i + 1]) for s, i in sites.items())):
        values |= {f"post_mean/{site}": np.mean(post), f"post_std/{site}": np.std(post)}
    values["train_loss/all"] = np.mean((prediction - y) ** 2)
    values["val_loss/all"] = 0.5
    values["collapsed/all"] = float(any(all(flags) for flags in units["dead_fraction"].values()))
    values["constant/all"] = float(sum(np.var(prediction, axis=0)) <= 1e-4 * sum(np.var(y, axis=0)))
    kept = ("dead", "certified_dead")
    return values, {f"{kind}:{site}": flags for kind in kept for site, flags in units[f"{kind}_fraction"].items()}


def certified(params, names, box):
    """Per site, whether each unit's pre is inside a flat piece, and inside the identity piece, on the whole box; in float64."""
    lo, hi = (np.full(len(params[0][0]), float(end)) for end in box)
    found = []
    for name, (w, b) in zip(names, params, strict=False):
        low = np.array([b[u] + sum(min(w[d, u] * lo[d], w[d, u] * hi[d]) for d in range(len(w))) for u in range(len(b))])
        high = np.array([b[u] + sum(max(w[d, u] * lo[d], w[d, u] * hi[d]) for d in range(len(w))) for u in range(len(b))])
        value, _, _, flat, identity, _ = PHI[name]
        dead = [any(p <= a and c <= q for p, q in flat) for a, c in zip(low, high, strict=True)]
        on = [identity is not None and identity[0] <= a and c <= identity[1] for a, c in zip(low, high, strict=True)]
        found.append((dead, on))
        lo, hi = np.array([value(z) for z in low]), np.array([value(z) for z in high])
    return found


def random_net(sizes, seed, scale=0.7, bias=0.2):
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(0, scale, (i, o)).astype(np.float32), rng.normal(0, bias, o).astype(np.float32))
        for i, o in itertools.pairwise(sizes)
    ]


def data(n=150, d=4, outputs=1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 0, (n, d)).astype(np.float32), rng.normal(size=(n, outputs)).astype(np.float32)


def assert_agree(got, wanted):
    values, masks = got
    expected, flags = wanted
    assert set(expected) <= set(values)
    for key, value in values.items():
        if key in expected:
            assert value == pytest.approx(expected[key], rel=1e-4, abs=1e-6), key
        else:
            assert math.isnan(value), key
    assert set(masks) == set(flags)
    for key, mask in masks.items():
        assert mask.dtype == bool and mask.tolist() == [bool(f) for f in flags[key]], key


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


# ------------------------------------------------------------------------------- constructed units


def layer(*units):
    """A dense layer from (weights, bias) of each unit."""
    return np.array([w for w, _ in units], np.float32).T, np.array([b for _, b in units], np.float32)


DEAD, ON, MIXED = ([1, 1, 1, 1], 0.0), ([-1, -1, -1, -1], 0.0), ([1, -1, 1, -1], 0.0)


def summing(units):
    """An output layer that adds the units up."""
    return np.ones((units, 1), np.float32), np.zeros(1, np.float32)


OUT = summing(3)


def read(metric, activation="relu", **fields):
    """What a probe of units says of a site of which only these fields are known."""
    blank = SiteView(activations[activation], *[None] * (len(SiteView._fields) - 1))
    mask = registry[metric].function(blank._replace(**{name: jnp.asarray(value) for name, value in fields.items()}))
    return np.asarray(mask).tolist()


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
    bound = Interval(jnp.array([-9.0, 1.0, -2.0, -1.0, -9.0]), jnp.array([-1.0, 9.0, 2.0, 1.0, -0.999]))
    for metric, wanted in (("certified_dead", [1, 1, 0, 0, 0]), ("certified_always_on", [0, 0, 0, 1, 0])):
        site = SiteView(activations["hard_tanh"], *[None] * 9, bound, None)
        assert np.asarray(registry[f"{metric}_fraction"].function(site)).tolist() == [bool(w) for w in wanted]


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
def test_gradient_is_zero_only_where_all_of_it_is(bias_grad):
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


@pytest.mark.parametrize(("spread", "wanted"), [(0.0, True), (0.0099, True), (0.0101, False), (1.0, False)])
def test_constant_is_a_variance_of_at_most_one_ten_thousandth(spread, wanted):
    """Targets of variance 2 in all; the prediction has `spread` of their amplitude in each of two outputs, far from 0."""
    sign = np.tile(np.float32([-1.0, 1.0]), 50)[:, None]
    shot = Snapshot((), jnp.asarray(spread * sign + np.float32([7, -3])), jnp.asarray(2.0), *[None] * 5)
    assert bool(registry["constant"].function(shot)) is wanted
    one_only = shot._replace(prediction=shot.prediction.at[:, 0].set(0.1))
    assert bool(registry["constant"].function(one_only)) is (spread < 0.0141)


def test_identical_predictions_are_constant_despite_rounding():
    """150 equal predictions, of one output each time: XLA contracts the variance of some to 1e-17 above 0."""
    values = np.random.default_rng(0).normal(scale=100, size=(40, 1, 1)).astype(np.float32)
    same = jnp.asarray(np.tile(values, (1, 150, 1)))
    variance = jax.jit(jax.vmap(lambda prediction: moments(prediction, axis=0)[1]))(same)
    assert float(variance.max()) > 0  # or this test would be empty
    shot = Snapshot((), None, jnp.asarray(0.0), *[None] * 5)
    assert jax.jit(jax.vmap(lambda prediction: registry["constant"].function(shot._replace(prediction=prediction))))(same).all()


def test_bypassed_dead_site_is_no_collapse():
    off = SiteView(relu, *[None] * 11)._replace(slope=jnp.zeros((50, 3)))
    shot = Snapshot((off,), jnp.linspace(0.0, 1.0, 50)[:, None], jnp.asarray(1.0), *[None] * 5)
    assert not registry["collapsed"].function(shot)
    assert registry["collapsed"].function(shot._replace(prediction=jnp.full((50, 1), 0.3)))
    alive = shot._replace(sites=(off._replace(slope=jnp.ones((50, 3))),), prediction=jnp.full((50, 1), 0.3))
    assert registry["constant"].function(alive) and not registry["collapsed"].function(alive)


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


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), depth=st.integers(1, 4), exponent=st.integers(-12, 12))
def test_certified_is_always_a_subset(seed, depth, exponent):
    params = random_net([4, *[9] * depth, 1], seed, scale=10.0**exponent, bias=10.0**exponent * (seed % 3))
    values, masks = measured(params, ["relu"] * depth, *data(seed=1), params)
    for site in range(1, depth + 1):
        assert np.all(masks[f"dead:site_{site}"] | ~masks[f"certified_dead:site_{site}"])
        assert values[f"certified_always_on_fraction/site_{site}"] <= values[f"always_on_fraction/site_{site}"]


# --------------------------------------------------------------------------- the exact facts


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


# ------------------------------------------------------------------------------------ arithmetic


@pytest.mark.parametrize(("offset", "spread"), [(0.0, 1.0), (1e3, 1e-2), (1e5, 1.0), (-7.0, 1e-4)])
def test_moments_of_values_far_from_zero(offset, spread):
    values = (offset + spread * np.random.default_rng(0).normal(size=(8192, 32))).astype(np.float32)
    mean, variance = (float(m) for m in jax.jit(moments)(values))
    exact = values.mean(dtype=float)
    assert abs(mean - exact) <= max(np.spacing(np.float32(abs(exact))), 1e-7 * spread)  # the last bit
    assert math.sqrt(variance) == pytest.approx(values.std(dtype=float), rel=1e-4)


def test_moments_of_equal_values_and_of_sites_far_apart():
    assert float(jax.jit(moments)(jnp.full((8192, 32), 0.1))[1]) < 1e-16
    rng = np.random.default_rng(0)
    posts = [rng.normal(mean, spread, (500, units)).astype(np.float32) for mean, spread, units in ((1e3, 0.1, 3), (-2, 0.01, 5))]
    view = SiteView(relu, *[None] * 11)
    shot = Snapshot(tuple(view._replace(post=jnp.asarray(post)) for post in posts), *[None] * 7)
    together = np.concatenate([np.ravel(post) for post in posts]).astype(float)
    for site, post in (("site_1", posts[0].astype(float)), ("site_2", posts[1].astype(float)), ("all", together)):
        assert float(registry["post_mean"].function(shot)[site]) == pytest.approx(post.mean(), rel=1e-6)
        assert float(registry["post_std"].function(shot)[site]) == pytest.approx(post.std(), rel=1e-5)


def test_norms_of_tiny_and_huge_vectors():
    for scale in (1e-36, 1e-30, 1.0, 1e30):
        tree = {"a": jnp.full((3, 4), scale), "b": (jnp.full(4, -scale),)}
        assert float(norm(tree)) == pytest.approx(4 * scale, rel=1e-6)
    assert float(norm([jnp.zeros(3)])) == 0 and float(norm([])) == 0 and float(norm([jnp.zeros((0, 3))])) == 0
    assert math.isnan(float(norm([jnp.array([1.0, jnp.nan])]))) and float(norm([jnp.array([1.0, -jnp.inf])])) == math.inf


def test_network_that_went_nonfinite_still_measures():
    x, y = data()
    values, masks = measured([(np.full((4, 3), np.nan, np.float32), OUT[1].repeat(3)), OUT], ["relu"], x, y)
    assert math.isnan(values["train_loss/all"]) and math.isnan(values["grad_norm/all"])
    assert not masks["certified_dead:site_1"].any()


def test_vmapped_measurement_equals_single_measurement():
    x, y = data()
    nets = [random_net([4, 6, 5, 1], seed) for seed in range(5)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *nets)
    many, masks = jax.jit(jax.vmap(lambda params: measure(snapshot(params, ["relu", "tanh"], x, y))))(stacked)
    for i, net in enumerate(nets):
        alone, flags = measured(net, ["relu", "tanh"], x, y)
        for key, value in alone.items():
            assert float(many[key][i]) == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), key
        assert all(np.array_equal(np.asarray(masks[key])[i], flag) for key, flag in flags.items())


# -------------------------------------------------------------------------------- the declaration


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
        (dict(per="unit", unit="1", requires=("slop",)), "required field of metric _new 'slop'; did you mean slope"),
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
