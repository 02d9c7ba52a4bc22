"""Stored runs as histories: every measurement of raw/, the last one of a clone, and the members of a monitor."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from known_results import BASE, UNITS, dead_flags, noise, planted_arms, planted_folder, planted_manifest, planted_study

from relu_study.errors import UserError
from relu_study.report.report import report
from relu_study.storage.declaration import parse_manifest, read_declared
from relu_study.storage.histories import StoredHistory, constant_losses, stored_histories
from relu_study.study.claims import Target

SEEDS, EPOCHS = 4, (0, 1, 2, 5)
STUDY = planted_study(SEEDS, EPOCHS)
ID = {key: spec.config_id for key, spec in planted_arms(STUDY).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = planted_folder(tmp_path_factory.mktemp("histories") / "whole", SEEDS, EPOCHS)
    report(path)
    return path


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, StoredHistory]:
    found, from_raw = stored_histories(folder, read_declared(folder))
    assert from_raw
    return found


@pytest.fixture(scope="module")
def clone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clone") / "clone"
    shutil.copytree(folder, path, ignore=shutil.ignore_patterns("raw", "tensorboard"))
    return path


@pytest.fixture(scope="module")
def last(clone: Path) -> dict[str, StoredHistory]:
    found, from_raw = stored_histories(clone, read_declared(clone))
    assert not from_raw
    return found


def test_all_seeds_of_a_configuration_are_one_history(whole: dict[str, StoredHistory]) -> None:
    assert set(whole) == set(ID.values())
    history = whole[ID["leaky_relu", "coin_flip"]].history
    arm, target = list(STUDY.arms()).index("leaky_relu"), 1
    expected = [[BASE["train_loss"] + arm / 4 + target / 2 - e / 64 + noise(s, SEEDS) for e in EPOCHS] for s in range(SEEDS)]
    np.testing.assert_array_equal(history.overall("train_loss"), expected)
    assert history.epochs.tolist() == list(EPOCHS) and history.total_epochs == max(EPOCHS)
    assert history.sites == ("site_1", "site_2") and history.units == {"site_1": UNITS, "site_2": UNITS}
    assert history.constant_loss.tolist() == [0.25] * SEEDS
    assert whole[ID["leaky_relu", "coin_flip"]].timed.all()


def test_shares_by_site_follow_the_flags(whole: dict[str, StoredHistory]) -> None:
    shares = whole[ID["stuck", "wave"]].history.by_site("dead_fraction")
    for seed in range(SEEDS):
        for column, site in enumerate(("site_1", "site_2")):
            flags = dead_flags("stuck", "wave", seed, site, len(EPOCHS))
            np.testing.assert_allclose(shares[seed, :, column], flags.mean(axis=1), rtol=1e-6)


def test_a_nonfinite_run_has_no_values_from_its_first_bad_epoch_on(whole: dict[str, StoredHistory]) -> None:
    history = whole[ID["he_normal", "wave"]].history
    assert history.finite.tolist() == [[True] * 4, [True, True, False, False], [True] * 4, [True] * 4]
    for values in history.metrics.values():
        assert np.isnan(values[~history.finite]).all()


def test_a_lost_loss_ends_a_run_that_is_ok_by_its_status(whole: dict[str, StoredHistory], folder: Path) -> None:
    from relu_study.storage.configurations import collect
    from relu_study.storage.histories import tile_histories

    manifest = read_declared(folder)
    configuration = collect(folder, manifest)[ID["tanh", "wave"]]
    configuration.values["train_loss/all"][2, 3:] = np.nan
    history = tile_histories({"a": configuration}, manifest.declaration)["a"].history
    assert history.finite.sum(axis=1).tolist() == [4, 4, 3, 4]


def test_a_clone_has_the_last_measurement_only(last: dict[str, StoredHistory], whole: dict[str, StoredHistory]) -> None:
    for config_id, stored in last.items():
        history, full = stored.history, whole[config_id].history
        assert history.sites == full.sites and history.units == full.units
        np.testing.assert_array_equal(history.constant_loss, full.constant_loss)
        for name in ("train_loss/all", "dead_fraction/site_1", "grad_norm/site_1"):
            np.testing.assert_array_equal(history.metrics[name][:, -1], full.metrics[name][:, -1])
            assert np.isnan(history.metrics[name][:, :-1]).all()


def test_a_clone_knows_when_runs_went_nonfinite(last: dict[str, StoredHistory]) -> None:
    stored = last[ID["he_normal", "wave"]]
    assert stored.history.epochs.tolist() == [0, 2, 5] and stored.timed.tolist() == [False, True, False, False]
    assert stored.history.finite.tolist() == [[True] * 3, [True, False, False], [True] * 3, [True] * 3]
    other = last[ID["baseline", "wave"]]
    assert other.history.epochs.tolist() == [0, 5] and not other.timed.any()


def test_a_clone_without_units_csv_has_no_counts(clone: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(clone, tmp_path / "bare"))
    (bare / "units.csv").unlink()
    found, _ = stored_histories(bare, read_declared(bare))
    assert all(stored.history.units == {} for stored in found.values())


def test_selected_configurations(folder: Path, clone: Path) -> None:
    for path in (folder, clone):
        found, _ = stored_histories(path, read_declared(path), [ID["tanh", "wave"]])
        assert list(found) == [ID["tanh", "wave"]]


def test_without_any_numbers_the_missing_file_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "manifest.json", tmp_path)
    with pytest.raises(UserError, match=r"runs\.csv is missing"):
        stored_histories(tmp_path, read_declared(tmp_path))


def test_targets_that_a_study_does_not_declare_have_an_unknown_constant_loss() -> None:
    manifest = planted_manifest(STUDY)
    assert constant_losses(parse_manifest(manifest).declaration) == {"wave": 1.0, "coin_flip": 0.25}
    undeclared = {**manifest["declaration"], "targets": [vars(Target("wave")), vars(Target("coin_flip"))]}
    assert constant_losses(parse_manifest({**manifest, "declaration": undeclared}).declaration) == {}
