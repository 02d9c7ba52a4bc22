"""Studies with custom components: a change that can move a number is refused by name, and other changes continue."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from provenance_study import READ, UNREAD, changed, written
from tiers import tiered

from relu_study import run, run_draws
from relu_study.components import registry
from relu_study.components.registry import statistics
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.runner.provenance import provenance, sources
from relu_study.storage.provenance import differences
from relu_study.study.loading import load_study
from relu_study.study.study import Study

ENTRIES = {
    False: ["activation bent", "initializer drawn", "metric level", "network own", "optimizer paced", "task noisy"],
    True: ["activation bent", "statistic level"],
}
DRAWN = pytest.mark.parametrize("drawn", tiered([False, True], True), ids=["trained", "drawn"])
ALL = sorted({*ENTRIES[False], *ENTRIES[True]})


def of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use separate registries for the test."""
    for known in vars(registry).values():
        if isinstance(known, registry.Registry):
            monkeypatch.setattr(known, "_entries", dict(known._entries))


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    of_its_own(monkeypatch)


def own(path: Path) -> dict[str, Any]:
    """Return the fingerprints of the components of a study file loaded now."""
    study: Any = load_study(path)
    jax.eval_shape(sys.modules["relu_study_of_study"].total)  # it opens its data files when it is called
    return provenance(MeasureConfig(metrics=("level",)), study.runs())["own"] | sources({"statistic level": statistics["level"]})


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The fingerprints of the unchanged study."""
    with pytest.MonkeyPatch.context() as patch:
        of_its_own(patch)
        return own(written(tmp_path_factory.mktemp("first") / "study"))


@pytest.mark.parametrize("what", tiered(READ, "helper of a helper", "jitted helper", "data of a helper", "module next to it"))
def test_changed_dependency_changes_every_kind_of_entry(what: str, before: dict[str, Any], tmp_path: Path) -> None:
    file, old, new, part = READ[what]
    path = written(tmp_path / "study")
    changed(path.parent, file, old, new)
    found = differences({"own": own(path)}, {"own": before})
    assert sorted(line.partition(" has changed (")[0] for line in found) == ALL == sorted(before)
    assert all(part in line.partition(" has changed (")[2] for line in found)


def rounds() -> list[list[str]]:
    """Return all changes in as few groups as possible. The changed parts of a group have different names."""
    found: list[list[str]] = []
    for what, (*_, part) in READ.items():
        free = next((some for some in found if part not in [READ[other][3] for other in some]), None)
        found.append([what]) if free is None else free.append(what)
    return found


@pytest.mark.parametrize("whats", rounds(), ids=lambda whats: f"{len(whats)} changes")
def test_every_change_is_found_among_others(whats: list[str], before: dict[str, Any], tmp_path: Path) -> None:
    """The fingerprint of each entry has a part for each change. The two parts of a jitted helper contain its defaults."""
    path = written(tmp_path / "study")
    for what in whats:
        changed(path.parent, *READ[what][:3])
    for entry, parts in own(path).items():
        names = {name for name in {**parts, **before[entry]} if parts.get(name) != before[entry].get(name)} - {"whole", "source"}
        assert [what for what in whats if not any(READ[what][3] in name for name in names)] == []
        assert len(names) == len(whats) + ("default of a jitted helper" in whats), names


@pytest.mark.parametrize("what", tiered([*UNREAD, "all"], "all"))
def test_unread_code_keeps_every_fingerprint(what: str, before: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path / "study")
    for change in UNREAD.values() if what == "all" else [UNREAD[what]]:
        changed(path.parent, *change)
    assert own(path) == before


def test_study_folder_and_current_folder_keep_every_fingerprint(
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


def begin(study: Any, out: Path, more: bool = False) -> None:
    """Run a study with two or more seeds."""
    if isinstance(study, Study):
        run(study, out, seeds=3 if more else 2)
    else:
        run_draws(study, out, draws=40 if more else 20)


def start(path: Path, out: Path, more: bool = False) -> None:
    """Run a study file with two or more seeds."""
    begin(load_study(path), out, more)


def results(folder: Path) -> dict[str, bytes]:
    """Return the contents of the result files."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}


REFUSED = ("global number", "data of a helper", "helper of a helper", "jitted helper", "closure", "module next to it")


@DRAWN
def test_changed_study_is_refused_and_restored_study_resumes(
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
        assert "Name another folder with --out" in said and "\n" not in said
        assert {file: file.read_bytes() for file in before} == before
        (path.parent / file).write_text(text)
    for what, change in UNREAD.items():
        if what != "title of the study":
            changed(path.parent, *change)
    path.parent.rename(tmp_path / "renamed")
    monkeypatch.chdir(tmp_path / "renamed")
    restored = load_study(Path("study.py"))
    begin(restored, out, more=True)
    begin(restored, tmp_path / "whole", more=True)
    assert results(out) == results(tmp_path / "whole") != {}


@DRAWN
def test_changed_study_in_another_folder_has_new_numbers(drawn: bool, tmp_path: Path) -> None:
    """`test_stale_programs.py` trains with a changed helper."""
    path = written(tmp_path / "study", drawn)
    start(path, tmp_path / "one")
    changed(path.parent, "study.py", "* 1e-6", "* 1e-2")
    start(path, tmp_path / "two")
    name = "cells.csv" if drawn else "runs.csv"
    assert results(tmp_path / "one")[name] != results(tmp_path / "two")[name]


# ------------------------------------------------------------------------------------ by the command


@DRAWN
def test_command_names_changed_entry_and_next_step(drawn: bool, tmp_path: Path, here: Any) -> None:
    path = written(tmp_path / "study", drawn)
    size = ["--max-draws", "20"] if drawn else ["--seeds", "1"]
    more = [size[0], "40" if drawn else "2"]
    status, _, said = here("run", "study/study.py", "--out", "out", *size)
    assert status == 0, said
    changed(path.parent, "near.py", "STEP = 0.15625", "STEP = 0.5")
    for words in (["run"], ["plan"]):
        status, out, said = here(*words, "study/study.py", "--out", "out", *more)
        assert status and "out has a different provenance (" in said.replace("\n", " ") and "Traceback" not in said + out
        assert all(f"{entry} has changed (" in said for entry in ENTRIES[drawn]) and "STEP" in said
        assert "Name another folder with --out" in said
    changed(path.parent, "near.py", "STEP = 0.5", "STEP = 0.15625")
    status, _, said = here("run", "study/study.py", "--out", "out", *more)
    assert status == 0, said


UNREADABLE = """
import jax.numpy as jnp
from relu_study import *

class Odd:
    @property
    def __dict__(self): raise RuntimeError("no")
    def __call__(self, pre): return jnp.maximum(pre, 0.5 * pre)

activation("odd")(Odd())
base = RunSpec(rows=40, width=4, epochs=1, batch_size=20, activation="odd", optimizer="sgd")
study = Study("odd", "Odd", "?", [Experiment("main", {"arm": base})], seeds=1, metrics=("val_loss",))
"""


def test_unreadable_entry_prevents_resuming(tmp_path: Path, here: Any) -> None:
    (tmp_path / "odd.py").write_text(UNREADABLE)
    status, out, said = here("run", "odd.py", "--out", "out")
    assert status == 0 and "activation odd cannot be compared with a later one" in " ".join((out + said).split())
    status, _, said = here("run", "odd.py", "--out", "out", "--seeds", "2")
    words = " ".join(said.split())
    assert status and "cannot be continued: activation odd cannot be compared" in words and "another folder with --out" in words


ARMS = """
from relu_study import *
def arms():
    return {f"{rate:g}": SMALL.replace(learning_rate=rate) for rate in RATES}
RATES = [0.01, 0.02]
SMALL = RunSpec(rows=40, width=4, epochs=1, batch_size=20, optimizer="sgd")
study = Study("arms", "Arms", "?", [Experiment("main", arms())], seeds=1, metrics=("val_loss",))
"""


def test_arms_from_a_function_are_matched_by_their_specs(tmp_path: Path) -> None:
    def runs(source: str) -> dict[float, float]:
        (tmp_path / "arms.py").write_text(source)
        study: Any = load_study(tmp_path / "arms.py")
        found = run(study, tmp_path / "out").runs
        return dict(zip(found["learning_rate"], found["val_loss/all"], strict=True))

    first = runs(ARMS)
    more = runs(ARMS.replace("[0.01, 0.02]", "[0.02, 0.03]"))
    assert set(first) == {0.01, 0.02} and set(more) == {0.02, 0.03} and more[0.02] == first[0.02]
