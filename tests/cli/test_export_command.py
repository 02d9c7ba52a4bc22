"""The command export: errors of destinations, options and folders are one line, and no tracker is imported for help."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import commands
from known_results import planted_folder
from monitored import history
from paths import ROOT

from relu_study.report.exports import tracker
from relu_study.report.report import report

ARTICLE, DRAWS = str(ROOT / "results" / "article"), str(ROOT / "results" / "born_dead")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([ARTICLE, "--to", "wandbb"], "unknown destination 'wandbb'. Did you mean wandb?"),
        ([ARTICLE, "--to", "hf", "--offline"], "--offline does not apply to hf: a dataset card is a local file. Leave it out."),
        ([ARTICLE, "--to", "hf", "--per-seed"], "--per-seed does not apply to hf: runs.csv has every seed. Leave it out."),
        (
            [ARTICLE, "--to", "hf", "--project", "p"],
            "--project does not apply to hf: the dataset gets its name from 'hf upload'.",
        ),
        ([ARTICLE, "--to", "mlflow", "--offline"], "--offline does not apply to mlflow: MLflow writes to MLFLOW_TRACKING_URI"),
        (
            [ARTICLE, "--to", "trackio", "--out", "x"],
            "--out does not apply to trackio: Trackio writes to TRACKIO_DIR. Leave it out.",
        ),
        (["nowhere", "--to", "hf"], "There is no folder nowhere."),
        ([str(ROOT / "tests"), "--to", "hf"], "is not a results folder: it has no manifest.json"),
    ],
)
def test_an_invalid_request_is_one_line(words: list[str], message: str, here: Any, tmp_path: Path) -> None:
    status, out, err = here("export", *words)
    assert status == 2 and not out and len(err.splitlines()) == 1 and message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", tracker.TRACKERS)
def test_a_missing_library_names_its_extra(name: str, here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *rest: None if n == name else found(n, *rest))
    status, out, err = here("export", ARTICLE, "--to", name)
    expected = f"relu-study: --to {name} needs the extra `{name}`. Install it with pip install 'relu_study[{name}]'.\n"
    assert (status, out, err) == (2, "", expected)


def test_a_local_folder_with_the_name_of_a_library_is_no_library(
    here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # W&B and others write such folders, and `python -m relu_study` looks for packages in the current one.
    library = "tracker_of_nobody"
    (tmp_path / library).mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(tracker.TRACKERS, "wandb", tracker.Destination("to_wandb", library, frozenset({"offline"})))
    status, _, err = here("export", ARTICLE, "--to", "wandb", "--offline")
    assert status == 2 and "--to wandb needs the extra `wandb`" in err


def test_a_destination_is_required(here: Any) -> None:
    status, _, err = here("export", ARTICLE)
    assert status == 2 and "--to" in err


def test_the_folder_of_a_monitor_is_refused(here: Any, tmp_path: Path) -> None:
    history(tmp_path / "watched")
    status, _, err = here("export", "watched", "--to", "hf")
    assert status == 2 and "watched is the folder of a monitor" in err and "watched/tensorboard" in err


def test_without_derived_files_the_error_names_the_report(here: Any, tmp_path: Path) -> None:
    planted_folder(tmp_path / "planted", 2, figures=False)
    status, _, err = here("export", "planted", "--to", "hf")
    assert status == 2 and "runs.csv is missing. Rebuild it with 'relu-study report planted'" in err
    report(tmp_path / "planted")
    assert here("export", "planted", "--to", "hf")[0] == 0


def test_help_and_errors_import_no_library(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom relu_study.cli.commands import main\ntry: main()\nexcept SystemExit: pass\n"
        "print('HEAVY', sorted({m.partition('.')[0] for m in sys.modules} & {'jax', 'wandb', 'mlflow', 'trackio', 'pandas'}))"
    )
    for words in (["--help"], ["export", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "HEAVY []", done.stdout + done.stderr
    (outcome,) = commands([["export", DRAWS, "--to", "hf", "--out", "card"]], tmp_path)
    assert outcome.status == 0 and not outcome.imported_jax
