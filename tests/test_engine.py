"""The engine's promises: bits that depend on a run's spec and its tile's width alone, and no compile too many."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from relu_study import engine, tiles
from relu_study.probes import revivals
from relu_study.programs import Probing
from relu_study.registry import UserError, activations, networks, tasks
from relu_study.spec import RunSpec
from relu_study.tasks import Task

SMALL = RunSpec(rows=600, batch_size=32, width=8, depth=2, epochs=3, initializer="he_normal", leak=0.1)
PROBE = Probing(200, 100)
FEW = PROBE._replace(
    histograms=False, metrics=("val_loss", "grad_norm", "post_mean", "update_norm", "certified_dead_fraction")
)  # quick to compile
# Not under adam: the bias before batch normalisation has gradient 0, and adam makes steps of the rounding noise.
NORMED = {"norm": "batch_norm", "optimizer": "sgd"}


def runs(n: int, base: RunSpec = SMALL) -> list[RunSpec]:
    return [base.but(seed=seed) for seed in range(n)]


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], rows_a: list[int], rows_b: list[int]) -> None:
    """Bit for bit, whatever the dtype; NaN equals NaN of the same bits."""
    assert set(a) == set(b)
    for name in a:
        if name == "epoch" or a[name].ndim == 0:
            assert np.array_equal(a[name], b[name]), name
        else:
            for i, j in zip(rows_a, rows_b, strict=True):
                assert a[name][i].tobytes() == b[name][j].tobytes(), f"{name} of row {i}"


@pytest.fixture(scope="module", params=["none", "dropout"])
def base(request: pytest.FixtureRequest) -> RunSpec:
    return SMALL if request.param == "none" else SMALL.but(dropout="dropout", dropout_rate=0.2)


@pytest.fixture(scope="module")
def whole(base: RunSpec) -> dict[str, np.ndarray]:
    return tiles.train_tile(runs(4, base), 4, probing=PROBE, keep_params=True)


def test_neighbours_and_order_move_no_bit(base: RunSpec, whole: dict[str, np.ndarray]) -> None:
    mixed = [base.but(seed=9), base.but(seed=2), base.but(seed=0, learning_rate=0.5), base.but(seed=1)]
    tile = tiles.train_tile(mixed, 4, probing=PROBE, keep_params=True)
    same(whole, tile, [2, 1], [1, 3])


def test_neighbours_with_another_start_or_data_move_no_bit(base: RunSpec, whole: dict[str, np.ndarray]) -> None:
    mixed = [base.but(seed=3, initializer="negative_uniform"), base.but(seed=3), base.but(seed=3, target="sum", inputs="centred")]
    tile = tiles.train_tile([*mixed, base.but(seed=0)], 4, probing=PROBE, keep_params=True)
    same(whole, tile, [3, 0], [1, 3])
    alone = tiles.train_tile([mixed[0]], 4, probing=PROBE, keep_params=True)
    same(alone, tile, [0], [0])
    assert not np.array_equal(tile["metric:train_loss/all"][0], tile["metric:train_loss/all"][1])


def test_a_bad_neighbour_moves_no_bit(whole: dict[str, np.ndarray], base: RunSpec) -> None:
    bad = base.but(seed=1, learning_rate=1e30)
    tile = tiles.train_tile([base.but(seed=0), bad, base.but(seed=3)], 4, probing=PROBE, keep_params=True)
    same(whole, tile, [0, 3], [0, 2])
    assert tile["status"].tolist() == ["ok", "nonfinite", "ok"]
    assert tile["first_bad_epoch"][1] == 1 and np.isnan(tile["metric:train_loss/all"][1, 1:]).all()
    assert np.isfinite(tile["metric:train_loss/all"][1, 0])


def test_alone_and_padded(whole: dict[str, np.ndarray], base: RunSpec) -> None:
    for seed in range(4):
        same(whole, tiles.train_tile([base.but(seed=seed)], 4, probing=PROBE, keep_params=True), [seed], [0])


def test_every_device(whole: dict[str, np.ndarray], base: RunSpec) -> None:
    assert len(jax.devices()) > 1
    tile = tiles.train_tile(runs(4, base), 4, jax.devices()[-1], PROBE, keep_params=True)
    same(whole, tile, [0, 1, 2, 3], [0, 1, 2, 3])


@pytest.mark.parametrize("chunk", [1, 5, 13])
def test_chunk_length(whole: dict[str, np.ndarray], base: RunSpec, chunk: int) -> None:
    same(whole, tiles.train_tile(runs(4, base), 4, probing=PROBE, chunk=chunk, keep_params=True), [0, 3], [0, 3])


@pytest.mark.parametrize("sets", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_sharing_rows(base: RunSpec, sets: int) -> None:
    """Runs of the same data and seed read one copy of it; whether they do, and how many copies there are, moves no bit."""
    arms = (base, base.but(gain=2), base.but(learning_rate=0.1, initializer="lecun_normal"), base.but(gain=3))
    keys = [(0, "wave"), (0, "sum"), (1, "wave"), (1, "sum")][: 3 if sets == 4 else sets]  # the fourth set is nobody's
    tile = [arm.but(seed=seed, target=target) for seed, target in keys for arm in arms[: 8 // len(keys)]][1:]
    each = list(range(len(tile)))
    probing = PROBE if sets == 1 else FEW
    alone = tiles.train_tile(tile, 8, probing=probing, keep_params=True)
    assert len({row.tobytes() for row in alone["metric:val_loss/all"]}) == len(tile)
    same(alone, tiles.train_tile(tile, 8, probing=probing, keep_params=True, sets=sets), each, each)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "wide"), [(1, 32), (3, 16)])
def test_sharing_rows_at_the_articles_size(depth: int, wide: int) -> None:
    tile = [RunSpec(rows=3000, depth=depth, epochs=1, seed=i % 4, gain=1 + i // 4, initializer="he_normal") for i in range(wide)]
    alone, together, few = (tiles.train_tile(tile, wide, probing=FEW, keep_params=True, sets=n) for n in (None, 4, 8))
    same(alone, together, list(range(wide)), list(range(wide)))
    same(alone, few, list(range(wide)), list(range(wide)))


@pytest.mark.slow
def test_sharing_rows_that_change_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_entries", dict(tasks._entries))
    tasks.add("moving", lambda spec: replace(tasks["negative_box"](spec.but(task="negative_box")), phases=3))
    tile = [SMALL.but(task="moving", seed=seed, gain=gain) for seed in (0, 1) for gain in (1, 2)]
    alone, together = (tiles.train_tile(tile, 4, probing=FEW, sets=sets) for sets in (None, 2))
    same(alone, together, [0, 1, 2, 3], [0, 1, 2, 3])
    fixed = tiles.train_tile([run.but(task="negative_box") for run in tile], 4, probing=FEW)
    losses = [numbers["metric:val_loss/all"] for numbers in (alone, fixed)]
    assert np.array_equal(losses[0][:, 1], losses[1][:, 1]) and not np.array_equal(losses[0][:, 2], losses[1][:, 2])


@pytest.mark.slow
def test_rows_and_columns_are_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that may do more with its input than our modules is trained on examples as rows; bits aside, that is all."""
    monkeypatch.setattr(networks, "_entries", dict(networks._entries))

    class Rows(networks["mlp"]):
        bounded = False

    networks.add("rows", Rows)
    for changes in (
        {"activation": "crelu"},
        NORMED,
        {"norm": "layer_norm", "activation": "selu", "dropout": "alpha_dropout", "dropout_rate": 0.1},
    ):
        spec = SMALL.but(epochs=1, **changes)
        columns, rows = (
            tiles.train_tile(runs(2, one), 2, probing=FEW)
            for one in (spec, spec.but(network={"mlp": "rows", "skip": "skip_rows"}[spec.network]))
        )
        for name in ("val_loss/all", "grad_norm/site_1", "post_mean/site_2", "update_norm/all"):
            np.testing.assert_allclose(columns[f"metric:{name}"], rows[f"metric:{name}"], rtol=2e-4, err_msg=f"{changes} {name}")
        assert np.isfinite(columns["metric:certified_dead_fraction/all"]).all() == (spec.activation == "relu")
        assert np.isnan(rows["metric:certified_dead_fraction/all"]).all()


def test_probes_on_or_off(whole: dict[str, np.ndarray], base: RunSpec) -> None:
    unwatched = tiles.train_tile(runs(4, base), 4, probing=PROBE, probe=False, keep_params=True)
    assert unwatched["epoch"].tolist() == [0, 3]
    for name in whole:
        if name.startswith("param:"):
            assert whole[name].tobytes() == unwatched[name].tobytes(), name
    watched_less = tiles.train_tile(runs(4, base), 4, probing=Probing(50, 20), keep_params=True)
    for name in whole:
        if name.startswith("param:"):
            assert whole[name].tobytes() == watched_less[name].tobytes(), name


def test_measuring_less_often_moves_no_bit() -> None:
    base = SMALL.but(epochs=6.5)
    always, often = (tiles.train_tile(runs(2, base), 2, probing=FEW._replace(every=every), keep_params=True) for every in (1, 3))
    kept = [0, 3, 6, 7]
    assert often["epoch"].tolist() == [0, 3, 6, 6.5] == always["epoch"][kept].tolist()
    for name in often:
        if name.startswith(("metric:", "certified_dead:")) and "revived" not in name:  # one between goes unseen
            assert often[name].tobytes() == always[name][:, kept].tobytes(), name  # update_norm is of one epoch either way
        elif name.startswith("param:"):
            assert often[name].tobytes() == always[name].tobytes(), name
    assert np.nanmin(often["metric:update_norm/all"]) > 0


@pytest.mark.parametrize(
    ("epochs", "every", "when"),
    [
        (0, 3, [0]),
        (0.25, 3, [0, 0.25]),
        (3, 1, [0, 1, 2, 3]),
        (3, 3, [0, 3]),
        (4, 3, [0, 3, 4]),
        (6.5, 3, [0, 3, 6, 6.5]),
        (6.5, 7, [0, 6.5]),
    ],
)
def test_epochs_that_are_measured(epochs: float, every: int, when: list[float]) -> None:
    assert tiles.epochs_measured(epochs, every).tolist() == when


def test_a_fraction_of_an_epoch_is_a_whole_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, taken = RunSpec(task="lu_targets", rows=4_000, batch_size=64, width=2, epochs=5_000 / 47), []
    assert engine.describe(spec).steps == 5_000

    def advance(state, train, seeds, knobs, epoch, start, stop, source):
        taken.append(int(stop) - int(start))
        return state

    spy = engine.Programs(advance, lambda *_: {"finite": np.ones(2, bool)}, lambda params: ())
    monkeypatch.setattr(engine, "tile_programs", lambda spec, probing: spy)
    assert tiles.train_tile([spec], 2, probing=Probing(every=50))["epoch"].tolist() == [0, 50, 100, 5_000 / 47]
    assert len(taken) == 107 and taken[:106] == [47] * 106 and sum(taken) == 5_000


def test_training_goes_somewhere(whole: dict[str, np.ndarray]) -> None:
    loss = whole["metric:train_loss/all"]
    assert (loss[:, -1] < loss[:, 0]).all() and np.isfinite(loss).all()
    assert np.isnan(whole["metric:update_norm/all"][:, 0]).all() and (whole["metric:update_norm/all"][:, 1:] > 0).all()
    assert len({row.tobytes() for row in loss}) == 4


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


def test_one_trace_a_cohort_and_one_compile_a_device() -> None:
    heard = Heard()
    base = SMALL.but(width=7, rows=610, epochs=1)  # as no other test here: what is compiled already is not compiled again
    devices = jax.devices()[:2]
    cohorts = [base, base.but(activation="tanh")]
    heard.on = True
    for device in (*devices, *devices):
        for spec in cohorts:
            knobs = [spec.but(seed=5), spec.but(learning_rate=0.1, seed=1), spec.but(target="sum", epochs=1)]
            tiles.train_tile(knobs, 4, device, FEW)
            tiles.train_tile([s.but(initializer="lecun_normal", epochs=2, inputs="centred") for s in knobs], 4, device, FEW)
    heard.on = False
    for program in ("advance", "measure"):
        assert heard.traces[program] == len(cohorts), heard.traces
        assert heard.compiles[program] == len(cohorts) * len(devices), heard.compiles
    # Two initialisers that do not look at their inputs, shared by both activations; four kinds of data.
    assert heard.compiles["init"] == 2 * len(devices), heard.compiles
    assert heard.compiles["sample"] == 4 * len(devices), heard.compiles


COLD_START = """
import jax, json, sys
from collections import Counter
heard = Counter()
jax.monitoring.register_event_listener(lambda event, **_: heard.update([event.rpartition("/")[2]]))
from relu_study import runner
runner.use_devices()
from relu_study import tiles
from relu_study.spec import RunSpec
tiles.train_tile([RunSpec(rows=600, batch_size=32, width=8, epochs=1)], 2)
print(json.dumps(heard))
"""


@pytest.mark.slow
def test_a_warm_second_start_misses_nothing_in_the_cache(tmp_path: Path) -> None:
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
    ("changes", "probing", "word"),
    [
        ({"activation": "rleu"}, PROBE, "relu"),
        ({"initializer": "he_norml"}, PROBE, "he_normal"),
        ({"optimizer": "adan"}, PROBE, "adam"),
        ({"task": "negativ_box"}, PROBE, "negative_box"),
        ({"target": "wav"}, PROBE, "wave"),
        ({"network": "mpl"}, PROBE, "mlp"),
        ({"batch_size": 421}, PROBE, "420 training rows"),
        ({}, Probing(421), "420 training rows"),
    ],
)
def test_bad_specs_are_named_before_anything_compiles(changes: dict, probing: Probing, word: str) -> None:
    with pytest.raises(UserError, match=word):
        engine.check(SMALL.but(**changes), probing)


def test_revivals_are_counted_once_a_unit() -> None:
    flags = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [1, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1]], bool)[None]  # epochs x units
    seen = revivals.fractions(
        {"dead:site_1": flags, "dead:site_2": flags[..., 3:], "certified_dead:site_1": flags}, ["site_1", "site_2"]
    )
    assert seen["revived_fraction/site_1"].tolist() == [[0, 0.25, 0.25, 0.25, 0.5]]
    assert seen["revived_fraction/site_2"].tolist() == [[0] * 5]
    assert np.allclose(seen["revived_fraction/all"], [[0, 0.2, 0.2, 0.2, 0.4]])
    assert np.isnan(seen["certified_revived_fraction/site_2"]).all() and seen["certified_revived_fraction/all"][0, -1] == 0.5


def test_tasks_with_another_box_never_share_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_entries", dict(tasks._entries))

    def boxed(spec: RunSpec) -> Task:
        return replace(tasks["negative_box"](spec.but(task="negative_box")), box=(-1.0, 0.0))

    def unboxed(spec: RunSpec) -> Task:
        return replace(boxed(spec), box=None)

    tasks.add("boxed", boxed)
    tasks.add("unboxed", unboxed)
    assert engine.describe(SMALL.but(task="boxed")).cohort == engine.describe(SMALL).cohort
    assert engine.describe(SMALL.but(task="unboxed")).cohort != engine.describe(SMALL).cohort
    tile = tiles.train_tile([SMALL.but(task="unboxed", epochs=0)], 2, probing=PROBE)
    assert np.isnan(tile["metric:certified_dead_fraction/all"]).all()


def test_an_entry_registered_anew_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "_entries", dict(activations._entries))
    losses = []
    for slope in (1.0, -7.0):
        code = f"from relu_study import activation\n@activation('sloped')\ndef sloped(pre):\n    return {slope} * pre"
        exec(code, {"__name__": "notebook"})
        spec = SMALL.but(activation="sloped", epochs=0)
        losses.append(tiles.train_tile([spec], 2, probing=PROBE)["metric:train_loss/all"][0, 0])
    assert losses[0] != losses[1]


def test_what_is_not_asked_for_is_not_there_and_moves_nothing(base: RunSpec, whole: dict[str, np.ndarray]) -> None:
    asked = PROBE._replace(histograms=False, metrics=("val_loss", "grad_norm"))
    tile = tiles.train_tile(runs(4, base), 4, probing=asked, keep_params=True)
    metrics = {name for name in whole if name.startswith(("metric:val_loss/", "metric:grad_norm/"))}
    left = {name for name in whole if not name.startswith(("metric:", "histogram:", "dead:", "certified_dead:"))}
    assert set(tile) == metrics | left
    same({name: whole[name] for name in tile}, tile, [0, 1, 2, 3], [0, 1, 2, 3])
