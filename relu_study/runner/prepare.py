"""What is to be done before anything is: a study checked, declared and cut into tiles around what is stored already."""

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
    """A study at its size, with all that its numbers will depend on."""

    study: Study
    probing: MeasureConfig
    provenance: dict[str, Any]
    widths: dict[str, int]
    plan: Plan
    stored: int
    declaration: dict[str, Any]
    folder_state: FolderState
    shard: Shard | None = None


def store_begun(folder: Path | None) -> bool:
    """Does a folder hold raw files, whose provenance has to be compared?"""
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
    """Check every run of a study and cut what is not yet stored in `folder` into tiles. Nothing compiles, nothing is written.

    A folder that cannot be continued is refused, with `hint`. Of a `shard` only its own part counts, stored or not.
    """
    runs, probing = study.runs(), _measure_config(study, probing)
    seen: dict[Any, Any] = {}
    for spec in dict.fromkeys(run.replace(seed=0) for run in runs):
        cohorts.check(spec, probing, seen)
    declaration = build_declaration(study, _cached(cohorts.sites), declared_metrics(runs, probing.metrics))
    if notes := list(dict.fromkeys(note for notes in seen.values() for note in notes)):
        declaration["notes"] = notes
    check(declaration)
    if folder is not None and tile_files.stored_bins(folder) == histogram_bins.POWERS:
        probing = probing._replace(linear_bins=False)  # as an earlier version did: its tiles stay, and new ones go with them
    made = provenance(probing, runs)
    made = with_digest(made) if store_begun(folder) else made
    derived = {*METRICS, *revivals.declared()}
    before = read_folder_state(study.name, folder, made, _stored, {run.run_id for run in runs}, hint, derived)
    widths = dict(before.widths)
    work, machine = _cached(lambda run: cohorts.cost_of(run, probing)), (len(jax.devices()), jax.devices()[0].platform)
    mine = {run.run_id for run in runs}
    if shard is not None:
        # Cut as if nothing were stored, no width chosen: the parts are the same whenever each of them begins.
        whole = [(tile, c.name, seconds(tile, c.work)) for c in plan(runs, work, {}, *machine).cohorts for tile in c.tiles]
        mine = {run.run_id for tile in shard_tiles(whole, shard) for run in tile.runs}
    missing = mine - set(before.stored)
    planned = plan(
        runs,
        work,
        widths,
        *machine,
        missing=lambda run: run.run_id in missing,
        stored=lambda run: run.run_id in before.stored,
        starts=_cached(cohorts.init_programs),
    )
    widths |= {c.name: c.width for c in planned.cohorts}
    return Job(study, probing, made, widths, planned, len(mine) - len(missing), declaration, before, shard)


def _measure_config(study: Study, probing: MeasureConfig) -> MeasureConfig:
    """When and what the study has measured."""
    if not study.metrics:
        return probing._replace(every=study.every)
    known = declared()
    for name in study.metrics:
        if name not in known:
            raise nearest(name, known, f"metric of study {study.name}")
    asked = tuple(name for name in known if name in {*study.metrics, "dead_fraction"})
    return probing._replace(every=study.every, metrics=asked, histograms=False)


def _cached(function: Callable[[RunSpec], Any]) -> Callable[[RunSpec], Any]:
    memory: dict[Any, Any] = {}

    def call(spec: RunSpec) -> Any:
        key = cohorts.program_fields(spec), spec.epochs
        if key not in memory:
            memory[key] = function(spec)
        return memory[key]

    return call


def _columns(runs: list[RunSpec], sites: Callable[[RunSpec], list[str]], metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every metric/site of the study, in the metrics' order: the columns of `runs.csv`, whatever is stored so far."""
    found = ["all", *sorted({site for run in runs for site in sites(run)}, key=lambda site: int(site.rpartition("_")[2]))]
    return [f"{name}/{site}" for name, about in metrics.items() for site in (found if about["sites"] else found[:1])]


def declared_metrics(runs: list[RunSpec], asked: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
    """What the manifest says of every metric of these runs: those `asked` for of the probes', then their tasks' own."""
    of_tasks = {
        name: METRICS[name] for run in {r.task: r for r in runs}.values() for name in tasks[run.task](run).signature.metrics
    }
    of_probes = {name: about for name, about in declared().items() if asked is None or name in asked}
    again = {name: revivals.declared()[name] for kind, name in revivals.KINDS.items() if f"{kind}_fraction" in of_probes}
    said = {**of_probes, **again, **{name: metric.declared() for name, metric in of_tasks.items()}}
    return dict(sorted(said.items()))


def _stored(folder: Path, damaged: list[CorruptFileError]) -> dict[str, dict[str, Any]]:
    return {run: made for run, (_, made) in tile_files.stored_runs(folder, damaged).items()}


def build_declaration(
    study: Study, sites: Callable[[RunSpec], list[str]], metrics: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The whole declaration as plain data: all that a report will ever know of the study."""
    declaration = study.declaration()
    specs = [entry["spec"] for entry in declaration["configurations"]]
    declaration["factors"] = [f for f in FIELDS if f != "seed" and len({json.dumps(s[f]) for s in specs}) > 1]
    declaration["metrics"] = metrics
    declaration["report_epochs"] = list(REPORT_EPOCHS)
    declaration["columns"] = _columns(study.runs(), sites, metrics)
    return json.loads(json.dumps(declaration, default=list))


def manifest_of(job: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a Job or DrawJob: the whole declaration and everything that its numbers depend on."""
    text = json.dumps(job.declaration, sort_keys=True)
    return {
        "format": FORMAT,
        "study": job.study.name,
        **about,
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


def begin(job: Any, folder: Path, say: Callable[[str], None], about: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of a Job or DrawJob, with the time that was spent before; shards that do not go together are refused."""
    manifest = {**manifest_of(job, about), "timing": {}, "counts": {}}
    for line in doubts(job.provenance["own"], folder):
        say(line)
    with locks.manifest_mutex(folder):
        move_damaged(folder, job.folder_state.damaged, say)
        archive_derived(folder, say)
        beside = locks.other_writers(folder, job.shard)
        if (job.folder_state.stored or beside) and (folder / "manifest.json").exists():
            there = read_manifest(folder)
            manifest["timing"] = there["timing"]
            for name in ("declaration_hash", "provenance", "widths") if beside else ():
                if there[name] != manifest[name]:
                    raise UserError(
                        f"{folder} is being written by {beside[0]}, with another {name} than this shard has: wait for it, or "
                        "start all shards from one study at one size, with one version"
                    )
        write_manifest(folder, manifest)
    return manifest
