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
from paths import ROOT
from small_draw_study import study as coins
from small_study import study as small

from relu_study import compare, figure, load, load_cells, table
from relu_study.engine.plan import Tile
from relu_study.errors import UserError
from relu_study.report.report import report
from relu_study.runner import execute
from relu_study.runner import run as runner
from relu_study.runner.callback import Callback
from relu_study.storage import block_files, tile_files
from relu_study.storage.manifest import read_manifest, write_manifest

STUDY = replace(small, figures=(), sections=(), seeds=2)
DRAWS = replace(coins.with_preset(draws=300), figures=())
ABOUT = {"command": "test", "preset": "default"}


class Heard(Callback):
    """A callback that records trained tiles or drawn blocks, and messages."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.said: list[str] = []

    def on_tile_end(self, tile: Any, *_: Any) -> None:
        self.made += [run.run_id for run in tile.runs] if isinstance(tile, Tile) else [tile.cohort]

    def on_message(self, line: str) -> None:
        self.said.append(line)


def train(folder: Path) -> Heard:
    runner.run(STUDY, folder, callback=(heard := Heard()))
    return heard


def draw(folder: Path) -> Heard:
    execute.execute_draws(DRAWS, folder, heard := Heard(), ABOUT)
    return heard


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


def derived(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (*folder.glob("*.csv"), *folder.glob("tables/*"), folder / "SHA256SUMS")}


def flipped(content: bytes) -> bytes:
    return content[:900] + bytes([content[900] ^ 4]) + content[901:]


# ----------------------------------------------------------------------------------------- run goes on


def test_damaged_tiles_are_moved_away_and_their_runs_trained_again(folder: Path, finished: Path) -> None:
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


def test_a_plan_counts_what_is_damaged_as_missing_and_moves_nothing(folder: Path, tmp_path: Path, here: Any) -> None:
    path = tile_files.tile_paths(folder)[0]
    path.write_bytes(b"")
    file = shutil.copy(ROOT / "tests" / "support" / "small_study.py", tmp_path)
    status, out, err = here("plan", str(file), "--seeds", "2", "--out", str(folder))
    assert status == 0, err
    assert f"{path} is damaged (it is empty). A run moves it into damaged/" in out.replace("\n", " ")
    assert path.exists() and not (folder / "damaged").exists()


def test_a_manifest_that_is_lost_or_garbled_is_made_anew_from_whole_tiles(folder: Path, finished: Path) -> None:
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


def test_a_manifest_whose_tiles_are_of_other_runs_or_made_otherwise_is_not_made_anew(folder: Path) -> None:
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


# ------------------------------------------------------------------------------------------ refused


def retouch(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    tile = tile_files.read_tile(path)
    made = np.array(json.dumps(change(json.loads(str(tile["provenance"])))))
    tile_files.write_arrays(path, {**tile, "provenance": made})


def refuses(folder: Path, said: str, *uses: Callable[[Path], Any]) -> None:
    for use in uses or (
        report,
        load,
        lambda f: table(f, epoch=1),
        lambda f: compare(f, epoch=1),
        lambda f: figure(f, "survival"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            use(folder)
        assert str(caught.value).isprintable()


def test_a_tile_made_otherwise_does_not_mix_in(own: Path) -> None:
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


def test_a_run_that_trains_refuses_widths_that_disagree(folder: Path) -> None:
    manifest = read_manifest(folder)
    cohort = next(iter(manifest["widths"]))
    write_manifest(folder, {**manifest, "widths": {**manifest["widths"], cohort: 3}})
    with pytest.raises(UserError, match=f"raw files of cohort {cohort} with width .* have width 3"):
        train(folder)
    refuses(folder, "width: .* there, 3 here", report)


@pytest.mark.slow
def test_two_tiles_that_say_different_things_of_one_run_are_both_set_aside(folder: Path, finished: Path) -> None:
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


def test_a_flipped_digit_in_a_clone_is_seen_by_every_reader(own: Path) -> None:
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


def test_a_damaged_csv_is_made_again_where_the_tiles_are(own: Path) -> None:
    whole = derived(own)
    (own / "summary.csv").write_text("x\n")
    (own / "SHA256SUMS").write_bytes(b"\0")
    refuses(own, "corrupt", load)
    report(own)
    assert derived(own) == whole


# ---------------------------------------------------------------------------------------- no way in


def relinked(folder: Path, name: str) -> None:
    path = folder / name
    outside = folder.parent / "outside"
    shutil.move(path, outside)
    path.symlink_to(outside)


@pytest.mark.parametrize("name", ["raw", "tables", "tensorboard", "runs.csv", "manifest.json", "SHA256SUMS", "tables/main.md"])
def test_a_link_that_leads_out_is_refused(own: Path, name: str) -> None:
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
    from relu_study.storage.checksums import with_checksum as with_checksum

    path.write_bytes(with_checksum(archive))


def test_nothing_that_is_read_is_executed(own: Path, tmp_path: Path) -> None:
    path = tile_files.tile_paths(own)[0]
    tile = tile_files.read_tile(path) | {"metric:val_loss/all": np.array([Trap(tmp_path / "sprung")], object)}
    np.savez(tmp_path / "trap.npz", **tile)  # type: ignore[arg-type]
    sealed(path, (tmp_path / "trap.npz").read_bytes())
    refuses(own, "is not a readable tile")
    assert not (tmp_path / "sprung").exists()


def test_an_array_that_claims_more_than_it_has_takes_no_memory(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_a_hostile_manifest_is_one_line(own: Path, said: str, reason: str) -> None:
    (own / "manifest.json").write_text(said)
    refuses(own, rf"manifest.json is corrupt \(.*{reason}", report, load, table)


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "..", "a/b", "a\0b", "x" * 101, ""])
def test_names_of_files_stay_within_the_folder(own: Path, tmp_path: Path, name: str) -> None:
    coin = minimal_folders.drawn(tmp_path / "coins")
    for folder, use in ((own, load), (own, report), (coin, load_cells), (coin, report)):
        manifest = read_manifest(folder)
        manifest["declaration"]["tables"][0]["name"] = name
        write_manifest(folder, manifest)
        with pytest.raises(UserError, match=r"manifest.json has an invalid declaration .*cannot be a file name"):
            use(folder)
    with pytest.raises(UserError, match="cannot be a file name"):
        draw_of = replace(DRAWS, tables=[replace(DRAWS.tables[0], name=name)])
        execute.execute_draws(draw_of, tmp_path / "new", Heard(), ABOUT)
    assert not (tmp_path / "new").exists()
