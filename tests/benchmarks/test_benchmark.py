"""The benchmark of detectors from start to end, on a few of its configurations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from detector_parts import benchmark
from detector_parts.configurations import configurations, frozen, may_vanish

from relu_study import Experiment
from relu_study.diagnosis.detector import PROBLEMS, detectors
from relu_study.diagnosis.diagnose import OURS

pytestmark = pytest.mark.slow
CHOSEN = ("relu 8x16 for sigmoid on circles", "relu 9x20 for sigmoid on ripple")  # one of each half


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [one for one in configurations() if one.twin in CHOSEN]
    halves = {f"{one.label}, frozen": frozen(one.spec) for one in some if may_vanish(one)}
    main = Experiment("networks", {one.label: one.spec for one in some})
    seen = replace(benchmark.SEEN_STUDY, experiments=[main], probe_examples=64)
    monkeypatch.setattr(benchmark, "ALL", some)
    monkeypatch.setattr(benchmark, "FROZEN", halves)
    monkeypatch.setattr(benchmark, "SEEN_STUDY", seen)
    monkeypatch.setattr(
        benchmark, "TRUTH_STUDY", replace(benchmark.TRUTH_STUDY, experiments=[main, Experiment("frozen", halves)])
    )


@pytest.mark.usefixtures("registered", "few")
def test_every_output_is_written(tmp_path: Path) -> None:
    benchmark.run(tmp_path, seeds=2, tune=False, package=tmp_path)
    scored = {*detectors, "not_learning_unknown_constant"}
    rates = pd.read_csv(tmp_path / "detectors.csv")
    assert set(rates.problem) == set(PROBLEMS) and set(rates.detector) == scored
    assert set(rates.split) == {"tuning", "held_out"} and set(rates.truth) == {"sign", "half", "double", "harm only"}
    truth = pd.read_csv(tmp_path / "truth.csv", keep_default_na=False)
    assert len(truth) == 2 * len(benchmark.ALL) and set(truth["class"]) & {"sick", "healthy"}
    found = pd.read_csv(tmp_path / "detections.csv")
    assert len(found) == len(scored) * len(truth) and set(found.run_id) == set(truth.run_id)
    assert set(json.loads((tmp_path / "error_rates.json").read_text())) == set(OURS)
    page = (tmp_path / "detectors.md").read_text()
    assert "## Goals" in page and all(f"### {problem}" in page for problem in PROBLEMS)
    assert {"roc.png", "roc.svg", "in_time.png", "in_time.svg"} <= {path.name for path in tmp_path.iterdir()}
