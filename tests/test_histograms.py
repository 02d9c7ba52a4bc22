"""Histograms against a slow reference that asks the logarithm, and against what the engine's own networks hold."""

from __future__ import annotations

import json
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from relu_study import store, tiles
from relu_study.bins import BINS
from relu_study.probes import histograms
from relu_study.programs import Probing
from relu_study.spec import RunSpec

EDGES = 2.0 ** np.arange(-23, 8)  # between the bins of one side


def slow_bin(value: float) -> int:
    """0 in the middle; on either side one bin a power of two, the ends open."""
    if value == 0:
        return 32
    exponent = -24 if abs(value) < 2.0**-24 else 7 if math.isinf(value) else min(math.frexp(value)[1] - 1, 7)
    return 33 + exponent + 24 if value > 0 else 31 - exponent - 24


counted = jax.jit(histograms.histogram)


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
    bins = np.asarray(histograms.bin_of(jnp.array(values, jnp.float32))).tolist()
    assert bins == [32, 32, 33, 31, 33, 64, 64, 64, 0, 57, 56]
    rising = np.concatenate([-(2.0 ** np.arange(9, -30, -1)), [0], 2.0 ** np.arange(-29, 10)])
    assert np.all(np.diff(np.asarray(histograms.bin_of(jnp.array(rising, jnp.float32)))) >= 0)


def test_a_tile_holds_them_for_every_run_and_epoch_and_a_bad_run_holds_none() -> None:
    base = RunSpec(rows=600, batch_size=50, depth=2, width=8, epochs=2, initializer="he_normal")
    runs = [base, base.but(seed=1, learning_rate=1e30)]
    tile = tiles.train_tile(runs, 2, probing=Probing(200, 50))
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
def test_they_can_be_left_out_and_move_no_other_number(tmp_path) -> None:
    runs = [RunSpec(rows=600, batch_size=50, width=8, epochs=2)]
    plain = tiles.train_tile(runs, 2, probing=Probing(200, 50, histograms=False))
    full = tiles.train_tile(runs, 2, probing=Probing(200, 50))
    assert {name for name in full if name not in plain} == {f"histogram:{kind}:site_1" for kind in ("pre", "post", "gradient")}
    assert all(plain[name].tobytes() == full[name].tobytes() for name in plain)
    names = {
        "run_id": np.array([runs[0].run_id]),
        "spec": np.array([json.dumps(runs[0].changed())]),
        "provenance": np.array("{}"),
    }
    path = store.write_tile(tmp_path, {**names, **full})
    assert not any(name.startswith("histogram:") for name in store.read_tile(path, leave_out="histogram:"))
    assert store.read_tile(path, ("histogram:pre:site_1",))["histogram:pre:site_1"].sum() == 3 * 200 * 8


def test_no_more_examples_are_counted_than_said() -> None:
    run = RunSpec(rows=6000, batch_size=500, width=8, epochs=0)
    tile = tiles.train_tile([run], 2)
    assert tile["probe_examples"] > histograms.EXAMPLES
    assert tile["histogram:pre:site_1"].sum() == histograms.EXAMPLES * 8
