"""Histograms against a slow reference by logarithms, and against the engine's networks."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_study
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tiers import tiered

from relu_study.components.activations import activation
from relu_study.components.metrics import histograms
from relu_study.components.registry import activations
from relu_study.engine import train_tile
from relu_study.engine.state import MeasureConfig
from relu_study.runner import execute
from relu_study.runner import run as runner
from relu_study.runner.callback import Callback
from relu_study.stats.histogram_bins import BINS, bounded, linear_edges
from relu_study.storage import configurations, provenance, tile_files, tile_identity
from relu_study.storage.manifest import read_manifest, write_manifest
from relu_study.study.run_spec import RunSpec

EDGES = 2.0 ** np.arange(-23, 8)  # between the bins of one side


def slow_bin(value: float) -> int:
    """0 in the middle; on either side one bin a power of two, the ends open."""
    if value == 0:
        return 32
    exponent = -24 if abs(value) < 2.0**-24 else 7 if math.isinf(value) else min(math.frexp(value)[1] - 1, 7)
    return 33 + exponent + 24 if value > 0 else 31 - exponent - 24


counted, binned = jax.jit(histograms.histogram), jax.jit(histograms.bin_of)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(st.data())
def test_bins_are_those_of_the_logarithm(dtype: type, data: st.DataObject) -> None:
    width = np.finfo(dtype).bits
    values = data.draw(arrays.arrays(dtype, 40, elements=st.floats(width=width, allow_nan=True)))
    with jax.enable_x64(dtype is np.float64):
        found = np.asarray(counted(jnp.asarray(values, dtype)))
    wanted = Counter(slow_bin(float(value)) for value in values if not np.isnan(value))
    assert {i: int(count) for i, count in enumerate(found) if count} == wanted


def test_edges_and_zeros() -> None:
    tiny = float(np.finfo(np.float32).smallest_subnormal)
    values = [0.0, -0.0, tiny, -tiny, 2.0**-24, 2.0**7, 2.0**8, np.inf, -np.inf, 1.0, np.nextafter(np.float32(1), np.float32(0))]
    bins = np.asarray(binned(np.array(values, np.float32))).tolist()
    assert bins == [32, 32, 33, 31, 33, 64, 64, 64, 0, 57, 56]
    rising = np.concatenate([-(2.0 ** np.arange(9, -30, -1)), [0], 2.0 ** np.arange(-29, 10)])
    assert np.all(np.diff(np.asarray(binned(rising.astype(np.float32)))) >= 0)


def test_tile_has_histograms_of_every_finite_run_and_epoch() -> None:
    base = RunSpec(rows=600, batch_size=50, depth=2, width=8, epochs=2, initializer="he_normal")
    runs = [base, base.replace(seed=1, learning_rate=1e30)]
    tile = train_tile.train_tile(runs, 2, measure_config=MeasureConfig(200, 50, metrics=("val_loss",)))
    counts = {name.removeprefix("histogram:"): value for name, value in tile.items() if name.startswith("histogram:")}
    assert set(counts) == {f"{kind}:site_{i}" for kind in ("pre", "post", "gradient") for i in (1, 2)}
    assert all(value.shape == (2, 3, BINS) for value in counts.values())
    inputs = {"site_1": 4, "site_2": 8}
    for name, value in counts.items():
        kind, _, site = name.partition(":")
        size = 8 * (inputs[site] + 1) if kind == "gradient" else 200 * 8
        assert value[0].sum(axis=-1).tolist() == [size] * 3, name
        assert value[1].sum(axis=-1)[0] == size and not value[1][tile["epoch"] >= tile["first_bad_epoch"][1]].any(), name
    for site in inputs:  # ReLU puts out zero for whatever comes in below it, and passes on the rest
        pre, post = counts[f"pre:{site}"][0], counts[f"post:{site}"][0]
        assert np.array_equal(post[:, 33:], pre[:, 33:]) and np.array_equal(post[:, 32], pre[:, :33].sum(axis=-1))


@pytest.mark.slow
def test_omitting_histograms_changes_no_other_number(tmp_path) -> None:
    runs = [RunSpec(rows=600, batch_size=50, width=8, epochs=2)]
    plain = train_tile.train_tile(runs, 2, measure_config=MeasureConfig(200, 50, histograms=False))
    full = train_tile.train_tile(runs, 2, measure_config=MeasureConfig(200, 50))
    assert {name for name in full if name not in plain} == {f"histogram:{kind}:site_1" for kind in ("pre", "post", "gradient")}
    assert all(plain[name].tobytes() == full[name].tobytes() for name in plain)
    names = {
        "run_id": np.array([runs[0].run_id]),
        "spec": np.array([json.dumps(runs[0].changed())]),
        "provenance": np.array("{}"),
    }
    path = tile_files.write_tile(tmp_path, {**names, **full})
    assert not any(name.startswith("histogram:") for name in tile_files.read_tile(path, leave_out="histogram:"))
    assert tile_files.read_tile(path, ("histogram:pre:site_1",))["histogram:pre:site_1"].sum() == 3 * 200 * 8


def test_histograms_count_at_most_2048_examples() -> None:
    run = RunSpec(rows=6000, batch_size=500, width=8, epochs=0)
    tile = train_tile.train_tile([run], 2, measure_config=MeasureConfig(metrics=("val_loss",)))
    assert tile["probe_examples"] > histograms.EXAMPLES
    assert tile["histogram:pre:site_1"].sum() == histograms.EXAMPLES * 8


# ------------------------------------------------------------------------------------------- linear bins

BOUNDED = {name: span for name in activations if (span := bounded(activations[name].values))}
ODD = [(-0.3, 0.7), (2.0, 5.0), (-5.0, -2.0), (1000.0, 1000.001), (0.0, 1e-40), (-3e38, 3e38), (-1e60, 1e60), (0.1, 1e6)]


def slow_linear(values: np.ndarray, low: float, high: float) -> list[int]:
    """NumPy's histogram of all but zeros and NaN, values outside the range moved to its ends, and the zeros in the middle."""
    kept = values[(values != 0) & ~np.isnan(values)].astype(float)
    found = np.histogram(np.clip(kept, low, high), linear_edges(low, high))[0].tolist()
    return [*found[:32], int(np.sum(values == 0)), *found[32:]]


def test_bounded_activations_and_their_edges() -> None:
    assert BOUNDED == {"tanh": (-1, 1), "hard_tanh": (-1, 1), "sigmoid": (0, 1), "relu6": (0, 6)}
    assert linear_edges(0, 6).tolist() == [6 * i / 64 for i in range(65)]
    assert [bounded(span) for span in ((0, math.inf), (-math.inf, 1), (2, 2), (3, 1), (math.nan, 1), (-1.7e308, 1.7e308))] == [
        None
    ] * 6


SPANS = [(span, dtype) for dtype in (np.float32, np.float64) for span in (*dict.fromkeys(BOUNDED.values()), *ODD)]
FAST = [(span, np.float32) for span in ((-1, 1), (0, 1), (0, 6), *ODD[3:])] + [((-1, 1), np.float64), (ODD[5], np.float64)]


@pytest.mark.parametrize("span, dtype", tiered(SPANS, *FAST))
def test_linear_counts_are_those_of_numpy(span: tuple[float, float], dtype: Any) -> None:
    low, high = span
    with np.errstate(over="ignore", under="ignore"):
        at = linear_edges(low, high).astype(dtype)
        drawn = (low + (high - low) * np.random.default_rng(0).random(9000)).astype(dtype)
    tiny, inf = np.finfo(dtype).smallest_subnormal, dtype(np.inf)
    special = np.array([0.0, -0.0, tiny, -tiny, np.nan, inf, -inf, np.finfo(dtype).tiny, -np.finfo(dtype).tiny], dtype)
    with np.errstate(over="ignore", under="ignore"):
        values = np.concatenate([at, np.nextafter(at, inf), np.nextafter(at, -inf), drawn, special])
    with jax.enable_x64(dtype is np.float64):
        both = jax.jit(lambda v, few: (histograms.histogram(v, span), histograms.linear_bin_of(few, *span)))
        found, one_by_one = both(values, special[:4])
    assert np.asarray(found).tolist() == slow_linear(values, low, high)
    assert one_by_one[:2].tolist() == [32, 32]
    assert sum(slow_linear(values, low, high)) == len(values) - 1  # NaN


def test_end_bins_and_large_outputs() -> None:
    bins = jax.jit(lambda values: histograms.linear_bin_of(values, -1.0, 1.0))(np.float32([-1, 1, 0.6, 0.99, -2, 2]))
    assert bins.tolist() == [0, 64, 52, 64, 0, 64]


@pytest.fixture
def own() -> Iterator[None]:
    @activation("_own", values=(-0.25, 0.5))
    def _own(pre: jax.Array) -> jax.Array:
        return jnp.clip(pre, -0.25, 0.5)

    yield
    del activations._entries["_own"]


@pytest.mark.parametrize("name", tiered([*BOUNDED, "_own"], "sigmoid"))
def test_tile_has_linear_counts_of_every_bounded_activation(name: str, own: None) -> None:
    span = np.array(bounded(activations[name].values))
    epochs = int(name == "tanh")  # the other tiles are only measured
    base = RunSpec(rows=600, batch_size=50, depth=2, width=8, epochs=epochs, activation=name, initializer="he_normal")
    runs = [base, base.replace(seed=1)]
    measured = MeasureConfig(200, 50) if name == "tanh" else MeasureConfig(200, 50, metrics=("val_loss", "post_mean"))
    tile, powers = (
        train_tile.train_tile(runs, 2, measure_config=measured._replace(linear_bins=linear)) for linear in (True, False)
    )
    assert tile.keys() - powers.keys() == {"bins:post:site_1", "bins:post:site_2"}
    for site in ("site_1", "site_2"):
        found = tile[f"bins:post:{site}"]
        assert found.dtype == np.float64 and found.tolist() == span.tolist()
        counts, others = tile[f"histogram:post:{site}"], powers[f"histogram:post:{site}"]
        assert counts.shape == (2, 1 + epochs, BINS) and (counts.sum(axis=-1) == 200 * 8).all()
        assert np.array_equal(counts[..., 32], others[..., 32]) and not np.array_equal(counts, others)
    same = [key for key in powers if not key.startswith("histogram:post:")]
    assert all(tile[key].tobytes() == powers[key].tobytes() for key in same), "only the outputs are counted on another scale"
    if name == "tanh":  # 0.5 and 1 are edges on both scales
        for site in ("site_1", "site_2"):
            linear, old = tile[f"histogram:post:{site}"], powers[f"histogram:post:{site}"]
            assert np.array_equal(linear[..., 49:].sum(-1), old[..., 56:].sum(-1))
    tile_identity.check_arrays(tile, 2, tile["epoch"])


@pytest.mark.slow
def test_linear_counts_ignore_neighbours_and_padding() -> None:
    base = RunSpec(rows=600, batch_size=50, width=8, epochs=1, activation="tanh")
    first, second, pair = (
        train_tile.train_tile(r, 2, measure_config=MeasureConfig(200, 50))
        for r in ([base], [base.replace(seed=1)], [base, base.replace(seed=1)])
    )
    for i, one in enumerate((first, second)):
        assert np.array_equal(one["histogram:post:site_1"][0], pair["histogram:post:site_1"][i])


def test_output_activation_is_a_site_with_a_range() -> None:
    run = RunSpec(rows=600, batch_size=50, width=8, epochs=0, output="sigmoid")
    tile = train_tile.train_tile([run], 2, measure_config=MeasureConfig(200, 50, metrics=("val_loss",)))
    assert {key: value.tolist() for key, value in tile.items() if key.startswith("bins:")} == {"bins:post:site_2": [0, 1]}
    few = train_tile.train_tile([run], 2, measure_config=MeasureConfig(200, 50, histograms=False, metrics=("val_loss",)))
    assert not any(key.startswith("bins:") for key in few)


WRONG = {
    "float32": ("bins:post:site_1", np.array([-1, 1], np.float32)),
    "shape": ("bins:post:site_1", np.array([-1.0, 0, 1])),
    "falling": ("bins:post:site_1", np.array([1.0, -1])),
    "infinite": ("bins:post:site_1", np.array([0, np.inf])),
    "kind": ("bins:past:site_1", np.array([-1.0, 1])),
}


@pytest.mark.parametrize("name", WRONG)
def test_tile_with_impossible_bins_is_refused(name: str) -> None:
    key, values = WRONG[name]
    tile_identity.check_arrays({"bins:post:site_1": np.array([-1.0, 1])}, 1, np.zeros(1))
    with pytest.raises(ValueError, match=f"its {key} does not fit"):
        tile_identity.check_arrays({key: values}, 1, np.zeros(1))


def test_tiles_with_other_bins_never_add_up() -> None:
    powers, linear = {"epoch": np.zeros(1)}, {"epoch": np.zeros(1), "bins:post:site_1": np.array([-1.0, 1])}
    tile_identity.check_alike(linear, dict(linear))
    for one, other in ((powers, linear), (linear, powers), (linear, linear | {"bins:post:site_1": np.array([0.0, 1])})):
        with pytest.raises(ValueError, match="sites or bins"):
            tile_identity.check_alike(one, other)
    old, new = {"histogram_bins": "powers of two"}, {"histogram_bins": "linear where bounded"}
    assert not provenance.differences(old, {}) and not provenance.differences({}, old)
    for one, other in ((old, new), (new, old), ({}, new), (new, {})):
        assert len(provenance.differences(one, other)) == 1


def as_an_earlier_version(folder: Path) -> None:
    """Take the provenance of the bins from the manifest and the tiles."""
    manifest = read_manifest(folder)
    assert manifest["provenance"].pop("histogram_bins") == "powers of two"
    write_manifest(folder, manifest)
    for path in tile_files.tile_paths(folder):
        tile = tile_files.read_tile(path)
        made = json.loads(str(tile["provenance"]))
        del made["histogram_bins"]
        tile_files.write_tile(folder, {**tile, "provenance": np.array(json.dumps(made))})


@pytest.mark.slow
def test_folder_of_earlier_version_keeps_its_bins(tmp_path: Path) -> None:
    arms = {name: small_study.base.replace(activation=name, epochs=1) for name in ("tanh", "relu")}
    study = replace(small_study.study, metrics=(), seeds=2, figures=(), experiments=small_study.study.experiments[:1])
    study = replace(study, experiments=(replace(study.experiments[0], arms=arms),))
    old = MeasureConfig(200, 50, linear_bins=False)
    execute.execute(study, tmp_path, old, Callback(), {"command": "test", "preset": "default"})
    as_an_earlier_version(tmp_path)
    whole = {path: tile_files.read_tile(path) for path in tile_files.tile_paths(tmp_path)}
    gone = next(path for path, tile in whole.items() if '"tanh"' in str(tile["spec"][0]))
    gone.unlink()
    runner.run(study, tmp_path, probe_examples=200, val_examples=50)
    assert read_manifest(tmp_path)["provenance"]["histogram_bins"] == "powers of two"
    again = tile_files.read_tile(gone)
    assert np.array_equal(again["histogram:post:site_1"], whole[gone]["histogram:post:site_1"])
    assert not any(name.startswith("bins:") for name in again)
    assert all(not c.bins for c in configurations.collect(tmp_path, histograms=True).values())
    (tmp_path / "manifest.json").unlink()  # the tiles say it too
    runner.run(study, tmp_path, probe_examples=200, val_examples=50)
    assert read_manifest(tmp_path)["provenance"]["histogram_bins"] == "powers of two"

    fresh = tmp_path / "fresh"
    runner.run(study, fresh, probe_examples=200, val_examples=50)
    assert read_manifest(fresh)["provenance"]["histogram_bins"] == "linear where bounded"
    found = {c.spec["activation"]: c.bins for c in configurations.collect(fresh, histograms=True).values()}
    assert found == {"tanh": {"post:site_1": (-1.0, 1.0)}, "relu": {}}
    old_way, new_way = ((folder / "runs.csv").read_bytes() for folder in (tmp_path, fresh))
    assert old_way == new_way, "no metric hangs on the bins"
