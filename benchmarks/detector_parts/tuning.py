"""Thresholds of our rules, chosen on the tuning half, and the error rates that `relu-study diagnose` shows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool

import relu_study.diagnosis
from detector_parts.evaluation import Labels, Scores
from relu_study.diagnosis import thresholds
from relu_study.diagnosis.diagnose import OURS
from relu_study.diagnosis.tuning import choose_threshold
from relu_study.errors import UserError

PACKAGE = Path(relu_study.diagnosis.__file__).parent
MAX_FALSE_ALARMS = 0.01  # on the tuning half; the goal on the held-out half is 2 %
DIGITS = 6  # of a threshold


def chosen(found: Mapping[str, Scores], labels: Sequence[Labels], members: Bool[np.ndarray, " C"]) -> dict[str, float]:
    """Return the threshold of each of our rules. Only runs of `members`, the tuning half, are read.

    Raises:
        UserError: scores do not tell sick from healthy runs.
    """
    result = {}
    for truth in labels:
        if truth.truth == "sign" and truth.problem in OURS:
            inside = truth.only(members)
            counted = inside.sick | inside.healthy
            largest = found[truth.problem].largest[counted]
            threshold = choose_threshold(largest, inside.sick[counted], MAX_FALSE_ALARMS)
            if not (largest >= threshold).any():
                raise UserError(
                    f"no threshold of {truth.problem!r} is better than never firing. Look for false alarms, or change the rule"
                )
            result[truth.problem] = float(f"{threshold:.{DIGITS}g}")
    return result


def tuned(
    found: Mapping[str, Scores], labels: Sequence[Labels], members: Bool[np.ndarray, " C"], folder: Path
) -> dict[str, Scores]:
    """Write the chosen thresholds into a folder and return the scores of our rules with them. A threshold changes no score."""
    new = chosen(found, labels, members)
    numbers = {name: {**values, "threshold": new[name]} for name, values in thresholds.packaged().items()}
    (folder / thresholds.FILE).write_text(thresholds.as_json(numbers), encoding="utf-8")
    return {
        name: dataclasses.replace(scored, detector=dataclasses.replace(scored.detector, threshold=new[name]))
        if name in new
        else scored
        for name, scored in found.items()
    }


def write_error_rates(rates: pd.DataFrame, folder: Path) -> None:
    """Write recall and false alarms of our rules on the held-out half into a folder."""
    rows = rates[(rates.split == "held_out") & (rates.truth == "sign") & rates.detector.isin(OURS)]
    values = {
        row.detector: {
            **{
                rate: [round(float(row[column]), 4) for column in (rate, f"{rate}_lo", f"{rate}_hi")]
                for rate in ("recall", "false_alarms")
            },
            "configurations": int(row.sick_configurations),
        }
        for _, row in rows.iterrows()
    }
    lines = [f"  {json.dumps(name)}: {json.dumps(values[name], sort_keys=True)}" for name in sorted(values)]
    (folder / "error_rates.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
