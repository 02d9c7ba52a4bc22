"""Everything a results folder derives from raw/ and its manifest: CSVs, verdicts, TensorBoard, tables, figures and one page."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from relu_study.errors import UserError, nearest
from relu_study.report.cell_report import report_draws
from relu_study.report.figures import study_figures
from relu_study.report.figures.inputs import FigureData, missing_input
from relu_study.report.figures.study_figures import draw_from
from relu_study.report.html import html
from relu_study.report.page import page
from relu_study.report.tables import columns, study_tables
from relu_study.report.tensorboard.event_files import check_per_seed, write_events
from relu_study.report.verdicts import TEXTS, evaluate_claims
from relu_study.stats.numpy_defaults import numpy_defaults
from relu_study.storage import locks
from relu_study.storage.atomic_write import check_exists, wrap_os_errors, write_atomically
from relu_study.storage.checksums import SUMS, sums_of
from relu_study.storage.configurations import Configuration, collect
from relu_study.storage.csv_files import csv_text, read_csv, read_runs
from relu_study.storage.frames import (
    at_epochs,
    configurations_from_runs_csv,
    frames,
    report_epochs,
    summary_frame,
    survival_frame,
)
from relu_study.storage.manifest import read_manifest
from relu_study.storage.schema import COLUMNS, check_names, check_sections, is_of_draws, read_whole_manifest
from relu_study.storage.tile_files import OOM_HINT, tile_paths
from relu_study.storage.tile_identity import STORED

SUFFIXES = {"tables": (".csv", ".md", ".tex"), "figures": (".png", ".svg")}
NEEDED = ("runs", "summary", "units", "survival", "verdicts")  # the CSVs that tables, figures and the page are made of


def check(declaration: dict[str, Any]) -> None:
    """Refuse a table, figure or section that names what is not there. Nothing has to have run: this is for before it."""
    study_tables.check(declaration)
    study_figures.check(declaration)
    check_names(declaration)
    asked = [(c["metric"], site, f"claim {c['claim']}") for c in declaration["claims"] for site in (c["site"], c["over"]) if site]
    for metric, site, where in asked:
        if metric not in declaration["metrics"]:
            raise nearest(metric, declaration["metrics"], f"metric of {where}")
        if site != "last":
            columns.check_site(metric, site, declaration["columns"], f"in {where}")
    check_sections(declaration)


def report(folder: str | Path, all_epochs: bool = False, per_seed: bool = False) -> list[str]:
    """Derive every file of a results folder as `derive` does; one that another process is writing is refused (UserError)."""
    folder = Path(folder).expanduser()
    read_manifest(folder)  # what is no results folder is left alone
    with locks.writer_lock(folder, hint="wait for it"):
        locks.remove_stale_temporaries(folder, None)
        return derive(folder, all_epochs, per_seed)


@numpy_defaults()
def derive(folder: str | Path, all_epochs: bool = False, per_seed: bool = False, shown: Collection[str] = ()) -> list[str]:
    """Derive every file of a results folder from raw/ and manifest.json, the same bytes each time. For who holds its lock.

    Without raw/ (a clone) the tables, the page and the figures that the committed CSVs suffice for are made anew and the
    rest stays as it is. Files of tables and figures that are no longer made are removed. `all_epochs` puts
    every epoch into summary.csv, `per_seed` a run for each single seed into tensorboard/, which a report without it removes
    (more than 500 are refused, UserError). `shown`: the configurations whose TensorBoard files are up to date already.
    Returns what there is to say: lines on what was left, missing or removed.
    """
    folder = Path(folder).expanduser()
    if is_of_draws(read_manifest(folder)):
        said, of_draws = report_draws(folder)
        return said + _drop_stale(folder, of_draws)
    manifest = read_whole_manifest(folder)
    check(manifest["declaration"])
    if per_seed:
        check_per_seed(manifest["declaration"])
    raw, said = bool(tile_paths(folder) or manifest.get("oom")), []
    if raw:
        whole, configurations = _derive(folder, manifest, all_epochs, per_seed, shown, said)
    else:
        said.append(f"{folder / 'raw'} has no tile (a clone has none): the CSV files and tensorboard/ stay as they are")
    found = _read(folder, manifest, said)
    made = _write_tables(folder, manifest, found, said)
    if not raw:
        whole = found.get("summary", summary_frame({}, manifest))
        configurations = configurations_from_runs_csv(found["runs"]) if "runs" in found else {}
    wanted = manifest["declaration"]["figures"] if raw else _drawable(folder, manifest, found, said)
    some = {**manifest, "declaration": {**manifest["declaration"], "figures": wanted}}
    drawn = draw_from(some, FigureData(whole, found.get("survival", survival_frame({})), _rows(found), configurations), folder)
    declared = {kind: {item["name"] for item in manifest["declaration"][kind]} for kind in SUFFIXES}
    kept = {"tables": declared["tables"] if made is None else set(made)}
    kept["figures"] = {path.stem for path in drawn} if raw else declared["figures"]
    said += _drop_stale(folder, kept)
    if {"runs", "units", "verdicts"} <= set(found):
        check_exists(folder)
        text = page(folder, manifest, found["runs"], found["units"], _rows(found))
        write_atomically(folder / "report.md", text.encode())
        write_atomically(folder / "report.html", html(text, manifest["declaration"]["title"], folder).encode())
    else:
        said.append(f"{folder / 'report.md'} stays as it is: it needs runs.csv, units.csv and verdicts.csv; so does report.html")
    return said


def _derive(
    folder: Path, manifest: dict[str, Any], all_epochs: bool, per_seed: bool, shown: Collection[str], said: list[str]
) -> tuple[pd.DataFrame, dict[str, Configuration]]:
    """Write the CSVs, verdicts.csv and tensorboard/ from raw/; returns the summary at every epoch, and the runs."""
    declared = {entry["config_id"] for entry in manifest["declaration"]["configurations"]}
    drawn = any(figure["kind"] == "histograms" for figure in manifest["declaration"]["figures"])
    configurations = collect(folder, manifest, histograms=drawn or not declared <= set(shown))
    found = frames(configurations, manifest, all_epochs=True)
    said += _missing(folder, found["runs"])
    whole = found["summary"]
    if not all_epochs:
        found["summary"] = at_epochs(whole, report_epochs(manifest["declaration"]))
    arms, targets = _asked(manifest["declaration"], configurations)
    found["verdicts"] = pd.DataFrame(
        evaluate_claims(manifest["declaration"]["claims"], arms, targets), columns=list(COLUMNS["verdicts"])
    )
    check_exists(folder)
    for name, frame in found.items():
        write_atomically(folder / f"{name}.csv", csv_text(frame).encode())
    write_atomically(folder / SUMS, sums_of(folder).encode())  # last: until then what was changed is not believed
    write_events(manifest, {name: c for name, c in configurations.items() if name not in shown}, folder, per_seed)
    return whole, configurations


def _missing(folder: Path, runs: pd.DataFrame) -> list[str]:
    """What there is to say of runs that are not stored; that raw/ lost some which runs.csv holds finished is refused."""
    interrupted, unfit = (set(runs["run_id"][runs["status"] == status]) for status in ("interrupted", "oom"))
    missing = interrupted | unfit
    if missing and (folder / "runs.csv").is_file():
        before = set()
        with contextlib.suppress(UserError):  # garbled, it holds nothing to lose
            frame = read_csv(folder / "runs.csv", numbers=np.float64)  # whatever its precision is
            before = set(frame["run_id"][frame["status"].isin(STORED)])
        if lost := missing & before:
            raise UserError(
                f"{folder / 'raw'} lacks {len(lost):,} runs that runs.csv holds ({min(lost)} is one): a tile is gone; "
                "restore it, run the study again, or move runs.csv away to report what is left"
            )
    stored, said = f"{len(runs) - len(missing):,} of {len(runs):,} runs are stored", []
    if interrupted:
        said.append(f"{stored}; {'the others' if not unfit else f'{len(interrupted):,}'} are interrupted")
    if unfit:
        said.append(f"{stored}; {len(unfit):,} did not fit in memory (status oom): {OOM_HINT}")
    return said


def _asked(
    declaration: dict[str, Any], configurations: dict[str, Configuration]
) -> tuple[dict[tuple[str, str], Configuration], list[dict[str, Any]]]:
    """The stored runs by (arm, target), and the targets at this size.

    Without declared targets every arm keeps its own and there is one question for all: its target has the
    name that the arms share, or none.
    """
    present = dict.fromkeys(entry["spec"]["target"] for entry in declaration["configurations"])
    targets = [target for target in declaration["targets"] if target["name"] in present]
    shared = "" if len(present) > 1 else next(iter(present), "")
    arms = {
        (entry["arm"], entry["spec"]["target"] if targets else shared): configurations[entry["config_id"]]
        for entry in declaration["configurations"]
        if entry["config_id"] in configurations
    }
    return arms, targets or [{"name": shared, "variance": 1.0, "floor": 0.0}]


def _read(folder: Path, manifest: dict[str, Any], said: list[str]) -> dict[str, pd.DataFrame]:
    """The CSVs that are there, as they are on disk: what is made of them is then the same in a clone."""
    found, missing = {}, []
    for name in NEEDED:
        path = folder / f"{name}.csv"
        if path.is_file():
            found[name] = read_runs(folder, manifest) if name == "runs" else read_csv(path, TEXTS if name == "verdicts" else ())
        else:
            missing.append(f"{path} is missing; it is made from {folder / 'raw'}: run the study again, or restore the file")
    if not found:
        raise UserError(f"{folder} has neither raw/ nor any of its CSV files, so there is nothing to report; run the study again")
    said += missing
    return found


def _rows(found: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    rows = found["verdicts"].to_dict("records") if "verdicts" in found else []
    return [{str(name): value for name, value in row.items()} for row in rows]


def _write_tables(
    folder: Path, manifest: dict[str, Any], found: dict[str, pd.DataFrame], said: list[str]
) -> dict[str, dict[str, str]] | None:
    if "runs" not in found or "summary" not in found:
        said.append(f"{folder / 'tables'} stays as it is: it needs runs.csv and summary.csv")
        return None
    made = study_tables.tables(manifest, found["runs"], found["summary"])
    for name, texts in made.items():
        for suffix, text in texts.items():
            write_atomically(folder / "tables" / f"{name}.{suffix}", text.encode())
    return made


def _drawable(folder: Path, manifest: dict[str, Any], found: dict[str, pd.DataFrame], said: list[str]) -> list[dict[str, Any]]:
    """The figures that the committed CSVs suffice for; of the others it is said what they need."""
    needs = {figure["name"]: missing_input(figure, found, folder) for figure in manifest["declaration"]["figures"]}
    said += [f"{folder / 'figures' / name} stays as it is: it needs {need}" for name, need in needs.items() if need]
    return [figure for figure in manifest["declaration"]["figures"] if not needs[figure["name"]]]


def _drop_stale(folder: Path, kept: dict[str, set[str]]) -> list[str]:
    said = []
    for kind, suffixes in SUFFIXES.items():
        for path in sorted((folder / kind).glob("*")):
            if path.suffix in suffixes and path.stem not in kept[kind]:
                with wrap_os_errors(path):
                    path.unlink()
                said.append(f"removed {path}: the study at this size no longer makes it")
    return said
