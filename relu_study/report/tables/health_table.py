"""The table of `relu-study diagnose`: findings of a study, of a monitored training, or of runs of another tool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from relu_study.diagnosis.diagnose import ADVICE
from relu_study.diagnosis.error_rates import UNMEASURED, as_text, error_rates
from relu_study.errors import UserError
from relu_study.report import conditions as selection
from relu_study.report.health import Health, closing_lines, evidence, health, labels, onset, read_health, seeds, units
from relu_study.report.markup import counted
from relu_study.storage.declaration import read_declared
from relu_study.storage.foreign_runs import ForeignRuns
from relu_study.storage.histories import monitor_history

RIGHT = ("seeds", "units", "onset")  # right-aligned columns
FOLDED = ("configuration", "run", "evidence")  # columns that may take several lines in a narrow terminal


@dataclass(frozen=True)
class Diagnosis:
    """The diagnosis of a source, with config_id -> its name and target.

    `noun` is "configuration" or "run", `heads` the headers of name and target; targets are shown only if they have a header.
    """

    health: Health
    names: Mapping[str, tuple[str, str]]
    noun: str
    heads: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """The lines below the table: counts, abstentions, advice, notes, and the error rates of each rule."""
        return [*closing_lines(self.health, self.noun), *self.notes, *_rates(list(self.health.frame["detector"].unique()))]

    def with_notes(self, notes: Sequence[str]) -> Diagnosis:
        """Return the same diagnosis with more lines."""
        return replace(self, notes=(*self.notes, *notes))

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the headers and the rows of findings. The site of the whole network is "-".

        The columns of detectors, seeds and error rates are there if they say more than the others and the lines below.
        """
        found, rows = self.health.rows(), []
        rivals = any(row["detector"] != row["problem"] for row in found)
        measured = any(error_rates(row["detector"]) for row in found)
        several = self.noun == "configuration"
        headers = [*self.heads, "problem", *["detector"] * rivals, *["seeds"] * several, "onset", "site", "units", "evidence"]
        for row in found:
            cells = [*self.names[row["config_id"]][: len(self.heads)], row["problem"], *[row["detector"]] * rivals]
            cells += [*[seeds(row)] * several, onset(row), row["site"] or "-", units(row), evidence(row)]
            rates = error_rates(row["detector"])
            short = f"{rates.recall[0]:.2f}, {rates.false_alarms[0]:.2f}" if rates else UNMEASURED
            rows.append([*cells, *[short] * measured])
        return [*headers, *["recall, false alarms"] * measured], rows

    def frame(self) -> pd.DataFrame:
        """Return one row per configuration and detector: names, numbers, evidence, error rates, and what to look at next."""
        rows = []
        for row in self.health.frame.to_dict("records"):
            entry: dict[str, Any] = {str(name): value for name, value in row.items()}
            name, target = self.names[entry["config_id"]]
            sick, rates = entry["n_sick"] > 0, error_rates(entry["detector"])
            texts = {"evidence": evidence(entry), "advice": ADVICE[entry["problem"]]} if sick else {"evidence": "", "advice": ""}
            numbers = {
                f"{rate}{end}": getattr(rates, rate)[i] if rates else float("nan")
                for rate in ("recall", "false_alarms")
                for i, end in enumerate(("", "_lo", "_hi"))
            }
            rows.append({"name": name, "target": target, **entry, **texts, **numbers})
        return pd.DataFrame(rows)


def _rates(names: Sequence[str]) -> list[str]:
    """Return lines with the error rates of detectors."""
    measured = {name: rates for name in names if (rates := error_rates(name)) is not None}
    lines = [
        f"Error rates of {name} on {rates.configurations:,} labelled configurations: recall {as_text(rates.recall)}, "
        f"false alarms {as_text(rates.false_alarms)}."
        for name, rates in measured.items()
    ]
    rest = [name for name in names if name not in measured]
    return [*lines, *([f"Error rates of {', '.join(rest)}: {UNMEASURED}."] if rest else [])]


def diagnose_study(folder: Path, detectors: Sequence[str], where: Sequence[str] = ()) -> Diagnosis:
    """Diagnose the configurations of a training study that meet the conditions.

    Raises:
        UserError: a detector or condition is unknown, no configuration meets the conditions, or none has a stored run.
        CorruptFileError: a file is corrupt.
    """
    manifest = read_declared(folder)
    declaration = manifest.declaration
    parsed = selection.parse(where, declaration)
    if of_runs := [condition.name for condition in parsed if not condition.of_configurations]:
        raise UserError(f"a diagnosis is of whole configurations, and {of_runs[0]} is of single runs. Leave it out of --where.")
    selected = list(dict.fromkeys(entry.config_id for entry in selection.configurations(parsed, declaration)))
    if not selected:
        raise UserError(f"no configuration of {folder} meets {' and '.join(where)}. Leave a condition out.")
    found = read_health(folder, manifest, detectors, selected)
    if found.frame.empty:
        raise UserError(f"{folder} has no stored run of these configurations. Run the study, then diagnose it.")
    declared = sum(declaration.seeds_of[config_id] for config_id in selected)
    stored = int(found.frame.drop_duplicates("config_id")["n"].sum())
    ids = {run_id for config_id in selected for run_id in declaration.run_ids(config_id)} if manifest.crashed else set()
    crashed = f" ({len(ids & set(manifest.crashed)):,} crashed)" if ids & set(manifest.crashed) else ""
    notes = (f"Not stored, and not diagnosed: {declared - stored:,} of {counted(declared, 'run')}{crashed}.",)
    several = len({entry.target for entry in declaration.configurations}) > 1
    heads = ("configuration", "target") if several else ("configuration",)
    return Diagnosis(found, labels(declaration), "configuration", heads, notes if stored < declared else ())


def diagnose_monitor(folder: Path, detectors: Sequence[str]) -> Diagnosis:
    """Diagnose a monitored training: one configuration, whose members are its runs. Epochs are steps.

    Raises:
        UserError: a detector is unknown, or nothing is measured yet.
        CorruptFileError: a file is corrupt.
    """
    name, stored = folder.resolve().name, monitor_history(folder)
    metrics = {key.partition("/")[0] for key in stored.history.metrics}
    notes = ("Onsets are steps. The last measured step counts as the end of training.",)
    return Diagnosis(health({name: stored}, metrics, detectors), {name: (name, "")}, "configuration", ("configuration",), notes)


def diagnose_foreign(runs: ForeignRuns, detectors: Sequence[str]) -> Diagnosis:
    """Diagnose runs of another tool, each on its own. Raises UserError for an unknown detector."""
    found = health(runs.histories, runs.metrics, detectors)
    return Diagnosis(found, {name: (name, "") for name in runs.histories}, "run", ("run",))
