"""Files from elsewhere: links, pickles, false sizes and hostile manifests are refused in one line."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import minimal_folders
import numpy as np
import pytest
from damaged_folders import ABOUT, DRAWS, Heard, refuses

from relu_study import load, load_cells, table
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.report.report import report
from relu_study.runner import execute
from relu_study.storage import tile_files
from relu_study.storage.manifest import read_manifest, write_manifest


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return minimal_folders.trained(tmp_path_factory.mktemp("planted") / "tiny")


@pytest.fixture
def own(planted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(planted, tmp_path / "tiny"))


def relinked(folder: Path, name: str) -> None:
    path = folder / name
    outside = folder.parent / "outside"
    shutil.move(path, outside)
    path.symlink_to(outside)


@pytest.mark.parametrize("name", ["raw", "tables", "tensorboard", "runs.csv", "manifest.json", "SHA256SUMS", "tables/main.md"])
def test_link_out_of_the_folder_is_refused(own: Path, name: str) -> None:
    relinked(own, name)
    refuses(own, rf"{own / name} is a link that leads out of {own}", report, load, table)


def test_a_link_within_the_folder_is_followed(own: Path) -> None:
    (own / "raw").rename(own / "kept")
    (own / "raw").symlink_to("kept")
    report(own)
    assert len(load(own).curves)


class Trap:
    """An object whose unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "sprung")


def sealed(path: Path, archive: bytes) -> None:
    from relu_study.storage.checksums import with_archive_checksum as with_archive_checksum

    path.write_bytes(with_archive_checksum(archive))


def test_pickled_objects_are_not_executed(own: Path, tmp_path: Path) -> None:
    path = tile_files.tile_paths(own)[0]
    tile = tile_files.read_tile(path) | {"metric:val_loss/all": np.array([Trap(tmp_path / "sprung")], object)}
    np.savez(tmp_path / "trap.npz", **tile)  # type: ignore[arg-type]
    sealed(path, (tmp_path / "trap.npz").read_bytes())
    refuses(own, "is not a readable tile")
    assert not (tmp_path / "sprung").exists()


def test_false_array_size_allocates_no_memory(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    path = tile_files.tile_paths(own)[0]
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = "metric:val_loss/all.npy"
    for shape in (b"(2 << 50,)", b"(1000000000000,)", b"(-1, 3)", b"(3,)", b"('a',)"):
        head = members[name].replace(b"(3, 3)", shape, 1)
        head = head[:8] + (len(head) - 10 - 36).to_bytes(2, "little") + head[10:]
        with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
            for one, content in members.items():
                archive.writestr(one, head if one == name else content)
        sealed(path, (tmp_path / "bomb.npz").read_bytes())
        refuses(own, "is not a readable tile", report)
    path.write_bytes(whole)
    monkeypatch.setattr("relu_study.storage.checksums.MAX_UNPACKED", 1000)
    tile_files.write_arrays(
        path, {**tile_files.read_tile(tile_files.tile_paths(own)[1]), "metric:a/all": np.zeros((1000, 1000), np.float32)}
    )
    refuses(own, r"is not a readable tile \(it unpacks to 4,0.* bytes\)", report)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"format": NaN}', "NaN is not a valid number"),
        ('{"format": 1e999}', "1e999 is not a valid number"),
        ('{"format": 9223372036854775808}', "9223372036854775808 is not a valid number"),
        ('{"format": ' + "9" * 5000 + "}", "is not a valid number"),
        ('{"format": 2, "study": "tiny"}', "it has no checksum"),
        ('{"format": 1, "study": 5, "provenance": {}, "widths": {}, "declaration": {}}', "its study is invalid"),
    ],
)
def test_hostile_manifest_is_refused_in_one_line(own: Path, said: str, reason: str) -> None:
    (own / "manifest.json").write_text(said)
    refuses(own, rf"manifest.json is corrupt \(.*{reason}", report, load, table)


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "..", "a/b", "a\0b", "x" * 101, ""])
def test_file_names_stay_in_the_folder(own: Path, tmp_path: Path, name: str) -> None:
    coin = minimal_folders.drawn(tmp_path / "coins")
    for folder, use in ((own, load), (own, report), (coin, load_cells), (coin, report)):
        manifest = read_manifest(folder)
        manifest["declaration"]["tables"][0]["name"] = name
        write_manifest(folder, manifest)
        with pytest.raises(UserError, match=r"manifest.json has an invalid declaration .*cannot be a file name"):
            use(folder)
    with pytest.raises(UserError, match="cannot be a file name"):
        draw_of = replace(DRAWS, tables=[replace(DRAWS.tables[0], name=name)])
        execute.execute(draw_of, tmp_path / "new", MeasureConfig(), Heard(), ABOUT)
    assert not (tmp_path / "new").exists()
