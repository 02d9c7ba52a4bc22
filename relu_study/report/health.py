"""Findings of detectors by configuration, as the rows of health.csv and the Health section of the report page."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from relu_study.diagnosis.detector import Detector, detectors
from relu_study.diagnosis.diagnose import ADVICE, OURS, diagnose, summarise
from relu_study.diagnosis.finding import Finding
from relu_study.report.markup import counted, markdown_grid, markdown_text
from relu_study.stats import intervals
from relu_study.storage.checksums import CorruptFileError
from relu_study.storage.csv_files import read_csv
from relu_study.storage.declaration import Declaration, StudyManifest
from relu_study.storage.histories import StoredHistory, stored_histories
from relu_study.storage.schema import COLUMNS
from relu_study.storage.tile_files import tile_paths

TEXTS = ("problem", "detector")
LAST_ONLY = (
    "Each run is diagnosed at its last epoch, since raw/ is missing. The onset is known for nonfinite runs only, and rules that "
    "compare epochs abstain."
)


@dataclass(frozen=True)
class Health:
    """The diagnosis of configurations: one row per configuration and detector, as in health.csv.

    `last_only`: only the last epoch of each run was read. `metrics` are the recorded ones.
    """

    frame: pd.DataFrame
    last_only: bool
    metrics: Collection[str]

    @property
    def sick(self) -> pd.DataFrame:
        """The rows with a finding."""
        return self.frame[self.frame["n_sick"] > 0]

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows with a finding, by column."""
        return [{str(name): value for name, value in row.items()} for row in self.sick.to_dict("records")]

    @property
    def configurations(self) -> int:
        """The number of diagnosed configurations."""
        return self.frame["config_id"].nunique()

    @property
    def healthy(self) -> int:
        """The number of diagnosed configurations without a finding."""
        return self.configurations - self.sick["config_id"].nunique()


def read_health(
    folder: Path, manifest: StudyManifest, names: Sequence[str] = OURS, only: Collection[str] | None = None
) -> Health:
    """Diagnose the configurations of a results folder.

    Without raw/, health.csv has the findings if it has these detectors with their present thresholds. Otherwise the last epochs
    in runs.csv are diagnosed.

    Args:
        folder: The results folder of a training study.
        manifest: Its manifest.
        names: Names of detectors.
        only: config_ids (default: all).

    Raises:
        UserError: a detector is unknown, or there are neither raw/ nor the CSV files.
        CorruptFileError: a file is corrupt.
    """
    now = {name: detectors[name].threshold for name in names}
    if not tile_paths(folder) and (stored := stored_health(folder, manifest)) is not None:
        frame = stored.frame[stored.frame["detector"].isin(now)]
        current = np.isclose(frame["threshold"], [now[name] for name in frame["detector"]], rtol=1e-8, atol=0).all()
        if current and set(frame["detector"]) == set(now):
            kept = frame if only is None else frame[frame["config_id"].isin(only)]
            return replace(stored, frame=kept.reset_index(drop=True))
    histories, whole = stored_histories(folder, manifest, only)
    return health(histories, recorded(manifest.declaration), names, last_only=not whole)


def stored_health(folder: Path, manifest: StudyManifest) -> Health | None:
    """Read health.csv; None without it. Raises CorruptFileError, also for unknown configurations or detectors."""
    path = folder / "health.csv"
    if not path.is_file():
        return None
    frame = read_csv(path, TEXTS)
    unknown = [name for name in frame["config_id"] if name not in manifest.declaration.specs]
    rules = [name for name in frame["detector"] if name not in detectors]
    problems = zip(frame["detector"], frame["problem"], strict=True)
    counts = frame[["n", "n_scored", "n_sick"]]
    if unknown or rules:
        reason = f"it has the unknown {'configuration' if unknown else 'detector'} {[*unknown, *rules][0]!r}"
    elif any(detectors[name].problem != problem for name, problem in problems):
        reason = "a problem is not that of its detector"
    elif len(frame) and not all(pd.api.types.is_integer_dtype(dtype) for dtype in counts.dtypes):
        reason = "its numbers of runs are not whole"
    else:
        return Health(frame, False, recorded(manifest.declaration))
    raise CorruptFileError(path, "is corrupt", reason, f"restore it, or remove it and run 'relu-study report {folder}'")


def health(
    histories: Mapping[str, StoredHistory], metrics: Collection[str], names: Sequence[str] = OURS, last_only: bool = False
) -> Health:
    """Diagnose histories by config_id with the named detectors. `metrics` are the recorded ones.

    Raises UserError for an unknown detector.
    """
    found = [detectors[name] for name in names]
    rows = [_row(config_id, stored, detector) for config_id, stored in histories.items() for detector in found]
    return Health(pd.DataFrame(rows, columns=list(COLUMNS["health"])), last_only, metrics)


def recorded(declaration: Declaration) -> set[str]:
    """Return the names of the metrics that a study records."""
    return {column.partition("/")[0] for column in declaration.columns}


def _row(config_id: str, stored: StoredHistory, detector: Detector) -> dict[str, Any]:
    """Return the row of one configuration and detector. The share is of all runs, those without a score among them."""
    history = stored.history
    scores = detector.scores(history)
    fires = np.flatnonzero(scores >= detector.threshold)
    runs, scored, sick = len(scores), int((~np.isnan(scores)).sum()), len(fires)
    row: dict[str, Any] = {"config_id": config_id, "problem": detector.problem, "detector": detector.name}
    row |= {"n": runs, "n_scored": scored, "n_sick": sick, "site": "", "threshold": detector.threshold}
    row |= dict.fromkeys(("share", "ci_lo", "ci_hi", "onset", "units", "site_units", "score"), np.nan)
    if scored:
        low, high = intervals.wilson(sick, runs)
        row |= {"share": sick / runs, "ci_lo": float(low), "ci_hi": float(high)}
    if sick:
        found = [findings[0] for findings in diagnose(history.of_run(fires), (detector.name,))]
        row |= _summary(found, stored.timed[fires].tolist())
    return row


def _summary(found: Sequence[Finding], timed: Sequence[bool]) -> dict[str, Any]:
    """Return the most frequent site, the medians of onset and score, and the median units of that site."""
    site = summarise([[finding] for finding in found])[0].site
    onsets = [finding.onset for finding, known in zip(found, timed, strict=True) if known]
    units = [finding.units for finding in found if finding.site == site and finding.units is not None]
    summary: dict[str, Any] = {"site": site, "score": float(np.median([finding.score for finding in found]))}
    if onsets:
        summary["onset"] = float(np.median(onsets))
    if units:
        summary |= {"units": float(np.median([count for count, _ in units])), "site_units": float(units[0][1])}
    return summary


# ----------------------------------------------------------------------------------------- as text


def labels(declaration: Declaration) -> dict[str, tuple[str, str]]:
    """Return config_id -> its arms, joined by " / ", and its target."""
    arms: dict[str, dict[str, None]] = {}
    for entry in declaration.configurations:
        arms.setdefault(entry.config_id, {})[entry.arm] = None
    targets = {entry.config_id: entry.target for entry in declaration.configurations}
    return {config_id: (" / ".join(names), targets[config_id]) for config_id, names in arms.items()}


def seeds(row: Mapping[str, Any]) -> str:
    """Return the number of sick runs with Wilson's interval of their share: "3 of 8 [0.14, 0.69]"."""
    return f"{row['n_sick']:.0f} of {row['n']:.0f} [{row['ci_lo']:.2f}, {row['ci_hi']:.2f}]"


def onset(row: Mapping[str, Any]) -> str:
    """Return the median onset; "-": unknown."""
    return "-" if np.isnan(row["onset"]) else f"{row['onset']:g}"


def units(row: Mapping[str, Any]) -> str:
    """Return the median number of affected units of the site; "-": unknown, or the problem has none."""
    return "-" if np.isnan(row["units"]) else f"{row['units']:g} of {row['site_units']:g}"


def evidence(row: Mapping[str, Any]) -> str:
    """Return the score with its threshold in one line."""
    score = "infinite" if np.isinf(row["score"]) else f"{row['score']:.3g}"
    median = "median " if row["n_sick"] > 1 else ""
    return f"{detectors[row['detector']].quantity}: {median}{score}, threshold {row['threshold']:.3g}"


def closing_lines(health: Health, noun: str = "configuration") -> list[str]:
    """Return lines on the healthy configurations, the abstaining detectors, and what to look at next."""
    total = health.configurations
    lines = [f"{health.healthy:,} of {counted(total, noun)}: no finding."]
    if health.last_only:
        lines.append(LAST_ONLY)
    for name, group in health.frame.groupby("detector", sort=False):
        silent = int((group["n_scored"] == 0).sum())
        if not silent:
            continue
        needs = [metric for metric in detectors[str(name)].requires if metric not in health.metrics]
        why = f": {' and '.join(needs)} {'is' if len(needs) == 1 else 'are'} not recorded" if needs else ""
        lines.append(f"{name} abstains in {silent:,} of {counted(total, noun)}{why}.")
    lines += [f"{problem}: {ADVICE[problem]}" for problem in health.sick["problem"].unique()]
    return lines


def health_section(health: Health, declaration: Declaration) -> str:
    """Return the Health section of the page in Markdown: a table of findings, and lines below it."""
    if health.frame.empty:
        return "## Health\n\nNo run is stored, so there is nothing to diagnose."
    named, several = labels(declaration), len({entry.target for entry in declaration.configurations}) > 1
    rows = []
    for row in health.rows():
        arm, target = named[row["config_id"]]
        heads = [arm, *([target] if several else []), row["problem"], row["site"] or "-", evidence(row)]
        rows.append([markdown_text(text) for text in [*heads, seeds(row), units(row), onset(row)]])
    headers = ["arm", *(["target"] if several else []), "problem", "site", "evidence", "seeds", "units", "onset"]
    grid = markdown_grid(headers, rows, 5 if several else 4) if rows else ""
    note = "Seeds with the problem at the end [95 % interval of their share], median units and median epoch of the onset."
    lines = "\n".join(f"- {markdown_text(line)}" for line in closing_lines(health))
    return "\n\n".join(filter(None, ["## Health", grid, note if rows else "", lines]))
