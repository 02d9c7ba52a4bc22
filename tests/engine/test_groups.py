"""Runs in groups, as on an accelerator, against runs one after the other, as on a CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relu_study.components.registry import tasks
from relu_study.engine import cohorts, compilation, groups, train_tile
from relu_study.engine.state import MeasureConfig
from relu_study.study.run_spec import RunSpec

FEW = MeasureConfig(200, 100)


@pytest.mark.parametrize(("one_run", "runs", "group"), [(10, 64, 8), (1, 64, 64), (1, 48, 32), (200, 64, 1), (0, 1, 1)])
def test_a_group_is_a_power_of_two_within_the_budget(one_run: int, runs: int, group: int) -> None:
    assert groups.group_size(one_run, runs, 100) == group


def test_a_cpu_takes_one_run_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def jaxpr() -> str:
        return str(jax.make_jaxpr(lambda x: groups.map_in_groups(jnp.sin, x, lambda: 4))(jnp.zeros((6, 3))))

    assert jaxpr() == str(jax.make_jaxpr(lambda x: jax.lax.map(jnp.sin, x))(jnp.zeros((6, 3))))
    monkeypatch.setitem(groups.GROUP_BYTES, jax.default_backend(), 8)
    assert "3 length=3" not in jaxpr() and "length=3" in jaxpr()  # three groups of two runs


def test_bytes_grow_with_the_measured_examples_and_the_units() -> None:
    spec = RunSpec(rows=600)
    signature = tasks[spec.task](spec).signature
    few, more = (groups.measured_bytes(spec, signature, MeasureConfig(rows, 100)) for rows in (100, 300))
    assert more == 2 * few == 4 * 400 * (4 + groups.COPIES * (32 + 1))
    assert groups.sampled_bytes(signature) == 2 * 4 * 600 * 5


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_grouped_programs_give_the_same_numbers(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = RunSpec(rows=600, width=8, epochs=1, optimizer="sgd")
    if network != "mlp":
        spec = spec.replace(network=network, task="digits_image", rows=1797)
    runs = [spec.replace(seed=seed) for seed in range(4)]
    signature = tasks[spec.task](spec).signature
    tiles = []
    for budget in (None, 2 * groups.measured_bytes(*cohorts.cohort(spec, signature), FEW)):
        compilation.clear()
        if budget is not None:
            monkeypatch.setitem(groups.GROUP_BYTES, jax.default_backend(), budget)
        tiles.append(train_tile.train_tile(runs, 4, measure_config=FEW))
    compilation.clear()
    one, grouped = tiles
    assert one.keys() == grouped.keys()
    for name, values in one.items():
        if name.startswith("metric:"):
            np.testing.assert_allclose(grouped[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
        elif name.startswith(("dead:", "certified_dead:")):
            assert np.array_equal(grouped[name], values), name
