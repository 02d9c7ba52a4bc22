"""Findings of a running study: the first one of each configuration, and the number of configurations by problem."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from relu_study.diagnosis.detector import detectors
from relu_study.diagnosis.diagnose import OURS, diagnose
from relu_study.diagnosis.finding import Finding
from relu_study.diagnosis.history import History
from relu_study.diagnosis.tiles import CONSTANT_LOSS, METRIC, UNITS, history_of
from relu_study.storage.checksums import CorruptFileError
from relu_study.storage.tile_files import NEEDED, identified, reading, tile_arrays, tile_paths
from relu_study.study.run_spec import RunSpec, id_of


class FindingCounts(NamedTuple):
    """Configurations with a stored run, those with a finding, and the latter by problem."""

    configurations: int
    sick: int
    by_problem: Mapping[str, int]


class SickRun(NamedTuple):
    """The first run of a configuration with a finding."""

    run: RunSpec
    arm: str  # experiment and arm, with the target if the arm has several: "main/relu on wave"
    finding: Finding  # the one with the earliest onset


class StudyFindings:
    """The findings of a study's runs, from the tiles as they finish."""

    def __init__(self, declaration: Mapping[str, Any]):
        """Begin without a run. `declaration` is that of the manifest."""
        self._arms = _arms(declaration["configurations"])
        self._problems: dict[str, set[str]] = {}  # by config_id, of every configuration with a run

    def stored(self, folder: Path) -> None:
        """Count the stored runs of a results folder. Unreadable tiles are left out."""
        required = {metric for name in OURS for metric in (*detectors[name].requires, *detectors[name].reads)}
        for path in tile_paths(folder):
            with contextlib.suppress(CorruptFileError), reading(path):
                raw = identified(path)
                needed = {*NEEDED, CONSTANT_LOSS}
                names = [name for name in raw if name in needed or name.startswith(UNITS) or _metric(name) in required]
                tile = tile_arrays(raw, names)
                specs = [json.loads(text) for text in tile["spec"].tolist()]
                ids = [id_of({name: value for name, value in spec.items() if name != "seed"}) for spec in specs]
                self._sick(ids, history_of(tile))

    def tile(self, runs: Sequence[RunSpec], numbers: Mapping[str, np.ndarray]) -> list[SickRun]:
        """Count the runs of a finished tile, and return a run of each configuration that has its first finding."""
        history = history_of(numbers)
        first = self._sick([run.config_id for run in runs], history)
        found = diagnose(history.of_run(np.array(first))) if first else []
        return [
            SickRun(runs[i], self._arms.get(runs[i].config_id, ""), min(findings, key=lambda finding: finding.onset))
            for i, findings in zip(first, found, strict=True)
        ]

    def counts(self) -> FindingCounts:
        """Return the number of configurations so far."""
        by_problem = Counter(problem for problems in self._problems.values() for problem in problems)
        sick = sum(map(bool, self._problems.values()))
        return FindingCounts(len(self._problems), sick, dict(by_problem.most_common()))

    def _sick(self, configurations: Sequence[str], history: History) -> list[int]:
        """Count the runs of a tile, and return the first sick one of each configuration without a finding so far."""
        fires = {name: detectors[name].fires(history) for name in OURS}
        first = []
        for i, config_id in enumerate(configurations):
            problems = self._problems.setdefault(config_id, set())
            known = bool(problems)
            problems.update(detectors[name].problem for name in OURS if fires[name][i])
            if problems and not known:
                first.append(i)
        return first


def _metric(name: str) -> str:
    return name.removeprefix(METRIC).partition("/")[0] if name.startswith(METRIC) else ""


def _arms(configurations: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the name of each configuration: its first experiment and arm, with the target where the arm has several."""
    targets: dict[tuple[str, str], set[str]] = {}
    for entry in configurations:
        targets.setdefault((entry["experiment"], entry["arm"]), set()).add(entry["spec"]["target"])
    names: dict[str, str] = {}
    for entry in configurations:
        several = len(targets[entry["experiment"], entry["arm"]]) > 1
        name = f"{entry['experiment']}/{entry['arm']}" + (f" on {entry['spec']['target']}" if several else "")
        names.setdefault(entry["config_id"], name)
    return names
