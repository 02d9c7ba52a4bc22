"""A training study's results folder as the runs of a tracker: the study, its configurations, and their seeds."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from relu_study.errors import UserError
from relu_study.report.claim_rows import arms_and_targets
from relu_study.report.exports.attachments import figure_files, overall_verdicts, scalars, table_frames
from relu_study.report.exports.tracker import ExportedRun, Point, Scalar
from relu_study.report.tensorboard.event_files import TAGS, run_names
from relu_study.report.tensorboard.plugins import axis_steps
from relu_study.report.verdicts import TEXTS, arm_labels
from relu_study.storage.configurations import Configuration, collect
from relu_study.storage.csv_files import read_csv, read_runs, read_summary
from relu_study.storage.declaration import CellManifest, DeclaredConfiguration, StudyManifest, read_declared
from relu_study.storage.frames import configurations_from_runs_csv, runs_frame, summary_frame
from relu_study.storage.statuses import STATUSES, STORED
from relu_study.storage.tile_files import tile_paths
from relu_study.study.measurement_times import tensorboard_scale

ORDER = (*STATUSES, "confirmed", "refuted", "inconclusive", "not testable")
LONGEST_STUDY = 40  # characters of a study's name in a run_id, which some trackers limit to 64


@dataclass(frozen=True)
class StoredStudy:
    """The numbers of a results folder. `summary` has every epoch with raw/, else those of summary.csv."""

    folder: Path
    manifest: StudyManifest
    runs: pd.DataFrame
    summary: pd.DataFrame
    configurations: Mapping[str, Configuration]
    verdicts: pd.DataFrame
    raw: bool

    @cached_property
    def entries(self) -> dict[str, list[DeclaredConfiguration]]:
        """config_id -> its declared configurations: one for each experiment and arm."""
        found: dict[str, list[DeclaredConfiguration]] = {}
        for entry in self.manifest.declaration.configurations:
            found.setdefault(entry.config_id, []).append(entry)
        return found

    @cached_property
    def names(self) -> dict[str, str]:
        """config_id -> the name of its run, as in TensorBoard."""
        return run_names(self.manifest)

    @cached_property
    def statuses(self) -> dict[str, list[str]]:
        """config_id -> the statuses of its runs, in seed order."""
        ordered = self.runs.sort_values("seed", kind="stable")
        return {str(name): rows.tolist() for name, rows in ordered.groupby("config_id", sort=False)["status"]}


def read_study(folder: Path) -> StoredStudy:
    """Read a training study's results folder.

    Raises:
        UserError: a derived file is missing or older than raw/.
        CorruptFileError: a file is corrupt.
    """
    manifest = read_declared(folder)
    runs, summary = read_runs(folder, manifest), read_summary(folder, manifest)
    verdicts = read_csv(folder / "verdicts.csv", TEXTS)
    raw = bool(tile_paths(folder))
    if raw:
        configurations = collect(folder, manifest)
        stored, written = (set(zip(f["run_id"], f["status"], strict=True)) for f in (runs_frame(configurations, manifest), runs))
        if stored != written:
            differing = len({run for run, _ in stored ^ written})
            raise UserError(
                f"{folder / 'runs.csv'} is older than {folder / 'raw'}: {differing:,} runs have another status. "
                f"Run 'relu-study report {folder}' first."
            )
        summary = summary_frame(configurations, manifest)
    else:
        configurations = configurations_from_runs_csv(runs)
    return StoredStudy(folder, manifest, runs, summary, configurations, verdicts, raw)


def study_run(stored: StoredStudy) -> ExportedRun:
    """Return the run of the whole study: its tables, its figures, the verdicts of its claims and the counts by status."""
    statuses = stored.runs["status"].tolist()
    return whole_run(
        stored.folder,
        stored.manifest,
        sizes={"configurations": len(stored.entries), "runs": len(stored.runs)},
        complete=set(statuses) <= set(STORED),
        summary=_status(statuses) | overall_verdicts(stored.verdicts),
        tables={"verdicts": stored.verdicts},
    )


def whole_run(
    folder: Path,
    manifest: StudyManifest | CellManifest,
    *,
    sizes: Mapping[str, int],
    complete: bool,
    summary: Mapping[str, Scalar],
    tables: Mapping[str, pd.DataFrame],
) -> ExportedRun:
    """Return the run of a whole study of either kind. `sizes` are part of its config, and declared tables follow `tables`."""
    declaration = manifest.declaration
    config = {"study": manifest.study, "title": declaration.title, "preset": manifest.preset, "command": manifest.command}
    return ExportedRun(
        run_id=stable_id(manifest.study, "study", "all"),
        name=manifest.study,
        kind="study",
        group="study",
        tags=(manifest.study,),
        config=config | scalars({**sizes, **manifest.provenance}),
        complete=complete,
        summary=summary,
        tables=table_frames(folder, declaration, tables),
        figures=figure_files(folder, declaration),
    )


def configuration_runs(stored: StoredStudy) -> Iterator[ExportedRun]:
    """Yield a run for each configuration: the curves of its means with their 95 % intervals, final values and verdicts."""
    scale = tensorboard_scale(stored.manifest.declaration.every)
    cells = {str(name): rows for name, rows in stored.summary.groupby("config_id", sort=False)}
    verdicts = _verdicts(stored)
    for config_id, entries in stored.entries.items():
        statuses, rows = stored.statuses[config_id], cells.get(config_id, stored.summary[:0])
        by_epoch = _banded(rows)
        final = by_epoch[max(by_epoch)] if by_epoch else {}
        yield ExportedRun(
            run_id=stable_id(stored.manifest.study, "configuration", config_id),
            name=stored.names[config_id],
            kind="configuration",
            group=entries[0].experiment,
            tags=_tags(stored, entries),
            config=_config(stored, entries) | {"seeds": len(statuses)},
            complete=set(statuses) <= set(STORED),
            points=_points(by_epoch, scale),
            summary=_final(final) | _status(statuses) | verdicts.get(config_id, {}),
        )


def seed_runs(stored: StoredStudy) -> Iterator[ExportedRun]:
    """Yield a run for each seed of each configuration. Without raw/ it has the values of the last epoch only."""
    scale = tensorboard_scale(stored.manifest.declaration.every)
    of_config = {str(name): rows for name, rows in stored.runs.groupby("config_id", sort=False)}
    for config_id, entries in stored.entries.items():
        found = stored.configurations.get(config_id)
        row_of = {} if found is None else {run: row for row, run in enumerate(found.run_ids)}
        columns = ["run_id", "seed", "status", "first_bad_epoch"]
        tags, config, name = _tags(stored, entries), _config(stored, entries), stored.names[config_id]
        digits = max(3, len(str(len(of_config[config_id]) - 1)))
        for run_id, seed, status, bad in of_config[config_id][columns].itertuples(index=False, name=None):
            by_epoch = {} if found is None or run_id not in row_of else _of_seed(found, row_of[run_id])
            final = by_epoch[max(by_epoch)] if by_epoch else {}
            yield ExportedRun(
                run_id=stable_id(stored.manifest.study, "seed", run_id),
                name=f"{name}/seed-{seed:0{digits}}",
                kind="seed",
                group=name,
                tags=tags,
                config=config | {"seed": int(seed), "run_id": run_id},
                complete=status in STORED,
                points=_points(by_epoch, scale),
                summary=_final(final) | {"status": status} | scalars({"first_bad_epoch": bad}),
            )


def stable_id(study: str, kind: str, name: str) -> str:
    """Return an id that is unique in a project, for the same study always the same, and valid in every tracker.

    A configuration and its run of seed 0 have the same hash, so `kind` is part of the id.
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", study)
    if plain != study or len(plain) > LONGEST_STUDY:
        plain = f"{plain[: LONGEST_STUDY - 7]}-{hashlib.sha256(study.encode()).hexdigest()[:6]}"
    return f"{plain}-{kind}-{name}"


def _tags(stored: StoredStudy, entries: Iterable[DeclaredConfiguration]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([stored.manifest.study, *(entry.experiment for entry in entries)]))


def _config(stored: StoredStudy, entries: list[DeclaredConfiguration]) -> dict[str, Scalar]:
    """Return the factors of a configuration. An option that its components do not declare is left out."""
    labels = {
        "study": stored.manifest.study,
        "experiment": ", ".join(dict.fromkeys(entry.experiment for entry in entries)),
        "arm": " ~ ".join(dict.fromkeys(entry.arm for entry in entries)),
        "config_id": entries[0].config_id,
    }
    return labels | scalars(entries[0].spec)


def _status(statuses: Iterable[str]) -> dict[str, Scalar]:
    """Return the counts of runs by status, and the status as text."""
    counts = Counter(statuses)
    return {"status": _counts(counts), **{f"runs/{status}": count for status, count in counts.items()}}


def _counts(counts: Counter[str]) -> str:
    """Return the only name of the counts, or each name with its count: "30 ok, 2 nonfinite"."""
    if len(counts) == 1:
        return next(iter(counts))
    rank = {name: number for number, name in enumerate(ORDER)}
    return ", ".join(f"{counts[name]:,} {name}" for name in sorted(counts, key=lambda name: (rank.get(name, len(rank)), name)))


def _verdicts(stored: StoredStudy) -> dict[str, dict[str, Scalar]]:
    """Return config_id -> the verdicts of the claims on its arms: verdict/CLAIM, with counts if its rows differ."""
    declaration = stored.manifest.declaration
    arms, targets = arms_and_targets(declaration)
    ids = dict.fromkeys(claim.claim for claim in declaration.claims)
    by_id = [claim for name in ids for claim in declaration.claims if claim.claim == name]
    asked = [(c, t.name) for c in by_id for t in targets if not c.targets or t.name in c.targets]
    rows = stored.verdicts[stored.verdicts["contrast"] != "overall"]
    if [(c.claim, target, c.metric) for c, target in asked] != list(
        zip(rows["claim"], rows["target"], rows["metric"], strict=True)
    ):
        path = stored.folder / "verdicts.csv"
        raise UserError(f"{path} has other claims than manifest.json. Run 'relu-study report {stored.folder}' first.")
    found: dict[str, dict[str, Counter[str]]] = {}
    for (claim, target), verdict in zip(asked, rows["verdict"], strict=True):
        for label in arm_labels(claim):
            if (label, target) in arms:
                by_claim = found.setdefault(arms[label, target].config_id, {})
                by_claim.setdefault(claim.claim, Counter())[verdict] += 1
    return {
        config_id: {f"verdict/{name}": _counts(counts) for name, counts in by_claim.items()}
        for config_id, by_claim in found.items()
    }


def _banded(rows: pd.DataFrame) -> dict[float, dict[str, float]]:
    """Return epoch -> {metric/site/mean, /lo, /hi}, in order of the epochs. A missing mean or band is left out."""
    found: dict[float, dict[str, float]] = {}
    columns = ["epoch", "metric", "site", *TAGS.values()]
    for epoch, metric, site, *values in rows.sort_values("epoch", kind="stable")[columns].itertuples(index=False, name=None):
        cells = found.setdefault(float(epoch), {})
        cells.update((f"{metric}/{site}/{tag}", value) for tag, value in zip(TAGS, values, strict=True) if math.isfinite(value))
    return found


def _of_seed(configuration: Configuration, row: int) -> dict[float, dict[str, float]]:
    """Return epoch -> {metric/site} of one run, without missing values."""
    series = {name: values[row].tolist() for name, values in configuration.values.items()}
    return {
        epoch: {name: values[i] for name, values in series.items() if math.isfinite(values[i])}
        for i, epoch in enumerate(configuration.epochs.tolist())
    }


def _points(by_epoch: Mapping[float, dict[str, float]], scale: int) -> list[Point]:
    """Return the values by step, with the epoch as one of them. Of epochs on one step the last counts."""
    steps: dict[int, dict[str, float]] = {}
    for step, (epoch, values) in zip(axis_steps(np.array(list(by_epoch), float), scale).tolist(), by_epoch.items(), strict=True):
        if values:
            steps.setdefault(step, {}).update(values, epoch=epoch)
    return list(steps.items())


def _final(values: Mapping[str, float]) -> dict[str, Any]:
    return {f"final/{name}": value for name, value in values.items()}
