"""The files of the benchmark: tables of detections and error rates, two figures, and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detector_parts.evaluation import Labels, Scores
from relu_study.diagnosis.detector import PROBLEMS
from relu_study.report.figures.canvas import COLOURS, DASHES, FAINT, STYLE, WIDTH

TITLES = {"exploding": "Exploding", "dying": "Dying", "vanishing": "Vanishing", "not_learning": "Not learning"}


def detections(found: Mapping[str, Scores], run_ids: Sequence[str], epochs: Float[np.ndarray, "E"]) -> pd.DataFrame:
    """Return one row per run and detector: its largest score and the epoch of its first flag; empty: none."""
    rows = []
    for name, scored in found.items():
        first = scored.first
        flag = np.where(first < len(epochs), epochs[np.minimum(first, len(epochs) - 1)], np.nan)
        rows.append(
            pd.DataFrame(
                {
                    "run_id": run_ids,
                    "detector": name,
                    "problem": scored.detector.problem,
                    "score": scored.largest,
                    "first_flag": flag,
                }
            )
        )
    return pd.concat(rows)


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table with four digits."""
    frame.to_csv(path, index=False, float_format="%.4g", lineterminator="\n")


def _figure(rows: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, 3.9 * rows), layout="constrained")
    return figure, list(figure.subplots(rows, len(PROBLEMS) // rows).flat)


def _style(place: int, rival: bool) -> dict[str, object]:
    if not rival:
        return {"color": COLOURS[0], "linewidth": 2.2, "zorder": 3}
    return {"color": COLOURS[1 + place % (len(COLOURS) - 1)], "linestyle": DASHES[(place // (len(COLOURS) - 1)) % len(DASHES)]}


def _legend(panel: Axes) -> None:
    """Put the legend below the panel: no corner is free of curves."""
    panel.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)


def _of(found: Mapping[str, Scores], problem: str) -> list[tuple[str, Scores]]:
    """Return the detectors of a problem, ours first."""
    chosen = [(name, scored) for name, scored in found.items() if scored.detector.problem == problem]
    return sorted(chosen, key=lambda one: (one[1].detector.rival, one[0]))


def roc(found: Mapping[str, Scores], labels: Mapping[str, Labels]) -> Figure:
    """Return the ROC curves by problem. A dot marks the shipped threshold."""
    with matplotlib.rc_context(STYLE):
        figure, panels = _figure(2)
        for panel, problem in zip(panels, PROBLEMS, strict=True):
            truth = labels[problem]
            for place, (name, scored) in enumerate(_of(found, problem)):
                score = np.nan_to_num(scored.largest, nan=-np.inf)
                cuts = np.unique(score)[::-1]
                alarms, recall = ((score[which, None] >= cuts).mean(axis=0) for which in (truth.healthy, truth.sick))
                style = _style(place, scored.detector.rival)
                panel.plot(np.append(0, alarms), np.append(0, recall), label=name, **style)
                fires = scored.fires[:, -1]
                panel.plot(fires[truth.healthy].mean(), fires[truth.sick].mean(), "o", color=style["color"], markersize=4)
            panel.plot([0, 1], [0, 1], color=FAINT, linewidth=0.6)
            panel.set(
                title=f"{TITLES[problem]} ({truth.sick.sum()} sick, {truth.healthy.sum()} healthy runs)",
                xlabel="false alarms",
                ylabel="recall",
            )
            _legend(panel)
        return figure


def in_time(found: Mapping[str, Scores], labels: Mapping[str, Labels]) -> Figure:
    """Return balanced accuracy against the share of training that a detector has seen."""
    with matplotlib.rc_context(STYLE):
        figure, panels = _figure(2)
        for panel, problem in zip(panels, PROBLEMS, strict=True):
            truth = labels[problem]
            for place, (name, scored) in enumerate(_of(found, problem)):
                recall, alarms = (scored.fires[which].mean(axis=0) for which in (truth.sick, truth.healthy))
                panel.plot(truth.progress, (recall + 1 - alarms) / 2, label=name, **_style(place, scored.detector.rival))
            panel.axhline(0.5, color=FAINT, linewidth=0.6)
            panel.set(title=TITLES[problem], xlabel="share of training seen", ylabel="balanced accuracy", ylim=(0.3, 1.02))
            _legend(panel)
        return figure


def save(figure: Figure, stem: Path) -> None:
    """Write a figure as PNG and SVG."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(stem.with_suffix(".png"), dpi=150)
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
