"""The engine's promise of bits: they depend on a run's spec and its tile's width alone."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from tiers import tiered

from relu_study.components.registry import networks, tasks
from relu_study.engine import train_tile
from relu_study.engine.state import MeasureConfig
from relu_study.study.run_spec import RunSpec

pytestmark = pytest.mark.usefixtures("as_shipped")

SMALL = RunSpec(rows=600, batch_size=32, width=8, depth=2, epochs=3, initializer="he_normal", leak=0.1)
PROBE = MeasureConfig(200, 100)
FEW = PROBE._replace(
    histograms=False, metrics=("val_loss", "grad_norm", "post_mean", "update_norm", "certified_dead_fraction")
)  # quick to compile
ASKED = PROBE._replace(histograms=False, metrics=("val_loss", "grad_norm"))
# Not under adam: the bias before batch normalisation has gradient 0, and adam makes steps of the rounding noise.
NORMED = {"norm": "batch_norm", "optimizer": "sgd"}


def runs(n: int, base: RunSpec = SMALL) -> list[RunSpec]:
    return [base.replace(seed=seed) for seed in range(n)]


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], rows_a: list[int], rows_b: list[int]) -> None:
    """Bit for bit, whatever the dtype; NaN equals NaN of the same bits."""
    assert set(a) == set(b)
    for name in a:
        if name == "epoch" or a[name].ndim == 0:
            assert np.array_equal(a[name], b[name]), name
        else:
            for i, j in zip(rows_a, rows_b, strict=True):
                assert a[name][i].tobytes() == b[name][j].tobytes(), f"{name} of row {i}"


@pytest.fixture(scope="module", params=tiered(["none", "dropout"], "none"))
def base(request: pytest.FixtureRequest) -> RunSpec:
    return SMALL if request.param == "none" else SMALL.replace(dropout="dropout", dropout_rate=0.2)


@pytest.fixture(scope="module")
def whole(base: RunSpec) -> dict[str, np.ndarray]:
    return train_tile.train_tile(runs(4, base), 4, measure_config=PROBE, keep_params=True)


def test_other_runs_and_order_change_no_bit(base: RunSpec, whole: dict[str, np.ndarray]) -> None:
    mixed = [base.replace(seed=9), base.replace(seed=2), base.replace(seed=0, learning_rate=0.5), base.replace(seed=1)]
    tile = train_tile.train_tile(mixed, 4, measure_config=PROBE, keep_params=True)
    same(whole, tile, [2, 1], [1, 3])


def test_runs_with_other_init_or_data_change_no_bit(base: RunSpec, whole: dict[str, np.ndarray]) -> None:
    mixed = [
        base.replace(seed=3, initializer="negative_uniform"),
        base.replace(seed=3),
        base.replace(seed=3, target="sum", inputs="centred"),
    ]
    tile = train_tile.train_tile([*mixed, base.replace(seed=0)], 4, measure_config=PROBE, keep_params=True)
    same(whole, tile, [3, 0], [1, 3])
    alone = train_tile.train_tile([mixed[0]], 4, measure_config=PROBE, keep_params=True)
    same(alone, tile, [0], [0])
    assert not np.array_equal(tile["metric:train_loss/all"][0], tile["metric:train_loss/all"][1])


def test_nonfinite_run_changes_no_bit_of_others(whole: dict[str, np.ndarray], base: RunSpec) -> None:
    bad = base.replace(seed=1, learning_rate=1e30)
    tile = train_tile.train_tile([base.replace(seed=0), bad, base.replace(seed=3)], 4, measure_config=PROBE, keep_params=True)
    same(whole, tile, [0, 3], [0, 2])
    assert tile["status"].tolist() == ["ok", "nonfinite", "ok"]
    assert tile["first_bad_epoch"][1] == 1 and np.isnan(tile["metric:train_loss/all"][1, 1:]).all()
    assert np.isfinite(tile["metric:train_loss/all"][1, 0])


def test_single_run_in_a_padded_tile(whole: dict[str, np.ndarray], base: RunSpec) -> None:
    for seed in range(4):
        same(whole, train_tile.train_tile([base.replace(seed=seed)], 4, measure_config=PROBE, keep_params=True), [seed], [0])


@pytest.mark.parametrize("every_metric", tiered([False, True], False))
def test_every_device(whole: dict[str, np.ndarray], base: RunSpec, every_metric: bool) -> None:
    assert len(jax.devices()) > 1
    tile = train_tile.train_tile(runs(4, base), 4, jax.devices()[-1], PROBE if every_metric else ASKED, keep_params=True)
    assert any(name.startswith("metric:grad_norm/") for name in tile)
    same({name: whole[name] for name in tile}, tile, [0, 1, 2, 3], [0, 1, 2, 3])


@pytest.mark.parametrize("chunk", [1, 5, 13])
def test_chunk_length(whole: dict[str, np.ndarray], base: RunSpec, chunk: int) -> None:
    same(whole, train_tile.train_tile(runs(4, base), 4, measure_config=PROBE, chunk=chunk, keep_params=True), [0, 3], [0, 3])


@pytest.mark.slow
@pytest.mark.parametrize("num_datasets", [1, 4])
def test_shared_datasets(base: RunSpec, num_datasets: int) -> None:
    """Runs of the same data and seed read one copy of it; whether they do, and how many copies there are, moves no bit."""
    arms = (base, base.replace(gain=2), base.replace(learning_rate=0.1, initializer="lecun_normal"), base.replace(gain=3))
    keys = [(0, "wave"), (0, "sum"), (1, "wave"), (1, "sum")][
        : 3 if num_datasets == 4 else num_datasets
    ]  # no run reads the fourth
    tile = [arm.replace(seed=seed, target=target) for seed, target in keys for arm in arms[: 8 // len(keys)]][1:]
    each = list(range(len(tile)))
    measure_config = PROBE if num_datasets == 1 else FEW
    alone = train_tile.train_tile(tile, 8, measure_config=measure_config, keep_params=True)
    assert len({row.tobytes() for row in alone["metric:val_loss/all"]}) == len(tile)
    same(
        alone,
        train_tile.train_tile(tile, 8, measure_config=measure_config, keep_params=True, num_datasets=num_datasets),
        each,
        each,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "wide"), [(1, 32), (3, 16)])
def test_shared_datasets_at_article_size(depth: int, wide: int) -> None:
    tile = [RunSpec(rows=3000, depth=depth, epochs=1, seed=i % 4, gain=1 + i // 4, initializer="he_normal") for i in range(wide)]
    alone, together, few = (
        train_tile.train_tile(tile, wide, measure_config=FEW, keep_params=True, num_datasets=n) for n in (None, 4, 8)
    )
    same(alone, together, list(range(wide)), list(range(wide)))
    same(alone, few, list(range(wide)), list(range(wide)))


@pytest.mark.slow
def test_shared_datasets_with_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_entries", dict(tasks._entries))
    tasks.add("moving", lambda spec: replace(tasks["negative_box"](spec.replace(task="negative_box")), phases=3))
    tile = [SMALL.replace(task="moving", seed=seed, gain=gain) for seed in (0, 1) for gain in (1, 2)]
    alone, together = (
        train_tile.train_tile(tile, 4, measure_config=FEW, num_datasets=num_datasets) for num_datasets in (None, 2)
    )
    same(alone, together, [0, 1, 2, 3], [0, 1, 2, 3])
    fixed = train_tile.train_tile([run.replace(task="negative_box") for run in tile], 4, measure_config=FEW)
    losses = [numbers["metric:val_loss/all"] for numbers in (alone, fixed)]
    assert np.array_equal(losses[0][:, 1], losses[1][:, 1]) and not np.array_equal(losses[0][:, 2], losses[1][:, 2])


@pytest.mark.slow
def test_batch_major_and_feature_major_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that may do more with its input than our modules is trained on examples as rows; bits aside, that is all."""
    monkeypatch.setattr(networks, "_entries", dict(networks._entries))

    class Rows(networks["mlp"].function):
        bounded = False

    networks.add("rows", Rows)
    for changes in (
        {"activation": "crelu"},
        NORMED,
        {"norm": "layer_norm", "activation": "selu", "dropout": "alpha_dropout", "dropout_rate": 0.1},
    ):
        spec = SMALL.replace(epochs=1, **changes)
        columns, rows = (
            train_tile.train_tile(runs(2, one), 2, measure_config=FEW) for one in (spec, spec.replace(network="rows"))
        )
        for name in ("val_loss/all", "grad_norm/site_1", "post_mean/site_2", "update_norm/all"):
            np.testing.assert_allclose(columns[f"metric:{name}"], rows[f"metric:{name}"], rtol=2e-4, err_msg=f"{changes} {name}")
        assert np.isfinite(columns["metric:certified_dead_fraction/all"]).all() == (spec.activation == "relu")
        assert np.isnan(rows["metric:certified_dead_fraction/all"]).all()


def test_measurement_on_or_off(whole: dict[str, np.ndarray], base: RunSpec) -> None:
    unwatched = train_tile.train_tile(runs(4, base), 4, measure_config=PROBE, probe=False, keep_params=True)
    assert unwatched["epoch"].tolist() == [0, 3]
    for name in whole:
        if name.startswith("param:"):
            assert whole[name].tobytes() == unwatched[name].tobytes(), name
    less = MeasureConfig(50, 20, histograms=False, metrics=ASKED.metrics)
    watched_less = train_tile.train_tile(runs(4, base), 4, measure_config=less, keep_params=True)
    for name in whole:
        if name.startswith("param:"):
            assert whole[name].tobytes() == watched_less[name].tobytes(), name


@pytest.mark.slow
def test_measurement_interval_changes_no_bit() -> None:
    base = SMALL.replace(epochs=6.5)
    configs = (FEW._replace(measure_every=every) for every in (1, 3))
    always, often = (train_tile.train_tile(runs(2, base), 2, measure_config=config, keep_params=True) for config in configs)
    kept = [0, 3, 6, 7]
    assert often["epoch"].tolist() == [0, 3, 6, 6.5] == always["epoch"][kept].tolist()
    for name in often:
        if name.startswith(("metric:", "certified_dead:")) and "revived" not in name:  # one between goes unseen
            assert often[name].tobytes() == always[name][:, kept].tobytes(), name  # update_norm is of one epoch either way
        elif name.startswith("param:"):
            assert often[name].tobytes() == always[name].tobytes(), name
    assert np.nanmin(often["metric:update_norm/all"]) > 0


def test_measurements_within_epochs_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a task with three phases and 14 steps an epoch, and with half an epoch at the end."""
    monkeypatch.setattr(tasks, "_entries", dict(tasks._entries))
    tasks.add("shifting", lambda spec: replace(tasks["negative_box"](spec.replace(task="negative_box")), phases=3))
    base = SMALL.replace(task="shifting", target="sum", epochs=3.5)
    whole, quarters, listed = (
        train_tile.train_tile(runs(2, base), 4, measure_config=PROBE._replace(measure_every=every), keep_params=True)
        for every in (1, 0.25, (0.05, 0.1, 0.5, 1, 1.7, 2))
    )
    assert len(quarters["epoch"]) == 15 and len(listed["epoch"]) == 7  # 0.05 and 0.1 round to one step
    for within in (quarters, listed):
        shared, at, kept = np.intersect1d(whole["epoch"], within["epoch"], return_indices=True)
        assert len(shared) >= 3 and len(within["epoch"]) > len(whole["epoch"])
        for name in whole:
            history = "revived" in name or "update_norm" in name  # since the measurement before
            if name.startswith(("metric:", "dead:", "certified_dead:")) and not history:
                assert within[name][:, kept].tobytes() == whole[name][:, at].tobytes(), name
            elif name.startswith("param:"):
                assert within[name].tobytes() == whole[name].tobytes(), name
        update, loss = within["metric:update_norm/all"], within["metric:val_loss/all"]
        assert (update[:, 1:] > 0).all() and len(np.unique(loss[0])) == loss.shape[1]


def test_update_norm_is_since_the_last_measurement_in_the_epoch() -> None:
    config, spec, epoch_steps = PROBE._replace(measure_every=(0.3, 1.7, 2)), SMALL.replace(epochs=2), 14
    states: dict[int, np.ndarray] = {}

    class Watcher:
        def ends(self, epoch: int, steps: int) -> list[int]:
            return list(range(1, steps + 1))

        def see(self, dispatch: train_tile.Dispatch) -> None:
            for step, state in ((dispatch.start, dispatch.before), (dispatch.stop, dispatch.after)):
                leaves = [np.ravel(np.asarray(leaf)[0]) for leaf in jax.tree.leaves(state.params)]
                states[epoch_steps * (dispatch.epoch - 1) + step] = np.concatenate(leaves).astype(np.float64)

    tile = train_tile.train_tile([spec], 4, measure_config=config, observer=Watcher())
    assert tile["epoch"].tolist() == pytest.approx([0, 4 / 14, 24 / 14, 2]) and sorted(states) == list(range(29))
    # After step 24 the change is that of epoch 2: the last measurement is in epoch 1.
    expected = [np.linalg.norm(states[to] - states[since]) for since, to in ((0, 4), (14, 24), (24, 28))]
    np.testing.assert_allclose(tile["metric:update_norm/all"][0, 1:], expected, rtol=1e-5)


def test_training_changes_the_parameters(whole: dict[str, np.ndarray]) -> None:
    loss = whole["metric:train_loss/all"]
    assert (loss[:, -1] < loss[:, 0]).all() and np.isfinite(loss).all()
    assert np.isnan(whole["metric:update_norm/all"][:, 0]).all() and (whole["metric:update_norm/all"][:, 1:] > 0).all()
    assert len({row.tobytes() for row in loss}) == 4


def test_unrequested_metrics_are_absent_and_change_no_bit(base: RunSpec, whole: dict[str, np.ndarray]) -> None:
    tile = train_tile.train_tile(runs(4, base), 4, measure_config=ASKED, keep_params=True)
    metrics = {name for name in whole if name.startswith(("metric:val_loss/", "metric:grad_norm/"))}
    left = {name for name in whole if not name.startswith(("metric:", "histogram:", "dead:", "certified_dead:"))}
    assert set(tile) == metrics | left
    same({name: whole[name] for name in tile}, tile, [0, 1, 2, 3], [0, 1, 2, 3])
