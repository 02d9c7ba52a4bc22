"""What is to be done before anything is: a study checked, declared and cut into tiles around what is stored already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from relu_study import bins, blocks, engine, estimates, locks, probes, store
from relu_study.failures import entry_errors
from relu_study.fingerprint import essence, fingerprint, source_hash
from relu_study.plan import Plan, Shard, part, plan, seconds
from relu_study.probes import revivals
from relu_study.programs import DEFAULT_EXAMPLES, Probing
from relu_study.registry import UserError, activations, function_of, initializers, nearest, networks, optimizers, tasks
from relu_study.registry import probes as registered
from relu_study.report import check
from relu_study.resuming import Before, doubts, held, move_damaged, set_aside
from relu_study.seals import Damaged
from relu_study.settings import digest, pinned, processor
from relu_study.spec import FIELDS, RunSpec
from relu_study.study import REPORT_EPOCHS, Study
from relu_study.tasks import METRICS


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
    before: Before
    shard: Shard | None = None


def provenance(probing: Probing, runs: Iterable[RunSpec] = ()) -> dict[str, Any]:
    """All that the numbers of these runs depend on beside their RunSpecs and their tiles' width; the digest comes later."""
    runs = list({run.but(seed=0): None for run in runs})
    kinds = (
        ("activation", "activation", activations),
        ("activation", "output", activations),
        ("initializer", "initializer", initializers),
        ("optimizer", "optimizer", optimizers),
        ("network", "network", networks),
        ("task", "task", tasks),
    )
    brought = {f"{kind} {name}": known[name] for kind, field, known in kinds for name in {getattr(run, field) for run in runs}}
    measured = [name for name in probes.declared() if probing.metrics is None or name in probing.metrics]
    brought |= {f"metric {name}": registered[name] for name in measured}
    of_tasks = {name for run in {r.task: r for r in runs}.values() for name in tasks[run.task](run).signature.metrics}
    brought |= {f"metric {name}": METRICS[name] for name in of_tasks if name in METRICS}
    return {
        **host(),
        "probe_examples": probing.examples or DEFAULT_EXAMPLES,
        "val_examples": probing.val_examples,
        "measured_every": probing.every,
        "histogram_bins": bins.LINEAR if probing.linear_bins else bins.POWERS,
        "metrics": None if probing.metrics is None else ", ".join(probing.metrics),
        "measured": measured,
        "histograms": probing.histograms,
        "own": sources(brought),
    }


def host() -> dict[str, Any]:
    """What every number depends on: the engine's version, those of the packages, the device and its precision."""
    device = jax.devices()[0]
    return {
        "engine": engine.ENGINE,
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
        "device": f"{device.platform}: {device.device_kind}",
        "precision": "float64" if jax.config.jax_enable_x64 else "float32",
        "matmul_precision": jax.config.jax_default_matmul_precision,
    }


def sources(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprint of every entry that a study brings itself, in parts: changed, it is another entry."""
    found: dict[str, Any] = {}
    for name, entry in sorted(entries.items()):
        function = function_of(entry)
        if not (getattr(function, "__module__", None) or "").startswith("relu_study."):
            source = source_hash(function)
            found[name] = {**fingerprint(essence(entry)), **({"source": source} if source else {})}
    _forget_changed(found)
    return found


_traced: dict[str, Any] = {}  # the fingerprints of the entries that this process has traced, by name


def _forget_changed(found: Mapping[str, Any]) -> None:
    """Drop every compiled program if an entry has changed: a jitted helper keeps the globals of its first call."""
    changed = [name for name, parts in found.items() if _traced.get(name, parts) != parts or "unverifiable" in parts]
    _traced.update(found)
    if changed:
        engine.forget_all()
        blocks.draw_program.kept.clear()
        jax.clear_caches()


def with_digest(made: dict[str, Any]) -> dict[str, Any]:
    """A provenance with the digest of this device's arithmetic."""
    return {**made, "digest": digest(), "own": made["own"]}


def store_begun(folder: Path | None) -> bool:
    """Does a folder hold raw files, whose provenance has to be compared?"""
    return folder is not None and bool(store.tile_paths(folder) or estimates.block_paths(folder))


@entry_errors()
@pinned()
def prepare(
    study: Study,
    folder: Path | None,
    probing: Probing,
    way_out: str = "name another folder with --out",
    shard: Shard | None = None,
) -> Job:
    """Check every run of a study and cut what is not yet stored in `folder` into tiles. Nothing compiles, nothing is written.

    A folder that cannot be continued is refused, with `way_out`. Of a `shard` only its own part counts, stored or not.
    """
    runs, probing = study.runs(), _as_asked(study, probing)
    seen: dict[Any, Any] = {}
    for spec in dict.fromkeys(run.but(seed=0) for run in runs):
        engine.check(spec, probing, seen)
    declaration = declare(study, _cached(engine.sites), declared_metrics(runs, probing.metrics))
    if notes := list(dict.fromkeys(note for notes in seen.values() for note in notes)):
        declaration["notes"] = notes
    check(declaration)
    if folder is not None and store.stored_bins(folder) == bins.POWERS:
        probing = probing._replace(linear_bins=False)  # as an earlier version did: its tiles stay, and new ones go with them
    made = provenance(probing, runs)
    made = with_digest(made) if store_begun(folder) else made
    derived = {*METRICS, *revivals.declared()}
    before = held(study.name, folder, made, _stored, {run.run_id for run in runs}, way_out, derived)
    widths = dict(before.widths)
    work, machine = _cached(lambda run: engine.describe(run, probing)), (len(jax.devices()), jax.devices()[0].platform)
    mine = {run.run_id for run in runs}
    if shard is not None:
        # Cut as if nothing were stored, no width chosen: the parts are the same whenever each of them begins.
        whole = [(tile, c.name, seconds(tile, c.work)) for c in plan(runs, work, {}, *machine).cohorts for tile in c.tiles]
        mine = {run.run_id for tile in part(whole, shard) for run in tile.runs}
    missing = mine - set(before.stored)
    planned = plan(
        runs,
        work,
        widths,
        *machine,
        missing=lambda run: run.run_id in missing,
        stored=lambda run: run.run_id in before.stored,
        starts=_cached(engine.starts),
    )
    widths |= {c.name: c.width for c in planned.cohorts}
    return Job(study, probing, made, widths, planned, len(mine) - len(missing), declaration, before, shard)


def _as_asked(study: Study, probing: Probing) -> Probing:
    """When and what the study has measured."""
    if not study.metrics:
        return probing._replace(every=study.every)
    known = probes.declared()
    for name in study.metrics:
        if name not in known:
            raise nearest(name, known, f"metric of study {study.name}")
    asked = tuple(name for name in known if name in {*study.metrics, "dead_fraction"})
    return probing._replace(every=study.every, metrics=asked, histograms=False)


def _cached(function: Callable[[RunSpec], Any]) -> Callable[[RunSpec], Any]:
    memory: dict[Any, Any] = {}

    def call(spec: RunSpec) -> Any:
        key = engine.program_fields(spec), spec.epochs
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
    of_probes = {name: about for name, about in probes.declared().items() if asked is None or name in asked}
    again = {name: revivals.declared()[name] for kind, name in revivals.KINDS.items() if f"{kind}_fraction" in of_probes}
    said = {**of_probes, **again, **{name: metric.declared() for name, metric in of_tasks.items()}}
    return dict(sorted(said.items()))


def _stored(folder: Path, damaged: list[Damaged]) -> dict[str, dict[str, Any]]:
    return {run: made for run, (_, made) in store.stored_runs(folder, damaged).items()}


def declare(study: Study, sites: Callable[[RunSpec], list[str]], metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
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
        "format": store.FORMAT,
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
    with locks.gate(folder):
        move_damaged(folder, job.before.damaged, say)
        set_aside(folder, say)
        beside = locks.others(folder, job.shard)
        if (job.before.stored or beside) and (folder / "manifest.json").exists():
            there = store.read_manifest(folder)
            manifest["timing"] = there["timing"]
            for name in ("declaration_hash", "provenance", "widths") if beside else ():
                if there[name] != manifest[name]:
                    raise UserError(
                        f"{folder} is being written by {beside[0]}, with another {name} than this shard has: wait for it, or "
                        "start all shards from one study at one size, with one version"
                    )
        store.write_manifest(folder, manifest)
    return manifest
