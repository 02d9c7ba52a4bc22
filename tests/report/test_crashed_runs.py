"""Runs that the manifest lists as crashed: named with their reason everywhere, and counted nowhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import minimal_folders
import pandas as pd
import pytest
from known_results import planted_arms, planted_folder, planted_study

from relu_study.errors import UserError
from relu_study.report.conditions import parse
from relu_study.report.report import report
from relu_study.report.tables.health_table import diagnose_study
from relu_study.runner.kinds import DRAWING, TRAINING
from relu_study.storage.block_files import block_paths
from relu_study.storage.checksums import SUMS
from relu_study.storage.declaration import read_declared
from relu_study.storage.frames import configurations_from_runs_csv, load
from relu_study.storage.manifest import read_manifest, write_manifest
from relu_study.storage.tile_files import tile_paths
from relu_study.study.outputs import Figure

WHY, OTHER = "3 workers died: signal 9 | killed", "3 workers died: signal 11"
LOST = [planted_arms(planted_study())["tanh", "wave"].replace(seed=seed).run_id for seed in (0, 1, 2)]
CURVES = Figure("activations", "", "curves", ("activations",), metrics=("val_loss",))  # of the arm with lost runs, too
DERIVED = ("runs", "experiments", "summary", "units", "survival", "verdicts", "health")


def listing(folder: Path, **entries: object) -> Path:
    """Add entries to the manifest of a folder, as the runner does."""
    write_manifest(folder, {**read_manifest(folder), **entries})
    return folder


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A reported folder in which two runs crashed, one did not fit in memory, and no other is missing; and the messages."""
    folder = planted_folder(tmp_path_factory.mktemp("crashed"), left_out=tuple(LOST), figures=(CURVES,))
    listing(folder, crashed={LOST[0]: WHY, LOST[1]: f"{OTHER}\n"}, oom=[LOST[2]])
    return folder, report(folder)


def test_runs_csv_has_status_and_reason(crashed: tuple[Path, list[str]]) -> None:
    runs = load(crashed[0]).runs.set_index("run_id")
    assert list(runs.loc[LOST, "status"]) == ["crashed", "crashed", "oom"] and list(runs.loc[LOST, "reason"]) == [WHY, OTHER, ""]
    assert (runs.drop(LOST)["reason"] == "").all() and set(runs.drop(LOST)["status"]) == {"ok", "nonfinite"}
    metrics = [name for name in runs if "/" in name]
    assert runs.loc[LOST, [*metrics, "first_bad_epoch", "probe_examples"]].isna().all(axis=None)
    columns = (crashed[0] / "runs.csv").read_text().partition("\n")[0].split(",")
    assert columns[columns.index("status") + 1] == "reason"


def test_no_number_counts_a_crashed_run(crashed: tuple[Path, list[str]], tmp_path: Path) -> None:
    """The same folder without the entry differs only in the names of the statuses."""
    folder, _ = crashed
    interrupted = planted_folder(tmp_path / "interrupted", left_out=tuple(LOST), figures=False)
    report(interrupted)
    for name in DERIVED[1:]:
        assert (folder / f"{name}.csv").read_bytes() == (interrupted / f"{name}.csv").read_bytes(), name
    tables = sorted(path.name for path in (folder / "tables").iterdir())
    assert tables and all((folder / "tables" / n).read_bytes() == (interrupted / "tables" / n).read_bytes() for n in tables)
    here, there = load(folder).runs, load(interrupted).runs
    pd.testing.assert_frame_equal(here.drop(columns=["status", "reason"]), there.drop(columns="status"))
    config_id = here.set_index("run_id").loc[LOST[0], "config_id"]
    rows = load(folder).summary.query("config_id == @config_id and metric == 'val_loss'")
    assert (rows["n"] == 8).all() and (rows["n_finite"] == 5).all()
    units = pd.read_csv(folder / "units.csv").query("config_id == @config_id")
    assert (units["runs"] == 5).all(), "survival and unit histories have the stored runs only"
    assert not set(LOST) & set(load(folder).curves["run_id"])
    assert len(configurations_from_runs_csv(here)[config_id].run_ids) == 5
    spec = configurations_from_runs_csv(here)[config_id].spec
    assert "reason" not in spec


def test_table_names_the_missing_runs(tmp_path: Path) -> None:
    lost = tuple(planted_arms(planted_study())["he_normal", "wave"].replace(seed=seed).run_id for seed in (0, 1, 2))
    folder = planted_folder(tmp_path, left_out=lost, figures=False)
    report(listing(folder, crashed=dict.fromkeys(lost, WHY)))
    rows = [line for line in (folder / "tables" / "initialisers.md").read_text().splitlines() if "he_normal" in line]
    assert rows and "n=5/8 (3 not run)" in rows[0], rows


def test_messages_and_page_name_number_and_reason(crashed: tuple[Path, list[str]]) -> None:
    folder, messages = crashed
    total = len(planted_study().runs())
    (line,) = [line for line in messages if "crashed" in line]
    assert line == (
        f"{total - 3} of {total} runs are stored; 2 crashed (status crashed; 1: {WHY}; 1: {OTHER}). "
        "Run the same command to try them again."
    )
    assert any("1 did not fit in memory (status oom)" in line for line in messages)
    assert not any("interrupted" in line for line in messages)
    page = (folder / "report.md").read_text()
    assert f"{total - 4} ok, 1 nonfinite, 1 oom, 2 crashed. " in page
    section = page.partition("## Crashed runs\n")[2].partition("\n## ")[0]
    assert "2 runs crashed. No number of this page counts them. Run the same command to try them again." in section
    assert "| tanh | wave | 1 | 3 workers died: signal 9 \\| killed |" in section and f"| 1 | {OTHER} |" in section
    assert "Crashed runs" in (folder / "report.html").read_text()


def test_reports_repeat_byte_for_byte_and_in_a_clone(crashed: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, _ = crashed
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts}
    report(folder)
    assert {path: path.read_bytes() for path in before} == before
    clone = shutil.copytree(folder, tmp_path / "clone", ignore=shutil.ignore_patterns("raw", "tensorboard"))
    assert any("as in a clone" in line for line in report(clone))
    for path in [folder / "report.md", folder / SUMS, *(folder / f"{name}.csv" for name in DERIVED)]:
        assert (clone / path.name).read_bytes() == path.read_bytes(), path.name
    assert list(load(clone).runs.set_index("run_id").loc[LOST, "reason"]) == [WHY, OTHER, ""]


def test_stored_run_is_not_crashed(tmp_path: Path) -> None:
    """An entry of a run that is stored, or that the study does not declare, changes no file."""
    stored = planted_folder(tmp_path / "stored", seeds=2, figures=False)
    listed = Path(shutil.copytree(stored, tmp_path / "listed"))
    report(stored)
    report(listing(listed, crashed={LOST[0]: WHY, "0" * 12: WHY}))
    for path in (path for path in stored.rglob("*") if path.is_file() and path.suffix in (".csv", ".md", ".tex", ".html")):
        assert path.read_bytes() == (listed / path.relative_to(stored)).read_bytes(), path
    assert "reason" not in load(listed).runs


def test_folder_without_any_stored_run(tmp_path: Path) -> None:
    every = tuple(spec.replace(seed=seed).run_id for spec in set(planted_arms(planted_study()).values()) for seed in range(2))
    folder = planted_folder(tmp_path, seeds=2, left_out=every)
    report(listing(folder, crashed=dict.fromkeys(every, WHY)))
    assert set(pd.read_csv(folder / "runs.csv")["status"]) == {"crashed"} and not tile_paths(folder)
    assert f"{len(every)} crashed" in (folder / "report.md").read_text()
    report(folder)


def test_conditions_and_diagnosis_know_the_status(crashed: tuple[Path, list[str]]) -> None:
    folder, _ = crashed
    (condition,) = parse(["status=crashed"], read_declared(folder).declaration)
    assert condition.values == ("crashed",)
    total = len(planted_study().runs())
    assert any(f"Not stored, and not diagnosed: 3 of {total} runs (2 crashed)." in line for line in notes(folder))


def notes(folder: Path) -> list[str]:
    return diagnose_study(folder, ("dying",)).lines


def test_manifest_counts_every_status(crashed: tuple[Path, list[str]]) -> None:
    folder, _ = crashed
    ids = [run.run_id for run in planted_study().runs()]
    counts = TRAINING.counts(folder, ids)["counts"]
    assert counts == {"ok": len(ids) - 4, "nonfinite": 1, "oom": 1, "crashed": 2, "interrupted": 0}
    assert list(counts) == ["ok", "nonfinite", "oom", "crashed", "interrupted"]
    assert DRAWING.counts(folder, ids) == {}


@pytest.mark.parametrize("entry", [{LOST[0]: 3}, [LOST[0]], "everything"])
def test_invalid_entry_is_refused(entry: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest.json has an invalid declaration .*`\$.crashed"):
        report(listing(planted_folder(tmp_path, seeds=1), crashed=entry))


def test_crashed_cells_of_a_draw_study(tmp_path: Path) -> None:
    folder = minimal_folders.drawn(tmp_path / "drawn")
    whole = pd.read_csv(folder / "cells.csv")
    lost = str(whole["cell_id"].iloc[0])
    for path in block_paths(folder):
        if lost in path.name:
            path.unlink()
    messages = report(listing(folder, crashed={lost: WHY}))
    assert f"1 of these cells crashed ({WHY}). Run the same command to try them again." in messages
    cells = pd.read_csv(folder / "cells.csv")
    assert (cells.loc[cells["cell_id"] == lost, "draws"] == 0).all() and cells.loc[
        cells["cell_id"] == lost, "estimate"
    ].isna().all()
    kept = cells["cell_id"] != lost
    pd.testing.assert_series_equal(cells.loc[kept, "estimate"], whole.loc[kept, "estimate"])
    page = (folder / "report.md").read_text()
    assert "## Crashed cells\n\n1 cell crashed, and their stored draws" in page and "signal 9 \\| killed |" in page


def test_draw_study_without_any_block(tmp_path: Path) -> None:
    folder = minimal_folders.drawn(tmp_path / "drawn")
    ids = dict.fromkeys(pd.read_csv(folder / "cells.csv")["cell_id"], WHY)
    shutil.rmtree(folder / "raw")
    (folder / "cells.csv").unlink()
    report(listing(folder, crashed=ids))
    assert (pd.read_csv(folder / "cells.csv")["draws"] == 0).all()
    clone_of = (folder / "cells.csv").read_bytes()
    assert any("as in a clone" in line for line in report(folder)) and (folder / "cells.csv").read_bytes() == clone_of
