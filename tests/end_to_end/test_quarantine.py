"""Corrupt files are moved away, reported and computed again bit for bit. Mixed provenances are refused with the reason."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import minimal_folders
import numpy as np
import pytest
from damaged_folders import STUDY, derived, draw, flipped, refuses, train
from paths import ROOT

from relu_study import compare, load, table
from relu_study.errors import UserError
from relu_study.report.report import report
from relu_study.runner import run as runner
from relu_study.storage import block_files, tile_files
from relu_study.storage.manifest import read_manifest, write_manifest


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train(folder := tmp_path_factory.mktemp("results") / "small")
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "small"))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return minimal_folders.trained(tmp_path_factory.mktemp("planted") / "tiny")


@pytest.fixture
def own(planted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(planted, tmp_path / "tiny"))


def test_corrupt_tiles_are_moved_and_their_runs_trained_again(folder: Path, finished: Path) -> None:
    first, second = tile_files.tile_paths(folder)
    runs = [str(run) for path in (first, second) for run in tile_files.read_tile(path)["run_id"]]
    first.write_bytes(flipped(first.read_bytes()))
    foreign = second.rename(second.with_name("tile-0123456789ab.npz"))  # whole, and another than its name says
    second.write_bytes(b"")
    (folder / "damaged").mkdir()
    (folder / "damaged" / first.name).write_text("an earlier one")
    before = {path.name: path.read_bytes() for path in (first, second, foreign)}
    with pytest.raises(UserError, match=f"{foreign.name} is not a readable tile .*{second.name}.*run the study again"):
        report(folder)
    heard = train(folder)
    assert sorted(heard.made) == sorted(runs)
    assert derived(folder) == derived(finished)
    away = {path.name: path.read_bytes() for path in (folder / "damaged").iterdir()}
    assert away[f"{first.stem}-2.npz"] == before[first.name] and away[first.name] == b"an earlier one"
    assert away[second.name] == b"" and away[foreign.name] == before[foreign.name] and len(away) == 4
    for path, reason in (
        (first, "its checksum does not match its contents"),
        (second, "it is empty"),
        (foreign, "its runs belong to"),
    ):
        assert len([line for line in heard.said if str(path) in line and reason in line and "computed again" in line]) == 1
    assert train(folder).made == [] and len(tile_files.tile_paths(folder)) == 2


def test_plan_counts_corrupt_tiles_as_missing_and_moves_nothing(folder: Path, tmp_path: Path, here: Any) -> None:
    path = tile_files.tile_paths(folder)[0]
    path.write_bytes(b"")
    file = shutil.copy(ROOT / "tests" / "support" / "small_study.py", tmp_path)
    status, out, err = here("plan", str(file), "--seeds", "2", "--out", str(folder))
    assert status == 0, err
    assert f"{path} is damaged (it is empty). A run moves it into damaged/" in out.replace("\n", " ")
    assert path.exists() and not (folder / "damaged").exists()


def test_lost_or_corrupt_manifest_is_rebuilt_from_tiles(folder: Path, finished: Path) -> None:
    widths, path = read_manifest(folder)["widths"], folder / "manifest.json"
    text = path.read_text()
    for content, reason in (
        (text.replace('"seeds": 2', '"seeds": 1', 1), "it was changed"),
        (text[:300], "is corrupt"),
        (None, ""),
    ):
        path.unlink()
        if content is not None:
            path.write_text(content)
            for use in (report, load, table):
                with pytest.raises(UserError, match=rf"{path} is corrupt .*Restore it, run the study into a new folder"):
                    use(folder)
        heard = train(folder)
        assert heard.made == [] and read_manifest(folder)["widths"] == widths
        assert any(reason in line and "damaged/manifest" in line for line in heard.said) or content is None
        assert any("It is rebuilt from the raw files" in line for line in heard.said)
    assert derived(folder) == derived(finished)
    assert sorted(p.name for p in (folder / "damaged").iterdir()) == ["manifest-2.json", "manifest.json"]


def test_manifest_is_not_rebuilt_from_other_tiles(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text("{")
    wide = replace(STUDY.experiments[0], arms={"wide": STUDY.experiments[0].arms["relu"].replace(width=9)})
    with pytest.raises(UserError, match=rf"{path} is corrupt"):
        runner.run(replace(STUDY, experiments=[wide], claims=(), tables=()), folder)
    retouch(tile_files.tile_paths(folder)[0], lambda made: {**made, "engine": 0})
    for content in ("{", None):
        path.write_text(content) if content else path.unlink()
        with pytest.raises(UserError, match=r"has a different provenance \(engine: 0 there.* cannot be combined"):
            train(folder)
    assert not (folder / "damaged").exists()


def test_draws(tmp_path: Path) -> None:
    draw(folder := tmp_path / "coins")
    whole = derived(folder)
    first, second, *_ = block_files.block_paths(folder)
    cells = [path.name.split("-")[1] for path in (first, second)]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content[:-1])
    (folder / "manifest.json").write_bytes(b"")
    with pytest.raises(UserError, match=r"manifest.json is corrupt"):
        report(folder)
    heard = draw(folder)
    assert sorted(heard.made) == sorted(cells) and derived(folder) == whole
    assert {path.name for path in (folder / "damaged").iterdir()} == {first.name, second.name, "manifest.json"}
    assert sum("is corrupt" in line for line in heard.said) == 3


def retouch(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    tile = tile_files.read_tile(path)
    made = np.array(json.dumps(change(json.loads(str(tile["provenance"])))))
    tile_files.write_arrays(path, {**tile, "provenance": made})


def test_tile_of_another_provenance_is_refused(own: Path) -> None:
    path = tile_files.tile_paths(own)[1]
    whole = path.read_bytes()
    retouch(path, lambda made: {**made, "engine": 7})
    refuses(
        own,
        rf"{path} has a different provenance than manifest.json \(engine: 7 there, 1 here\) and cannot be .*Move it away",
    )
    path.write_bytes(whole)
    retouch(path, lambda made: {**made, "width": 8})
    refuses(own, rf"{path} has a different provenance .*width: 8 there, 4 here")


def test_training_refuses_contradictory_widths(folder: Path) -> None:
    manifest = read_manifest(folder)
    cohort = next(iter(manifest["widths"]))
    write_manifest(folder, {**manifest, "widths": {**manifest["widths"], cohort: 3}})
    with pytest.raises(UserError, match=f"raw files of cohort {cohort} with width .* have width 3"):
        train(folder)
    refuses(folder, "width: .* there, 3 here", report)


@pytest.mark.slow
def test_contradictory_tiles_are_both_moved(folder: Path, finished: Path) -> None:
    path = tile_files.tile_paths(folder)[0]
    tile = tile_files.read_tile(path)
    rows = {name: values[:1] for name, values in tile.items() if values.shape[:1] == tile["run_id"].shape and name != "epoch"}
    one = {**tile, **rows}
    same = tile_files.write_tile(folder, one)
    assert same != path
    report(folder)
    assert derived(folder) == derived(finished), "twice the same counts once"
    tile_files.write_tile(folder, {**one, "metric:val_loss/all": one["metric:val_loss/all"] + np.float32(1)})
    refuses(folder, f"have different numbers of run {tile['run_id'][0]}", report, load)
    heard = train(folder)
    assert sorted(heard.made) == sorted(map(str, tile["run_id"])) and derived(folder) == derived(finished)
    assert {p.name for p in (folder / "damaged").iterdir()} == {path.name, same.name}


def test_every_reader_detects_a_changed_digit_in_a_clone(own: Path) -> None:
    for name in ("raw", "tensorboard"):
        shutil.rmtree(own / name)
    path = own / "runs.csv"
    text = path.read_text()
    assert subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=own).returncode == 0
    path.write_text(text.replace("1.33333337", "1.33333338", 1))
    said = rf"{path} does not match SHA256SUMS .*Restore it, or rebuild it with 'relu-study report {own}' if raw/ exists"
    refuses(own, said, report, load, table, compare)
    path.write_text(text)
    (own / "SHA256SUMS").write_text((own / "SHA256SUMS").read_text().replace("runs.csv", "../runs.csv"))
    refuses(own, "SHA256SUMS is corrupt .*its line '.*../runs.csv' is invalid", load)
    (own / "SHA256SUMS").unlink()
    assert len(load(own).runs) == 6, "an earlier version wrote none"


def test_corrupt_csv_is_rebuilt_from_tiles(own: Path) -> None:
    whole = derived(own)
    (own / "summary.csv").write_text("x\n")
    (own / "SHA256SUMS").write_bytes(b"\0")
    refuses(own, "corrupt", load)
    report(own)
    assert derived(own) == whole
