"""A worker of a cluster in this process, and the sources of a study that travel to it: no Ray."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from small_draw_study import study as coins
from small_study import study as small

from relu_study.components.entry_errors import out_of_memory_reason
from relu_study.components.registry import activations, function_of, tasks
from relu_study.components.tasks.own_arrays import task_from_arrays
from relu_study.engine import train_tile
from relu_study.engine.draw_block import draw_block
from relu_study.errors import UserError
from relu_study.runner import source_folder
from relu_study.runner.cluster import RayBackend, RayWorker
from relu_study.runner.cluster_watch import ClusterWatch
from relu_study.runner.machine import package_digest
from relu_study.runner.own_entries import own_entries, packed_entries, register_packed, registered_entries
from relu_study.runner.prepare import check_study, prepare
from relu_study.runner.provenance import sources
from relu_study.runner.worker import Answer, Worker, WorkerError, numbers_of
from relu_study.study import data_files
from relu_study.study.loading import load_study
from relu_study.study.travelling_sources import travelling_sources


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """A worker of this process, with the settings of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        made = Worker("cpu", 2, {}, {})
        yield made
        made._pinned.__exit__(None, None, None)
        made.close()


def equal(one: Any, other: Any) -> bool:
    return set(one) == set(other) and all(np.asarray(one[name]).tobytes() == np.asarray(other[name]).tobytes() for name in one)


def test_a_worker_trains_and_draws_the_same_numbers(worker: Worker) -> None:
    job, draws = prepare(small, None), prepare(coins.with_preset(draws=100), None)
    tile, block = job.plan.tiles[0], draws.plan.tiles[0]
    answer = worker.train(tile, 1, job.measure_config)
    here = train_tile.train_tile(list(tile.runs), tile.width, measure_config=job.measure_config, num_datasets=tile.num_datasets)
    assert answer.kind == "numbers" and equal(answer.value, here)
    assert equal(worker.draw(block, 0).value, draw_block(block))


def test_a_worker_reports_its_machine(worker: Worker) -> None:
    report = worker.machine(["statistic coin"])
    job = prepare(coins.with_preset(draws=100), None)
    assert report.host == job.machine.host and report.digest == job.machine.digest() and report.package == package_digest()
    assert report.devices == len(jax.devices()) and report.own == {"statistic coin": job.provenance["own"]["statistic coin"]}


def test_a_memory_error_is_an_answer(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    job = prepare(small, None)

    def full(*_: Any, **__: Any) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1600 bytes.\n a table")

    monkeypatch.setattr(train_tile, "start_tile", full)
    answer = worker.train(job.plan.tiles[0], 0, job.measure_config)
    assert answer[:2] == ("lacking", "RESOURCE_EXHAUSTED: Out of memory allocating 1600 bytes.")
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        numbers_of(answer, "w")
    with pytest.raises(MemoryError):
        numbers_of(Answer("lacking", "MemoryError"), "w")


def test_errors_of_a_worker_are_those_of_a_local_run(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    job = prepare(small, None)

    def wrong(*_: Any, **__: Any) -> Any:
        raise UserError("correct it")

    monkeypatch.setattr(train_tile, "start_tile", wrong)
    with pytest.raises(UserError, match="correct it"):
        numbers_of(worker.train(job.plan.tiles[0], 0, job.measure_config), "w")


def test_programs_of_a_finished_cohort_are_evicted(worker: Worker) -> None:
    evicted: list[Any] = []
    worker._programs = {"a": {("p", 1), ("shared",)}, "b": {("shared",)}}
    worker._evict = evicted.append
    worker.forget("a")
    assert evicted == [("p", 1)]
    worker.forget("b")
    assert evicted == [("p", 1), ("shared",)] and worker._programs == {}


# ------------------------------------------------------------------------------------ own sources


def test_sources_travel_with_siblings_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is loaded from another folder, where the original paths do not exist."""
    home, copy = tmp_path / "home", tmp_path / "copy"
    (home / "data").mkdir(parents=True)
    (home / "data" / "shift.txt").write_text("0.5")
    (home / "travelling_part.py").write_text(
        "from pathlib import Path\nfrom relu_study import data_file\n\n"
        "SHIFT = float(Path(data_file('data/shift.txt')).read_text())\n"
    )
    (home / "travelling_entry.py").write_text("from travelling_part import SHIFT\n\ndef shifted(x):\n    return x - SHIFT\n")
    monkeypatch.syspath_prepend(str(home))
    import travelling_entry  # type: ignore[import-not-found]

    made = travelling_sources({"activation shifted": travelling_entry.shifted})
    assert made is not None and set(made.files) == {"travelling_part.py", "travelling_entry.py", "data/shift.txt"}
    assert made.root == str(home) and made.modules == ("travelling_entry",)

    home.rename(tmp_path / "gone")
    monkeypatch.setattr("sys.path", [path for path in sys.path if path != str(home)])
    for name in ("travelling_part", "travelling_entry"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(data_files, "moved", {})
    monkeypatch.setattr(data_files, "other_folders", [])
    made.unpack(copy)
    loaded = sys.modules["travelling_entry"]
    assert Path(str(loaded.__file__)).is_relative_to(copy) and loaded.shifted(1.0) == 0.5
    for name in ("travelling_part", "travelling_entry"):
        del sys.modules[name]


def test_a_data_file_that_a_function_opens_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is opened when the study is checked. The worker's copy has the driver's fingerprint before any call."""
    home, copy = tmp_path / "home", tmp_path / "copy"
    (home / "data").mkdir(parents=True)
    (home / "data" / "slope.txt").write_text("0.5")
    (home / "travelling_slope.py").write_text(
        "from pathlib import Path\nfrom relu_study import Experiment, RunSpec, Study, activation, data_file\n\n"
        "@activation('travelling_slope', smooth=True)\ndef travelling_slope(x):\n"
        "    return x * float(Path(data_file('data/slope.txt')).read_text())\n\n"
        "base = RunSpec(rows=200, width=4, epochs=1, activation='travelling_slope')\n"
        "study = Study('slope', 'Slope', '?', [Experiment('main', {'slope': base})], seeds=1)\n"
    )
    for name, value in (("moved", {}), ("other_folders", []), ("opened_by", data_files.opened_by)):
        monkeypatch.setattr(data_files, name, value)
    study = load_study(home / "travelling_slope.py")
    try:
        entries = own_entries(study)
        check_study(study, None)
        made = travelling_sources({name: function_of(entry) for name, entry in entries.items()}, study.name)
        assert made is not None and set(made.files) == {"travelling_slope.py", "data/slope.txt"}
        fingerprint = sources(entries)

        del activations._entries["travelling_slope"]
        home.rename(tmp_path / "gone")
        for key in [key for key in data_files.opened_by if key[0].startswith(str(home))]:
            del data_files.opened_by[key]
        made.unpack(copy)
        assert sources(registered_entries(entries)) == fingerprint
        assert any(part.startswith("data ") for part in fingerprint["activation travelling_slope"])
        assert function_of(activations["travelling_slope"])(2.0) == 1.0
    finally:
        activations._entries.pop("travelling_slope", None)


def test_abandoned_sources_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed worker leaves its folder; the next worker of the node removes it. Folders of living workers stay."""
    monkeypatch.setattr(source_folder.tempfile, "tempdir", str(tmp_path))
    living = source_folder.SourceFolder()
    (abandoned := tmp_path / "relu_study_worker_gone").mkdir()
    (abandoned / "study.py").write_text("")
    (young := tmp_path / "relu_study_worker_young").mkdir()
    (other := tmp_path / "other").mkdir()
    for path in (living.path, abandoned, other):
        os.utime(path, (0, 0))
    source_folder.SourceFolder().close()
    assert sorted(tmp_path.iterdir()) == sorted([living.path, young, other])
    living.close()
    assert not living.path.exists()


class Handle:
    """An actor that records its calls."""

    def __init__(self, calls: list[str]) -> None:
        self.calls, self.close = calls, SimpleNamespace(remote=lambda: calls.append("close"))


@pytest.mark.parametrize(
    ("sources", "expected"), [(None, ["kill"] * 2), ("sources", ["close", "close", "wait 2", "kill", "kill"])]
)
def test_workers_remove_their_sources_before_they_are_ended(sources: Any, expected: list[str]) -> None:
    """All have the time of one."""
    calls: list[str] = []
    handles, made = [RayWorker(Handle(calls), node="n1") for _ in range(2)], RayBackend.__new__(RayBackend)
    made.ray = SimpleNamespace(
        exceptions=SimpleNamespace(RayError=ValueError),
        wait=lambda references, num_returns, timeout: calls.append(f"wait {num_returns}"),
        kill=lambda one: calls.append("kill"),
    )
    made.own = [sources, None]
    made.watch = ClusterWatch("", "")
    made.kill(*handles)
    assert calls == expected


def test_the_files_of_a_task_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study file gives a relative path to `task_from_arrays`. The package's own modules stay."""
    home, copy = tmp_path / "home", tmp_path / "copy"
    home.mkdir()
    np.savez(home / "rows.npz", x=np.eye(12), y=np.arange(12.0))
    (home / "travelling_rows.py").write_text(
        "import jax.numpy as jnp\n"
        "from relu_study import Experiment, RunSpec, Study, activation, task_from_arrays\n\n"
        "@activation('travelling_bend')\ndef travelling_bend(x):\n    return jnp.abs(x)\n\n"
        "task_from_arrays('travelling_rows', 'rows.npz')\n"
        "base = RunSpec(task='travelling_rows', activation='travelling_bend')\n"
        "study = Study('rows', 'Rows', '?', [Experiment('main', {'bend': base})])\n"
    )
    for name, value in (("moved", {}), ("other_folders", []), ("read_for", {})):
        monkeypatch.setattr(data_files, name, value)
    monkeypatch.chdir(home)
    study = load_study(home / "travelling_rows.py")
    try:
        entries = own_entries(study)
        made = travelling_sources({name: function_of(entry) for name, entry in entries.items()}, study.name)
        assert made is not None and set(made.files) == {"travelling_rows.py", "rows.npz"}
        fingerprint = sources(entries)

        del tasks._entries["travelling_rows"], activations._entries["travelling_bend"]
        monkeypatch.chdir(tmp_path)
        home.rename(tmp_path / "gone")
        made.unpack(copy)
        assert sources(registered_entries(entries)) == fingerprint
    finally:
        tasks._entries.pop("travelling_rows", None)
        activations._entries.pop("travelling_bend", None)


def test_arrays_in_memory_travel_without_a_file() -> None:
    """A notebook calls `task_from_arrays`: the entry is sent with its arrays."""
    entry = task_from_arrays("travelling_arrays", np.eye(12), np.arange(12.0))
    try:
        entries = {"task travelling_arrays": entry}
        assert travelling_sources({name: function_of(one) for name, one in entries.items()}) is None
        packed, fingerprint = packed_entries(entries), sources(entries)
        register_packed(packed)
        assert tasks["travelling_arrays"] is entry  # registered already

        del tasks._entries["travelling_arrays"]
        register_packed(packed)
        assert tasks["travelling_arrays"] is not entry and sources(registered_entries(entries)) == fingerprint
    finally:
        tasks._entries.pop("travelling_arrays", None)


def test_entries_of_a_notebook_are_refused() -> None:
    def typed(x: Any) -> Any:
        return x

    typed.__module__ = "__main__"
    with pytest.raises(UserError, match=r"activation typed is defined in a notebook.*Move it to a module file"):
        travelling_sources({"activation typed": typed})


def test_other_errors_of_a_worker_are_no_lack_of_memory() -> None:
    with pytest.raises(WorkerError, match="worker w raises") as error:
        numbers_of(Answer("error", "Traceback\nValueError: out of memory"), "w")
    assert out_of_memory_reason(error.value) == ""
