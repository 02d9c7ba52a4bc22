"""The committed benchmark of detectors: thresholds follow from its tuning half, and permuted labels leave chance."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from detector_parts import tuning
from detector_parts.evaluation import Labels, Scores
from paths import ROOT

from relu_study.diagnosis import thresholds
from relu_study.diagnosis.detector import detectors
from relu_study.diagnosis.diagnose import OURS
from relu_study.errors import UserError

FOLDER = ROOT / "results" / "detectors"


@pytest.fixture(scope="module")
def truth() -> pd.DataFrame:
    return pd.read_csv(FOLDER / "truth.csv", keep_default_na=False)


@pytest.fixture(scope="module")
def found(truth: pd.DataFrame) -> dict[str, Scores]:
    table = pd.read_csv(FOLDER / "detections.csv").set_index(["detector", "run_id"])["score"]
    return {name: Scores(detectors[name], table[name].loc[truth.run_id].to_numpy()[:, None]) for name in OURS}


def labels(truth: pd.DataFrame) -> list[Labels]:
    number = pd.factorize(truth.twin + truth.fault + truth.dose)[0]
    sizes = np.zeros(len(truth), int)
    return [
        Labels(name, "sign", truth[name].to_numpy(bool), truth.healthy.to_numpy(bool), sizes, number, np.ones(1)) for name in OURS
    ]


def tuning_half(truth: pd.DataFrame) -> np.ndarray:
    number, first = pd.factorize(truth.twin + truth.fault + truth.dose)[0], truth.split == "tuning"
    half = np.zeros(number.max() + 1, bool)
    half[number[first]] = True
    return half


def balanced_accuracy(scores: Scores, truth: pd.DataFrame, threshold: float) -> float:
    fires, rest = scores.largest >= threshold, truth.split == "held_out"
    recall, alarms = (fires[rest & (truth[column] == 1)].mean() for column in (scores.detector.problem, "healthy"))
    return float((recall + 1 - alarms) / 2)


def test_the_halves_share_no_architecture_and_no_source(truth: pd.DataFrame) -> None:
    for column in ("architecture", "source", "twin"):
        assert (truth.groupby(column).split.nunique() == 1).all()
    assert len(truth) >= 4_000 and (truth.split == "held_out").sum() >= 100 * 8


def test_the_shipped_thresholds_follow_from_the_tuning_half(truth: pd.DataFrame, found: dict[str, Scores]) -> None:
    chosen = tuning.chosen(found, labels(truth), tuning_half(truth))
    for name, numbers in thresholds.packaged().items():
        assert numbers["threshold"] == pytest.approx(chosen[name], rel=2e-3), "scores have four digits in the CSV"


def test_held_out_labels_do_not_reach_the_thresholds(truth: pd.DataFrame, found: dict[str, Scores]) -> None:
    expected, half = tuning.chosen(found, labels(truth), tuning_half(truth)), tuning_half(truth)
    permuted, rest = truth.copy(), (truth.split == "held_out").to_numpy()
    columns = [*OURS, "healthy"]
    permuted.loc[rest, columns] = truth.loc[rest, columns].sample(frac=1, random_state=0).to_numpy()
    assert tuning.chosen(found, labels(permuted), half) == expected
    deleted = truth.copy()
    deleted.loc[rest, columns] = 0
    assert tuning.chosen(found, labels(deleted), half) == expected


def test_permuted_tuning_labels_leave_chance(truth: pd.DataFrame, found: dict[str, Scores]) -> None:
    """No threshold may remain: then every choice has too many false alarms, and none is made."""
    half = tuning_half(truth)
    for name in OURS:
        outcomes, columns = [], [name, "healthy"]
        counted = ((truth.split == "tuning") & ((truth[name] == 1) | (truth.healthy == 1))).to_numpy()
        for seed in range(10):
            permuted = truth.copy()
            permuted.loc[counted, columns] = truth.loc[counted, columns].sample(frac=1, random_state=seed).to_numpy()
            only = [one for one in labels(permuted) if one.problem == name]
            try:
                outcomes.append(balanced_accuracy(found[name], truth, tuning.chosen(found, only, half)[name]))
            except UserError as error:
                assert "false alarms" in str(error)
                outcomes.append(0.5)
        assert np.mean(outcomes) == pytest.approx(0.5, abs=0.06), name


def test_shipped_error_rates_are_those_of_the_table() -> None:
    table = pd.read_csv(FOLDER / "detectors.csv")
    rows = table[(table.split == "held_out") & (table.truth == "sign")].set_index("detector")
    shipped = json.loads((tuning.PACKAGE / "error_rates.json").read_text())
    assert set(shipped) == set(OURS)
    for name, entry in shipped.items():
        for rate in ("recall", "false_alarms"):
            columns = (rate, f"{rate}_lo", f"{rate}_hi")
            assert entry[rate] == pytest.approx([rows.loc[name, column] for column in columns], abs=1e-4)
