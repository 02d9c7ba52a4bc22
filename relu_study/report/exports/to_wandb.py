"""Weights & Biases: one run per exported run, with curves, summary, tables and images."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from relu_study.errors import UserError
from relu_study.report.exports.tracker import ExportedRun, Scalar

LONGEST_TAG = 64  # of W&B
OWNER = "relu_study_export.txt"  # in an offline folder: its project and run_id, which its name does not tell exactly
SETTINGS = {  # an export has no process, code or console of the training to record
    "console": "off",
    "silent": True,
    "disable_git": True,
    "disable_code": True,
    "disable_job_creation": True,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "x_log_level": logging.ERROR,  # of a file in each run's folder
    "symlink": False,
}


class WandbProject:
    """A project of W&B.

    A run with a known run_id is replaced: online by W&B itself, offline by removing this project's earlier folder that is not
    uploaded yet.
    The summary has final values under `final/`. W&B's own summary of the curves is off, since it shows the last finite value.
    """

    def __init__(self, project: str, offline: bool, out: Path | None):
        import wandb

        self.errors = (wandb.Error, ValueError)
        self._wandb, self._project, self._mode = wandb, project, "offline" if offline else None
        self._folder = Path(out or os.environ.get("WANDB_DIR") or ".").expanduser()
        self._offline = offline or os.environ.get("WANDB_MODE") == "offline"
        self._earlier = self._earlier_folders()
        self._run: Any = None
        self._url = ""

    def start(self, run: ExportedRun) -> None:
        """Begin a run."""
        for folder in self._earlier.pop(run.run_id, ()):
            shutil.rmtree(folder)
        self._run = self._wandb.init(
            project=self._project,
            id=run.run_id,
            name=run.name,
            group=run.group,
            job_type=run.kind,
            tags=[tag[:LONGEST_TAG] for tag in run.tags],
            config=dict(run.config),
            dir=str(self._folder),
            mode=self._mode,
            settings=dict(SETTINGS),
            reinit="create_new",
        )
        if self._offline:
            (Path(self._run.dir).parent / OWNER).write_text(self._owner() + run.run_id, encoding="utf-8")
        if run.points:  # W&B shows tables and images by their summary
            self._run.define_metric("*", step_metric="epoch", summary="none")
        if not self._offline:
            self._url = self._run.project_url or ""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of metrics at a step."""
        self._current.log(dict(values), step=step)

    def summary(self, values: Mapping[str, Scalar]) -> None:
        """Set final values."""
        self._current.summary.update(dict(values))

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Add a table."""
        rows = frame.astype(object).where(frame.notna(), None).to_numpy().tolist()
        table = self._wandb.Table(columns=list(map(str, frame.columns)), data=rows, allow_mixed_types=True)
        self._current.log({f"tables/{name}": table}, step=0)

    def figure(self, name: str, path: Path) -> None:
        """Add an image."""
        self._current.log({f"figures/{name}": self._wandb.Image(str(path))}, step=0)

    def finish(self, complete: bool) -> None:
        """End the run."""
        self._current.finish(exit_code=0 if complete else 1)
        self._run = None

    def close(self) -> list[str]:
        """Return where the runs are."""
        folder = self._folder / "wandb"
        if self._offline:
            return [
                f"W&B project {self._project}: offline in {folder}. Run 'wandb sync' in {self._folder.resolve()} to upload it."
            ]
        return [f"W&B project {self._project}: {self._url or 'uploaded'}"]

    @property
    def _current(self) -> Any:
        assert self._run is not None, "no run is started"
        return self._run

    def _earlier_folders(self) -> dict[str, list[Path]]:
        """Return run_id -> the folders of this project's offline runs that are not uploaded."""
        found: dict[str, list[Path]] = {}
        for path in self._folder.glob("wandb/offline-run-*"):
            if path.is_symlink() or list(path.glob("*.synced")) or not (path / OWNER).is_file():
                continue
            text = (path / OWNER).read_text(encoding="utf-8")
            if text.startswith(self._owner()):
                found.setdefault(text.removeprefix(self._owner()), []).append(path)
        return found

    def _owner(self) -> str:
        """The project with its entity. Two projects can have the same run_id."""
        return f"{os.environ.get('WANDB_ENTITY', '')}/{self._project}\n"


def open_project(project: str, offline: bool, out: Path | None) -> WandbProject:
    """Return a project of W&B. Offline runs are below `out`, WANDB_DIR or the current folder.

    Raises:
        UserError: W&B is switched off by WANDB_MODE.
    """
    if os.environ.get("WANDB_MODE") == "disabled" and not offline:
        raise UserError("WANDB_MODE=disabled writes no runs. Unset it, or use --offline.")
    return WandbProject(project, offline, out)
