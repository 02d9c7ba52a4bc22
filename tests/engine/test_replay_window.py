"""Single steps of a run: dropout, batch statistics, tables of rows, phases of the data, and equality of the training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dying_study import dying
from flax_networks import IMAGES, registered
from tiers import tiered

from relu_study.components.registry import tasks
from relu_study.components.tasks.own_arrays import task_from_arrays
from relu_study.components.tasks.task import Signature, Task, task
from relu_study.engine import train_tile
from relu_study.engine.replay_window import Recorder, Window
from relu_study.engine.state import MeasureConfig
from relu_study.storage.stored_run import dead_masks
from relu_study.study.run_spec import RunSpec

FEW = MeasureConfig(16, 8, histograms=False, metrics=("train_loss", "val_loss", "dead_fraction"))
RATE = 1.0


@pytest.fixture(scope="module", autouse=True)
def entries() -> Iterator[None]:
    with registered():
        task("test_turning")(turning)
        yield


def turning(spec: RunSpec) -> Task:
    """Positive inputs in the first half of the epochs and negative ones in the second: units die with the data."""

    def sample(key: Any, phase: Any) -> tuple[Any, Any]:
        x = jax.random.uniform(key, (spec.rows, 2), minval=0.5, maxval=1.0) * jnp.where(phase == 0, 1.0, -1.0)
        return x, x[:, :1]

    return Task(Signature(spec.rows - 20, 20, 2, 1), sample, phases=2)


def recorded(spec: RunSpec, start: float, end: float, measure_config: MeasureConfig = FEW) -> tuple[Recorder, dict[str, Any]]:
    recorder = Recorder(spec, measure_config, Window.between(spec, start, end), jax.devices()[0])
    numbers = train_tile.train_tile([spec], 2, measure_config=measure_config, num_datasets=1, observer=recorder)
    return recorder, numbers


def test_observed_training_has_the_same_bits() -> None:
    spec = dying.replace(optimizer="momentum", epochs=2.4, learning_rate=0.01)
    recorder, numbers = recorded(spec, 0.5, 2.3)
    plain = train_tile.train_tile([spec], 2, measure_config=FEW, num_datasets=1)
    for name, values in plain.items():
        assert np.array_equal(values, numbers[name], equal_nan=values.dtype.kind == "f"), name
    assert [record.number for record in recorder.records] == list(range(2, 13))  # floor(0.5 * 5) to ceil(2.3 * 5)
    assert [(r.epoch, r.step) for r in recorder.records[:5]] == [(1, 2), (1, 3), (1, 4), (1, 5), (2, 1)]


@pytest.mark.parametrize(
    ("start", "end", "steps"), [(0, 1, (0, 5)), (-1, 0.1, (0, 1)), (3, 4, (14, 15)), (1.5, 1.5, (7, 8)), (0.21, 0.39, (1, 2))]
)
def test_windows_in_steps(start: float, end: float, steps: tuple[int, int]) -> None:
    window = Window.between(dying, start, end)
    assert (window.first, window.stop) == steps


@pytest.mark.parametrize(
    "spec",
    tiered(
        [
            dying.replace(dropout="dropout", dropout_rate=0.5, norm="batch_norm", depth=1),
            dying.replace(network="skip", depth=3),
            IMAGES.replace(network="test_dropout", optimizer="sgd", learning_rate=3.0, batch_size=10),
            IMAGES.replace(network="test_linen", optimizer="sgd", learning_rate=5.0, seed=1),  # of a Linen module
            IMAGES.replace(network="resnet", norm="batch_norm", optimizer="sgd", learning_rate=RATE),
            IMAGES.replace(network="vit", width=4, optimizer="sgd", learning_rate=RATE),
        ],
        dying.replace(dropout="dropout", dropout_rate=0.5, norm="batch_norm", depth=1),
        IMAGES.replace(network="test_dropout", optimizer="sgd", learning_rate=3.0, batch_size=10),
    ),
    ids=lambda spec: f"{spec.network}-{spec.dropout}",
)
def test_steps_of_gradient_descent_are_those_of_the_gradient(spec: RunSpec) -> None:
    """Only the dropout mask and the batch statistics of the step itself give this gradient."""
    recorder, numbers = recorded(spec, 0, spec.epochs)
    events = [event for event in recorder.events if event.unit_step is not None]
    assert events
    for event in events:
        own = event.unit_step
        assert own is not None and own.gradient is not None and own.step is not None and own.weights is not None
        expected = -spec.learning_rate * own.gradient
        size = 3e-7 * max(np.abs(own.weights).max(), np.abs(expected).max(), 1)  # of the rounding of weights and of sums
        np.testing.assert_allclose(own.step, expected, rtol=1e-4, atol=size)
        assert (own.probe_before > 0).any() == (event.kind == "died") == (not (own.probe_after > 0).any())
        before, after = event.before.seen.sites[event.site], event.after.seen.sites[event.site]
        for pre, stats in ((own.probe_before, before), (own.probe_after, after)):
            assert pre.max() == pytest.approx(stats.high[event.unit], rel=1e-4, abs=1e-5)
            assert pre.mean() == pytest.approx(stats.mean[event.unit], rel=1e-3, abs=1e-5)
    assert any(event.unit_step.gradient.any() for event in events)
    per_epoch = recorder.per_epoch
    for site, mask in dead_masks(numbers).items():
        for epoch in range(len(mask)):
            (record,) = (record for record in recorder.records if record.number == epoch * per_epoch)
            assert np.array_equal(mask[epoch], record.seen.sites[site].dead), (site, epoch)


def test_nonfinite_parameters_are_named() -> None:
    spec = dying.replace(optimizer="momentum", learning_rate=3e38, gain=10.0, epochs=0.2)  # one step
    recorder = Recorder(spec, FEW, Window.between(spec, 0, 1), jax.devices()[0])
    numbers = train_tile.train_tile([spec], 2, measure_config=FEW, num_datasets=1, observer=recorder, keep_params=True)
    params = {name.removeprefix("param:"): values[0] for name, values in numbers.items() if name.startswith("param:")}
    bad = {name for name, values in params.items() if not np.isfinite(values).all()}
    (event,) = recorder.events
    assert event.kind == "nonfinite" and event.after.number == 1 and event.site in ("site_1", "site_2")
    assert set(event.parameters) == bad and len(bad) > 0 and not event.gradients


def test_rows_of_own_arrays_are_rows_of_the_arrays() -> None:
    x, y = np.random.default_rng(0).normal(size=(50, 3)), np.arange(50.0)
    task_from_arrays("test_arrays", x, y)
    spec = RunSpec(task="test_arrays", batch_size=16, width=4, epochs=1, optimizer="sgd", learning_rate=1e-3)
    recorder, _ = recorded(spec, 0, 1)
    table = tasks["test_arrays"](spec).table
    assert table is not None
    seen = [record.table_rows for record in recorder.records[1:]]
    assert [len(rows) for rows in seen] == [16, 16, 8]
    batches = np.concatenate(seen)
    assert len(set(batches)) == 40 and not set(batches) <= set(range(40)), "the seed draws the split"
    np.testing.assert_allclose(np.asarray(table[0])[batches], x[batches], rtol=1e-6)
    assert recorder.records[0].table_rows is None


def test_units_that_die_with_the_data_have_no_batch() -> None:
    spec = RunSpec(task="test_turning", rows=60, batch_size=10, width=6, epochs=2, optimizer="sgd", learning_rate=1e-4)
    recorder, _ = recorded(spec.replace(initializer="he_normal"), 0, 2)
    at_turn = [event for event in recorder.events if event.by == "data"]
    assert {event.kind for event in at_turn} == {"died", "revived"}  # ReLUs of weights w and inputs -x
    for event in at_turn:
        assert event.after.number == event.before.number == 4 and event.unit_step is None and not len(event.after.rows)
    assert [record.number for record in recorder.records] == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]
