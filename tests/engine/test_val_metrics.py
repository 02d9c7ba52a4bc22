"""Metrics of the task on validation rows, against NumPy, and notes of networks that cannot be measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from flax_networks import FEW, IMAGES, registered

from relu_study.components.networks import network
from relu_study.engine import cohorts, tile_data, train_tile
from relu_study.engine.state import MeasureConfig
from relu_study.study.run_spec import RunSpec

DIGITS = RunSpec(task="digits", rows=300, width=12, batch_size=32, epochs=3, learning_rate=0.01, initializer="he_normal")


@pytest.fixture(scope="module", autouse=True)
def entries() -> Iterator[None]:
    with registered():
        network("test_linear")(Linear)
        yield


class Linear(nnx.Module):
    """A network without a nonlinearity."""

    def __init__(self, spec: RunSpec, inputs: Any, outputs: Any, rngs: nnx.Rngs):
        self.dense = nnx.Linear(16, outputs.shape[-1], rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.dense(x.reshape(len(x), -1))


@pytest.mark.parametrize("val_examples", [None, 25])
def test_val_accuracy_is_that_of_numpy(val_examples: int | None) -> None:
    config = MeasureConfig(100, val_examples, histograms=False, metrics=("val_loss",))
    specs = [DIGITS, DIGITS.replace(seed=1)]
    tile = train_tile.start_tile(specs, 2, jax.devices()[0], config)
    assert tile is not None
    found = train_tile.fetch(tile, keep_params=True)
    rows = np.asarray(tile_data.draw(specs, 0, jax.devices()[0], config).val, np.float64)
    assert rows.shape == (2, val_examples or 60, 74)
    layers = [[found[f"param:{layer}.{name}"] for name in ("kernel", "bias")] for layer in ("hidden.0.dense", "output")]
    for run in range(2):
        x, y = rows[run, :, :64], rows[run, :, 64:]
        (w, b), (v, c) = [[np.asarray(part[run], np.float64) for part in layer] for layer in layers]
        right = np.argmax(np.maximum(x @ w + b, 0) @ v + c, axis=1) == np.argmax(y, axis=1)
        assert found["metric:val_accuracy/all"][run, -1] == pytest.approx(right.mean(), abs=1e-6)
        assert found["metric:val_accuracy/all"][run, -1] != found["metric:accuracy/all"][run, -1]
    assert found["metric:val_accuracy/all"][:, -1].min() > 0.3  # chance is 0.1


def test_a_network_without_sites_is_one_line_before_training_and_has_no_unit_metrics() -> None:
    spec, notes = IMAGES.replace(network="test_linear", depth=1, width=32), dict[Any, Any]()
    cohorts.check(spec, FEW, notes)
    assert [note for lines in notes.values() for note in lines] == [
        "network 'test_linear' has no sites: no nonlinearity after weights was found in it, so no unit is measured"
    ]
    assert cohorts.sites(spec) == []
    tile = train_tile.start_tile([spec], 2, jax.devices()[0], FEW)
    assert tile is not None
    found = train_tile.fetch(tile)
    assert np.isnan(found["metric:dead_fraction/all"]).all() and np.isfinite(found["metric:train_loss/all"]).all()


def test_a_requested_metric_of_bounds_is_one_line_before_training() -> None:
    notes = dict[Any, Any]()
    cohorts.check(IMAGES.replace(network="cnn"), FEW._replace(metrics=("dead_fraction", "certified_dead_fraction")), notes)
    assert [note for lines in notes.values() for note in lines] == [
        "network 'cnn' is a Flax module without interval bounds, so certified_dead_fraction has no values"
    ]
