"""Derived files of a results folder: CSVs, verdicts, TensorBoard, tables, figures and the report page."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from relu_study.errors import UserError, nearest
from relu_study.report.cell_report import report_draws
from relu_study.report.claim_rows import arms_and_targets
from relu_study.report.figures.inputs import FigureData, missing_input
from relu_study.report.health import health, read_health, recorded, stored_health
from relu_study.report.html import html
from relu_study.report.page import page
from relu_study.report.tables import columns, study_tables
from relu_study.report.tensorboard.event_files import check_per_seed, write_events
from relu_study.report.verdicts import TEXTS, evaluate_claims
from relu_study.stats.numpy_defaults import numpy_defaults
from relu_study.storage import locks
from relu_study.storage.atomic_write import check_exists, wrap_os_errors, write_atomically
from relu_study.storage.checksums import SUMS, sentence, sums_of
from relu_study.storage.configurations import Configuration, collect
from relu_study.storage.csv_files import csv_text, read_csv, read_runs, read_summary
from relu_study.storage.declaration import Declaration, StudyManifest, check_sections, is_of_draws, output_names, read_declared
from relu_study.storage.frames import (
    at_epochs,
    configurations_from_runs_csv,
    frames,
    report_epochs,
    summary_frame,
    survival_frame,
)
from relu_study.storage.histories import tile_histories
from relu_study.storage.manifest import read_manifest
from relu_study.storage.schema import COLUMNS
from relu_study.storage.statuses import AGAIN, OOM_HINT, STORED, listed, reasons_text
from relu_study.storage.tile_files import tile_paths
from relu_study.study.claims import Target
from relu_study.study.outputs import Figure

SUFFIXES = {"tables": (".csv", ".md", ".tex"), "figures": (".png", ".svg")}
NEEDED = ("runs", "summary", "units", "survival", "verdicts")  # CSVs behind the tables, figures and page


def check(declaration: Declaration) -> None:
    """Raise UserError for a table, figure, claim or section with an unknown name. Needs no results."""
    study_tables.check(declaration)
    if declaration.figures:
        from relu_study.report.figures import study_figures  # at first use: importing Matplotlib takes half a second

        study_figures.check(declaration)
    series = [
        (c.metric, site, f"claim {c.claim}") for c in declaration.claims for site in (c.site, c.over, c.against_site) if site
    ]
    for metric, site, where in series:
        if metric not in declaration.metrics:
            raise nearest(metric, declaration.metrics, f"metric of {where}")
        if site != "last":
            columns.check_site(metric, site, declaration.columns, f" of {where}")
    check_sections(declaration)


def report(folder: str | Path, all_epochs: bool = False, per_seed: bool = False) -> list[str]:
    """Derive every file of a results folder under its writer lock, as `derive` does.

    Raises:
        UserError: it is not a results folder, or another process is writing it.
    """
    folder = Path(folder).expanduser()
    read_manifest(folder)  # before the lock, which would create files in any folder
    with locks.writer_lock(folder, hint="wait for it"):
        locks.remove_stale_temporaries(folder, None)
        return derive(folder, all_epochs, per_seed)


@numpy_defaults()
def derive(folder: str | Path, all_epochs: bool = False, per_seed: bool = False, shown: Collection[str] = ()) -> list[str]:
    """Derive every file of a results folder from raw/ and manifest.json, with the same bytes each time.

    The caller must have the writer lock. Without raw/ (a clone), the tables, the page and the figures of committed CSVs are
    rebuilt and other files stay. Files of tables and figures that are no longer declared are removed.

    Args:
        folder: The results folder.
        all_epochs: Whether summary.csv contains every epoch.
        per_seed: Whether tensorboard/ contains a run per seed (at most 500). A report without it removes these runs.
        shown: config_ids whose TensorBoard files are already up to date.

    Returns:
        Lines about skipped, missing or removed files.

    Raises:
        UserError: the folder cannot be reported, or has more than 500 seeds with `per_seed`.
    """
    folder = Path(folder).expanduser()
    if is_of_draws(read_manifest(folder)):
        messages, of_draws = report_draws(folder)
        return messages + _drop_stale(folder, of_draws)
    manifest = read_declared(folder)
    check(manifest.declaration)
    if per_seed:
        check_per_seed(sum(manifest.declaration.seeds_of.values()))
    raw, messages = _has_raw(folder, manifest), []
    if raw:
        whole, configurations = _derive(folder, manifest, all_epochs, per_seed, shown, messages)
    else:
        messages.append(f"{folder / 'raw'} has no tiles, as in a clone. The CSV files and tensorboard/ stay unchanged.")
    csvs = _read(folder, manifest, messages)
    paged = {"runs", "units", "verdicts"} <= set(csvs)
    found = (stored_health(folder, manifest) or read_health(folder, manifest)) if paged else None  # before files are written
    tables = _write_tables(folder, manifest, csvs, messages)
    if not raw:
        whole = csvs.get("summary", summary_frame({}, manifest))
        configurations = configurations_from_runs_csv(csvs["runs"]) if "runs" in csvs else {}
    figures = manifest.declaration.figures if raw else _drawable(folder, manifest, csvs, messages)
    drawable = replace(manifest, declaration=replace(manifest.declaration, figures=tuple(figures)))
    inputs = FigureData(whole, csvs.get("survival", survival_frame({})), _rows(csvs), configurations)
    drawn = _draw(drawable, inputs, folder)
    declared = {kind: set(names) for kind, names in output_names(manifest.declaration).items()}
    kept = {"tables": declared["tables"] if tables is None else set(tables)}
    kept["figures"] = {path.stem for path in drawn} if raw else declared["figures"]
    messages += _drop_stale(folder, kept)
    if found is not None:
        check_exists(folder)
        text = page(folder, manifest, csvs["runs"], csvs["units"], _rows(csvs), found)
        write_atomically(folder / "report.md", text.encode())
        write_atomically(folder / "report.html", html(text, manifest.declaration.title, folder).encode())
    else:
        messages.append(
            f"{folder / 'report.md'} stays unchanged: it needs runs.csv, units.csv and verdicts.csv. So does report.html."
        )
    return messages


def _derive(
    folder: Path, manifest: StudyManifest, all_epochs: bool, per_seed: bool, shown: Collection[str], messages: list[str]
) -> tuple[pd.DataFrame, dict[str, Configuration]]:
    """Write the CSVs, verdicts.csv and tensorboard/ from raw/. Returns the summary at every epoch, and the configurations."""
    declared = manifest.declaration.specs.keys()
    drawn = any(figure.kind == "histograms" for figure in manifest.declaration.figures)
    configurations = collect(folder, manifest, histograms=drawn or not declared <= set(shown))
    csvs = frames(configurations, manifest, all_epochs=True)
    messages += _missing(folder, csvs["runs"])
    whole = csvs["summary"]
    if not all_epochs:
        csvs["summary"] = at_epochs(whole, report_epochs(manifest.declaration))
    arms, targets = _arms_and_targets(manifest.declaration, configurations)
    csvs["verdicts"] = pd.DataFrame(
        evaluate_claims(manifest.declaration.claims, arms, targets), columns=list(COLUMNS["verdicts"])
    )
    histories = tile_histories(configurations, manifest.declaration)
    csvs["health"] = health(histories, recorded(manifest.declaration)).frame
    check_exists(folder)
    for name, frame in csvs.items():
        write_atomically(folder / f"{name}.csv", csv_text(frame, manifest.declaration.options).encode())
    write_atomically(folder / SUMS, sums_of(folder).encode())  # last: until then the changed CSVs fail their checksum
    write_events(manifest, {name: c for name, c in configurations.items() if name not in shown}, folder, per_seed)
    return whole, configurations


def _has_raw(folder: Path, manifest: StudyManifest) -> bool:
    """Whether the CSV files follow from raw/. A folder without tiles is a clone, unless the manifest lists why none is stored."""
    if tile_paths(folder) or not listed(vars(manifest)):
        return bool(tile_paths(folder))
    if not (folder / "runs.csv").is_file():
        return not (folder / "summary.csv").is_file()
    return not read_csv(folder / "runs.csv", numbers=np.float64)["status"].isin(STORED).any()


def _missing(folder: Path, runs: pd.DataFrame) -> list[str]:
    """Return lines about missing runs. Raises UserError if raw/ lost runs that are finished in runs.csv."""
    ids = {status: set(rows) for status, rows in runs["run_id"].groupby(runs["status"]) if status not in STORED}
    missing = set().union(*ids.values())
    if missing and (folder / "runs.csv").is_file():
        before = set()
        with contextlib.suppress(UserError):  # a corrupt file has no runs to lose
            frame = read_csv(folder / "runs.csv", numbers=np.float64)  # fits both precisions
            before = set(frame["run_id"][frame["status"].isin(STORED)])
        if lost := missing & before:
            raise UserError(
                f"{folder / 'raw'} lacks {len(lost):,} runs of runs.csv (for example {min(lost)}): a tile is missing. "
                "Restore it, run the study again, or move runs.csv away to report the remaining runs."
            )
    stored, messages = f"{len(runs) - len(missing):,} of {len(runs):,} runs are stored", []
    if interrupted := ids.get("interrupted"):
        messages.append(f"{stored}; {'the others' if missing == interrupted else f'{len(interrupted):,}'} are interrupted")
    if oom := ids.get("oom"):
        messages.append(f"{stored}; {len(oom):,} did not fit in memory (status oom). {sentence(OOM_HINT)}")
    if crashed := ids.get("crashed"):
        why = reasons_text(runs["reason"][runs["status"] == "crashed"])
        messages.append(f"{stored}; {len(crashed):,} crashed (status crashed; {why}). {sentence(AGAIN)}")
    return messages


def _arms_and_targets(
    declaration: Declaration, configurations: dict[str, Configuration]
) -> tuple[dict[tuple[str, str], Configuration], list[Target]]:
    """Return the stored runs by (arm, target), and the targets of this preset."""
    arms, targets = arms_and_targets(declaration)
    return {key: configurations[e.config_id] for key, e in arms.items() if e.config_id in configurations}, targets


def _read(folder: Path, manifest: StudyManifest, messages: list[str]) -> dict[str, pd.DataFrame]:
    """Read the existing CSVs from disk, so that files derived from them are the same in a clone."""
    csvs, missing = {}, []
    for name in NEEDED:
        path = folder / f"{name}.csv"
        if path.is_file():
            if name in ("runs", "summary"):
                csvs[name] = (read_runs if name == "runs" else read_summary)(folder, manifest)
            else:
                csvs[name] = read_csv(path, TEXTS if name == "verdicts" else ())
        else:
            missing.append(f"{path} is missing and needs {folder / 'raw'}. Run the study again, or restore the file.")
    if not csvs:
        raise UserError(f"{folder} has neither raw/ nor CSV files, so there is nothing to report. Run the study again.")
    messages += missing
    return csvs


def _rows(csvs: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    rows = csvs["verdicts"].to_dict("records") if "verdicts" in csvs else []
    return [{str(name): value for name, value in row.items()} for row in rows]


def _write_tables(
    folder: Path, manifest: StudyManifest, csvs: dict[str, pd.DataFrame], messages: list[str]
) -> dict[str, dict[str, str]] | None:
    if "runs" not in csvs or "summary" not in csvs:
        messages.append(f"{folder / 'tables'} stays unchanged: it needs runs.csv and summary.csv.")
        return None
    tables = study_tables.tables(manifest, csvs["runs"], csvs["summary"])
    for name, texts in tables.items():
        for suffix, text in texts.items():
            write_atomically(folder / "tables" / f"{name}.{suffix}", text.encode())
    return tables


def _draw(manifest: StudyManifest, inputs: FigureData, folder: Path) -> list[Path]:
    """Draw the declared figures and return the written paths."""
    if not manifest.declaration.figures:
        return []
    from relu_study.report.figures.study_figures import draw_from

    return draw_from(manifest, inputs, folder)


def _drawable(folder: Path, manifest: StudyManifest, csvs: dict[str, pd.DataFrame], messages: list[str]) -> list[Figure]:
    """Return the figures that the committed CSVs suffice for. Add a line on the missing input of each other one."""
    needs = {figure.name: missing_input(figure, csvs, folder) for figure in manifest.declaration.figures}
    messages += [f"{folder / 'figures' / name} stays unchanged: it needs {need}." for name, need in needs.items() if need]
    return [figure for figure in manifest.declaration.figures if not needs[figure.name]]


def _drop_stale(folder: Path, kept: dict[str, set[str]]) -> list[str]:
    messages = []
    for kind, suffixes in SUFFIXES.items():
        for path in sorted((folder / kind).glob("*")):
            if path.suffix in suffixes and path.stem not in kept[kind]:
                with wrap_os_errors(path):
                    path.unlink()
                messages.append(f"removed {path}: the study no longer declares it at this preset")
    return messages
