"""Snapshots of small networks, and a slow reference of every metric in float64 loops over units and examples."""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relu_study.components.interval_bounds import Interval, dense, through
from relu_study.components.metrics.metric import measure
from relu_study.components.metrics.snapshot import SiteView, Snapshot
from relu_study.components.registry import activations
from relu_study.components.registry import metrics as registry

HPARAMS = {"leak": 0.01}
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


def predict(params, names, x):
    """Return the prediction of dense layers with a linear output, and the pre and post of each site."""
    sites = []
    for (kernel, bias), name in zip(params, names, strict=False):
        pre = jnp.dot(x, kernel, precision="highest") + bias
        x = activations[name](pre, HPARAMS)
        sites.append((pre, x))
    return jnp.dot(x, params[-1][0], precision="highest") + params[-1][1], sites


def snapshot(params, names, x, y, previous=None, box=BOX) -> Snapshot:
    """Return the snapshot that the engine would take of this network."""
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
        bound = None if pre_bound is None else through(phi, pre_bound, HPARAMS)
        views.append(
            SiteView(
                activation=phi,
                pre=pre,
                post=post,
                slope=phi.slope(pre, HPARAMS),
                kernel=params[i][0],
                bias=params[i][1],
                kernel_grad=grads[i][0],
                bias_grad=grads[i][1],
                kernel_step=None if steps is None else steps[i][0],
                bias_step=None if steps is None else steps[i][1],
                bound=pre_bound,
                max_slope=phi.max_slope(HPARAMS),
            )
        )
    return Snapshot(tuple(views), prediction, jnp.sum(jnp.var(y, axis=0)), value, jnp.asarray(0.5), params, grads, steps)


def split(tree):
    """Return the arrays among the leaves, and all else in a hashable form, for `join`."""
    leaves, structure = jax.tree.flatten(tree)
    arrays = [leaf for leaf in leaves if isinstance(leaf, np.ndarray | jax.Array)]
    return arrays, (structure, tuple(None if isinstance(leaf, np.ndarray | jax.Array) else leaf for leaf in leaves))


def join(arrays, form):
    """Return the tree of the arrays and the form from `split`."""
    rest, (structure, fixed) = iter(arrays), form
    return structure.unflatten([next(rest) if leaf is None else leaf for leaf in fixed])


def compiled_snapshot(params, names, x, y, previous=None):
    """Return the snapshot of concrete arrays, computed by one program. Outside a program each operation is compiled."""
    forms = []

    def of(*args):
        arrays, form = split(snapshot(args[0], names, *args[1:]))
        forms.append(form)
        return arrays

    return join(jax.jit(of, compiler_options={"xla_backend_optimization_level": 0})(params, x, y, previous), forms[0])


@functools.cache
def snapshot_program(form, names):
    """Return the compiled program of the metrics of all snapshots of a form."""
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(lambda arrays: measure(join(arrays, form), names), compiler_options=options)


def measured_snapshot(shot, names):
    """Return the metrics and the masks of a snapshot of concrete arrays."""
    arrays, form = split(shot)
    return snapshot_program(form, names)(arrays)


@functools.cache
def program(names, box=BOX, metrics=()):
    """Return the compiled program that measures such networks, as in the engine.

    `metrics` contains the registered names. It is part of the cache key, so the program is compiled again after a change.
    """
    options = {"xla_backend_optimization_level": 0}  # halves the compile time
    return jax.jit(lambda *args: measure(snapshot(args[0], names, *args[1:], box)), compiler_options=options)


def measured(params, names, x, y, previous=None, box=BOX):
    """Return all metrics as floats and all masks as arrays."""
    values, masks = program(tuple(names), box, tuple(registry))(params, x, y, previous)
    return {k: float(v) for k, v in values.items()}, {k: np.asarray(v) for k, v in masks.items()}


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
    """Return every metric and mask of the network, unit by unit and example by example, in float64."""
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
    """Return, per site, whether the pre of each unit stays inside a flat piece, and inside the identity piece.

    The bounds hold for all inputs in the box and are computed in float64.
    """
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


def layer(*units):
    """Return a dense layer from the (weights, bias) of each unit."""
    return np.array([w for w, _ in units], np.float32).T, np.array([b for _, b in units], np.float32)


DEAD, ON, MIXED = ([1, 1, 1, 1], 0.0), ([-1, -1, -1, -1], 0.0), ([1, -1, 1, -1], 0.0)


def summing(units):
    """Return an output layer that sums the units."""
    return np.ones((units, 1), np.float32), np.zeros(1, np.float32)


OUT = summing(3)


def read(metric, activation="relu", **fields):
    """Return the mask of a unit metric at a site with only these fields."""
    blank = SiteView(activations[activation], *[None] * (len(SiteView._fields) - 1))
    mask = registry[metric].function(blank._replace(**{name: jnp.asarray(value) for name, value in fields.items()}))
    return np.asarray(mask).tolist()
