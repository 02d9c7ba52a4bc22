"""The engine compiles no program too many and none too few, and refuses what it cannot train; its bits are in `test_bits.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relu_study.components.metrics import revivals
from relu_study.components.registry import activations, tasks
from relu_study.components.tasks.task import Task
from relu_study.engine import compilation, train_tile
from relu_study.engine.bundle import Bundle
from relu_study.engine.cohorts import check, cost_of
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.study.run_spec import RunSpec

SMALL = RunSpec(rows=600, batch_size=32, width=8, depth=2, epochs=3, initializer="he_normal", leak=0.1)
PROBE = MeasureConfig(200, 100)
LOSS = PROBE._replace(histograms=False, metrics=("train_loss",))  # quick to compile


def test_fractional_epoch_is_a_whole_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, taken = RunSpec(task="lu_targets", rows=4_000, batch_size=64, width=2, epochs=5_000 / 47), []
    assert cost_of(spec).steps == 5_000

    def advance(state, train, seeds, hparams, epoch, start, stop, source):
        taken.append(int(stop) - int(start))
        return state

    measured = Bundle.of({"finite": jnp.ones(2, bool), "constant_loss": jnp.ones(2)})
    spy = compilation.Programs(advance, lambda *_: measured, lambda params, hparams, seeds: ())
    monkeypatch.setattr(compilation, "tile_programs", lambda spec, measure_config: spy)
    assert train_tile.train_tile([spec], 2, measure_config=MeasureConfig(measure_every=50))["epoch"].tolist() == [
        0,
        50,
        100,
        5_000 / 47,
    ]
    assert len(taken) == 107 and taken[:106] == [47] * 106 and sum(taken) == 5_000
    taken.clear()
    within = train_tile.train_tile([spec], 2, measure_config=MeasureConfig(measure_every=(0.1, 0.5, 106.2, 106.375)))["epoch"]
    np.testing.assert_allclose(within * 47, [0, 5, 24, 4_991, 5_000], rtol=1e-8)  # 106.375 rounds to the last step
    assert taken[:3] == [5, 19, 23] and taken[-2:] == [9, 9] and sum(taken) == 5_000


class Heard:
    """Counts what JAX reports while it is listening: traces and backend compiles by program."""

    def __init__(self) -> None:
        self.traces: Counter[str] = Counter()
        self.compiles: Counter[str] = Counter()
        self.on = False
        jax.monitoring.register_event_duration_secs_listener(self.hear)

    def hear(self, event: str, duration: float, fun_name: str = "", **_: object) -> None:
        name = fun_name.removeprefix("jit(").removesuffix(")")
        if self.on and event == "/jax/core/compile/jaxpr_trace_duration":
            self.traces[name] += 1
        if self.on and event == "/jax/core/compile/backend_compile_duration":
            self.compiles[name] += 1


def test_one_trace_per_cohort_and_one_compilation_per_device() -> None:
    heard = Heard()
    # As no other test has it: what is compiled already is not compiled again.
    base = SMALL.replace(width=13, rows=613, epochs=1, depth=1, optimizer="sgd")
    devices = jax.devices()[:2]
    cohorts = [base, base.replace(activation="tanh")]
    heard.on = True
    for device in (*devices, *devices):
        for spec in cohorts:
            hparams = [spec.replace(seed=5), spec.replace(learning_rate=0.1, seed=1), spec.replace(target="sum", epochs=1)]
            train_tile.train_tile(hparams, 4, device, LOSS)
            train_tile.train_tile(
                [s.replace(initializer="lecun_normal", epochs=2, inputs="centred") for s in hparams], 4, device, LOSS
            )
    heard.on = False
    for program in ("advance", "measure"):
        assert heard.traces[program] == len(cohorts), heard.traces
        assert heard.compiles[program] == len(cohorts) * len(devices), heard.compiles
    # Two initialisers that do not look at their inputs, shared by both activations; four kinds of data.
    assert heard.compiles["init"] == 2 * len(devices), heard.compiles
    assert heard.compiles["sample"] == 4 * len(devices), heard.compiles


def test_measurements_within_epochs_compile_nothing() -> None:
    heard, spec = Heard(), SMALL.replace(width=11, rows=623, epochs=2.5, depth=1, optimizer="sgd")
    heard.on = True
    train_tile.train_tile([spec], 2, measure_config=LOSS._replace(measure_every=(0.1, 0.3, 0.35, 1, 1.9)))
    heard.on = False
    assert (heard.traces["advance"], heard.compiles["advance"], heard.compiles["measure"]) == (1, 1, 1), heard.compiles


COLD_START = """
import jax, json, sys
from collections import Counter
heard = Counter()
jax.monitoring.register_event_listener(lambda event, **_: heard.update([event.rpartition("/")[2]]))
from relu_study.runner.run import use_devices
use_devices()
from relu_study.engine.train_tile import train_tile
from relu_study.study.run_spec import RunSpec
train_tile([RunSpec(rows=600, batch_size=32, width=8, epochs=1)], 2)
print(json.dumps(heard))
"""


@pytest.mark.slow
def test_second_start_has_no_cache_miss(tmp_path: Path) -> None:
    ours = {name: value for name, value in os.environ.items() if "CACHE" not in name}  # not the cache that tests share
    env = {**ours, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    counts = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", COLD_START], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        counts.append(json.loads(done.stdout))
    cold, warm = counts
    assert cold["cache_misses"] > 3
    assert warm.get("cache_misses", 0) == 0 and warm["cache_hits"] >= cold["cache_misses"]


@pytest.mark.parametrize(
    ("changes", "measure_config", "word"),
    [
        ({"activation": "rleu"}, PROBE, "relu"),
        ({"initializer": "he_norml"}, PROBE, "he_normal"),
        ({"optimizer": "adan"}, PROBE, "adam"),
        ({"task": "negativ_box"}, PROBE, "negative_box"),
        ({"target": "wav"}, PROBE, "wave"),
        ({"network": "mpl"}, PROBE, "mlp"),
        ({"batch_size": 421}, PROBE, "420 training rows"),
        ({}, MeasureConfig(421), "420 training rows"),
    ],
)
def test_invalid_specs_raise_before_compilation(changes: dict, measure_config: MeasureConfig, word: str) -> None:
    with pytest.raises(UserError, match=word):
        check(SMALL.replace(**changes), measure_config)


def test_revivals_count_once_per_unit() -> None:
    flags = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [1, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1]], bool)[None]  # epochs x units
    seen = revivals.fractions(
        {"dead:site_1": flags, "dead:site_2": flags[..., 3:], "certified_dead:site_1": flags}, ["site_1", "site_2"]
    )
    assert seen["revived_fraction/site_1"].tolist() == [[0, 0.25, 0.25, 0.25, 0.5]]
    assert seen["revived_fraction/site_2"].tolist() == [[0] * 5]
    assert np.allclose(seen["revived_fraction/all"], [[0, 0.2, 0.2, 0.2, 0.4]])
    assert np.isnan(seen["certified_revived_fraction/site_2"]).all() and seen["certified_revived_fraction/all"][0, -1] == 0.5


def test_tasks_with_different_boxes_share_no_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_entries", dict(tasks._entries))

    def boxed(spec: RunSpec) -> Task:
        return replace(tasks["negative_box"](spec.replace(task="negative_box")), box=(-1.0, 0.0))

    def unboxed(spec: RunSpec) -> Task:
        return replace(boxed(spec), box=None)

    tasks.add("boxed", boxed)
    tasks.add("unboxed", unboxed)
    assert cost_of(SMALL.replace(task="boxed")).cohort == cost_of(SMALL).cohort
    assert cost_of(SMALL.replace(task="unboxed")).cohort != cost_of(SMALL).cohort
    asked = PROBE._replace(histograms=False, metrics=("dead_fraction", "certified_dead_fraction"))
    tile = train_tile.train_tile([SMALL.replace(task="unboxed", epochs=0)], 2, measure_config=asked)
    assert np.isfinite(tile["metric:dead_fraction/all"]).all()
    assert np.isnan(tile["metric:certified_dead_fraction/all"]).all()


def test_redefined_entry_is_recompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "_entries", dict(activations._entries))
    losses = []
    for slope in (1.0, -7.0):
        code = f"from relu_study import activation\n@activation('sloped')\ndef sloped(pre):\n    return {slope} * pre"
        exec(code, {"__name__": "notebook"})
        spec = SMALL.replace(activation="sloped", epochs=0)
        losses.append(train_tile.train_tile([spec], 2, measure_config=LOSS)["metric:train_loss/all"][0, 0])
    assert losses[0] != losses[1]


LAST_BATCH = """
from types import SimpleNamespace
import jax, jax.numpy as jnp
from relu_study import Signature
from relu_study.engine.state import Data
from relu_study.engine.train_step import gather
config = SimpleNamespace(rows=420, signature=Signature(420, 1, 4, 1))
last = lambda order, train: gather(config, SimpleNamespace(order=order, data=Data(train, None)), jnp.asarray(416), 1, 4)
jax.jit(last).lower(jnp.zeros((1, 12), jnp.uint32), jnp.zeros((1, 420, 5))).compile()
"""


def test_last_batch_of_one_shared_dataset_compiles() -> None:
    # A compilation has no timeout, so it runs in a separate process. Without the barrier in `gather` it does not end.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", LAST_BATCH], env=env, check=True, timeout=120)


def test_cohorts_that_differ_in_their_optimiser_share_a_measurement() -> None:
    cohorts = [SMALL.replace(optimizer=name, batch_size=size) for name, size in (("adam", 32), ("sgd", 32), ("sgd", 16))]
    programs = [compilation.tile_programs(spec, LOSS) for spec in cohorts]
    assert len({id(program.advance) for program in programs}) == 3 and len({id(program.measure) for program in programs}) == 1
    for other in (SMALL.replace(activation="tanh"), SMALL.replace(norm="layer_norm"), SMALL.replace(dropout="dropout")):
        assert compilation.tile_programs(other, LOSS).measure is not programs[0].measure
    keys = [compilation.required_programs([spec], LOSS) for spec in cohorts]
    assert {key for key in set.intersection(*keys) if key[0] == "measure"} and not any(
        k[0] == "advance" for k in keys[0] & keys[1]
    )


def test_studies_that_differ_in_their_measurement_share_what_trains() -> None:
    first, *others = [compilation.tile_programs(SMALL, config) for config in (LOSS, LOSS._replace(metrics=None), PROBE)]
    assert all(other.advance is first.advance and other.init_optimizer is first.init_optimizer for other in others)
    assert len({id(program.measure) for program in (first, *others)}) == 3
    seldom = compilation.tile_programs(SMALL, LOSS._replace(measure_every=(0.5, 2)))
    assert seldom.measure is first.measure and seldom.advance is first.advance
    required = compilation.required_programs([SMALL], LOSS)
    assert required == compilation.required_programs([SMALL], LOSS._replace(measure_every=7))
    for key in required:
        compilation.evict(key)
    again = compilation.tile_programs(SMALL, LOSS)
    assert again.advance is not first.advance and again.measure is not first.measure
