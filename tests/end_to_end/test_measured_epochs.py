"""A study measured within its epochs: its tiles, CSV files, tables, figures, TensorBoard files and replay."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from event_reader import read

from relu_study import UserError, load, replay, run, table
from relu_study.storage.configurations import collect
from relu_study.storage.tile_files import read_tile, tile_paths
from relu_study.study.loading import load_study

pytestmark = pytest.mark.usefixtures("one_device")

EVERY = (0.2, 0.25, 0.6, 1, 1.4, 9)
STUDY = f"""
from relu_study import Claim, Experiment, Figure, RunSpec, Study, Table

base = RunSpec(rows=200, batch_size=32, width=8, epochs=2, initializer="he_normal", optimizer="sgd", learning_rate=0.5)
study = Study(
    "early", "Early deaths", "When do units die?",
    [Experiment("main", {{"relu": base, "tanh": base.replace(activation="tanh")}})],
    seeds=2, every={EVERY}, metrics=("val_loss", "update_norm"),
    claims=[Claim("E1", "early", "dead_fraction", "relu", "tanh", "greater", 0.0, epoch=0.2)],
    tables=[Table("main", "Dead units.", ("main",), ("dead_fraction@0.6", "val_loss"))],
    figures=[
        Figure("curves", "Loss.", "curves", ("main",), metrics=("val_loss",), log=True),
        Figure("life", "Units.", "survival", ("main",)),
    ],
    presets={{"fifths": {{"every": 0.2}}, "whole": {{"every": 1}}}},
)
"""
WHEN = [0, 0.2, 0.6, 1, 1.4, 2]  # five steps an epoch: 0.25 is step 1 too, and 9 is beyond the end


@pytest.fixture
def early(here: Callable[..., tuple[int, str, str]], tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    (tmp_path / "early.py").write_text(STUDY)
    return here


def test_folder_of_a_study_measured_at_listed_epochs(early: Callable[..., tuple[int, str, str]]) -> None:
    status, _, err = early("run", "early.py", "--out", "out")
    assert status == 0, err
    folder = Path("out")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["declaration"]["every"] == manifest["provenance"]["measured_every"] == list(EVERY)
    for path in tile_paths(folder):
        assert read_tile(path)["epoch"].tolist() == WHEN
    # CSV files
    results = load(folder)
    assert sorted(set(results.summary["epoch"])) == [0, 0.2, 0.6, 1, 2]  # the report epochs, and those of the claim and the table
    curves = results.curves
    last = curves[curves["epoch"] == 2].set_index(["run_id", "metric", "site"])["value"]
    for row in results.runs.itertuples():
        assert last[row.run_id, "val_loss", "all"] == pytest.approx(
            results.runs.set_index("run_id").loc[row.run_id, "val_loss/all"]
        )
    survival = pd.read_csv(folder / "survival.csv", comment="#")
    assert survival.groupby(["config_id", "site"])["epoch"].apply(list).map(lambda when: when == WHEN).all()
    assert (survival[survival["epoch"] < 1]["died"].sum() > 0) and len(pd.read_csv(folder / "units.csv", comment="#"))
    verdicts = pd.read_csv(folder / "verdicts.csv", comment="#")
    assert verdicts["epoch"].iloc[0] == 0.2 and "not measured" not in "".join(verdicts["reason"].astype(str))
    # Tables and figures, also on demand
    assert "epoch 0.6" in (folder / "tables" / "main.md").read_text()
    assert (folder / "figures" / "curves.png").stat().st_size > 10_000 and (folder / "figures" / "life.png").is_file()
    assert "0.6" in table(folder, metric="dead_fraction", epoch=0.6)
    with pytest.raises(UserError, match=r"has no epoch 0.25. It has the epochs 0, 0.2, 0.6, 1, 1.4, 2"):
        table(folder, metric="dead_fraction", epoch=0.25)
    # Reports are equal each time, with all epochs if they are requested
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if "raw" not in path.parts and path.is_file()}
    shutil.rmtree(folder / "tensorboard")
    assert early("report", "out")[0] == 0
    assert {path for path, data in before.items() if path.read_bytes() != data} <= {folder / "manifest.json"}
    assert early("report", "out", "--all-epochs")[0] == 0 and sorted(set(load(folder).summary["epoch"])) == WHEN
    _check_tensorboard(folder)


def _check_tensorboard(folder: Path) -> None:
    """A thousand TensorBoard steps an epoch, each with the value of summary.csv."""
    summary = load(folder).summary
    for name in ("relu", "tanh"):
        (run_folder,) = (folder / "tensorboard").glob(f"{name}*")
        points = read(run_folder)["val_loss/all/mean"]
        assert list(points) == [0, 200, 600, 1000, 1400, 2000]
        rows = summary[(summary["metric"] == "val_loss") & (summary["site"] == "all")]
        rows = rows[rows["config_id"] == load(folder).runs.set_index("activation").loc[name, "config_id"].iloc[0]]
        np.testing.assert_allclose(list(points.values()), rows.sort_values("epoch")["mean"], rtol=1e-6)


def test_replay_of_a_run_measured_within_its_epochs(early: Callable[..., tuple[int, str, str]]) -> None:
    assert early("run", "early.py", "--out", "out", "--seeds", "1")[0] == 0
    run_id = load("out").runs.run_id[0]
    again = replay("out", run_id)
    assert again.about["equal_row"] and again.about["equal_measurements"] == len(WHEN)
    # The window of a death begins at the last measurement before it, at most an epoch earlier.
    assert again.about["died"] and again.about["first_step"] == 0 and again.about["last_step"] <= 10
    (stored,) = (c for c in collect(Path("out")).values() if run_id in c.run_ids)
    at = again.arrays["total_step"].tolist()
    for i, epoch in enumerate(WHEN):
        if round(5 * epoch) in at:
            assert np.array_equal(again.arrays["dead:site_1"][at.index(round(5 * epoch))], stored.dead["site_1"][0, i])
    assert replay("out", run_id, around=0.6, window=0.2).about["equal_measurements"] == len(WHEN)


def test_resumed_and_single_runs_and_other_intervals(early: Callable[..., tuple[int, str, str]]) -> None:
    assert early("run", "early.py", "--out", "out", "--seeds", "1")[0] == 0
    assert early("run", "early.py", "--out", "out")[0] == 0 and len(load("out").runs) == 4
    run_id = load("out").runs.run_id[1]
    assert early("run", "early.py", "--out", "single", "--only", run_id)[0] == 0
    status, _, err = early("run", "early.py", "--out", "out", "--preset", "whole")
    assert status and f"measured_every: {list(EVERY)} there, 1 here" in err
    study = load_study(Path("early.py"))
    fifths, whole = (run(study, preset=preset, out=preset, seeds=1) for preset in ("fifths", "whole"))
    assert fifths.curves["epoch"].nunique() == 11 and all((fifths.curves["epoch"] == i / 5).any() for i in range(11))
    assert json.loads(Path("fifths/manifest.json").read_text())["declaration"]["every"] == 0.2
    assert list(read(next(Path("whole/tensorboard").glob("relu*")))["val_loss/all/mean"]) == [0, 1, 2]
    ends = [results.runs.set_index("run_id")["val_loss/all"] for results in (fifths, whole, load("out"))]
    assert ends[0].equals(ends[1]) and ends[2].loc[ends[0].index].equals(ends[0])  # bit for bit
