"""MLflow: one run per exported run, with metrics, parameters, tags, and artifacts of tables and figures."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from relu_study.errors import UserError
from relu_study.report.exports.tracker import ExportedRun, Scalar
from relu_study.storage.checksums import one_line

ID = "export_id"  # the tag that identifies a run: MLflow chooses its own ids
PAGE = 1000  # runs of one search
MOST_METRICS, MOST_PARAMS, MOST_TAGS = 1000, 100, 100  # of one request
LONGEST_VALUE = 500  # characters of a parameter, the limit of older servers


class MlflowExperiment:
    """An experiment of MLflow. A run with a known run_id is replaced: the earlier one moves to MLflow's trash.

    Final numbers are metrics under `final/`, since MLflow shows the last value of a curve, which can be an earlier epoch's.
    """

    def __init__(self, name: str):
        import mlflow
        from mlflow.entities import Metric, Param, RunTag

        self.errors = (mlflow.exceptions.MlflowException,)
        self._metric, self._param, self._tag = Metric, Param, RunTag
        self._name, self._uri = name, mlflow.get_tracking_uri()
        self._client = mlflow.MlflowClient()
        found = self._client.get_experiment_by_name(name)
        self._experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        self._earlier = self._earlier_runs()
        self._run, self._metrics = "", list[Any]()

    def start(self, run: ExportedRun) -> None:
        """Begin a run."""
        for earlier in self._earlier.pop(run.run_id, ()):
            self._client.delete_run(earlier)
        tags = {ID: run.run_id, "group": run.group, "job_type": run.kind, **{f"tag.{tag}": "" for tag in map(_key, run.tags)}}
        self._run = self._client.create_run(self._experiment, run_name=run.name, tags=tags).info.run_id
        params = [self._param(_key(name), str(value)[:LONGEST_VALUE]) for name, value in run.config.items()]
        for first in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self._run, params=params[first : first + MOST_PARAMS])
        self._metrics = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of metrics at a step. They are sent in `finish`, many at once."""
        self._metrics += [self._metric(_key(name), float(value), step, step) for name, value in values.items()]

    def summary(self, values: Mapping[str, Scalar]) -> None:
        """Add numbers as metrics and texts as tags."""
        numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
        last = max((metric.step for metric in self._metrics), default=0)
        self.log(last, numbers)
        texts = [self._tag(_key(name), value) for name, value in values.items() if isinstance(value, str)]
        for first in range(0, len(texts), MOST_TAGS):
            self._client.log_batch(self._run, tags=texts[first : first + MOST_TAGS])

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Add a table."""
        cells = {str(column): [_cell(value) for value in frame[column]] for column in frame.columns}
        self._client.log_table(self._run, cells, f"tables/{name}.json")

    def figure(self, name: str, path: Path) -> None:
        """Add an image."""
        self._client.log_artifact(self._run, str(path), "figures")

    def finish(self, complete: bool) -> None:
        """End the run."""
        for first in range(0, len(self._metrics), MOST_METRICS):
            self._client.log_batch(self._run, metrics=self._metrics[first : first + MOST_METRICS])
        self._client.set_terminated(self._run, "FINISHED" if complete else "FAILED")

    def close(self) -> list[str]:
        """Return where the runs are."""
        return [f"MLflow experiment {self._name} in {self._uri}. See it with: mlflow ui --backend-store-uri {self._uri}"]

    def _earlier_runs(self) -> dict[str, list[str]]:
        """Return run_id -> the runs in this experiment with this tag."""
        found: dict[str, list[str]] = {}
        token = None
        while token != "":
            runs = self._client.search_runs([self._experiment], max_results=PAGE, page_token=token)
            for run in runs:
                found.setdefault(run.data.tags.get(ID, ""), []).append(run.info.run_id)
            token = runs.token or ""
        return found


def open_project(project: str, offline: bool, out: Path | None) -> MlflowExperiment:
    """Return an experiment at MLFLOW_TRACKING_URI, or in MLflow's local store.

    Raises:
        UserError: the store cannot be opened. mlflow-skinny has none.
    """
    from mlflow.exceptions import MlflowException

    try:
        return MlflowExperiment(project)
    except MlflowException as error:
        raise UserError(f"mlflow cannot open its store: {one_line(error)}") from error


def _key(name: str) -> str:
    """Return a name with the characters that MLflow takes in keys."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _cell(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
