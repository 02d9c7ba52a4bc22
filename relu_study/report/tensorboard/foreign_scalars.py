"""Scalars of TensorBoard folders written by other tools, as histories for detectors."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from pathlib import Path

from relu_study.errors import UserError, nearest
from relu_study.storage.foreign_runs import ForeignRuns, foreign_runs, metric_key

KEEP_ALL = 0  # TensorBoard's size of a tag without a limit


def read_tensorboard(folder: Path, tags: Mapping[str, str], constant_loss: float = math.nan) -> ForeignRuns:
    """Read the scalars of each run: each folder with event files is one. The epochs are the steps of the events.

    Of several events at one step, the last counts. A run without a matching tag lacks that metric.

    Args:
        folder: A folder with event files, or with folders of runs.
        tags: The tag of each metric, or a pattern of it with * ? and [...].
        constant_loss: The loss of the best constant prediction; NaN: unknown.

    Raises:
        UserError: there are no event files, a metric is unknown, or a pattern matches no tag or several tags of one run.
    """
    keys = {metric_key(name): pattern for name, pattern in tags.items()}
    if not keys:
        raise UserError("no metric is named. Add for example train_loss=PATTERN.")
    runs = {path.parent for path in folder.rglob("*tfevents*") if path.is_file()} if folder.is_dir() else set()
    if not runs:
        raise UserError(f"{folder} has no TensorBoard event files. Give the folder of a run, or of several runs.")
    names = {run: run.relative_to(folder).as_posix() if run != folder else folder.resolve().name for run in sorted(runs)}
    found = {names[run]: _scalars(run) for run in names}
    every = dict.fromkeys(tag for scalars in found.values() for tag in scalars)
    for pattern in keys.values():
        if not any(fnmatch.fnmatchcase(tag, pattern) for tag in every):
            raise nearest(pattern, every, f"scalar of {folder}")
    return foreign_runs({name: _chosen(name, scalars, keys) for name, scalars in found.items()}, constant_loss)


def _chosen(run: str, scalars: Mapping[str, dict[float, float]], keys: Mapping[str, str]) -> dict[str, dict[float, float]]:
    """Return the points of each metric of a run."""
    series = {}
    for key, pattern in keys.items():
        tags = [tag for tag in scalars if fnmatch.fnmatchcase(tag, pattern)]
        if len(tags) > 1:
            raise UserError(f"{pattern!r} matches {len(tags)} tags of run {run!r}: {', '.join(tags[:4])}. Narrow the pattern.")
        if tags:
            series[key] = scalars[tags[0]]
    return series


def _scalars(run: Path) -> dict[str, dict[float, float]]:
    """Return the scalars of one run: tag -> step -> value. TensorFlow 2 writes them as tensors."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(run), size_guidance={"scalars": KEEP_ALL, "tensors": KEEP_ALL})
    events.Reload()
    tags = events.Tags()
    found = {tag: {float(event.step): float(event.value) for event in events.Scalars(tag)} for tag in tags["scalars"]}
    for tag in tags["tensors"]:
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            found[tag] = {float(e.step): float(make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)}
    return found
