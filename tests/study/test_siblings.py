"""Studies with sibling modules, and interactively typed studies: code stays separate, and a change counts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from provenance_study import COMMON, DRAW, READ, TRAINED, written
from tiers import tiered

from relu_study import run
from relu_study.components import registry
from relu_study.components.registry import activations
from relu_study.engine import cohorts
from relu_study.errors import UserError
from relu_study.runner.provenance import sources
from relu_study.study.loading import load_study

STUDY = """
import jax.numpy as jnp
from relu_study import Experiment, RunSpec, Study, activation
{imports}

@activation("near")
def near(pre):
    {inside}
    return jnp.maximum(pre, {value} * pre)

base = RunSpec(rows=40, width=4, epochs=1, batch_size=20, activation="near")
study = Study("near", "Near", "?", [Experiment("main", {{"arm": base}})], seeds=1, metrics=("val_loss",))
"""
WAYS = {
    "module": ("import helpers", "pass", "helpers.slope()"),
    "name": ("from helpers import slope as own", "pass", "own()"),
    "star": ("from helpers import *", "pass", "slope()"),
    "package": ("from parts import helpers", "pass", "helpers.slope()"),
    "module of a package": ("import parts.helpers", "pass", "parts.helpers.slope()"),
    "inside a function": ("", "import helpers", "helpers.slope()"),
    "name inside a function": ("", "from helpers import slope", "slope()"),
    "package inside a function": ("", "from parts.helpers import slope", "slope()"),
}
HELPERS = "import {other}\n\ndef slope():\n    return {other}.SLOPE * 0.5\n"


def next_to(folder: Path, slope: float, way: str) -> Path:
    """A study, a module next to it, and the module that this one reads."""
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    for home, other in ((folder, "deep"), (folder / "parts", "parts.deep")):
        (home / "helpers.py").write_text(HELPERS.format(other=other))
        (home / "deep.py").write_text(f"SLOPE = {slope}\n")
    (folder / "parts" / "__init__.py").write_text("")
    imports, inside, value = WAYS[way]
    (folder / "study.py").write_text(STUDY.format(imports=imports, inside=inside, value=value))
    return folder / "study.py"


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    for known in vars(registry).values():
        if isinstance(known, registry.Registry):
            monkeypatch.setattr(known, "_entries", dict(known._entries))


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that turns off the checks of entries: they compile programs, and the provenance needs none of them."""
    return lambda: monkeypatch.setattr(cohorts, "check", lambda *arguments: None)


def loaded(path: Path) -> tuple[float, dict[str, Any]]:
    """The activation at -1, and its fingerprint."""
    load_study(path)
    return -float(activations["near"].function(-1.0)), sources({"activation near": activations["near"]})["activation near"]


@pytest.mark.parametrize("way", WAYS)
def test_equal_module_names_in_two_folders_stay_separate(way: str, tmp_path: Path) -> None:
    paths = [next_to(tmp_path / name, slope, way) for name, slope in (("one", 0.25), ("two", 0.75))]
    before, modules = list(sys.path), set(sys.modules)
    first, second = (loaded(path) for path in paths)
    assert (first[0], second[0]) == (0.125, 0.375) and first[1]["whole"] != second[1]["whole"]
    assert loaded(paths[0]) == first and loaded(paths[1]) == second
    kept = tmp_path / "none"
    kept.mkdir()
    (kept / "study.py").write_text(
        "from relu_study import *\nstudy = Study('n', 'N', '?', [Experiment('m', {'a': RunSpec()})])\n"
    )
    load_study(kept / "study.py")
    assert not {"helpers", "deep", "parts", "parts.helpers"} & set(sys.modules) - modules
    assert [path for path in sys.path if path not in before] == [str(kept)], "the modules of earlier studies are gone"


@pytest.mark.parametrize("way", WAYS)
def test_change_between_two_loads_counts(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "inside" in way:  # Python itself keeps the bytecode of such an import, and takes it for that of any file of this second
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = next_to(tmp_path / "one", 0.25, way)
    first = loaded(path)
    next_to(tmp_path / "one", 0.75, way)  # as many bytes in the same second: the time of a file is no sign of its content
    second = loaded(path)
    assert (first[0], second[0]) == (0.125, 0.375) and first[1]["whole"] != second[1]["whole"]
    next_to(tmp_path / "one", 0.25, way)
    assert loaded(path) == first


@pytest.mark.parametrize("way", tiered(["module", "inside a function"], "module"))
def test_changed_module_next_to_a_study_is_refused(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unchecked: Callable[[], None]
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    unchecked()
    path, out = next_to(tmp_path / "one", 0.25, way), tmp_path / "out"
    study: Any = load_study(path)
    first = run(study, out).runs["val_loss/all"]
    next_to(tmp_path / "one", 0.75, way)
    study = load_study(path)
    with pytest.raises(UserError, match=r"activation near has changed \(.*Name another folder with --out"):
        run(study, out, seeds=2)
    assert run(study, tmp_path / "other").runs["val_loss/all"][0] != first[0]
    next_to(tmp_path / "one", 0.25, way)
    study = load_study(path)
    assert run(study, out, seeds=2).runs["val_loss/all"][0] == first[0]


# ------------------------------------------------------------------------------------------- typed

TYPED = (
    "global number",
    "helper of a helper",
    "wrapper",
    "method",
    "property",
    "closure",
    "module next to it",
    "data of a helper",
)


def typed(source: str, names: dict[str, Any]) -> Any:
    """The study of code that is no module, as in a prompt."""
    exec(compile(source, "<prompt>", "exec", dont_inherit=True), names)
    return names["study"]


@pytest.mark.parametrize("name", [None, *(pytest.param(name, marks=pytest.mark.slow) for name in ("typed", "__main__"))])
def test_interactive_entries_work_and_changes_are_refused(
    name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unchecked: Callable[[], None]
) -> None:
    folder, source = written(tmp_path / "study").parent, COMMON + DRAW + TRAINED
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)

    def study(source: str = source) -> Any:
        monkeypatch.delitem(sys.modules, "near", raising=False)
        (folder / "near.py").touch()
        return typed(source, {} if name is None else {"__name__": name})

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    first = run(study(), tmp_path / "out").runs["val_loss/all"]
    unchecked()
    for what in TYPED:
        file, old, new, part = READ[what]
        text = source if file == "study.py" else (folder / file).read_text()
        assert old in text
        if file != "study.py":
            (folder / file).write_text(text.replace(old, new))
        with pytest.raises(
            UserError, match=r"activation bent has changed \(.*task noisy has changed \(.*another folder"
        ) as refused:
            run(study(source.replace(old, new)), tmp_path / "out", seeds=3)
        assert part in str(refused.value)
        if file != "study.py":
            (folder / file).write_text(text)
    again = run(study("\n\n# moved\n" + source), tmp_path / "out", seeds=3).runs["val_loss/all"]
    assert again[:2].tolist() == first.tolist() and len(set(again)) == 3


CALLABLE = """
import jax.numpy as jnp
from relu_study import *
class Bend:
    slope = 0.25
    def __init__(self, power): self.power = power
    def __call__(self, pre): return jnp.maximum(pre, self.slope * pre * self.power)
activation("near")(Bend(0.5))
base = RunSpec(rows=40, width=4, epochs=1, batch_size=20, activation="near")
study = Study("near", "Near", "?", [Experiment("main", {"arm": base})], seeds=1, metrics=("val_loss",))
"""


CHANGES = [("0.25", "0.75"), ("Bend(0.5)", "Bend(0.25)"), ("pre * self", "pre / self")]


def test_typed_callable_object_counts(tmp_path: Path, unchecked: Callable[[], None]) -> None:
    run(typed(CALLABLE, {}), tmp_path / "out")
    unchecked()
    for change in CHANGES:
        with pytest.raises(UserError, match="activation near has changed"):
            run(typed(CALLABLE.replace(*change), {}), tmp_path / "out", seeds=2)
    run(typed("\n" + CALLABLE, {}), tmp_path / "out", seeds=2)
