"""Studies with entries of their own: a change that can move a number is refused by name, and any other goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from provenance import READ, UNREAD, changed, written

from relu_study import registry, run, run_draws
from relu_study.finding import load_study
from relu_study.identity import differences
from relu_study.job import provenance, sources
from relu_study.programs import Probing
from relu_study.registry import UserError, statistics
from relu_study.study import Study

ENTRIES = {
    False: ["activation bent", "initializer drawn", "metric level", "network own", "optimizer paced", "task noisy"],
    True: ["activation bent", "statistic level"],
}
ALL = sorted({*ENTRIES[False], *ENTRIES[True]})
KINDS = pytest.mark.parametrize("drawn", [False, True], ids=["trained", "drawn"])


def of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registries that are the test's own."""
    for known in vars(registry).values():
        if isinstance(known, registry.Registry):
            monkeypatch.setattr(known, "_entries", dict(known._entries))


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    of_its_own(monkeypatch)


def own(path: Path) -> dict[str, Any]:
    """The fingerprints of the entries of a study file that is loaded now."""
    study: Any = load_study(path)
    jax.eval_shape(sys.modules["relu_study_of_study"].total)  # it opens its data files when it is called
    return provenance(Probing(metrics=("level",)), study.runs())["own"] | sources({"statistic level": statistics["level"]})


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The fingerprints of the unchanged study."""
    with pytest.MonkeyPatch.context() as patch:
        of_its_own(patch)
        return own(written(tmp_path_factory.mktemp("first") / "study"))


@pytest.mark.parametrize("what", READ)
def test_what_is_read_counts_in_every_kind_of_entry(what: str, before: dict[str, Any], tmp_path: Path) -> None:
    file, old, new, part = READ[what]
    path = written(tmp_path / "study")
    changed(path.parent, file, old, new)
    found = differences({"own": own(path)}, {"own": before})
    assert sorted(line.partition(" has changed (")[0] for line in found) == ALL == sorted(before)
    assert all(part in line.partition(" has changed (")[2] for line in found)


@pytest.mark.parametrize("what", UNREAD)
def test_what_is_not_read_moves_no_fingerprint(what: str, before: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path / "study")
    changed(path.parent, *UNREAD[what])
    assert own(path) == before


def test_the_folder_of_a_study_and_the_current_one_do_not_count(
    before: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "study")
    assert own(path) == before
    monkeypatch.chdir(path.parent)
    assert own(Path("study.py")) == before
    path.parent.rename(tmp_path / "renamed")
    monkeypatch.chdir(tmp_path)
    assert own(tmp_path / "renamed" / "study.py") == before


# ------------------------------------------------------------------------------------- end to end


def start(path: Path, out: Path, more: bool = False) -> None:
    """Run a study file: two seeds, or more of them."""
    study: Any = load_study(path)
    if isinstance(study, Study):
        run(study, out, seeds=3 if more else 2)
    else:
        run_draws(study, out, draws=40 if more else 20)


def results(folder: Path) -> dict[str, bytes]:
    """The content of the files of numbers."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}


REFUSED = ("global number", "helper of a helper", "jitted helper", "closure", "module next to it", "data of a helper")


@KINDS
def test_a_changed_study_is_refused_and_a_restored_one_ends_as_if_uninterrupted(
    drawn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = written(tmp_path / "study", drawn), tmp_path / "out"
    start(path, out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    for what in REFUSED:
        file, old, new, part = READ[what]
        text = (path.parent / file).read_text()
        changed(path.parent, file, old, new)
        with pytest.raises(UserError) as refused:
            start(path, out, more=True)
        said = str(refused.value)
        assert all(f"{entry} has changed (" in said for entry in ENTRIES[drawn]) and part in said
        assert "name another folder with --out" in said and "\n" not in said
        assert {file: file.read_bytes() for file in before} == before
        (path.parent / file).write_text(text)
    for what, change in UNREAD.items():
        if what != "title of the study":
            changed(path.parent, *change)
    path.parent.rename(tmp_path / "renamed")
    monkeypatch.chdir(tmp_path / "renamed")
    start(Path("study.py"), out, more=True)
    start(Path("study.py"), tmp_path / "whole", more=True)
    assert results(out) == results(tmp_path / "whole") != {}


def test_a_changed_study_in_another_folder_trains_new_numbers(tmp_path: Path) -> None:
    path = written(tmp_path / "study")
    start(path, tmp_path / "one")
    changed(path.parent, "study.py", "* 1e-6", "* 1e-2")
    start(path, tmp_path / "two")
    assert results(tmp_path / "one")["runs.csv"] != results(tmp_path / "two")["runs.csv"]
