"""Corrupted results folders: every reader names the file in one line or returns the same numbers, never other numbers.

500 mutations in the fast tier, 10,000 in the slow one.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import minimal_folders
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relu_study import compare, figure, load, load_cells, table
from relu_study.diagnosis.diagnose import OURS
from relu_study.errors import UserError
from relu_study.report.report import report
from relu_study.report.tables.health_table import diagnose_study
from relu_study.storage import block_files, tile_files
from relu_study.storage.csv_files import csv_text
from relu_study.storage.resume import read_folder_state

DAMAGES, FORGERIES = 400, 100
COSTLY = ("report", "figure", "diagnose")  # a fifth as often as other readers
TIERS = [pytest.param(1, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.slow)]
HOSTILE = (
    *("", "../../x", "/etc/passwd", "\0", "\ud800", "=1+1", "nan", "x" * 300, "\n\n", "$(touch x)", "\x1b[2J"),
    *(float("nan"), float("inf"), -1, 0, 1.5, 2**63, -(2**70), 10**400, 1e308, True, None),
    *([], {}, [[]], [{}], {"a": 1}, [None], ["../x"], {"../x": "../x"}),
)
Use = Callable[[Path], Any]


# ---------------------------------------------------------------------------------- files and readers


def _reported(folder: Path) -> dict[str, bytes]:
    report(folder)
    return {p.name: p.read_bytes() for p in (*folder.glob("*.csv"), *folder.glob("tables/*"), folder / "report.md")}


def _loaded(folder: Path) -> list[str]:
    found = load(folder)
    return [csv_text(frame) for frame in (found.runs, found.summary, *([found.curves] if tile_files.tile_paths(folder) else []))]


def _drawn(folder: Path) -> bytes:
    return figure(folder, "curves", metrics="val_loss", out=folder.parent / "curves.svg")[0].read_bytes()


TRAINED: dict[str, Use] = {
    "load": _loaded,
    "report": _reported,
    "table": lambda folder: table(folder, format="csv"),
    "an epoch": lambda folder: table(folder, epoch=1, format="csv"),
    "compare": lambda folder: csv_text(compare(folder)),
    "figure": _drawn,
    "diagnose": lambda folder: csv_text(diagnose_study(folder, OURS).frame()),
}
OF_DRAWS: dict[str, Use] = {"load": lambda folder: csv_text(load_cells(folder)), "report": _reported}


class Subject:
    """A results folder to corrupt, the results of each reader, and its original files."""

    def __init__(self, folder: Path, uses: dict[str, Use], raw: bool) -> None:
        self.folder, self.raw = folder, raw
        if not raw:
            for name in ("raw", "tensorboard"):
                shutil.rmtree(folder / name, ignore_errors=True)
        self.files = self.now()
        self.uses = {**uses, "run": self.looked} if raw else uses
        self.often = [use for use in self.uses for _ in range(1 if use in COSTLY else 5)]
        self.given = {name: use(folder) for name, use in self.uses.items()}
        derived = ("figures", "tables", "tensorboard", "report.html", "report.md", "experiments.csv")
        self.names = [name for name in self.files if name.split("/")[0] not in derived and (not raw or "verdicts" not in name)]

    def now(self) -> dict[str, bytes]:
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}

    def looked(self, folder: Path) -> tuple[dict[Any, Any], dict[str, int]]:
        """Check the state that `run` continues from, and that it names every corrupt file."""
        if self.uses.keys() & {"compare"}:
            study, read = "tiny", lambda where, damaged: {r: m for r, (_, m) in tile_files.stored_runs(where, damaged).items()}
        else:
            study, read = "coins", block_files.stored_blocks
        whole = json.loads(self.files["manifest.json"])
        everything = getattr(self, "everything", None)
        found = read_folder_state(
            study, folder, whole["provenance"], read, everything or set(read(folder, [])), "name another folder"
        )
        self.everything = everything or set(found.stored)
        if missing := self.everything - set(found.stored):
            assert missing and any(error.path.parent.name == "raw" for error in found.damaged)
        assert dict(found.widths).items() <= whole["widths"].items()
        assert all(_one_line(error, self.folder) for error in found.damaged)
        return {}, {}

    @contextmanager
    def damaged(self, *changed: tuple[str, bytes]) -> Iterator[None]:
        for name, content in changed:
            (self.folder / name).write_bytes(content)
        try:
            yield
        finally:
            now = self.now()
            for name in now.keys() - self.files.keys():
                (self.folder / name).unlink()
            for name, content in self.files.items():
                if now.get(name) != content:
                    (self.folder / name).parent.mkdir(exist_ok=True)
                    (self.folder / name).write_bytes(content)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> list[Subject]:
    home = tmp_path_factory.mktemp("subjects")
    made = [(minimal_folders.trained(home / "tiny"), TRAINED), (minimal_folders.drawn(home / "coins"), OF_DRAWS)]
    clones = [(Path(shutil.copytree(folder, home / f"{folder.name}-clone")), uses) for folder, uses in made]
    return [Subject(*one, raw=True) for one in made] + [
        Subject(folder, {name: use for name, use in uses.items() if name != "an epoch"}, raw=False) for folder, uses in clones
    ]


def _one_line(error: UserError, folder: Path) -> bool:
    text = str(error)
    return text.isprintable() and len(text) < 2000 and str(folder) in text


# ------------------------------------------------------------------------------------------- by chance


@st.composite
def _mutated(draw: st.DrawFn, whole: bytes, others: list[bytes]) -> bytes:
    """Return the bytes of a file after a mutation."""
    place = st.integers(0, len(whole))
    kind = draw(st.sampled_from(("bit", "cut", "empty", "delete", "repeat", "insert", "other", "value", "overwrite")))
    a, b = sorted((draw(place), draw(place)))
    if kind == "bit":
        a = min(a, len(whole) - 1)
        return whole[:a] + bytes([whole[a] ^ (1 << draw(st.integers(0, 7)))]) + whole[a + 1 :]
    if kind in ("cut", "empty"):
        return whole[:a] if kind == "cut" else b""
    if kind == "delete":
        return whole[:a] + whole[b:]
    if kind == "repeat":
        return whole[:b] + whole[a:b] + whole[b:]
    if kind in ("insert", "overwrite"):
        new = draw(st.binary(min_size=1, max_size=20))
        return whole[:a] + new + whole[a + (len(new) if kind == "overwrite" else 0) :]
    if kind == "other":
        return draw(st.sampled_from(others))
    words = list(re.finditer(rb"[\w.+-]+", whole))  # a word or a number of a text
    word = draw(st.sampled_from(words))
    said = draw(st.sampled_from([b"0", b"1", b"1.5", b"-3", b"nan", b"", b"1e999", b"99999999999999999999", words[0][0]]))
    return whole[: word.start()] + said + whole[word.end() :]


@pytest.mark.parametrize("times", TIERS)
def test_damage_is_reported_or_changes_no_number(subjects: list[Subject], times: int) -> None:
    refused = []

    @settings(max_examples=DAMAGES * times, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        subject = data.draw(st.sampled_from(subjects))
        name = data.draw(st.sampled_from(subject.names))
        use = data.draw(st.sampled_from(subject.often))
        swapped = data.draw(st.sampled_from(subject.names))
        if data.draw(st.integers(0, 9)) or swapped == name:
            changed = [(name, data.draw(_mutated(subject.files[name], [subject.files[other] for other in subject.names])))]
        else:
            changed = [(name, subject.files[swapped]), (swapped, subject.files[name])]
        with subject.damaged(*changed):
            try:
                assert subject.uses[use](subject.folder) == subject.given[use], f"another number: {use}"
            except UserError as error:
                assert _one_line(error, subject.folder), str(error)
                refused.append(name)

    check()
    kinds = [{name.partition("-")[0] for name in names} for names in (refused, *(subject.names for subject in subjects))]
    assert kinds[0] == set().union(*kinds[1:]), "every kind of file was refused at times"


# ------------------------------------------------------------------------------------------- by intent


def _leaves(said: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = said.items() if isinstance(said, dict) else enumerate(said) if isinstance(said, list) else ()
    return [at, *(path for key, value in items for path in _leaves(value, (*at, key)))]


def _forged_manifest(data: st.DataObject, whole: bytes) -> bytes:
    said = json.loads(whole)
    del said["checksum"]
    path = data.draw(st.sampled_from([path for path in _leaves(said) if path]))
    within = said
    for key in path[:-1]:
        within = within[key]
    within[path[-1]] = data.draw(st.sampled_from(HOSTILE))
    plain = json.dumps(said)
    return json.dumps({**json.loads(plain), "checksum": _checksum(json.loads(plain))}).encode()


def _checksum(plain: Any) -> str:
    from relu_study.storage.checksums import _checksum as of

    try:
        return of(plain)
    except ValueError:
        return ""


def _forged_raw(data: st.DataObject, path: Path) -> bytes:
    with np.load(path) as stored:
        arrays = dict(stored)
    name = data.draw(st.sampled_from(list(arrays)))
    one = arrays[name]
    numbers = [
        np.array(np.nan),
        np.full((2, 2), np.inf),
        np.array("x"),
        np.array("{}"),
        np.array([]),
        np.array(2**63),
        np.array(0),
    ]
    wider = [np.repeat(one[None], 2, 0), one.astype("S") if one.dtype.kind == "U" else one.astype(np.float64), one.ravel()]
    arrays[name] = data.draw(st.sampled_from([*numbers, *wider, np.array("[" * 9000), np.array('{"own": 1}')]))
    if data.draw(st.booleans()):
        arrays[data.draw(st.sampled_from(["../../x", "metric:a", "dead:x", "n:heads", "histogram:pre:site_1"]))] = arrays.pop(
            name
        )
    tile_files.write_arrays(path, arrays)
    return path.read_bytes()


def _forged_csv(data: st.DataObject, whole: bytes) -> bytes:
    lines = [line.split(",") for line in whole.decode().splitlines()]
    row = data.draw(st.integers(0, len(lines) - 1))
    column = data.draw(st.integers(0, len(lines[row]) - 1))
    said = str(data.draw(st.sampled_from([value for value in HOSTILE if not isinstance(value, (list, dict))])))
    lines[row][column] = said.encode(errors="replace").decode()
    return "\n".join([*(",".join(line) for line in lines), ""]).encode()


@pytest.mark.parametrize("times", TIERS)
def test_forged_file_is_refused_in_one_line_or_read_as_data(subjects: list[Subject], times: int) -> None:
    """The checksum is valid here. Nothing is written outside the folder."""
    beside = {path: path.stat().st_mtime_ns for path in subjects[0].folder.parent.iterdir() if path.is_file()}

    @settings(max_examples=FORGERIES * times, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        subject = data.draw(st.sampled_from(subjects))
        name = data.draw(st.sampled_from(["manifest.json", *subject.names]))
        use = data.draw(st.sampled_from([use for use in subject.often if use not in ("run", "figure")]))
        whole = subject.files[name]
        with subject.damaged((name, whole)):
            if name == "manifest.json":
                (subject.folder / name).write_bytes(_forged_manifest(data, whole))
            elif name.startswith("raw/"):
                _forged_raw(data, subject.folder / name)
            elif name.endswith(".csv"):
                (subject.folder / "SHA256SUMS").unlink(missing_ok=True)
                (subject.folder / name).write_bytes(_forged_csv(data, whole))
            try:
                subject.uses[use](subject.folder)
            except UserError as error:
                assert _one_line(error, subject.folder) or str(error).isprintable(), str(error)

    check()
    assert {path: path.stat().st_mtime_ns for path in subjects[0].folder.parent.iterdir() if path.is_file()} == beside
