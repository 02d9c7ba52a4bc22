"""Shipped residual and attention networks train: their loss falls, and a run's bits do not depend on other runs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from flax_networks import FEW, IMAGES, registered

from relu_study.engine import cohorts, train_tile
from relu_study.study.run_spec import RunSpec

SPECS = {
    "resnet": IMAGES.replace(network="resnet", norm="batch_norm", epochs=6),
    "vit": IMAGES.replace(network="vit", norm="layer_norm", width=4, epochs=6),
    "vit of tokens": RunSpec(network="vit", task="parity", rows=160, batch_size=8, norm="layer_norm", width=8, depth=1).replace(
        sequence_length=2, epochs=8, learning_rate=0.02
    ),
}


@pytest.fixture(scope="module", autouse=True)
def entries() -> Iterator[None]:
    with registered():
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_it_trains_and_its_bits_are_its_own(name: str) -> None:
    spec = SPECS[name].replace(schedule="cosine", warmup=0.1, clip_norm=1.0)
    cohorts.check(spec, FEW)
    runs = [spec.replace(seed=seed) for seed in range(3)]
    tile = train_tile.train_tile(runs, 4, measure_config=FEW, keep_params=True)
    other = train_tile.train_tile([spec.replace(seed=7, clip_norm=0.1), runs[1]], 4, measure_config=FEW, keep_params=True)
    assert all(tile["status"] == "ok")
    loss = tile["metric:train_loss/all"]
    assert np.all(loss[:, -1] < loss[:, 0])
    arrays = [key for key in tile if key.startswith(("metric:", "param:"))]
    assert all(tile[key][1].tobytes() == other[key][1].tobytes() for key in arrays)
    params = [key for key in arrays if key.startswith("param:") and tile[key][0].ndim > 1]
    assert params and not any(np.array_equal(tile[key][0], tile[key][1]) for key in params)
