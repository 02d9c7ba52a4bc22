"""The benchmark from start to end: train, measure the truth, tune, evaluate, write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from detector_parts import evaluation, outputs, page, tuning
from detector_parts.configurations import Configuration
from detector_parts.evaluation import Labels, Scores
from detector_parts.studies import ALL, FROZEN, SEEN_STUDY, TRUTH_STUDY
from detector_parts.truth import Signs, Truth, truths
from relu_study import run as run_study
from relu_study.diagnosis.detector import PROBLEMS
from relu_study.errors import UserError
from relu_study.storage.configurations import Configuration as Stored
from relu_study.storage.configurations import collect

SPLITS = ("tuning", "held_out")


class Measured(NamedTuple):
    """Everything that was measured: per configuration, its stored runs as detectors see them, and the truth."""

    configurations: list[Configuration]
    seen: list[Stored]
    truths: dict[str, list[Truth]]  # by definition: sign, half, double

    @property
    def progress(self) -> Float[np.ndarray, "E"]:
        """Share of training at each measurement. All configurations take the same."""
        return self.seen[0].epochs / self.seen[0].epochs[-1]

    @property
    def twins(self) -> Int[np.ndarray, " C"]:
        """The number of each configuration's twin."""
        number = {one.label: i for i, one in enumerate(self.configurations)}
        return np.array([number[one.twin] for one in self.configurations])

    def members(self, split: str) -> Bool[np.ndarray, " C"]:
        """Return which configurations belong to a split."""
        return np.array([one.split == split for one in self.configurations])

    def labels(self) -> list[Labels]:
        """Return the classes of runs by problem: with the sign, at half and double its threshold, and without a sign."""
        found = [evaluation.labels(p, some, self.progress, name) for name, some in self.truths.items() for p in PROBLEMS]
        return found + [evaluation.labels(p, self.truths["sign"], self.progress, "harm only", sign=False) for p in PROBLEMS]


def measure(raw: Path, seeds: int) -> Measured:
    """Train what is missing, and return everything that is measured."""
    for study, name in ((SEEN_STUDY, "seen"), (TRUTH_STUDY, "truth")):
        run_study(study, out=raw / name, seeds=seeds)
    return read(raw)


def read(raw: Path) -> Measured:
    """Return everything that is measured, from stored runs.

    Raises:
        UserError: a configuration is not stored.
    """
    seen, all_rows = collect(raw / "seen"), collect(raw / "truth")
    arms = {one.label: one.spec for one in ALL} | FROZEN
    missing = [label for label, spec in arms.items() if spec.config_id not in all_rows]
    missing += [one.label for one in ALL if one.spec.config_id not in seen]
    if missing:
        raise UserError(f"{raw} lacks {len(missing)} configurations, such as {missing[0]!r}. Run the benchmark again")
    by_label = {label: all_rows[spec.config_id] for label, spec in arms.items()}
    frozen = {label.removesuffix(", frozen"): label for label in FROZEN}
    signs = {"sign": Signs(), "half": Signs().scaled(0.5), "double": Signs().scaled(2.0)}
    return Measured(
        ALL,
        [seen[one.spec.config_id] for one in ALL],
        {name: truths(ALL, by_label, frozen, some) for name, some in signs.items()},
    )


def run(out: Path, seeds: int, tune: bool, package: Path = tuning.PACKAGE) -> None:
    """Train, tune if asked to, evaluate every detector and write the outputs.

    `package` is the folder of the thresholds and error rates that the rules ship with.
    """
    measured = measure(out / "raw", seeds)
    found = evaluation.scores(measured.truths["sign"], measured.seen)
    if tune:
        found = tuning.tuned(found, measured.labels(), measured.members("tuning"), package)
    found |= evaluation.unknown_constant(found["not_learning"].detector, measured.seen)
    write(out, measured, found, package)


def trainings(raw: Path) -> dict[str, Any]:
    """Return command, sizes, times, versions and devices of the trainings."""
    parts = {name: json.loads((raw / name / "manifest.json").read_text(encoding="utf-8")) for name in ("seen", "truth")}
    cohorts = {cohort for part in parts.values() for cohort in part["widths"]}
    kept = ("seeds", "counts", "timing", "device", "provenance")
    return {
        "command": "python benchmarks/detectors.py --tune",
        "configurations": len(ALL),
        "cohorts": len(cohorts),
        **{name: {key: part[key] for key in kept if key in part} for name, part in parts.items()},
    }


def write(out: Path, measured: Measured, found: dict[str, Scores], package: Path) -> None:
    """Write every output of the benchmark."""
    out.mkdir(parents=True, exist_ok=True)
    run_ids = np.concatenate([runs.run_ids for runs in measured.seen])
    epochs = measured.seen[0].epochs
    outputs.write_csv(outputs.detections(found, run_ids, epochs), out / "detections.csv")
    outputs.write_csv(truth_table(measured, run_ids, epochs), out / "truth.csv")
    labels = measured.labels()
    rates = evaluation.table(found, labels, {split: measured.members(split) for split in SPLITS}, measured.twins)
    outputs.write_csv(rates, out / "detectors.csv")
    held_out = {one.problem: one.only(measured.members("held_out")) for one in labels if one.truth == "sign"}
    outputs.save(outputs.roc(found, held_out), out / "roc")
    outputs.save(outputs.in_time(found, held_out), out / "in_time")
    named = {
        split: evaluation.named_rightly(found, tuning.OURS, measured.truths["sign"], measured.members(split)) for split in SPLITS
    }
    (out / "detectors.md").write_text(page.page(measured, found, rates, named), encoding="utf-8")
    text = json.dumps(trainings(out / "raw"), indent=2, sort_keys=True) + "\n"
    (out / "trainings.json").write_text(text, encoding="utf-8")
    tuning.write_error_rates(rates, package)


def truth_table(measured: Measured, run_ids: Sequence[str], epochs: Float[np.ndarray, "E"]) -> pd.DataFrame:
    """Return one row per run: its configuration, its class, and which problems it has from which epoch."""
    rows = []
    for one, runs, truth in zip(measured.configurations, measured.seen, measured.truths["sign"], strict=True):
        row = {"run_id": runs.run_ids, "split": one.split, "architecture": one.architecture, "source": one.source}
        row |= {
            "fault": one.fault,
            "dose": one.dose,
            "twin": one.twin,
            "class": truth.kind,
            "healthy": truth.healthy().astype(int),
        }
        for problem in PROBLEMS:
            onset = np.minimum(truth.onset(problem), len(epochs) - 1)
            sick = truth.sick(problem)
            row |= {problem: sick.astype(int), f"{problem}_onset": np.where(sick, epochs[onset], np.nan)}
        rows.append(pd.DataFrame(row))
    return pd.concat(rows)
