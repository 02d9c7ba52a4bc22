"""Fingerprints of user entries: a change that can move a number changes them, and nothing else does."""

from __future__ import annotations

import builtins
import functools
import json
import shutil
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT
from tiers import tiered

from relu_study import data_file
from relu_study.components.registry import networks, optimizers, statistics, tasks
from relu_study.engine import cohorts
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.report.report import report
from relu_study.runner.machine import local_host
from relu_study.runner.prepare_runs import _cached, _measure_config
from relu_study.runner.provenance import provenance, with_digest
from relu_study.storage.manifest import read_manifest
from relu_study.storage.provenance import differences
from relu_study.study.draw_study import cell_id
from relu_study.study.fingerprint import essence, fingerprint
from relu_study.study.loading import find_study, load_study
from relu_study.study.run_spec import RunSpec
from relu_study.study.study import Study

SOURCE = '''
import numpy as np
SCALE = 1.0
TABLE = np.arange(4.0)
OPTIONS = {"order": [1, 2], "names": {"a", "b"}}
UNREAD = 1

def helper(x):
    return x + 1

class Kind:
    slope = 0.5
    def __call__(self, x):
        return helper(x) * self.slope

def make(k):
    def inner(x, power=2):
        """A documentation."""
        deep = lambda y: y * 3.0  # a comment
        return deep(x) ** power * k * SCALE + TABLE[0] + OPTIONS["order"][0] + helper(x)
    return inner

entry, instance = make(0.25), Kind()
'''
CHANGES = {
    "closure": ("make(0.25)", "make(0.5)"),
    "global": ("SCALE = 1.0", "SCALE = 2.0"),
    "array": ("arange(4.0)", "arange(1.0, 5.0)"),
    "nested data": ('"order": [1, 2]', '"order": [2, 1]'),
    "set": ('{"a", "b"}', '{"a", "c"}'),
    "helper": ("x + 1", "x + 2"),
    "default": ("power=2", "power=3"),
    "nested constant": ("y * 3.0", "y * 4.0"),
}
SAME = {
    "unread global": ("UNREAD = 1", "UNREAD = 2"),
    "comment": ("# a comment", "# another comment"),
    "set order": ('{"a", "b"}', '{"b", "a"}'),
    "nothing": ("SCALE", "SCALE"),
}


def executed(source: str) -> dict[str, Any]:
    """The names that a source leaves, loaded without a file and without an entry in `sys.modules`."""
    names: dict[str, Any] = {"__name__": "typed"}
    exec(compile(source, "<prompt>", "exec"), names)
    return names


def whole(source: str, name: str = "entry") -> str:
    return fingerprint(executed(source)[name])["whole"]


def from_file(source: str, path: Path) -> dict[str, str]:
    """The fingerprint in another process, which has another seed for its hashes."""
    path.write_text(source)
    code = f"""
import importlib.util, json
from relu_study.study.fingerprint import fingerprint
spec = importlib.util.spec_from_file_location("typed", {str(path)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(json.dumps(fingerprint(module.entry)))
"""
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_moves_numbers_changes_the_fingerprint(change: str):
    old, new = CHANGES[change]
    assert old in SOURCE and whole(SOURCE.replace(old, new)) != whole(SOURCE)


@pytest.mark.parametrize("change", SAME)
def test_a_change_that_moves_no_number_leaves_the_fingerprint(change: str):
    assert whole(SOURCE.replace(*SAME[change])) == whole(SOURCE)


def test_a_callable_object_counts_its_class_its_state_and_its_helpers():
    first = whole(SOURCE, "instance")
    for old, new in (("slope = 0.5", "slope = 0.6"), ("x + 1", "x + 2"), ("* self.slope", "- self.slope")):
        assert whole(SOURCE.replace(old, new), "instance") != first
    names = executed(SOURCE)
    names["instance"].slope = 0.7
    assert fingerprint(names["instance"])["whole"] != first


def test_partials_and_jitted_functions_count_what_they_wrap():
    import jax

    names = executed(SOURCE)
    one, two = (fingerprint(functools.partial(names["entry"], power=power))["whole"] for power in (2, 3))
    assert one != two
    other = executed(SOURCE.replace("x + 1", "x + 2"))
    assert fingerprint(jax.jit(names["entry"]))["whole"] != fingerprint(jax.jit(other["entry"]))["whole"]


def test_two_processes_agree_and_a_file_counts_as_it_was_loaded(tmp_path: Path):
    first = from_file(SOURCE, tmp_path / "one.py")
    assert from_file("\n\n" + SOURCE, tmp_path / "two.py")["whole"] == first["whole"]
    assert from_file(SOURCE.replace("x + 1", "x + 2"), tmp_path / "one.py")["whole"] != first["whole"]


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=4), st.integers(0, 3))
def test_a_closure_over_any_array_counts_by_value(values: list[float], at: int):
    def of(array: np.ndarray) -> Callable[[], np.ndarray]:
        return lambda: array * 2

    array, at = np.array(values), at % len(values)
    changed = array.copy()
    changed[at] = 0.5 if array[at] != 0.5 else 0.25
    assert fingerprint(of(array))["whole"] == fingerprint(of(array.copy()))["whole"] != fingerprint(of(changed))["whole"]


def test_a_data_file_counts_by_its_content(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text("1,2\n")
    file = data_file(path)

    def reads() -> Any:
        return np.loadtxt(file)

    first = fingerprint(reads)["whole"]
    path.write_text("1,3\n")
    assert fingerprint(reads)["whole"] != first
    with pytest.raises(UserError, match="no data file"):
        data_file(tmp_path / "rows.txt")


def test_the_changed_part_is_named():
    parts = [fingerprint(executed(source)["entry"]) for source in (SOURCE, SOURCE.replace("SCALE = 1.0", "SCALE = 2.0"))]
    here, there = ({"own": {"task noisy": part}} for part in parts)
    assert differences(here, there) == ["task noisy has changed (SCALE)"]
    assert differences(here, here) == []


MANIFESTS = sorted(ROOT.glob("results/*/manifest.json"))


@pytest.mark.parametrize(
    "path",
    tiered(MANIFESTS, *(path for path in MANIFESTS if path.parent.name not in ("article", "architectures", "trainability"))),
    ids=lambda path: path.parent.name,
)
def test_committed_manifests_keep_their_ids(path: Path):
    """Every id of a cohort, or of a cell, is that of the study at its stored size."""
    manifest = json.loads(path.read_text())
    study = load_study(find_study(manifest["study"]))
    if isinstance(study, Study):
        runs = {run.replace(seed=0) for run in study.with_preset(manifest["preset"], seeds=1).runs()}
        found = {work.cohort for work in map(_cached(cohorts.cost_of), runs)}
    else:
        drawn = study.with_preset(manifest["preset"], None).experiments
        cells = [(e.statistic, statistics[e.statistic].cell(**cell)) for e in drawn for cell in e.cells.values()]
        found = {cell_id(name, cell) for name, cell in cells}
    assert found == set(manifest["widths"]) != set()


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.parent.name)
def test_committed_manifests_are_read_and_can_be_continued(path: Path):
    """Each key of provenance that is newer than a manifest has a value for it; no entry of the package counts as changed."""
    manifest = read_manifest(path.parent)
    there, study = manifest["provenance"], load_study(find_study(manifest["study"]))
    if isinstance(study, Study):
        sized = study.with_preset(manifest["preset"], seeds=1)
        bins = "histogram_bins" in there
        measure_config = _measure_config(sized, MeasureConfig(there["probe_examples"], there["val_examples"], linear_bins=bins))
        made = with_digest(provenance(measure_config, sized.runs()))
    else:
        made = with_digest({**local_host(), "own": {}})
    assert made["own"] == {}
    of_machine = {"engine", "versions", "device", "precision", "digest"} & there.keys()
    now = {**made, **{name: there[name] for name in of_machine}}
    assert differences(now, there) == []
    assert differences({**now, "engine": 0}, there) and differences({**now, "precision": "?"}, there)
    assert len(made) > len(there) or path.parent.name == "architectures"  # the first manifest with every key


FAST = ("article_rows",)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
        for name in sorted(path.parent.name for path in ROOT.glob("results/*/manifest.json"))
    ],
)
def test_committed_results_are_reported_with_the_same_bytes(name: str, tmp_path: Path):
    folder = Path(shutil.copytree(ROOT / "results" / name, tmp_path / name))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    report(folder)
    assert {path: path.read_bytes() for path in before} == before


def test_a_new_key_of_provenance_has_a_value_for_earlier_folders():
    made = provenance(MeasureConfig(linear_bins=False), [RunSpec()])
    earlier = {
        name: value for name, value in made.items() if name not in ("measured", "histograms", "digest", "matmul_precision")
    }
    del earlier["histogram_bins"], earlier["measured_every"]
    assert differences(made, earlier) == []
    assert differences({**made, "histogram_bins": "linear where bounded"}, earlier)


OFFSET = 1.0


def test_a_folder_is_not_continued_with_a_changed_definition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import jax

    from relu_study import Experiment, Signature, Task, run, task

    monkeypatch.setattr(tasks, "_entries", dict(tasks._entries))

    @task("moved")
    def moved(spec: RunSpec) -> Task:
        def sample(key: Any, phase: Any) -> Any:
            x = jax.random.uniform(key, (spec.rows, 2), minval=-1.0)
            return x, x[:, :1] + OFFSET

        return Task(Signature(spec.rows // 2, spec.rows // 2, 2, 1), sample)

    base = RunSpec(task="moved", rows=40, width=4, epochs=1, batch_size=20)
    study = Study("moved", "Moved", "?", [Experiment("main", {"arm": base})], seeds=1, metrics=("val_loss",))
    first = run(study, out=tmp_path / "out").runs["val_loss/all"]
    monkeypatch.setattr(cohorts, "check", lambda *arguments: None)  # the provenance needs no check
    monkeypatch.setitem(globals(), "OFFSET", 5.0)
    with pytest.raises(UserError, match=r"task moved has changed \(OFFSET\).*Name another folder"):
        run(study, out=tmp_path / "out", seeds=2)
    monkeypatch.setitem(globals(), "OFFSET", 1.0)
    again = run(study, out=tmp_path / "out", seeds=2).runs["val_loss/all"]
    assert again.iloc[0] == first.iloc[0] and again.iloc[1] != first.iloc[0]


def test_an_entry_that_declares_nothing_has_the_fingerprint_of_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    from relu_study import network, optimizer, task

    for registry in (tasks, networks, optimizers):
        registry.load()
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    def sized(spec: RunSpec, d_in: int, d_out: int, rngs: Any) -> Any:
        return OFFSET

    def other(spec: RunSpec) -> Any:
        return OFFSET

    def paced(learning_rate: Any) -> Any:
        return OFFSET

    network("own_network")(sized)
    task("own_task")(other)
    optimizer("own_optimizer")(paced)
    assert fingerprint(essence(networks["own_network"])) == fingerprint(sized)
    assert fingerprint(essence(tasks["own_task"])) == fingerprint(other)
    assert fingerprint(essence(optimizers["own_optimizer"])) == fingerprint({"function": paced})
    task("own_task", rows=5)(other)
    assert fingerprint(essence(tasks["own_task"])) != fingerprint(other)


INJECTED = {
    "number": ("2.0", "3.0"),
    "flag": ("True", "False"),
    "function": ("lambda: 2.0", "lambda: 3.0"),
    "array": ("np.arange(2.0)", "np.arange(3.0)"),
    "object": ("types.SimpleNamespace(a=2.0)", "types.SimpleNamespace(a=3.0)"),
}


@pytest.mark.parametrize("name", ["planted", "abs"])
@pytest.mark.parametrize("kind", INJECTED)
def test_a_name_added_to_builtins_counts(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = executed(f"def entry(x): return {name}, len(x), NotImplemented")
    plain = fingerprint(names["entry"])
    found = []
    for text in INJECTED[kind]:
        monkeypatch.setattr(builtins, name, eval(text, {"np": np, "types": types}), raising=False)
        found.append(fingerprint(names["entry"]))
    assert len({parts["whole"] for parts in (plain, *found)}) == 3


def test_an_unknown_object_in_builtins_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = executed("def entry(x): return planted")
    monkeypatch.setattr(builtins, "planted", threading.Lock(), raising=False)
    assert fingerprint(names["entry"])["unverified"] == "lock"
