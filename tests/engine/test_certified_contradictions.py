"""Certificates that the probe set contradicts stop a run."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from user_entries import FEW, MINE, SPEC, add_task, inf, sampled

from relu_study.components.activations import activation
from relu_study.components.initializers import Layer, initializer
from relu_study.components.layers import Dense, Site
from relu_study.components.registry import networks
from relu_study.engine import train_tile
from relu_study.errors import UserError
from relu_study.runner import run
from relu_study.study.run_spec import RunSpec
from relu_study.study.study import Experiment, Study

pytestmark = pytest.mark.usefixtures("restored_registries")


def test_certified_but_not_dead_units_stop_the_run() -> None:
    activation("mine", flat=((-inf, 0.0),))(lambda z: jnp.where(z > 0, z, 0.2 * z))
    spec = RunSpec(rows=60, width=6, batch_size=8, epochs=1, initializer="he_normal", activation="mine", bias_shift=-9.0)
    with pytest.raises(UserError) as error:
        train_tile.train_tile([spec], 2, measure_config=FEW)
    line = str(error.value)
    assert re.search(rf"run {spec.run_id} \(seed 0\): 6 units of site_1 are certified dead and 0 are dead at epoch 0", line)
    assert "'negative_box'" in line and "'mine'" in line


ON = FEW._replace(metrics=("train_loss", "always_on_fraction", "certified_always_on_fraction"))


def turns_far_out(z: Any) -> Any:
    """ReLU with a dip between 50 and 150 that no bound knows of."""
    return jnp.where(jnp.abs(z - 100) < 50, z - 1000, jax.nn.relu(z))


def wide(key: Any, layer: Layer, inputs: Any) -> Any:
    """A first layer that spreads the inputs over -200 to 0 or over 0 to 200, in turn, and a second one of ones."""
    sign = jnp.where(jnp.arange(layer.fan_out) % 2, 1.0, -1.0)
    kernel = jnp.zeros((layer.fan_in, layer.fan_out)).at[0].set(200.0 * sign) if layer.index == 0 else jnp.eye(layer.fan_in)
    return kernel, jnp.full(layer.fan_out, 250.0 * (layer.index > 0))


def test_certified_but_not_always_on_units_stop_the_run() -> None:
    activation("mine", identity=(0.0, inf), flat=((-inf, 0.0),))(turns_far_out)
    initializer("wide", needs_inputs=False)(wide)
    add_task(sampled(), box=(0.0, 1.0))
    spec = MINE.replace(initializer="wide", depth=2, activation="mine", epochs=0)
    with pytest.raises(UserError) as error:
        train_tile.train_tile([spec], 2, measure_config=ON)
    line = str(error.value)
    wanted = r"6 units of site_2 are certified always on and 3 are always on at epoch 0, and 3 of the certified ones are not"
    assert re.search(rf"run {spec.run_id} \(seed 0\): {wanted} always on", line), line
    assert "task 'mine'" in line and "activation 'mine'" in line and "\n" not in line


def test_network_with_incomplete_intervals_is_found() -> None:
    class Shifted(nnx.Module):
        bounded = True

        def __init__(self, spec: RunSpec, d_in: int, d_out: int, rngs: nnx.Rngs):
            self.first, self.site, self.last = Dense(d_in, spec.width), Site("relu"), Dense(spec.width, d_out)

        def __call__(self, x: Any, ctx: Any) -> Any:
            x = self.first(x, ctx)
            if not isinstance(x, tuple) and not hasattr(x, "values"):
                x = x * jnp.where(jnp.arange(x.shape[-1]) == 0, -1.0, 1.0)  # the first unit, in a batch only
            return self.last(self.site(x, ctx), ctx)

    def ones(key: Any, layer: Layer, inputs: Any) -> Any:
        return jnp.where(jnp.arange(layer.fan_out) == 1, -1.0, 1.0) * jnp.ones((layer.fan_in, layer.fan_out)), jnp.zeros(
            layer.fan_out
        )

    networks.add("own", Shifted)
    initializer("ones", needs_inputs=False)(ones)
    add_task(sampled(), box=(0.0, 1.0))
    spec = MINE.replace(network="own", initializer="ones", epochs=0)
    with pytest.raises(UserError, match=r"5 units of site_1 are certified always on and 4 are always on at epoch 0, and 1 of"):
        train_tile.train_tile([spec], 2, measure_config=ON)
    assert train_tile.train_tile([spec.replace(network="mlp")], 2, measure_config=ON)["status"].tolist() == ["ok"]


@pytest.mark.parametrize("wrong", [False, True])
def test_wrong_box_shows_in_certified_always_on_units(wrong: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_tile, "_check_inputs", lambda drawn: None)  # it finds a wrong box of a study's own task first

    def ones(key: Any, layer: Layer, inputs: Any) -> Any:
        return jnp.ones((layer.fan_in, layer.fan_out)), jnp.zeros(layer.fan_out)

    initializer("ones", needs_inputs=False)(ones)
    add_task(lambda key, phase: tuple(part * (1 - 2 * wrong) for part in sampled()(key, phase)), box=(0.0, 1.0))
    spec = MINE.replace(initializer="ones", epochs=0)
    if not wrong:
        tile = train_tile.train_tile([spec], 2, measure_config=ON)
        assert tile["metric:certified_always_on_fraction/site_1"].tolist() == [[1.0]]
        assert not any(name.startswith("unsound") for name in tile)
        return
    with pytest.raises(UserError, match=r"6 units of site_1 are certified always on and 0 are always on .*box of task 'mine'"):
        train_tile.train_tile([spec], 2, measure_config=ON)


@pytest.mark.slow
def test_contradicted_certificate_stops_a_study_and_keeps_its_tiles(tmp_path: Any) -> None:
    """A slope that the grid does not meet: the run finds it, and the other arm goes on without the faulty one."""
    fault = -5000.5

    def late(pre: Any) -> Any:
        return jnp.where(jnp.abs(pre - fault) < 0.2, 3 * pre, jnp.where(pre < -20, -20.0, pre))

    activation("mine", flat=((-inf, -20.0),))(late)
    arms = {"fine": SPEC, "late": SPEC.replace(activation="mine", bias_shift=fault, gain=0.01)}
    study = Study("late", "Late", "?", [Experiment("main", arms)], seeds=2, metrics=FEW.metrics)
    with pytest.raises(UserError, match=r"6 units of site_1 are certified dead and 0 are dead at epoch 0.*'mine'"):
        run.run(study, tmp_path)
    tiles_before = {path.name: path.read_bytes() for path in tmp_path.glob("raw/*.npz")}
    healthy = run.run(replace(study, experiments=[Experiment("main", {"fine": SPEC})]), tmp_path)
    assert healthy.runs["status"].tolist() == ["ok", "ok"]
    assert tiles_before.items() <= {path.name: path.read_bytes() for path in tmp_path.glob("raw/*.npz")}.items()
