"""Trackio: one run per exported run in its local store, with curves, config, tables and images."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from relu_study.errors import UserError
from relu_study.report.exports.tracker import ExportedRun, Scalar

ID = "export_id"  # the entry of a run's config that identifies it: Trackio chooses its own ids
REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class TrackioProject:
    """A project of Trackio's local store. A run with a known run_id is replaced.

    Trackio has neither summary nor state of a run: final values are logged at the last step, texts are in the config, and
    `complete` is 1 for a run with all its numbers.
    """

    def __init__(self, project: str):
        import trackio

        self.errors = (ValueError, RuntimeError)
        self._trackio, self._project = trackio, project
        self._earlier: dict[str, list[Any]] = {}
        with contextlib.suppress(ValueError):  # a new project
            for run in trackio.Api().runs(project):
                self._earlier.setdefault((run.config or {}).get(ID, ""), []).append(run)
        self._started: set[str] = set()
        self._run: Any = None
        self._step = 0

    def start(self, run: ExportedRun) -> None:
        """Begin a run."""
        for earlier in self._earlier.pop(run.run_id, ()):
            earlier.delete()
        texts = {name: value for name, value in run.summary.items() if isinstance(value, str)}
        labels = {ID: run.run_id, "job_type": run.kind, "tags": ", ".join(run.tags)}
        with _quiet():
            self._run = self._trackio.init(
                project=self._project,
                name=run.name,
                group=run.group,
                config={**run.config, **texts, **labels},
                resume="never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self._step = 0
        self._started.add(run.run_id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of metrics at a step."""
        self._step = step
        self._send(dict(values), step)

    def summary(self, values: Mapping[str, Scalar]) -> None:
        """Add final numbers at the last step."""
        self._send({name: value for name, value in values.items() if not isinstance(value, str)}, self._step)

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Add a table."""
        cells = frame.astype(object).where(frame.notna(), None)
        self._send({f"tables/{name}": self._trackio.Table(dataframe=cells)}, 0)

    def figure(self, name: str, path: Path) -> None:
        """Add an image."""
        self._send({f"figures/{name}": self._trackio.Image(str(path))}, 0)

    def finish(self, complete: bool) -> None:
        """End the run."""
        self._send({"complete": int(complete)}, self._step)
        with _quiet():
            self._trackio.finish()

    def _send(self, values: Mapping[str, Any], step: int) -> None:
        """Log values. Trackio skips what it cannot log with a warning, which is an error here.

        A filter that raises would not do: Trackio catches what its warnings raise.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            self._run.log(dict(values), step=step)
        if skipped := [str(one.message) for one in caught if str(one.message).startswith("trackio.log()")]:
            raise RuntimeError(skipped[0])

    def close(self) -> list[str]:
        """Return where the runs are.

        Raises:
            RuntimeError: a run is not in the store. Trackio reports such errors as warnings.
        """
        stored = {(run.config or {}).get(ID, "") for run in self._trackio.Api().runs(self._project)}
        if missing := self._started - stored:
            raise RuntimeError(f"its store lacks {len(missing):,} of {len(self._started):,} runs, such as {min(missing)}")
        return [f"Trackio project {self._project}. See it with: trackio show --project {self._project}"]


def open_project(project: str, offline: bool, out: Path | None) -> TrackioProject:
    """Return a project of Trackio's local store, which is below TRACKIO_DIR.

    Raises:
        UserError: the environment names a remote store, in which an export cannot replace runs.
    """
    if named := [name for name in REMOTE if os.environ.get(name)]:
        raise UserError(
            f"{named[0]} names a remote store. Unset it to export to the local one, then upload it with trackio sync."
        )
    return TrackioProject(project)


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """Discard the lines that Trackio prints for each run."""
    return contextlib.redirect_stdout(io.StringIO())
