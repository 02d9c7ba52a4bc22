"""Requests of a replay: the run, the moment and the stored numbers, without training."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from minimal_folders import ARMS, STUDY, drawn, trained

from relu_study.errors import UserError
from relu_study.report.report import report
from relu_study.runner.replay_request import replay_request
from relu_study.storage.manifest import read_manifest, write_manifest
from relu_study.storage.stored_run import find_run, first_deaths
from relu_study.storage.tile_files import read_tile, tile_paths, write_tile

RUN = ARMS["relu"].replace(target="wave", seed=1).run_id
SOUND = ARMS["tanh"].replace(target="wave", seed=0).run_id


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("request") / "tiny")


def refused(*arguments: Any, **more: Any) -> str:
    with pytest.raises(UserError) as error:
        replay_request(*arguments, **{"around": "onset", "window": 1.0, **more})
    return str(error.value)


def test_death_is_the_first_epoch_with_a_new_dead_unit(folder: Path) -> None:
    request = replay_request(folder, RUN, "death", 0.5)
    assert request.span() == (0.0, 1.5) and request.name == "death-window-0.5" and not request.needs_numbers
    assert replay_request(folder, RUN, "1.5", 1).span() == (0.5, 2.5)
    assert replay_request(folder, RUN, 2, 1).name == "epoch-2"


@pytest.mark.parametrize("around", ["onst", 2.1, -1, "nan", None])
def test_invalid_moments_name_the_valid_ones(folder: Path, around: Any) -> None:
    message = refused(folder, RUN, around=around)
    assert repr(around) in message and "'onset', 'death', or an epoch between 0 and 2" in message


@pytest.mark.parametrize("window", [0, -1, float("inf"), float("nan"), "1"])
def test_invalid_windows(folder: Path, window: Any) -> None:
    assert "above 0" in refused(folder, RUN, window=window)


def test_a_run_without_the_moment_is_refused_with_the_alternatives(folder: Path) -> None:
    message = refused(folder, SOUND)
    assert f"run {SOUND} has no finding, so it has no onset" in message
    assert message.endswith("Give an epoch between 0 and 2 with --around.") and "\n" not in message
    assert "Give --around death (epoch 1), or an epoch between" in refused(folder, RUN)  # one of three units died
    assert f"run {SOUND} has no death" in refused(folder, SOUND, around="death")


def changed(folder: Path, copied: Path, **arrays: Any) -> Path:
    """Copy a folder, with other arrays in the tile of RUN."""
    shutil.copytree(folder, copied, ignore=shutil.ignore_patterns("runs.csv", "SHA256SUMS"))
    (path,) = (path for path in tile_paths(copied) if RUN in read_tile(path)["run_id"])
    write_tile(copied, read_tile(path) | arrays)
    return copied


def test_onset_is_that_of_the_first_finding(folder: Path, tmp_path: Path) -> None:
    share = np.repeat(np.array([[0, 1 / 3, 1]], np.float32), 3, axis=0)  # the first unit dies first, the others with the onset
    sick = changed(folder, tmp_path / "sick", **{"metric:dead_fraction/site_1": share})
    request = replay_request(sick, RUN, "onset", 0.5)
    assert request.span() == (1.0, 2.5) and request.name == "onset-window-0.5"
    assert (found := request.finding()) is not None and found.problem == "dying" and found.onset == 2
    bad = np.repeat(np.array([[0, 1, np.nan]], np.float32), 3, axis=0)
    both = {"metric:dead_fraction/site_1": bad, "first_bad_epoch": np.full(3, 2.0), "status": np.full(3, "nonfinite")}
    first = replay_request(changed(folder, tmp_path / "both", **both), RUN, "onset", 0.5)
    assert first.span() == (0.0, 1.5)  # it dies before it explodes
    explodes = {"first_bad_epoch": np.full(3, 2.0), "status": np.full(3, "nonfinite")}
    assert replay_request(changed(folder, tmp_path / "bad", **explodes), RUN, "onset", 1).span() == (1.0, 3.0)


def test_an_onset_without_a_death_names_the_finding(folder: Path, tmp_path: Path) -> None:
    arrays = {"dead:site_1": np.zeros((3, 3, 1), np.uint8)}
    arrays |= {"metric:dead_fraction/site_1": np.ones((3, 3), np.float32)}
    assert "Give --around onset (dying, epoch 0), or" in refused(changed(folder, tmp_path / "x", **arrays), RUN, around="death")


def test_unknown_runs_have_the_nearest_ids(folder: Path) -> None:
    assert f"Did you mean {RUN}" in refused(folder, RUN[:-1])


def test_draw_study_is_refused(tmp_path: Path) -> None:
    assert "is a draw study and has no runs" in refused(drawn(tmp_path / "coins"), "abc")


def test_run_that_is_not_stored_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "lost")
    (tile,) = (path for path in tile_paths(tmp_path / "lost") if RUN in read_tile(path)["run_id"])
    tile.unlink()
    assert replay_request(tmp_path / "lost", RUN, 1, 1).run.tile is None  # runs.csv has its row
    (tmp_path / "lost" / "runs.csv").unlink()
    assert f"run {RUN}" in (message := refused(tmp_path / "lost", RUN)) and "Run the study to its end" in message


def test_run_of_zero_epochs_is_refused(tmp_path: Path) -> None:
    short = replace(STUDY, experiments=(replace(STUDY.experiments[0], arms={k: v.replace(epochs=0) for k, v in ARMS.items()}),))
    folder = trained(tmp_path / "short", short)
    assert "0 epochs" in refused(folder, ARMS["relu"].replace(target="wave", epochs=0).run_id)


# --------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(("bad", "found"), [(np.nan, (1.0, 2.0)), (3.0, (1.0, 2.0)), (2.0, None), (0.0, None)])
def test_first_deaths_ignore_nonfinite_epochs_and_revivals(bad: float, found: Any) -> None:
    dead = np.zeros((1, 4, 3), bool)
    dead[0, :2, 0] = True  # born dead, revives
    dead[0, 2:, 1] = True
    tile = {"epoch": np.arange(4.0), "first_bad_epoch": np.array([bad]), "dead:site_1": np.packbits(dead, axis=-1)}
    assert first_deaths({**tile, "units:site_1": np.array(3)}) == found


def test_equal_numbers_are_accepted_and_the_first_difference_is_named(folder: Path) -> None:
    run = find_run(folder, RUN)
    assert run.tile is not None and run.row is not None and run.spec == ARMS["relu"].replace(target="wave", seed=1)
    numbers = {name: np.array(values) for name, values in run.tile.items()}
    run.check_equal(numbers)
    changes = [
        ("metric:val_loss/all", (0, 1), np.float32(0.25), r"val_loss/all at epoch 1 is 1\.5 there and 0\.25 here"),
        ("dead:site_1", (0, 2), np.uint8(0), r"dead:site_1 at epoch 2 is \[128\] there and \[0\] here"),
        ("status", (0,), "oops", r"status is \['ok'\] there"),
    ]
    for name, at, value, message in changes:
        changed = {**numbers, name: np.array(numbers[name])}
        changed[name][at] = value
        with pytest.raises(UserError, match=message):
            run.check_equal(changed)
    with pytest.raises(UserError, match="val_loss/all is"):
        run.check_equal({name: values for name, values in numbers.items() if name != "metric:val_loss/all"})
    last = {**numbers, "metric:val_loss/all": np.nextafter(numbers["metric:val_loss/all"], np.float32(9))}
    with pytest.raises(UserError, match=r"val_loss/all at epoch 0"):
        run.check_equal(last)


def test_the_last_bit_of_a_row_counts_in_a_clone(folder: Path, tmp_path: Path) -> None:
    numbers = find_run(folder, RUN).tile
    assert numbers is not None
    shutil.copytree(folder, tmp_path / "clone", ignore=shutil.ignore_patterns("raw"))
    clone = find_run(tmp_path / "clone", RUN)
    assert clone.tile is None and np.isnan(clone.first_bad_epoch)
    clone.check_equal(numbers)
    last = {name: np.array(values) for name, values in numbers.items()}
    last["metric:val_loss/all"][0, -1] = np.nextafter(last["metric:val_loss/all"][0, -1], np.float32(9))
    with pytest.raises(UserError, match=r"val_loss/all in runs\.csv is"):
        clone.check_equal(last)


def test_a_tile_of_another_provenance_than_the_manifest_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "mixed")
    manifest = read_manifest(tmp_path / "mixed")
    write_manifest(tmp_path / "mixed", {**manifest, "provenance": {**manifest["provenance"], "engine": 99}})
    assert "different provenance than manifest.json (engine" in refused(tmp_path / "mixed", RUN)


def test_a_corrupt_tile_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "damaged")
    for path in tile_paths(tmp_path / "damaged"):
        path.write_bytes(path.read_bytes()[:-5])
    assert "is not a readable tile" in refused(tmp_path / "damaged", RUN)


def test_a_wider_tile_than_the_manifest_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "wide")
    for path in tile_paths(tmp_path / "wide"):
        tile = read_tile(path)
        made = json.loads(str(tile["provenance"]))
        write_tile(tmp_path / "wide", {**tile, "provenance": np.array(json.dumps({**made, "width": 8}))})
    assert "width: 8 there, 4 here" in refused(tmp_path / "wide", RUN)
    with pytest.raises(UserError):
        report(tmp_path / "wide")


def test_different_moments_have_different_names(folder: Path) -> None:
    names = {replay_request(folder, RUN, around, 1.0).name for around in (0.1, 0.1000001, np.float32(0.1), 1)}
    assert len(names) == 4 and "epoch-1" in names
    windows = {replay_request(folder, RUN, 1, window).name for window in (0.12345678, 0.12345679, np.float32(0.5))}
    assert len(windows) == 3 and "epoch-1-window-0.5" in windows


def test_a_window_that_is_no_number_is_refused(folder: Path) -> None:
    for window in (None, 0, -1, "long", True):
        assert "the window is" in refused(folder, RUN, window=window)


def test_a_corrupt_tile_of_other_runs_is_skipped(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    for path in tile_paths(copied):
        if RUN not in read_tile(path)["run_id"].tolist():
            path.write_bytes(path.read_bytes()[:100])
    assert find_run(copied, RUN).tile is not None
    assert "tile" in refused(copied, SOUND)
