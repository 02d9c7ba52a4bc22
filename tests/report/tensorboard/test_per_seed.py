"""Single-seed TensorBoard runs: their contents, removal when out of date, and their maximum number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from known_results import planted_folder, planted_study
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from relu_study.errors import UserError
from relu_study.report.tensorboard.event_files import EVENT_FILE, MOST_SINGLE_SEEDS, check_per_seed, run_names, write_events
from relu_study.storage.configurations import Configuration, collect
from relu_study.storage.declaration import parse_manifest, read_declared
from relu_study.storage.manifest import read_manifest


def written(path: Path, per_seed: bool, seeds: int = 3) -> dict[str, Configuration]:
    """The planted folder's runs by their names in TensorBoard."""
    manifest = read_declared(planted_folder(path, seeds=seeds))
    configurations = collect(path, manifest)
    write_events(manifest, configurations, path, per_seed)
    return {run_names(manifest)[config_id]: c for config_id, c in configurations.items()}


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path / "tensorboard")): p.read_bytes() for p in (path / "tensorboard").rglob("*") if p.is_file()}


def test_every_value_of_every_run_round_trips(tmp_path: Path) -> None:
    for name, configuration in written(tmp_path, per_seed=True).items():
        for row, seed in enumerate(configuration.seeds):
            loaded = EventAccumulator(str(tmp_path / "tensorboard" / name / f"seed-{seed:03}"), {"scalars": 0})
            loaded.Reload()
            finite = {tag: v[row] for tag, v in configuration.values.items() if np.isfinite(v[row]).any()}
            assert set(loaded.Tags()["scalars"]) == {f"{tag}/run" for tag in finite}
            for tag, values in finite.items():
                found = [(point.step, point.value) for point in loaded.Scalars(f"{tag}/run")]
                known = np.isfinite(values)
                assert found == list(zip(configuration.epochs[known], values[known]))


def test_configuration_file_does_not_depend_on_per_seed(tmp_path: Path) -> None:
    names = written(tmp_path, per_seed=False)
    without = files(tmp_path)
    written(tmp_path, per_seed=True)
    both = files(tmp_path)
    assert {name: both[name] for name in without} == without and len(both) == 4 * len(names) == 80
    written(tmp_path, per_seed=True)
    assert files(tmp_path) == both
    written(tmp_path, per_seed=False)
    assert files(tmp_path) == without


def test_fewer_seeds_leave_none_behind(tmp_path: Path) -> None:
    written(tmp_path, per_seed=True, seeds=3)
    for path in (tmp_path / "raw").iterdir():
        path.unlink()
    names = written(tmp_path, per_seed=True, seeds=2)
    assert {p.parent.name for p in (tmp_path / "tensorboard").rglob("*/seed-*/*")} == {"seed-000", "seed-001"}
    assert len(files(tmp_path)) == 3 * len(names)


def test_foreign_files_stay(tmp_path: Path) -> None:
    written(tmp_path, per_seed=True)
    run = tmp_path / "tensorboard" / "baseline@wave"
    (run / "seed-001" / "notes.txt").write_text("a strange one")
    (run / "seed-7").mkdir()
    (run / "seed-7" / "events.out.tfevents.1.mine").write_bytes(b"")
    written(tmp_path, per_seed=False)
    assert {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()} == {
        EVENT_FILE,
        "seed-001/notes.txt",
        "seed-7/events.out.tfevents.1.mine",
    }


def test_an_undeclared_configuration_goes_with_its_seeds(tmp_path: Path) -> None:
    written(tmp_path, per_seed=True)
    manifest = read_manifest(tmp_path)
    entries = manifest["declaration"]["configurations"]
    manifest["declaration"]["configurations"] = [entry for entry in entries if entry["arm"] != "tanh"]
    write_events(parse_manifest(manifest), {}, tmp_path, per_seed=True)
    left = {p.name for p in (tmp_path / "tensorboard").iterdir()}
    assert "baseline@wave" in left and not {"tanh@wave", "tanh@coin_flip"} & left


def test_more_than_500_are_refused_with_the_reason() -> None:
    check_per_seed(500)
    with pytest.raises(UserError) as refused:
        check_per_seed(501)
    said = str(refused.value)
    assert "501" in said and f"{MOST_SINGLE_SEEDS}" in said and "selects no run" in said and "Leave --per-seed out" in said


def test_a_refusal_comes_before_anything_is_written(tmp_path: Path) -> None:
    manifest = read_manifest(planted_folder(tmp_path, seeds=1))
    for entry in manifest["declaration"]["configurations"]:
        entry["seeds"] = 26
    assert len({entry["config_id"] for entry in manifest["declaration"]["configurations"]}) == len(planted_study(1).runs()) == 20
    with pytest.raises(UserError, match="520"):
        write_events(parse_manifest(manifest), collect(tmp_path), tmp_path, per_seed=True)
    assert not (tmp_path / "tensorboard").exists()


def test_single_run_has_no_layout(here: Any) -> None:
    status, _, err = here("run", "article", "--only", "0" * 12, "--per-seed")
    assert status == 2 and "--per-seed does not apply to --only RUN_ID" in err
