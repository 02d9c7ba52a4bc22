"""The meeting of the two wings: cut a study into tiles, dispatch them to devices, drain them into the store."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from relu_study import engine, probes, store
from relu_study.plan import Plan, Tile, plan
from relu_study.programs import Probing
from relu_study.progress import Watcher
from relu_study.registry import UserError, nearest, tasks
from relu_study.report import check, report
from relu_study.spec import FIELDS, RunSpec
from relu_study.study import REPORT_EPOCHS, Study
from relu_study.tasks import METRICS
from relu_study.frames import Results, load, runs_csv

DERIVED = ("runs.csv", "experiments.csv", "summary.csv", "units.csv", "survival.csv", "verdicts.csv", "report.md")
DERIVED_FOLDERS = ("tables", "figures", "tensorboard")


@dataclass(frozen=True)
class Job:
    """A study at its size, with all that its numbers will depend on."""

    study: Study
    probing: Probing
    provenance: dict[str, Any]
    widths: dict[str, int]
    plan: Plan
    stored: int
    declaration: dict[str, Any]


# ------------------------------------------------------------------------------------ before it


def use_devices() -> None:
    """One XLA device per core where there is no accelerator, and a compilation cache that keeps every program."""
    with contextlib.suppress(RuntimeError):  # a process that has used JAX already keeps the devices it has
        if jax.config.jax_num_cpu_devices < 0 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
            jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    if not jax.config.jax_compilation_cache_dir:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "relu_study" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def provenance(probing: Probing) -> dict[str, Any]:
    """All that a run's numbers depend on beside its RunSpec and its tile's width."""
    device = jax.devices()[0]
    return {
        "engine": engine.ENGINE,
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
        "device": f"{device.platform}: {device.device_kind}",
        "precision": "float64" if jax.config.jax_enable_x64 else "float32",
        "probe_examples": probing.examples,
        "val_examples": probing.val_examples,
    }


def prepare(study: Study, folder: Path | None, probing: Probing) -> Job:
    """Check every run of a study and cut what is not yet stored in `folder` into tiles. Nothing compiles, nothing is written."""
    runs = study.runs()
    for spec in dict.fromkeys(run.but(seed=0) for run in runs):
        engine.check(spec, probing)
    declaration = declare(study, _columns(runs, _cached(engine.sites)))
    check(declaration)
    made = provenance(probing)
    widths, stored = _stored(study, folder, made)
    work = _cached(engine.describe)
    planned = plan(runs, work, widths, len(jax.devices()), jax.devices()[0].platform, lambda run: run.run_id not in stored)
    widths |= {c.name: c.width for c in planned.cohorts}
    return Job(study, probing, made, widths, planned, sum(run.run_id in stored for run in runs), declaration)


def _cached(function: Callable[[RunSpec], Any]) -> Callable[[RunSpec], Any]:
    memory: dict[Any, Any] = {}

    def call(spec: RunSpec) -> Any:
        key = (spec.marked("step"), spec.task, spec.epochs)
        if key not in memory:
            memory[key] = function(spec)
        return memory[key]

    return call


def _columns(runs: list[RunSpec], sites: Callable[[RunSpec], list[str]]) -> list[str]:
    """Every metric/site of the study, in the metrics' order: the columns of `runs.csv`, whatever is stored so far."""
    found = ["all", *sorted({site for run in runs for site in sites(run)}, key=lambda site: int(site.rpartition("_")[2]))]
    return [f"{name}/{site}" for name, about in declared_metrics(runs).items() for site in (found if about["sites"] else found[:1])]


def declared_metrics(runs: list[RunSpec]) -> dict[str, dict[str, Any]]:
    """What the manifest says of every metric of these runs: the probes', then their tasks' own."""
    of_tasks = {name: METRICS[name] for run in {r.task: r for r in runs}.values() for name in tasks[run.task](run).signature.metrics}
    return {**probes.declared(), **{name: metric.declared() for name, metric in of_tasks.items()}}


def _stored(study: Study, folder: Path | None, made: dict[str, Any]) -> tuple[dict[str, int], set[str]]:
    """The widths and runs that a results folder holds already; a folder that cannot be continued is refused."""
    if folder is None or not folder.exists():
        return {}, set()
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder with --out")
    if not (folder / "manifest.json").exists():
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no manifest.json; name another folder with --out")
        return {}, set()
    manifest = store.read_manifest(folder)
    if manifest["study"] != study.name:
        raise UserError(f"{folder} holds the study {manifest['study']!r}, not {study.name!r}; name another folder with --out")
    stored = store.stored_runs(folder)
    for there in [manifest["provenance"], *(made_there for _, made_there in stored.values())]:
        differs = [f"{k}: {there.get(k)} there, {made[k]} here" for k in made if there.get(k) != made[k]]
        if differs and stored:
            raise UserError(f"{folder} was made otherwise ({'; '.join(differs)}) and would not mix; name another folder with --out")
        if differs:
            return {}, set()
    return dict(manifest["widths"]), set(stored)


# ------------------------------------------------------------------------------------------ run


def run(
    study: Study,
    out: str | Path | None = None,
    *,
    preset: str | None = None,
    seeds: int | None = None,
    epochs: float | None = None,
    probe_examples: int | None = None,
    val_examples: int | None = 8192,
    keep_params: bool = False,
    all_epochs: bool = False,
    watcher: Watcher | None = None,
    command: str = "relu_study.run",
) -> Results:
    """Train whatever a study still lacks, write its results folder and return runs, curves and summary.

    `out=None` leaves no folder behind. `keep_params` returns the final parameters too, as
    `Results.params[run_id]`. Interrupted, it keeps every finished tile; the same call goes on from there.
    """
    use_devices()
    sized = study.sized(preset, seeds=seeds, epochs=epochs)
    probing = Probing(probe_examples, val_examples)
    with contextlib.ExitStack() as stack:
        folder = Path(out) if out else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        job = prepare(sized, folder, probing)
        watcher = watcher or Watcher()
        set_aside(folder, job, watcher)
        train(job, folder, watcher, keep_params, {"command": command, "preset": preset or "default"})
        for line in report(folder, all_epochs):
            watcher.say(line)
        results = load(folder)
        if keep_params:
            results.params = store.stored_params(folder)
        return results


def set_aside(folder: Path, job: Job, watcher: Watcher) -> None:
    """Move derived files whose tiles are not here (a clone's) into `earlier-N`: nothing is overwritten silently."""
    if not (folder / "manifest.json").exists() or store.tile_paths(folder):
        return
    n = next(i for i in range(1, 10**6) if not (folder / f"earlier-{i}").exists())
    away = folder / f"earlier-{n}"
    away.mkdir()
    for name in ("manifest.json", *DERIVED, *DERIVED_FOLDERS):
        if (folder / name).exists():
            shutil.move(folder / name, away / name)
    watcher.say(f"{folder} held results without their raw tiles; they are kept in {away}")


def declare(study: Study, columns: list[str]) -> dict[str, Any]:
    """The whole declaration as plain data: all that a report will ever know of the study."""
    declaration = study.declaration()
    specs = [entry["spec"] for entry in declaration["configurations"]]
    declaration["factors"] = [f for f in FIELDS if f != "seed" and len({json.dumps(s[f]) for s in specs}) > 1]
    declaration["metrics"] = declared_metrics(study.runs())
    declaration["report_epochs"] = list(REPORT_EPOCHS)
    declaration["columns"] = columns
    return json.loads(json.dumps(declaration, default=list))


def manifest_of(job: Job, about: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest: the whole declaration and everything that its numbers depend on."""
    text = json.dumps(job.declaration, sort_keys=True)
    return {
        "format": store.FORMAT,
        "study": job.study.name,
        **about,
        "seeds": job.study.seeds,
        "provenance": job.provenance,
        "widths": dict(sorted(job.widths.items())),
        "device": {"platform": job.plan.platform, "kind": jax.devices()[0].device_kind, "devices": job.plan.devices},
        "declaration_hash": hashlib.sha256(text.encode()).hexdigest()[:12],
        "declaration": job.declaration,
    }


def train(job: Job, folder: Path, watcher: Watcher, keep_params: bool, about: Mapping[str, Any]) -> None:
    """Train every tile of a job and store each as it is finished."""
    manifest = manifest_of(job, about)
    clock = Clock()
    store.write_manifest(folder, {**manifest, "timing": clock.spent(), "counts": {}})
    watcher.begin(job.plan, job.stored)
    try:
        for tile, numbers in trained(job.plan, job.probing, keep_params):
            store.write_tile(folder, message(tile, numbers, job))
            watcher.tile(tile, _dead_fraction(numbers))
    finally:
        counts = {"ok": 0, "nonfinite": 0}
        wanted = {run.run_id for run in job.study.runs()}
        for status in (status for run, (status, _) in store.stored_runs(folder).items() if run in wanted):
            counts[status] += 1
        counts["interrupted"] = len(wanted) - sum(counts.values())
        store.write_manifest(folder, {**manifest, "timing": clock.spent(), "counts": counts})


class Clock:
    """Wall time since it was made, compiling (the sum over devices) apart."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.compiling = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, duration: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.compiling += duration

    def spent(self) -> dict[str, float]:
        return {"wall_s": round(time.perf_counter() - self.began, 2), "compile_s": round(self.compiling, 2)}


def message(tile: Tile, numbers: store.Tile, job: Job) -> store.Tile:
    """A tile as it is stored: its numbers, who they belong to and what they depend on."""
    return {
        "run_id": np.array([run.run_id for run in tile.runs]),
        "spec": np.array([json.dumps(run.changed()) for run in tile.runs]),
        "provenance": np.array(json.dumps({**job.provenance, "width": tile.width}, sort_keys=True)),
        **numbers,
    }


def _dead_fraction(numbers: store.Tile) -> float:
    last = numbers["metric:dead_fraction/all"][:, -1]
    return float(np.nanmean(last)) if np.isfinite(last).any() else math.nan


def trained(planned: Plan, probing: Probing, keep_params: bool = False) -> Iterator[tuple[Tile, store.Tile]]:
    """Every tile of a plan with its numbers, in the order they are finished.

    One thread per device queues tiles asynchronously, each before the one before it has been waited for.
    """
    tiles, lock, stopped = planned.tiles, threading.Lock(), threading.Event()
    done: queue.Queue[Any] = queue.Queue()
    begun: set[str] = set()

    def take(mine: set[str]) -> Tile | None:
        # A cohort compiles once per device that trains it: stay with one's own, then open a new one, then help out.
        with lock:
            for fits in (lambda t: t.cohort in mine, lambda t: t.cohort not in begun, lambda t: True):
                for i, tile in enumerate(tiles):
                    if fits(tile):
                        begun.add(tile.cohort)
                        mine.add(tile.cohort)
                        return tiles.pop(i)
            return None

    def work(device: Any) -> None:
        mine: set[str] = set()
        try:
            while not stopped.is_set() and (tile := take(mine)) is not None:
                pending = engine.start_tile(list(tile.runs), tile.width, device, probing, wanted=lambda: not stopped.is_set())
                if pending is not None:
                    done.put((tile, pending))
        except BaseException as error:
            done.put(error)
        done.put(None)

    threads = [threading.Thread(target=work, args=(device,), daemon=True) for device in jax.devices()]
    for thread in threads:
        thread.start()
    try:
        left = len(threads)
        while left:
            item = done.get()
            if item is None:
                left -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item[0], engine.collect(item[1], keep_params)
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


# ------------------------------------------------------------------------------------- one alone


def run_alone(study: Study, run_id: str, folder: Path | None, out: Path | None, probing: Probing) -> str:
    """Train one run of a sweep by itself, at the width its cohort has in the sweep; its row of `runs.csv`."""
    use_devices()
    job = prepare(study, folder, probing)
    found = {run.run_id: run for run in study.runs()}
    if run_id not in found:
        raise nearest(run_id, found, f"run of study {study.name}")
    one = found[run_id]
    width = job.widths[engine.describe(one).cohort]
    tile = Tile(engine.describe(one).cohort, width, (one,), 0)
    numbers = engine.train_tile([one], width, probing=probing)
    manifest = {**manifest_of(job, {"command": f"relu-study run {study.name} --only {run_id}", "preset": "only"}), "timing": {}, "counts": {}}
    with contextlib.ExitStack() as stack:
        into = out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store.write_manifest(into, manifest)
        store.write_tile(into, message(tile, numbers, job))
        return next(line for line in runs_csv(store.collect(into), manifest).splitlines() if line.startswith(run_id))
