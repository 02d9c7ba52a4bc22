"""Replays of single runs: equality with the stored run, and each death against a network written by hand."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dying_study import dying, study, study_of

from relu_study import UserError, load, replay, run
from relu_study.cli.replay_summary import replay_summary
from relu_study.components import random_streams
from relu_study.components.registry import tasks
from relu_study.engine import cohorts, train_tile
from relu_study.engine.state import MeasureConfig
from relu_study.report.report import report
from relu_study.runner.replay_result import FILES, Replay
from relu_study.storage.atomic_write import WriteError
from relu_study.storage.configurations import collect

pytestmark = pytest.mark.usefixtures("one_device")
STEPS = 5  # of an epoch: four batches of 32 and one of 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("replay") / "dying"
    run(study, path)
    return path


@pytest.fixture(scope="module")
def replayed(folder: Path) -> Replay:
    return replay(folder, study.runs()[0].run_id, out=folder / "replays" / "one")


def test_row_and_measurements_equal_the_stored_ones(folder: Path, replayed: Replay) -> None:
    about = replayed.about
    assert about["equal_row"] and about["equal_measurements"] == 4
    assert (about["first_step"], about["last_step"], about["total_steps"]) == (0, 2 * STEPS, 3 * STEPS)
    assert about["spec"] == study.runs()[0].as_dict()


def test_masks_at_the_ends_of_epochs_equal_the_stored_ones(folder: Path, replayed: Replay) -> None:
    (stored,) = collect(folder).values()
    at = replayed.arrays["total_step"].tolist()
    for site, masks in stored.dead.items():
        assert masks[0].any() and not masks[0].all()
        for epoch in range(3):
            assert np.array_equal(replayed.arrays[f"dead:{site}"][at.index(epoch * STEPS)], masks[0, epoch])
    counts = replayed.steps.pivot(index="total_step", columns="site", values="dead")
    assert counts.loc[STEPS].tolist() == [int(masks[0, 1].sum()) for masks in stored.dead.values()]


def test_each_event_is_a_change_of_a_mask_and_no_change_is_missing(replayed: Replay) -> None:
    changes = set()
    for site in ("site_1", "site_2"):
        dead = replayed.arrays[f"dead:{site}"].astype(int)
        for at, unit in np.argwhere(np.diff(dead, axis=0)):
            kind = "died" if dead[at + 1, unit] else "revived"
            changes.add((kind, int(replayed.arrays["total_step"][at + 1]), site, int(unit)))
    events = replayed.events
    assert len(changes) == len(events) == replayed.about["died"] + replayed.about["revived"] > 3
    assert set(zip(events.event, events.total_step, events.site, events.unit, strict=True)) == changes
    died = events[events.event == "died"]
    assert (died.probe_before_max > 0).all() and (died.probe_after_max <= 0).all() and (died.active_after == 0).all()


# ------------------------------------------------------------------- against a network by hand


@cache
def by_hand() -> tuple[list[Any], np.ndarray, np.ndarray]:
    """Parameters after each step of a plain loop of gradient descent, and all training inputs and targets."""
    spec = study.runs()[0]
    task = tasks[spec.task](spec)
    n = task.signature.train_rows
    x, y = task.sample(random_streams.stream(spec.seed, "data", 0), 0)
    x, y = jnp.asarray(x[:n]), jnp.asarray(y[:n])
    begun = train_tile.init_tile([spec] * 2, jax.devices()[0], MeasureConfig()).state.params
    leaves = [np.asarray(leaf[0]) for leaf in jax.tree.leaves(begun)]
    kernels, biases = ([leaf for leaf in leaves if leaf.ndim == ndim] for ndim in (2, 1))
    params = [list(pair) for pair in zip(kernels, biases, strict=True)]
    states = [params]
    for epoch in (1, 2):
        order = random_streams.shuffled(random_streams.order_key(spec.seed, epoch), jnp.arange(n, dtype=jnp.uint32), n)
        for at in range(0, n, spec.batch_size):
            rows = np.asarray(order[at : at + spec.batch_size])
            grads = gradient(params, x[rows], y[rows])
            params = jax.tree.map(lambda w, g: w - spec.learning_rate * g, params, grads)
            states.append(params)
    return states, np.asarray(x), np.asarray(y)


def pre_of(params: Any, x: Any) -> list[Any]:
    """The pre-activations of both hidden layers."""
    first = x @ params[0][0] + params[0][1]
    return [first, jax.nn.relu(first) @ params[1][0] + params[1][1]]


@jax.jit
def gradient(params: Any, x: Any, y: Any) -> Any:
    def loss(params: Any) -> Any:
        return jnp.mean((jax.nn.relu(pre_of(params, x)[1]) @ params[2][0] + params[2][1] - y) ** 2)

    return jax.grad(loss)(params)


def events_of(replayed: Replay) -> list[tuple[int, dict[str, Any]]]:
    return [(i, event) for i, event in enumerate(replayed.events.to_dict("records")) if event["by"] == "step"]


def test_gradient_and_step_are_those_of_the_rows_of_the_batch(replayed: Replay) -> None:
    states, x, y = by_hand()
    sites = set()
    for i, event in events_of(replayed):
        rows, layer, unit = event["batch_rows"], int(event["site"][-1]) - 1, int(event["unit"])
        assert rows == replayed.arrays["rows"][event["total_step"]][: len(rows)].tolist()
        assert len(rows) == event["batch_size"] == (12 if event["step"] == STEPS else 32)
        before, after = states[event["total_step"] - 1], states[event["total_step"]]
        kernel, bias = gradient(before, x[rows], y[rows])[layer]
        wanted = np.append(np.asarray(kernel)[:, unit], np.asarray(bias)[unit])
        own = {name: replayed.arrays[f"event_{i}:{name}"] for name in ("weights", "gradient", "step")}
        np.testing.assert_allclose(own["gradient"], wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(own["step"], -dying.learning_rate * own["gradient"], rtol=1e-4, atol=3e-7)
        old, new = (np.append(np.asarray(p[layer][0])[:, unit], np.asarray(p[layer][1])[unit]) for p in (before, after))
        np.testing.assert_allclose(own["weights"], old, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(own["weights"] + own["step"], new, rtol=1e-4, atol=1e-5)
        assert event["grad_norm"] == pytest.approx(np.linalg.norm(wanted), rel=1e-4, abs=1e-6)
        sites.add(event["site"])
    assert sites == {"site_1", "site_2"}


def test_pre_activations_are_those_before_and_after_the_step(replayed: Replay) -> None:
    states, x, _ = by_hand()
    for i, event in events_of(replayed):
        layer, unit = int(event["site"][-1]) - 1, int(event["unit"])
        before, after = states[event["total_step"] - 1], states[event["total_step"]]
        mixed = [[*map(np.array, pair)] for pair in before]
        for old, new in zip(mixed[layer], after[layer], strict=True):
            old[..., unit] = np.asarray(new)[..., unit]
        wanted = {"probe_before": (before, x), "probe_after": (after, x), "probe_own": (mixed, x)}
        wanted |= {f"batch_{when}": (p, x[event["batch_rows"]]) for when, p in (("before", before), ("after", after))}
        for name, (params, inputs) in wanted.items():
            pre = np.asarray(pre_of(params, inputs)[layer])[:, unit]
            np.testing.assert_allclose(replayed.arrays[f"event_{i}:{name}"], pre, rtol=1e-4, atol=1e-5)
            assert event[f"{name}_max"] == pytest.approx(pre.max(), rel=1e-4, abs=1e-5)
    moved = [
        np.abs(replayed.arrays[f"event_{i}:probe_own"] - replayed.arrays[f"event_{i}:probe_after"]).max()
        for i, _ in events_of(replayed)
    ]
    assert max(moved) > 1e-3, "no unit moved by the step of an earlier layer"


# ---------------------------------------------------------------------------------------- moments


def test_window_around_an_epoch(folder: Path) -> None:
    about = replay(folder, study.runs()[1].run_id, 2.5, window=0.3).about
    assert (about["first_step"], about["last_step"]) == (11, 14)


def test_clone_has_the_same_first_death(folder: Path, replayed: Replay, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "clone", ignore=shutil.ignore_patterns("raw", "replays"))
    again = replay(tmp_path / "clone", replayed.run_id)
    assert again.events.equals(replayed.events) and again.about["equal_row"] and not again.about["equal_measurements"]
    path = tmp_path / "clone" / "runs.csv"
    row = next(line for line in path.read_text().splitlines() if line.startswith(replayed.run_id))
    digit = "1" if row[-1] != "1" else "2"
    path.write_text(path.read_text().replace(row, row[:-1] + digit))
    (tmp_path / "clone" / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match=r"differs from .*val_loss/\w+ in runs.csv is .* there and .* here. Nothing was written"):
        replay(tmp_path / "clone", replayed.run_id, 1, window=0.2, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_nonfinite_run_names_its_step_and_place(tmp_path: Path) -> None:
    exploding = dying.replace(activation="linear", learning_rate=1e12, epochs=1)
    run(study_of("exploding", exploding), tmp_path)
    found = replay(tmp_path, exploding.run_id)
    (event,) = found.events[found.events.event == "nonfinite"].to_dict("records")
    after = found.steps[found.steps.total_step == event["total_step"]]
    before = found.steps[found.steps.total_step == event["total_step"] - 1]
    assert (
        found.about["status"] == "nonfinite" and np.isfinite(before.train_loss).all() and not np.isfinite(after.train_loss).any()
    )
    assert 1 <= event["total_step"] <= STEPS and len(event["batch_rows"]) == event["batch_size"]
    assert after.dead.isna().all() and before.dead.notna().all()  # a nonfinite run has no dead units
    assert found.figure("svg")["svg"].startswith(b"<?xml")
    (line,) = (line for line in replay_summary(found.about, found.events) if "nonfinite" in line)
    assert line.startswith(f"step {event['total_step']} (epoch 1, step {event['step']}): nonfinite after it: ")
    shutil.copytree(tmp_path, tmp_path / "clone", ignore=shutil.ignore_patterns("raw"))
    for place in (tmp_path, tmp_path / "clone"):  # stored measurements, and measurements of a first training
        onset = replay(place, exploding.run_id, "onset")
        assert onset.events.equals(found.events) and onset.about["finding"].startswith("exploding: train loss")
        assert onset.about["finding"] in replay_summary(onset.about, onset.events)
    late = replay(tmp_path, exploding.run_id, 1, window=0.1)
    assert late.about["nonfinite_at_start"] and not len(late.events)
    assert any("nonfinite at the start" in line for line in replay_summary(late.about, late.events))


# --------------------------------------------------------------------------------------- refusals


def test_other_provenance_is_refused_before_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohorts, "ENGINE", cohorts.ENGINE + 1)
    monkeypatch.setattr(train_tile, "train_tile", None)
    with pytest.raises(UserError, match=rf"engine: {cohorts.ENGINE - 1} there, {cohorts.ENGINE} here"):
        replay(folder, study.runs()[0].run_id)


def test_unwritable_place_is_refused_before_training(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(train_tile, "train_tile", None)
    with pytest.raises(WriteError, match="file/below: Not a directory"):
        replay(folder, study.runs()[0].run_id, out=tmp_path / "file" / "below")


# ------------------------------------------------------------------------------------------ files


def test_files_of_a_replay_leave_the_report_unchanged(folder: Path, replayed: Replay) -> None:
    place = folder / "replays" / "one"
    assert sorted(path.name for path in place.iterdir()) == sorted(FILES)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts}
    assert report(folder) == [] and {path: path.read_bytes() for path in before} == before
    assert set(load(folder).runs.status) == {"ok"}
    assert json.loads((place / "replay.json").read_text()) == replayed.about
    replayed.write(place)
    assert {path: path.read_bytes() for path in before} == before


def test_stored_arrays_and_tables_are_those_of_the_result(folder: Path, replayed: Replay) -> None:
    place = folder / "replays" / "one"
    with np.load(place / "arrays.npz", allow_pickle=False) as stored:
        assert set(stored) == set(replayed.arrays)
        assert all(np.array_equal(stored[name], values) for name, values in replayed.arrays.items())
    header, *lines = (place / "events.csv").read_text().splitlines()
    assert header.split(",") == list(replayed.events.columns) and len(lines) == len(replayed.events)
    rows = " ".join(map(str, replayed.events["batch_rows"].iloc[0]))
    assert f",{rows}," in lines[0]
    assert (place / "steps.csv").read_text().count("\n") == 1 + len(replayed.steps) == 1 + 2 * (2 * STEPS + 1)


def test_files_of_something_else_are_not_overwritten(folder: Path, replayed: Replay, tmp_path: Path) -> None:
    for name in ("events.csv", "manifest.json", "replay.json"):
        other = tmp_path / name.partition(".")[0]
        other.mkdir()
        (other / name).write_text('{"run_id": "another"}')
        with pytest.raises(UserError, match=f"has {name}, which is not of a replay of run {replayed.run_id}"):
            replayed.write(other)
        with pytest.raises(UserError, match="Name another folder"):
            replay(folder, replayed.run_id, out=other)
        assert [path.name for path in other.iterdir()] == [name]
    before = (folder / "replays" / "one" / "events.csv").read_bytes()
    replayed.write(folder / "replays" / "one")  # its own files
    assert (folder / "replays" / "one" / "events.csv").read_bytes() == before


def test_repr_is_one_line(replayed: Replay) -> None:
    assert repr(replayed).startswith(f"Replay of run {replayed.run_id} of dying: steps 0 to 10, ") and len(repr(replayed)) < 200
