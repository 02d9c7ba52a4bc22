"""What a tile says of its networks, against plain NumPy in float64: every metric, site by site, every mask, unit by unit.

The tests of the probes build their own snapshot. Here the engine does, with its sites, the layers that feed them, the bounds
over the task's box, the probe set and the packing of masks; and what holds exactly at the start is asked of it too.
"""

from __future__ import annotations

from functools import cache
from math import inf
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from tiers import tiered

from relu_study.components import random_streams
from relu_study.components.metrics.metric import default_metrics
from relu_study.components.registry import tasks
from relu_study.engine import train_tile
from relu_study.engine.state import MeasureConfig
from relu_study.study.run_spec import RunSpec

TRAIN, PROBE, VAL = 420, 300, 100  # of 600 rows: looked at are fewer than there are, for training and for validation
BOX = {"raw": (-1.0, 0.0), "centred": (-0.5, 0.5)}
FLAT, IDENTITY = {"relu": (-inf, 0)}, {"relu": (0, inf), "leaky_relu": (0, inf)}
STEEPEST = {"tanh": 1, "selu": reference.LAMBDA * reference.ALPHA}  # smooth ones only: their units saturate

BASE = RunSpec(rows=600, width=12, batch_size=140, initializer="he_normal", epochs=1, learning_rate=0.03)
OTHER = {"inputs": "centred", "target": "sum"}
# What the runs of a tile share, and where they differ. Every tile more is some seconds of compiling: each is of several kinds.
NETS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "relu": (
        {"depth": 3},
        [
            {},
            {"initializer": "negative_uniform"},
            OTHER | {"bias_shift": -0.7},
            {"bias_shift": 0.3, "weight_decay": 0.1},
            {"gain": 0.05},
        ],
    ),
    "leaky_relu": (
        {"depth": 4, "activation": "leaky_relu", "output": "selu", "dropout": "dropout", "epochs": 0},
        [{"leak": 0.1, "dropout_rate": 0.25}, OTHER | {"leak": 0.3, "dropout_rate": 0.5}],
    ),
    "tanh": (
        {"depth": 2, "activation": "tanh", "output": "relu", "norm": "batch_norm", "optimizer": "sgd", "batch_size": 20},
        [{}, OTHER | {"bias_shift": 4.0}],
    ),
    "crelu": (
        {"activation": "crelu", "norm": "layer_norm", "dropout": "alpha_dropout", "epochs": 0},
        [{}, OTHER | {"dropout_rate": 0.2}],
    ),
}
RUNS = {name: [BASE.replace(**shared | own, seed=s) for s, own in enumerate(each, 1)] for name, (shared, each) in NETS.items()}

Arrays = dict[str, np.ndarray]


@cache
def trained(name: str, epochs: float) -> Arrays:
    runs = [spec.replace(epochs=epochs) for spec in RUNS[name]]
    return train_tile.train_tile(runs, len(runs), measure_config=MeasureConfig(PROBE, VAL), keep_params=True)


def unpacked(tile: Arrays) -> Arrays:
    """The masks of a tile, (run, epoch, unit); it holds eight units a byte."""
    masks = {name: bits for name, bits in tile.items() if name.startswith(("dead:", "certified_dead:"))}
    return {k: np.unpackbits(v, axis=-1)[..., : tile[f"units:{k.partition(':')[2]}"]].astype(bool) for k, v in masks.items()}


def kept(tile: Arrays, run: int) -> Arrays:
    """The last parameters of a run."""
    return {name.removeprefix("param:"): np.float64(value[run]) for name, value in tile.items() if name.startswith("param:")}


@cache
def drawn(spec: RunSpec) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.float64(part) for part in tasks[spec.task](spec).sample(random_streams.stream(spec.seed, "data", 0), 0))


# --------------------------------------------------------------------------------------- the slow reference


def averages(spec: RunSpec, first: Arrays, epoch: int) -> Arrays:
    """The running averages of batch normalisation, which a tile does not keep: after a training of our own."""
    start = {"mean": np.zeros(spec.width), "var": np.ones(spec.width)}
    net = reference.Network(first, spec.depth, spec.activation, spec.output, spec.norm)
    net.averages = {f"hidden.{i}.norm.norm.{key}": value for i in range(spec.depth) for key, value in start.items()}
    if epoch and spec.norm == "batch_norm":
        order = np.asarray(
            random_streams.shuffled(random_streams.order_key(spec.seed, epoch), jnp.arange(TRAIN, dtype=jnp.uint32), TRAIN)
        )
        reference.train(net, *drawn(spec), order.reshape(-1, spec.batch_size), spec.optimizer, spec.learning_rate)
    return net.averages


def evaluate(spec: RunSpec, params: Arrays, running: Arrays) -> tuple[reference.Network, np.ndarray, list, Arrays]:
    """In evaluation mode: the network, its prediction on the probe set, what each layer saw, and the gradient of the loss.

    Batch normalisation is then an affine map, so the dense layer before it takes it in: kernel a, (bias - mean) a + shift.
    """
    x, y = (part[:PROBE] for part in drawn(spec))
    whole, folds = dict(params), range(spec.depth if spec.norm == "batch_norm" else 0)
    for i in folds:
        dense, norm = f"hidden.{i}.dense", f"hidden.{i}.norm.norm"
        a = params[f"{norm}.scale"] / np.sqrt(running[f"{norm}.var"] + 1e-5)
        whole[f"{dense}.kernel"] = params[f"{dense}.kernel"] * a
        whole[f"{dense}.bias"] = (params[f"{dense}.bias"] - running[f"{norm}.mean"]) * a + params[f"{norm}.bias"]
    norm_left = "none" if folds else spec.norm
    net = reference.Network(whole, spec.depth, spec.activation, spec.output, norm_left, leak=spec.leak)
    prediction, saved = reference.forward(net, x)
    grads = reference.backward(net, saved, 2 * (prediction - y) / y.size, None)
    for i in folds:
        dense, norm = f"hidden.{i}.dense", f"hidden.{i}.norm.norm"
        root = np.sqrt(running[f"{norm}.var"] + 1e-5)
        kernel, bias = grads[f"{dense}.kernel"], grads[f"{dense}.bias"]
        of_bias = bias * (params[f"{dense}.bias"] - running[f"{norm}.mean"])
        grads[f"{norm}.scale"] = ((kernel * params[f"{dense}.kernel"]).sum(0) + of_bias) / root
        grads[f"{norm}.bias"] = bias
        grads[f"{dense}.kernel"], grads[f"{dense}.bias"] = (g * params[f"{norm}.scale"] / root for g in (kernel, bias))
    return net, prediction, saved, grads


def ends(net: reference.Network, box: tuple[float, float], layers: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The least and the greatest pre of each unit over the box, by intervals; at site_1 the exact ones."""
    found = []
    lo, hi = (np.full(4, end) for end in box)
    for i, layer in enumerate(layers):
        kernel, bias = net.params[f"{layer}.kernel"], net.params[f"{layer}.bias"]
        corners = lo[:, None] * kernel, hi[:, None] * kernel
        lo, hi = bias + np.minimum(*corners).sum(0), bias + np.maximum(*corners).sum(0)
        if net.norm == "layer_norm" and i < net.depth:  # no deviation exceeds sqrt(U - 1) standard deviations
            reach = np.sqrt(len(bias) - 1) * np.abs(net.params[f"hidden.{i}.norm.norm.scale"])
            lo, hi = (net.params[f"hidden.{i}.norm.norm.bias"] + way * reach for way in (-1, 1))
        found.append((lo, hi))
        phi = reference.ACTIVATIONS[net.activation][0]
        posts = phi(lo[None], net.leak)[0], phi(hi[None], net.leak)[0]  # each coordinate of post rises or falls all along
        lo, hi = np.minimum(*posts), np.maximum(*posts)
    return found


def units_of(phi: str, leak: float, pre: np.ndarray, post: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> dict[str, np.ndarray]:
    """Which units of a site are what; where a question makes no sense, nothing."""
    slope = np.abs(reference.ACTIVATIONS[phi][1](np.ones_like(post), pre, leak))
    lit, size = np.count_nonzero(slope, axis=0), np.abs(post).mean(0).reshape(-1, pre.shape[1]).mean(0)
    is_so = {"dead": lit == 0, "nearly_dead": (lit > 0) & (lit < 0.01 * PROBE), "dormant": size <= 0.025 * size.mean()}
    # Rounded outward, a bound that all but touches 0 could be decided either way; that these nets have none keeps it simple.
    assert all(np.all((end == 0) | (np.abs(end) > 1e-4 * np.maximum(-lo, hi))) for end in (lo, hi))
    if phi in FLAT:
        is_so["certified_dead"] = (FLAT[phi][0] <= lo) & (hi <= FLAT[phi][1])
    if phi in IDENTITY:
        is_so["always_on"] = np.all((IDENTITY[phi][0] <= pre) & (pre <= IDENTITY[phi][1]), axis=0)
        is_so["certified_always_on"] = (IDENTITY[phi][0] <= lo) & (hi <= IDENTITY[phi][1])
    if phi in STEEPEST:
        is_so["saturated"] = np.all(slope < 0.01 * STEEPEST[phi], axis=0)
    return is_so


def length(tree: Arrays, *layers: str) -> float:
    """The norm of the parameters of some layers, or of all."""
    chosen = [v for name, v in tree.items() if not layers or name.rpartition(".")[0] in layers]
    return float(np.sqrt(sum(np.sum(v**2) for v in chosen)))


@cache
def wanted(name: str, run: int, epoch: int) -> tuple[dict[str, float], Arrays]:
    """Every metric as metric/site, and which units are what, as dead:site_1."""
    spec, first, params = RUNS[name][run], kept(trained(name, 0), run), kept(trained(name, epoch), run)
    running = averages(spec, first, epoch)
    net, prediction, saved, grads = evaluate(spec, params, running)
    phis = [spec.activation] * spec.depth + [spec.output] * (spec.output != "linear")
    layers = [f"hidden.{i}.dense" for i in range(spec.depth)] + ["output"]
    posts, bounds = [*(layer[0] for layer in saved[1:]), prediction], ends(net, BOX[spec.inputs], layers)
    trees = {"grad_norm": grads, "weight_norm": params}
    if epoch:
        trees["update_norm"] = {key: params[key] - first[key] for key in params}

    values = {f"{metric}/all": length(tree) for metric, tree in trees.items()}
    masks: dict[str, Arrays] = {}
    for i, phi in enumerate(phis):
        site = f"site_{i + 1}"
        values |= {f"{metric}/{site}": length(tree, layers[i]) for metric, tree in trees.items()}
        values |= {f"post_mean/{site}": posts[i].mean(), f"post_std/{site}": posts[i].std()}
        is_so = units_of(phi, spec.leak, saved[i][2], posts[i], *bounds[i])
        is_so["zero_gradient"] = ~(grads[f"{layers[i]}.kernel"].any(0) | grads[f"{layers[i]}.bias"].astype(bool))
        for kind, mask in is_so.items():
            masks.setdefault(kind, {})[site] = mask
    for kind, by_site in masks.items():
        pooled = np.concatenate(list(by_site.values()))
        values |= {f"{kind}_fraction/{site}": mask.mean() for site, mask in {**by_site, "all": pooled}.items()}
    everything = np.concatenate([np.ravel(post) for post in posts[: len(phis)]])
    values |= {"post_mean/all": everything.mean(), "post_std/all": everything.std()}

    x, y = drawn(spec)
    values["train_loss/all"] = np.mean((prediction - y[:PROBE]) ** 2)
    values["val_loss/all"] = reference.loss(net, x[TRAIN : TRAIN + VAL], y[TRAIN : TRAIN + VAL])
    values["collapsed/all"] = float(any(mask.all() for mask in masks["dead"].values()))
    values["constant/all"] = float(prediction.var(axis=0).sum() <= 1e-4 * y[:PROBE].var(axis=0).sum())
    return values, {f"{kind}:{site}": mask for kind, by_site in masks.items() for site, mask in by_site.items()}


# ------------------------------------------------------------------------------------------------- the tests

EACH = [(name, run, e) for name, runs in RUNS.items() for run, spec in enumerate(runs) for e in range(int(spec.epochs) + 1)]


@pytest.mark.parametrize(("name", "run", "epoch"), tiered(EACH, *(each for each in EACH if each[0] in ("relu", "crelu"))))
def test_tile_matches_the_reference(name, run, epoch):
    values, masks = wanted(name, run, epoch)
    tile = trained(name, RUNS[name][run].epochs)
    got = {key.removeprefix("metric:"): value[run, epoch] for key, value in tile.items() if key.startswith("metric:")}
    got = {key: value for key, value in got.items() if "revived" not in key}  # no probe of a state: formed of the masks
    assert {key.partition("/")[0] for key in got} == set(default_metrics())
    assert {key for key, value in got.items() if not np.isnan(value)} == set(values)
    for key, value in values.items():
        assert got[key] == pytest.approx(value, rel=1e-4, abs=1e-7), key
    kept_masks = {key: units[run, epoch] for key, units in unpacked(tile).items()}
    assert set(kept_masks) == {key for key in masks if key.startswith(("dead:", "certified_dead:"))}
    for key, mask in kept_masks.items():
        assert mask.tolist() == masks[key].tolist(), key
        assert kept_masks[key.replace("certified_", "")][mask].all(), "a certified unit is dead"


@pytest.mark.parametrize(("name", "run", "epoch"), tiered(EACH, *(each for each in EACH if each[0] in ("relu", "crelu"))))
def test_histograms_match_the_reference(name, run, epoch):
    spec, first, params = RUNS[name][run], kept(trained(name, 0), run), kept(trained(name, epoch), run)
    _, prediction, saved, grads = evaluate(spec, params, averages(spec, first, epoch))
    layers = [f"hidden.{i}.dense" for i in range(spec.depth)] + ["output"]
    posts = [*(layer[0] for layer in saved[1:]), prediction]
    tile = trained(name, spec.epochs)
    for i in range(spec.depth + (spec.output != "linear")):
        gradient = [grads[f"{layers[i]}.{part}"].ravel() for part in ("kernel", "bias")]
        for kind, values in (("pre", saved[i][2]), ("post", posts[i]), ("gradient", np.concatenate(gradient))):
            count = tile[f"histogram:{kind}:site_{i + 1}"][run, epoch]
            assert count.sum() == values.size
            # A value within rounding of an edge may be counted on either side of it.
            edges = np.concatenate([-(2.0 ** np.arange(7, -24, -1)), [0], 2.0 ** np.arange(-23, 8)])
            below = np.cumsum(count)[np.r_[:31, 31, 33:64]]  # of all the bins that lie below an edge
            assert (f"bins:{kind}:site_{i + 1}" in tile) == (kind == "post" and i < spec.depth and spec.activation == "tanh")
            if f"bins:{kind}:site_{i + 1}" in tile:
                edges, below = np.linspace(-1, 1, 65)[1:-1], np.cumsum(np.delete(count, 32))[:-1]
                values, zeros = values[values != 0], np.sum(values == 0)
                assert count[32] == zeros
            slack = 1e-4 * np.abs(edges) + 1e-6
            least, most = (np.array([np.sum(values < edge) for edge in edges + way * slack]) for way in (-1, 1))
            assert np.all((least <= below) & (below <= most)), (kind, i)
            if kind == "post" and f"bins:{kind}:site_{i + 1}" not in tile:
                assert count[32] == np.sum(values == 0)


@pytest.mark.slow
def test_every_comparison_has_values():
    """Each kind of unit is there at some site, and some site has others beside it; both kinds of network as well."""
    seen = [wanted(*each)[0] for each in EACH]
    for metric in default_metrics():
        found = {float(value) for values in seen for key, value in values.items() if key.partition("/")[0] == metric}
        assert max(found) > 0 and len(found) > 1, metric


def test_certificates_reach_below_the_first_layer():
    """Negative weights: the first layer is on everywhere, so the second is off everywhere, and the third sees zeros."""
    masks = unpacked(trained("relu", 0))
    for site, share in (("site_1", 0), ("site_2", 1), ("site_3", 1)):
        assert masks[f"certified_dead:{site}"][1, 0].mean() == masks[f"dead:{site}"][1, 0].mean() == share


# -------------------------------------------------------------------------------- exact facts at the start

WIDE = RunSpec(rows=600, width=1024, epochs=0)
SEEDS = 100
WHICH = ("dead_fraction", "certified_dead_fraction", "always_on_fraction", "certified_always_on_fraction")


def at_the_start(initializer: str) -> tuple[Arrays, np.ndarray]:
    """100 networks of 1,024 units, and their first kernels: (run, input, unit)."""
    runs = [WIDE.replace(initializer=initializer, seed=seed) for seed in range(SEEDS)]
    tile = train_tile.train_tile(
        runs, SEEDS, measure_config=MeasureConfig(50, 10, histograms=False, metrics=WHICH), keep_params=True
    )
    assert not tile["param:hidden.0.dense.bias"].any()
    return tile, tile["param:hidden.0.dense.kernel"]


@pytest.mark.parametrize("initializer", tiered(["random_normal", "he_normal", "he_uniform"], "he_normal"))
def test_one_sixteenth_dead_and_one_sixteenth_always_on(initializer):
    """On (-1, 0)^4 without a bias: dead exactly where no weight is negative, always on where none is positive; each 2^-4."""
    tile, kernel = at_the_start(initializer)
    dead, on = (kernel >= 0).all(axis=1), (kernel <= 0).all(axis=1)
    error = np.sqrt(1 / 16 * 15 / 16 / dead.size)
    assert dead.size > 1e5 and max(abs(dead.mean() - 1 / 16), abs(on.mean() - 1 / 16)) < 4 * error
    masks = unpacked(tile)
    np.testing.assert_array_equal(masks["certified_dead:site_1"][:, 0], dead)
    assert np.all(masks["dead:site_1"][:, 0] >= dead)
    for metric, mask in (("certified_dead_fraction", dead), ("certified_always_on_fraction", on)):
        np.testing.assert_array_equal(tile[f"metric:{metric}/site_1"][:, 0], mask.mean(axis=1).astype(np.float32))
        assert tile[f"metric:{metric}/site_1"].mean() == pytest.approx(1 / 16, abs=4 * error)


def test_negative_weights_are_always_on():
    tile, kernel = at_the_start("negative_uniform")
    assert np.all(kernel < 0)
    for metric, share in (("dead", 0), ("certified_dead", 0), ("always_on", 1), ("certified_always_on", 1)):
        assert np.all(tile[f"metric:{metric}_fraction/site_1"] == share), metric
    assert not tile["dead:site_1"].any() and not tile["certified_dead:site_1"].any()
