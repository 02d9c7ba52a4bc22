"""The page of the benchmark: question, networks, truth, error rates, and goals with their misses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from detector_parts.configurations import CAUSES
from detector_parts.evaluation import Scores
from detector_parts.notes import CITED, NOTES
from detector_parts.sparse import ACTIVE, sparse_but_healthy
from relu_study.diagnosis.detector import PROBLEMS

if TYPE_CHECKING:
    from detector_parts.benchmark import Measured

GOALS = (
    ("balanced_accuracy", "balanced accuracy", 0.95, True),
    ("false_alarms", "false alarms", 0.02, False),
    ("recall_at_0.1", "recall at 10 % of training", 0.85, True),
    ("recall_at_0.25", "recall at 25 % of training", 0.92, True),
    ("delay", "delay from onset, measurements", 1.0, False),
)
COLUMNS = {
    "recall": "recall",
    "false_alarms": "false alarms",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "coverage": "coverage",
    "delay": "delay",
    "recall_at_end": "recall at the end",
    "false_alarms_at_end": "false alarms at the end",
    "precision_at_0.01": "precision at 1 %",
    "precision_at_0.1": "at 10 %",
    "precision_at_0.5": "at 50 %",
}
TRUTHS = {"sign": "with the sign", "half": "half the sign's threshold", "double": "double", "harm only": "harm and family only"}


def page(measured: Measured, found: Mapping[str, Scores], rates: pd.DataFrame, named: Mapping[str, tuple[int, int]]) -> str:
    """Return the page as Markdown."""
    held_out = rates[(rates.split == "held_out") & (rates.truth == "sign")]
    parts = [
        "# Find it in time: detectors with measured error rates",
        NOTES["question"],
        "## Networks\n\n" + _networks(measured),
        "## Truth\n\n" + NOTES["truth"],
        "## Error rates on the held-out half\n\n" + NOTES["rates"],
        *(f"### {problem}\n\n{_rates(held_out, problem)}" for problem in PROBLEMS),
        "![ROC curves by problem](roc.png)\n\n![Balanced accuracy against the share of training seen](in_time.png)",
        "## Goals\n\n" + _goals(held_out) + "\n\n" + _named(named) + "\n\n" + NOTES["misses"],
        "## Other definitions of truth\n\n" + NOTES["truths"] + "\n\n" + _truths(rates),
        "## Faults without harm, and nothing to learn\n\n" + NOTES["apart"] + "\n\n" + _apart(measured, found),
        "## Sparse but healthy networks\n\n" + NOTES["sparse"] + "\n\n" + _sparse(found),
        "## Rules\n\n" + _rules(found),
        "## Published figures\n\n" + CITED,
        "## Files\n\n" + NOTES["files"],
    ]
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _percent(row: pd.Series, rate: str) -> str:
    if np.isnan(row[rate]):
        return "-"
    if rate == "delay":
        return f"{row[rate]:.0f} ({row[f'{rate}_lo']:.0f} to {row[f'{rate}_hi']:.0f})"
    return f"{100 * row[rate]:.1f} ({100 * row[f'{rate}_lo']:.1f} to {100 * row[f'{rate}_hi']:.1f})"


def _networks(measured: Measured) -> str:
    kinds: Counter[tuple[str, str, str]] = Counter()
    for one, truth in zip(measured.configurations, measured.truths["sign"], strict=True):
        kinds[one.split, one.fault or "none (twin)", truth.kind] += 1
    faults = ["none (twin)", *CAUSES]
    columns = ("healthy", "sick", "harmless fault", "nothing to learn", "twin that does not learn")
    rows = [
        (
            fault,
            ", ".join(CAUSES.get(fault, ())) or "-",
            *("{} / {}".format(*(kinds[split, fault, kind] for split in ("tuning", "held_out"))) for kind in columns),
        )
        for fault in faults
    ]
    runs = sum(len(truth.learned) for truth in measured.truths["sign"])
    text = NOTES["networks"].format(configurations=len(measured.configurations), runs=runs, measurements=len(measured.progress))
    return text + "\n\nConfigurations, tuning / held out:\n\n" + table(("fault", "may cause", *columns), rows)


def _rates(held_out: pd.DataFrame, problem: str) -> str:
    rows = held_out[held_out.problem == problem].sort_values(["rival", "balanced_accuracy"], ascending=[True, False])
    first = rows.iloc[0]
    text = f"{first.sick} sick runs of {first.sick_configurations} configurations, {first.healthy} healthy runs."
    cells = [
        (f"**{row.detector}** (ours)" if not row.rival else row.detector, *(_percent(row, rate) for rate in COLUMNS))
        for _, row in rows.iterrows()
    ]
    return text + "\n\n" + table(("detector", *COLUMNS.values()), cells)


def _goals(held_out: pd.DataFrame) -> str:
    rows = []
    for problem in PROBLEMS:
        some = held_out[held_out.problem == problem]
        ours, rivals = some[~some.rival].iloc[0], some[some.rival]
        for rate, name, goal, least in GOALS:
            value = ours[rate]
            best = rivals.loc[rivals[rate].idxmax() if least else rivals[rate].idxmin()]
            met = "-" if np.isnan(value) else "yes" if (value >= goal if least else value <= goal) else "**no**"
            bound = f"{'>=' if least else '<='} {goal:g}" if rate == "delay" else f"{'>=' if least else '<='} {100 * goal:g} %"
            rows.append(
                (
                    problem,
                    name,
                    bound,
                    _percent(ours, rate),
                    met,
                    f"{_percent(best, rate)}, {best.detector}",
                )
            )
    return table(("problem", "figure", "goal", "ours", "met", "best rival in this figure"), rows)


def _named(named: Mapping[str, tuple[int, int]]) -> str:
    right, sick = named["held_out"]
    return (
        f"Problem named rightly among sick runs of the held-out half: {right} of {sick}, "
        f"{100 * right / max(sick, 1):.1f} % (goal: 90 %). "
        "A run without a finding counts as wrong."
    )


def _truths(rates: pd.DataFrame) -> str:
    rows = []
    for problem in PROBLEMS:
        for truth, words in TRUTHS.items():
            some = rates[(rates.split == "held_out") & (rates.problem == problem) & (rates.truth == truth)]
            ours, rivals = some[~some.rival].iloc[0], some[some.rival]
            best = rivals.loc[rivals.balanced_accuracy.idxmax()] if rivals.balanced_accuracy.notna().any() else None
            rows.append(
                (
                    problem,
                    words,
                    ours.sick,
                    _percent(ours, "recall"),
                    _percent(ours, "balanced_accuracy"),
                    f"{_percent(best, 'balanced_accuracy')}, {best.detector}" if best is not None else "-",
                )
            )
    return table(("problem", "truth", "sick runs", "our recall", "our balanced accuracy", "best rival"), rows)


def _apart(measured: Measured, found: Mapping[str, Scores]) -> str:
    kinds = ("harmless fault", "nothing to learn", "twin that does not learn")
    inside = {
        kind: np.concatenate(
            [
                np.full(len(t.learned), t.kind == kind and c.split == "held_out")
                for c, t in zip(measured.configurations, measured.truths["sign"], strict=True)
            ]
        )
        for kind in kinds
    }
    rows = [
        (
            name,
            scored.detector.problem,
            *(f"{100 * scored.fires[inside[kind], -1].mean():.1f}" if inside[kind].any() else "-" for kind in kinds),
        )
        for name, scored in sorted(found.items(), key=lambda one: (one[1].detector.rival, one[1].detector.problem, one[0]))
    ]
    header = [f"{kind} ({inside[kind].sum()} runs)" for kind in kinds]
    return table(("detector", "problem", *header), rows)


def _sparse(found: Mapping[str, Scores]) -> str:
    histories = [sparse_but_healthy(active) for active in ACTIVE]
    rows = []
    for name, entry in ((name, scored.detector) for name, scored in sorted(found.items())):
        fires = [bool(entry.fires(history)) for history in histories]
        if entry.problem == "dying" or any(fires):
            rows.append((name, entry.problem, *("**fires**" if fired else "silent" for fired in fires)))
    return table(("detector", "problem", *(f"{100 - active} % zero entries" for active in ACTIVE)), rows)


def _rules(found: Mapping[str, Scores]) -> str:
    rows = [
        (
            name,
            s.detector.problem,
            s.detector.text,
            f"{s.detector.threshold:.4g}",
            s.detector.adaptation or "-",
            s.detector.source,
        )
        for name, s in sorted(found.items(), key=lambda one: (one[1].detector.rival, one[0]))
    ]
    return table(("detector", "problem", "rule", "fires at", "adaptation", "source"), rows)
