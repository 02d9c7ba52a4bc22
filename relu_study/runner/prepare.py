"""Preparation of a study: validate it, build its declaration, plan the tiles that are not stored yet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from relu_study.components.entry_errors import entry_errors
from relu_study.components.metrics import revivals
from relu_study.components.metrics.metric import declared
from relu_study.components.registry import tasks
from relu_study.components.tasks.task import METRICS
from relu_study.engine import cohorts
from relu_study.engine.jax_settings import pinned, processor
from relu_study.engine.plan import Plan, plan, seconds, shard_tiles
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError, nearest
from relu_study.report.report import check
from relu_study.runner.provenance import provenance, with_digest
from relu_study.stats import histogram_bins
from relu_study.storage import block_files, locks, tile_files
from relu_study.storage.checksums import CorruptFileError
from relu_study.storage.manifest import FORMAT, read_manifest, write_manifest
from relu_study.storage.resume import FolderState, archive_derived, doubts, move_damaged, read_folder_state
from relu_study.study.run_spec import FIELDS, RunSpec
from relu_study.study.shard import Shard
from relu_study.study.study import REPORT_EPOCHS, Study


@dataclass(frozen=True)
class Job:
    """A study at its size, with everything that its numbers depend on."""

    study: Study
    probing: MeasureConfig
    provenance: dict[str, Any]
    widths: dict[str, int]
    plan: Plan
    stored: int
    declaration: dict[str, Any]
    folder_state: FolderState
    shard: Shard | None = None


def has_raw_files(folder: Path | None) -> bool:
    """Whether a folder contains raw files, whose provenance must match."""
    return folder is not None and bool(tile_files.tile_paths(folder) or block_files.block_paths(folder))


@entry_errors()
@pinned()
def prepare(
    study: Study,
    folder: Path | None,
    probing: MeasureConfig,
    hint: str = "name another folder with --out",
    shard: Shard | None = None,
) -> Job:
    """Check every run of a study and plan the tiles that are not stored in `folder`. Compiles and writes nothing.

    With a `shard`, only its own part is planned and counted.
    Raises UserError, with `hint` as the advice, if the folder cannot be continued.
    """
    runs, probing = study.runs(), _measure_config(study, probing)
    checked: dict[Any, Any] = {}
    for spec in dict.fromkeys(run.replace(seed=0) for run in runs):
        cohorts.check(spec, probing, checked)
    declaration = build_declaration(study, _cached(cohorts.sites), declared_metrics(runs, probing.metrics))
    if notes := list(dict.fromkeys(note for notes in checked.values() for note in notes)):
        declaration["notes"] = notes
    check(declaration)
    if folder is not None and tile_files.stored_bins(folder) == histogram_bins.POWERS:
        probing = probing._replace(linear_bins=False)  # the bins of an earlier version: its tiles stay valid
    expected = provenance(probing, runs)
    expected = with_digest(expected) if has_raw_files(folder) else expected
    derived = {*METRICS, *revivals.declared()}
    state = read_folder_state(study.name, folder, expected, _stored, {run.run_id for run in runs}, hint, derived)
    widths = dict(state.widths)
    work, machine = _cached(lambda run: cohorts.cost_of(run, probing)), (len(jax.devices()), jax.devices()[0].platform)
    requested = {run.run_id for run in runs}
    if shard is not None:
        # Ignore stored runs and widths, so that every shard computes the same partition no matter when it starts.
        whole = [(tile, c.name, seconds(tile, c.work)) for c in plan(runs, work, {}, *machine).cohorts for tile in c.tiles]
        requested = {run.run_id for tile in shard_tiles(whole, shard) for run in tile.runs}
    missing = requested - set(state.stored)
    planned = plan(
        runs,
        work,
        widths,
        *machine,
        missing=lambda run: run.run_id in missing,
        stored=lambda run: run.run_id in state.stored,
        starts=_cached(cohorts.init_programs),
    )
    widths |= {c.name: c.width for c in planned.cohorts}
    return Job(study, probing, expected, widths, planned, len(requested) - len(missing), declaration, state, shard)


def _measure_config(study: Study, probing: MeasureConfig) -> MeasureConfig:
    """The MeasureConfig with the study's metrics and measurement interval."""
    if not study.metrics:
        return probing._replace(every=study.every)
    registered = declared()
    for name in study.metrics:
        if name not in registered:
            raise nearest(name, registered, f"metric of study {study.name}")
    names = tuple(name for name in registered if name in {*study.metrics, "dead_fraction"})
    return probing._replace(every=study.every, metrics=names, histograms=False)


def _cached(function: Callable[[RunSpec], Any]) -> Callable[[RunSpec], Any]:
    cache: dict[Any, Any] = {}

    def call(spec: RunSpec) -> Any:
        key = cohorts.program_fields(spec), spec.epochs
        if key not in cache:
            cache[key] = function(spec)
        return cache[key]

    return call


def _columns(runs: list[RunSpec], sites: Callable[[RunSpec], list[str]], metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The metric/site columns of `runs.csv`, in the order of the metrics; independent of the stored runs."""
    names = ["all", *sorted({site for run in runs for site in sites(run)}, key=lambda site: int(site.rpartition("_")[2]))]
    return [f"{name}/{site}" for name, info in metrics.items() for site in (names if info["sites"] else names[:1])]


def declared_metrics(runs: list[RunSpec], requested: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
    """The manifest entries of all metrics of these runs: the `requested` metrics (None: all) and those of the tasks."""
    of_tasks = {
        name: METRICS[name] for run in {r.task: r for r in runs}.values() for name in tasks[run.task](run).signature.metrics
    }
    of_metrics = {name: info for name, info in declared().items() if requested is None or name in requested}
    revived = {name: revivals.declared()[name] for kind, name in revivals.KINDS.items() if f"{kind}_fraction" in of_metrics}
    entries = {**of_metrics, **revived, **{name: metric.declared() for name, metric in of_tasks.items()}}
    return dict(sorted(entries.items()))


def _stored(folder: Path, damaged: list[CorruptFileError]) -> dict[str, dict[str, Any]]:
    return {run: provenance for run, (_, provenance) in tile_files.stored_runs(folder, damaged).items()}


def build_declaration(
    study: Study, sites: Callable[[RunSpec], list[str]], metrics: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The complete declaration of a study as plain data, the only input of its report."""
    declaration = study.declaration()
    specs = [entry["spec"] for entry in declaration["configurations"]]
    declaration["factors"] = [f for f in FIELDS if f != "seed" and len({json.dumps(s[f]) for s in specs}) > 1]
    declaration["metrics"] = metrics
    declaration["report_epochs"] = list(REPORT_EPOCHS)
    declaration["columns"] = _columns(study.runs(), sites, metrics)
    return json.loads(json.dumps(declaration, default=list))


def manifest_of(job: Any, command_info: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a Job or DrawJob: its declaration and everything that its numbers depend on."""
    text = json.dumps(job.declaration, sort_keys=True)
    return {
        "format": FORMAT,
        "study": job.study.name,
        **command_info,
        **{name: job.declaration[name] for name in ("seeds",) if name in job.declaration},
        "provenance": job.provenance,
        "widths": dict(sorted(job.widths.items())),
        "device": {
            "platform": job.plan.platform,
            "kind": jax.devices()[0].device_kind,
            "devices": job.plan.devices,
            **processor(),
        },
        "declaration_hash": hashlib.sha256(text.encode()).hexdigest()[:12],
        "declaration": job.declaration,
    }


def begin(job: Any, folder: Path, on_message: Callable[[str], None], command_info: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of a Job or DrawJob, with the time of earlier sessions.

    Raises UserError if another shard writes the folder with a different declaration, provenance or widths.
    """
    manifest = {**manifest_of(job, command_info), "timing": {}, "counts": {}}
    for line in doubts(job.provenance["own"], folder):
        on_message(line)
    with locks.manifest_mutex(folder):
        move_damaged(folder, job.folder_state.damaged, on_message)
        archive_derived(folder, on_message)
        others = locks.other_writers(folder, job.shard)
        if (job.folder_state.stored or others) and (folder / "manifest.json").exists():
            existing = read_manifest(folder)
            manifest["timing"] = existing["timing"]
            for name in ("declaration_hash", "provenance", "widths") if others else ():
                if existing[name] != manifest[name]:
                    raise UserError(
                        f"{folder} is being written by {others[0]} with a different {name}. Wait for it, or start "
                        "all shards from one study at one size with one version."
                    )
        write_manifest(folder, manifest)
    return manifest
