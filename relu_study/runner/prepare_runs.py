"""Validation, declaration and plan of a training study."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from relu_study.components.metrics import revivals
from relu_study.components.metrics.metric import declared, default_metrics
from relu_study.components.networks import initializer_of
from relu_study.components.options import values
from relu_study.components.registry import metrics as registered
from relu_study.components.registry import tasks
from relu_study.components.tasks.task import METRICS, rows_of
from relu_study.components.tasks.task import declared_metrics as task_metrics
from relu_study.engine import cohorts
from relu_study.engine.plan import Plan, plan, seconds, shard_tiles
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError, nearest
from relu_study.report.claim_rows import undecidable_rows
from relu_study.report.report import check
from relu_study.runner.machine import Machine
from relu_study.runner.prepare import Planned, Request
from relu_study.runner.provenance import provenance
from relu_study.stats import histogram_bins
from relu_study.storage import tile_files
from relu_study.storage.declaration import parse_declaration
from relu_study.storage.resume import FolderState
from relu_study.study.outputs import Table
from relu_study.study.run_spec import FIELDS, RunSpec
from relu_study.study.shard import Shard
from relu_study.study.study import DEFAULT_METRICS, REPORT_EPOCHS, Study


def request_runs(study: Study, folder: Path | None, measure_config: MeasureConfig, machine: Machine) -> Request[Plan]:
    """Check every run of a study. Compiles nothing."""
    runs, measure_config = study.runs(), _measure_config(study, measure_config)
    checked: dict[Any, Any] = {}
    specs = list(dict.fromkeys(run.replace(seed=0) for run in runs))
    for spec in specs:
        cohorts.check(spec, measure_config, checked)
    declaration = build_declaration(study, _cached(cohorts.sites), declared_metrics(runs, measure_config.metrics))
    if notes := list(dict.fromkeys(note for notes in checked.values() for note in notes)):
        declaration["notes"] = notes
    _check_optional(study, declaration["metrics"])
    check(parsed := parse_declaration(declaration))
    if folder is not None and tile_files.stored_bins(folder) == histogram_bins.POWERS:
        measure_config = measure_config._replace(linear_bins=False)  # the bins of an earlier version: its tiles stay valid
    ids, derived = {run.run_id for run in runs}, {*METRICS, *(f"val_{name}" for name in METRICS), *revivals.declared()}
    return Request(
        declaration,
        provenance(measure_config, [spec.replace(initializer=_shown(spec)["initializer"]) for spec in specs], machine.host),
        ids,
        functools.partial(_plan, runs, measure_config, (machine.devices, machine.platform)),
        undecidable_rows(parsed),
        measure_config,
        derived,
    )


def _plan(
    runs: list[RunSpec], measure_config: MeasureConfig, machine: tuple[int, str], state: FolderState, shard: Shard | None
) -> Planned[Plan]:
    work = _cached(lambda run: cohorts.cost_of(run, measure_config))
    requested = {run.run_id for run in runs}
    if shard is not None:
        # Ignore stored runs and widths, so that every shard computes the same partition no matter when it starts.
        whole = [(tile, c.name, seconds(tile, c.work)) for c in plan(runs, work, {}, *machine).cohorts for tile in c.tiles]
        requested = {run.run_id for tile in shard_tiles(whole, shard) for run in tile.runs}
    missing = requested - set(state.stored)
    planned = plan(
        runs,
        work,
        state.widths,
        *machine,
        missing=lambda run: run.run_id in missing,
        stored=lambda run: run.run_id in state.stored,
        starts=_cached(cohorts.init_programs),
    )
    widths = {**state.widths, **{c.name: c.width for c in planned.cohorts if not c.provisional}}
    return planned, widths, len(requested) - len(missing)


def _measure_config(study: Study, measure_config: MeasureConfig) -> MeasureConfig:
    """The MeasureConfig with the study's metrics, measurement interval and, if it has none itself, probe set."""
    examples = study.probe_examples if measure_config.probe_examples is None else measure_config.probe_examples
    measure_config = measure_config._replace(measure_every=study.every, probe_examples=examples)
    if not study.metrics:
        return measure_config
    specs = {run.task: run for run in study.runs()}.values()
    of_tasks = {name for spec in specs for name in task_metrics(tasks[spec.task](spec).signature)}  # always measured
    for name in study.metrics:
        if name not in (*registered, *of_tasks, DEFAULT_METRICS):
            raise nearest(name, [*registered, *of_tasks, DEFAULT_METRICS], f"metric of study {study.name}")
    with_default = DEFAULT_METRICS in study.metrics
    wanted = {*study.metrics, "dead_fraction", *(default_metrics() if with_default else ())}
    names = tuple(name for name in registered if name in wanted)
    if with_default and names == default_metrics():  # as if the study named none
        return measure_config
    return measure_config._replace(metrics=names, histograms=measure_config.histograms and with_default)


def _check_optional(study: Study, measured: Collection[str]) -> None:
    """Raise UserError if a claim, table or figure reads an optional metric that the study does not measure."""
    used: list[tuple[str, tuple[str, ...]]] = [(f"claim {claim.claim}", (claim.metric,)) for claim in study.claims]
    used += [(f"table {table.name}", tuple(table.metrics)) for table in study.tables if isinstance(table, Table)]
    used += [(f"figure {figure.name}", tuple(figure.metrics)) for figure in study.figures]
    for user, names in used:
        for name in (re.split("[/@]", name)[0] for name in names):
            if name in registered and name not in measured and not registered[name].default:
                named = tuple(study.metrics) or (DEFAULT_METRICS,)
                raise UserError(
                    f"{user} reads {name}, an optional metric that study {study.name} does not measure. "
                    f"Declare metrics={(*named, name)!r}."
                )


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
    """The manifest entries of all metrics of these runs: the `requested` metrics (None: default) and those of the tasks."""
    signatures = [tasks[run.task](run).signature for run in {run.task: run for run in runs}.values()]
    of_tasks = {name: entry for signature in signatures for name, entry in task_metrics(signature).items()}
    of_metrics = declared(requested)
    revived = {name: revivals.declared()[name] for kind, name in revivals.KINDS.items() if f"{kind}_fraction" in of_metrics}
    entries = {**of_metrics, **revived, **of_tasks}
    return dict(sorted(entries.items()))


def _shown(spec: RunSpec) -> dict[str, Any]:
    """The fields and set options of a RunSpec, with the real values of fields at a component's default."""
    return spec.as_dict() | {"initializer": initializer_of(spec), "rows": rows_of(spec)}


def _declared_spec(spec: RunSpec, options: Collection[str]) -> dict[str, Any]:
    """The manifest's `spec` of a configuration, and `unset`: the names at a default, if the id depends on some of them."""
    defaults = {name: value for name, value in values(spec.replace(options=())).items() if name in options}
    shown = {name: value for name, value in {**defaults, **_shown(spec)}.items() if name != "seed"}
    shown = {name: shown[name] for name in (*FIELDS, *options) if name in shown}
    if RunSpec.from_dict(shown).config_id == spec.config_id:
        return {"spec": shown}
    written = spec.as_dict()
    return {"spec": shown, "unset": [name for name, value in shown.items() if written.get(name) != value]}


def build_declaration(
    study: Study, sites: Callable[[RunSpec], list[str]], metrics: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The complete declaration of a study as plain data, the only input of its report."""
    declaration, specs = study.declaration(), [spec for _, _, spec in study.configurations()]
    options = declaration.get("options", [])
    for name in options:
        if name in metrics:
            raise UserError(f"{name} is a metric, so no option can have its name. Rename the option.")
    for entry, spec in zip(declaration["configurations"], specs, strict=True):
        entry |= _declared_spec(spec, options)
    shown = [entry["spec"] for entry in declaration["configurations"]]
    varied = {f for f in (*FIELDS, *options) if len({json.dumps(spec.get(f)) for spec in shown}) > 1}
    declaration["factors"] = [f for f in (*FIELDS, *options) if f in varied]
    declaration["metrics"] = metrics
    declaration["report_epochs"] = list(REPORT_EPOCHS)
    declaration["columns"] = _columns(study.runs(), sites, metrics)
    return json.loads(json.dumps(declaration, default=list))
