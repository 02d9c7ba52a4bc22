"""Checkpoints in every format give the results of a monitored training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pandas as pd
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState
from monitored import Linen, X, Y, forward, killed, loss, nnx_module, params_of

from relu_study import Monitor, load, monitor_checkpoints
from relu_study.errors import UserError

STATES = [params_of(), killed(params_of(), "one", 1), killed(params_of(), "two", 0)]


def dotted(tree: Any) -> dict[str, np.ndarray]:
    return {f"{layer}.{name}": array for layer, arrays in tree.items() for name, array in arrays.items()}


def saved(states: list[Any], folder: Path, kind: str) -> list[Path]:
    paths = [folder / f"run2_{100 * index}" for index in range(len(states))]
    for path, state in zip(paths, states, strict=True):
        if kind == "orbax":
            from orbax import checkpoint

            with checkpoint.StandardCheckpointer() as checkpointer:
                checkpointer.save(path, state)
        elif kind == "npz":
            np.savez(path.with_suffix(".npz"), **dotted(state))
        else:
            path.with_suffix(".msgpack").write_bytes(serialization.to_bytes(state))
    return [path if kind == "orbax" else path.with_suffix(f".{kind}") for path in paths]


def assert_equal_to_a_training(results: Any, folder: Path, steps: list[int]) -> None:
    with Monitor((forward, STATES[0]), out=folder, probe=X, targets=Y, loss=loss, every=1) as monitor:
        for step, state in zip(steps, STATES, strict=True):
            monitor(step, state)
    expected = load(folder)
    pd.testing.assert_frame_equal(results.curves, expected.curves)
    pd.testing.assert_frame_equal(results.units, expected.units)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["npz", "msgpack", pytest.param("orbax", marks=pytest.mark.slow)])
def test_paths_in_any_order(kind: str, tmp_path: Path) -> None:
    paths = saved(STATES, tmp_path, kind)
    results = monitor_checkpoints(forward, [paths[2], str(paths[0]), paths[1]], probe=X, targets=Y, loss=loss)
    assert_equal_to_a_training(results, tmp_path / "training", [0, 100, 200])


def test_states_of_every_kind(tmp_path: Path) -> None:
    modules = [nnx_module(state) for state in STATES]
    tx = optax.sgd(0.1)
    created = [TrainState.create(apply_fn=Linen().apply, params=state, tx=tx) for state in STATES]
    training = [state.replace(step=7 * index) for index, state in enumerate(created)]
    cases: list[tuple[Any, list[Any], list[int]]] = [
        (forward, STATES, [0, 1, 2]),
        (Linen(), STATES, [0, 1, 2]),
        (Linen(), [{"params": state} for state in STATES], [0, 1, 2]),
        (modules[0], modules, [0, 1, 2]),
        (modules[0], [nnx.state(module) for module in modules], [0, 1, 2]),
        (modules[0], [nnx.to_pure_dict(nnx.state(module)) for module in modules], [0, 1, 2]),
        (None, training, [0, 7, 14]),
        (forward, [{"params": state, "opt_state": (), "step": 3} for state in STATES], [0, 1, 2]),
    ]
    for fn, states, steps in cases:
        results = monitor_checkpoints(fn, states, probe=X)
        assert sorted(set(results.curves.step)) == steps
        assert results.units[results.units.deaths > 0].shape[0] == 2  # type: ignore[attr-defined]


def test_own_formats_steps_and_folder(tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / f"{index}.txt").write_text(str(index))
    paths = [tmp_path / f"{index}.txt" for index in range(3)]
    results = monitor_checkpoints(
        forward, paths, probe=X, read=lambda path: STATES[int(path.read_text())], steps=[5, 10, 15], out=tmp_path / "mine"
    )
    assert sorted(set(results.curves.step)) == [5, 10, 15]
    assert sorted(set(load(tmp_path / "mine").curves.step)) == [5, 10, 15]


def test_an_ensemble_of_checkpoints() -> None:
    stacked = [jax.tree.map(lambda *leaves: np.stack(leaves), state, STATES[0]) for state in STATES]
    results = monitor_checkpoints(forward, stacked, probe=X, ensemble=True)
    assert results.runs["dead_fraction/two"].tolist() == [pytest.approx(0.2), 0.0]


@pytest.mark.parametrize(
    "given, options, message",
    [
        ([], {}, "no checkpoints"),
        (STATES, {"steps": [1, 2]}, "2 numbers, but there are 3 checkpoints"),
        (STATES, {"steps": [1, 2, 2]}, "two checkpoints have the step 2"),
        (["missing_1.npz"], {}, "does not exist"),
        ([__file__], {}, "unknown format"),
        ([STATES[0], {"one": STATES[0]["one"]}], {}, "another structure"),
    ],
)
def test_errors(given: Any, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        monitor_checkpoints(forward, given, probe=X, **options)


def test_stored_steps_are_not_measured_again(tmp_path: Path) -> None:
    options: dict[str, Any] = {"probe": X, "out": tmp_path / "mine"}
    first = monitor_checkpoints(forward, STATES[:2], steps=[0, 10], **options)
    before = (tmp_path / "mine" / "measurements.csv").read_bytes()
    monitor_checkpoints(forward, STATES[:2], steps=[0, 10], **options)
    assert (tmp_path / "mine" / "measurements.csv").read_bytes() == before
    more = monitor_checkpoints(forward, STATES, steps=[0, 10, 20], **options)
    assert sorted(set(more.curves.step)) == [0, 10, 20] and len(first.curves) == 2 * len(more.curves) // 3
    with pytest.raises(UserError, match="went back from 20 to 5"):
        monitor_checkpoints(forward, STATES[:1], steps=[5], **options)


def test_broken_checkpoints_are_named(tmp_path: Path) -> None:
    for name in ("ckpt_1.msgpack", "ckpt_1.npz"):
        (tmp_path / name).write_bytes(b"\xc1broken")
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            monitor_checkpoints(forward, [tmp_path / name], probe=X)


def test_the_step_in_a_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "step5_seed3.npz", **dotted(STATES[0]))
    assert set(monitor_checkpoints(forward, [tmp_path / "step5_seed3.npz"], probe=X).curves.step) == {5}
