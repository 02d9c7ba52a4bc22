"""Nonfinite and absent runs: counts and reasons in tables and reports."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from known_results import planted_arms, planted_folder, planted_study
from minimal_folders import EPOCHS, trained

from relu_study import RunSpec, load, table
from relu_study.components.metrics.metric import metric
from relu_study.components.registry import metrics
from relu_study.components.tasks.task import LOSSES
from relu_study.engine import train_tile
from relu_study.engine.bundle import Bundle
from relu_study.report.report import report
from relu_study.report.tables.entries import RunLookup
from relu_study.storage.tile_files import read_tile, tile_paths, write_tile


def test_unfinished_study_lists_missing_runs(tmp_path: Path) -> None:
    lost = planted_arms(planted_study())["he_normal", "wave"]
    folder = planted_folder(tmp_path / "planted", left_out=tuple(lost.replace(seed=s).run_id for s in (0, 6)), figures=False)
    report(folder) if not (folder / "runs.csv").is_file() else None
    made = table(folder, metric=["val_loss", "dead_fraction"], where="target=wave")
    (line,) = (line for line in made.splitlines() if line.startswith("| he_normal"))
    assert line.count(" n=5/8 (1 nonfinite, 2 not run)") == 2, made
    assert "why the others have none" in made
    assert "n=" not in next(line for line in made.splitlines() if line.startswith("| lecun_normal"))


def without_loss(folder: Path, epoch: int, last: int = len(EPOCHS)) -> Path:
    """The minimal folder with one NaN validation loss at some epochs. Its run is finite."""
    trained(folder)
    path = tile_paths(folder)[0]
    tile = read_tile(path)
    tile["metric:val_loss/all"][1, epoch:last] = np.nan
    write_tile(folder, tile)
    report(folder)
    return folder


def test_nan_validation_loss_counts_as_nonfinite(tmp_path: Path) -> None:
    folder = without_loss(tmp_path / "one", 1)
    arm = load(folder).runs.query("`val_loss/all`.isna()")["activation"].item()
    made = table(folder, metric=["val_loss", "dead_fraction"])
    (line,) = (line for line in made.splitlines() if line.startswith(f"| {arm} "))
    assert "(n=2/3) |" in line and line.count("n=") == 1
    summary = load(folder).summary.query("metric == 'val_loss' and activation == @arm").set_index("epoch")["n_finite"]
    assert summary.to_dict() == {0: 3, 1: 2, 2: 2}
    assert "In 1 of the ok runs the validation loss went nonfinite. Dead units" in (folder / "report.md").read_text()
    assert "went nonfinite" not in (trained(tmp_path / "whole") / "report.md").read_text()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_outputs_give_a_nonfinite_loss(loss: str, bad: float) -> None:
    """So every metric of these outputs is missing: a share of right answers counts them as wrong."""
    outputs = 1 if loss == "bce" else 3
    for example, column in np.ndindex(4, outputs):
        prediction = np.random.default_rng(0).normal(size=(4, outputs)).astype(np.float32)
        prediction[example, column] = bad
        for label in range(2 if loss == "bce" else outputs):
            y = np.full((4, 1), label) if loss == "bce" else np.eye(outputs)[[label] * 4]
            assert not np.isfinite(LOSSES[loss](jnp.asarray(prediction), jnp.asarray(y, jnp.float32)))


def test_metric_of_a_nonfinite_validation_loss_is_missing() -> None:
    loss = np.array([[1, 1, 1], [1, np.nan, 1], [1, 1, np.inf], [np.nan, 1, 1]])
    measured = [
        {
            "finite": np.ones(4, bool),
            "constant_loss": np.ones(4),
            "metric:val_loss/all": loss[:, e],
            "metric:_low/all": loss[:, e] < 2,
            "metric:other/all": [1] * 4,
        }
        for e in range(3)
    ]
    measured = [{name: jnp.asarray(value, float if "metric" in name else None) for name, value in e.items()} for e in measured]
    runs = [RunSpec(seed=seed) for seed in range(4)]
    try:

        @metric("_low", per="network", unit="0 or 1", requires=("val_loss",))
        def low(snapshot):
            """1 where the validation loss is low; 0 where it is no number."""
            return snapshot.val_loss < 2

        tile = train_tile.fetch(train_tile.QueuedTile(runs, np.arange(3.0), {}, {}, list(map(Bundle.of, measured)), None, 8, []))
    finally:
        metrics._entries.pop("_low")
    kept = [[True] * 3, [True, False, False], [True, True, False], [False] * 3]
    for name in ("val_loss", "_low"):
        assert np.isfinite(tile[f"metric:{name}/all"]).tolist() == kept
    assert np.isfinite(tile["metric:other/all"]).all() and set(tile["status"]) == {"ok"}


def test_run_without_validation_loss_is_nonfinite_in_dependent_metrics(tmp_path: Path) -> None:
    runs = load(without_loss(tmp_path / "one", 1)).runs
    lost = runs["val_loss/all"].isna()
    frame = runs.assign(**{"gap/all": np.where(lost, np.nan, 1.0), "few/all": np.where(runs["seed"] == 1, np.nan, 1.0)})
    config_id = runs["config_id"][lost].item()
    assert RunLookup(frame).cell(config_id, "gap", "all").count == "n=2/3"
    other = next(name for name in runs["config_id"] if name != config_id)
    assert RunLookup(frame).cell(other, "few", "all").count == "n=2/3 (1 not measured)"


@pytest.mark.parametrize("epoch", ["last", 1])
def test_missing_validation_losses_name_their_reason(tmp_path: Path, epoch: str | int) -> None:
    folder = trained(tmp_path / "none")
    path = tile_paths(folder)[0]
    tile = read_tile(path)
    tile["metric:val_loss/all"][:, 1:] = np.nan
    write_tile(folder, tile)
    report(folder)
    assert table(folder, epoch=epoch).count("| - (n=0/3) |") == 1
