"""TensorBoard event files: one run per configuration, each metric with its mean and 95 % interval over seeds.

A run's folder contains one event file. Its name and bytes depend only on the stored values (the wall time of an event is its
step, in seconds), so writing the same results twice gives the same files.
"""

from __future__ import annotations

import contextlib
import filecmp
import math
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from relu_study.errors import UserError
from relu_study.report.tensorboard import plugins
from relu_study.storage.atomic_write import temporary_file, wrap_os_errors
from relu_study.storage.configurations import Configuration
from relu_study.storage.declaration import StudyManifest
from relu_study.storage.frames import summary_frame
from relu_study.storage.tile_identity import LOSSES
from relu_study.study.measurement_times import tensorboard_scale

EVENT_FILE = "events.out.tfevents.0.relu_study"
LONGEST_NAME = 120  # bytes of a run's name: file systems allow 255, the list in TensorBoard shows far fewer
TAGS = {"mean": "mean", "lo": "ci_lo", "hi": "ci_hi"}  # tag -> its column in summary.csv
MOST_SINGLE_SEEDS = 500
_HALF_WRITTEN = "half-written"  # without "tfevents" in it TensorBoard does not open it
_SEED = re.compile(r"seed-\d+")


def write_events(manifest: StudyManifest, configurations: dict[str, Configuration], folder: Path, per_seed: bool = False) -> None:
    """Write `folder`/tensorboard: a run per configuration with tags `metric/site/mean`, `/lo` and `/hi`.

    The values are those in `summary.csv`, at every epoch. The step is the epoch, rounded up (a run of 12.5 epochs ends at step
    13). In a study that measures within epochs, an epoch is 1,000 steps or more (`tensorboard_scale`). A point of an undefined
    metric is left out of all three tags. A value that nonfinite runs make unknown is NaN. A tag without values is left out (a
    single seed has a mean, but no interval). Each run also has a layout of Custom Scalars, a row of HParams and, for
    configurations with histograms, histograms (`plugins`).

    `per_seed` adds the run NAME/seed-003 for seed 3 of a configuration, with tags `metric/site/run`, for at most 500 runs.
    Without it, earlier single-seed runs are removed, since they may be out of date.

    Each file is replaced by one rename. A run that the manifest no longer declares is removed if it contains only files of this
    writer. A declared run outside `configurations` stays unchanged.

    Raises:
        UserError: `per_seed` and more than 500 runs.
    """
    declaration = manifest.declaration
    if per_seed:
        check_per_seed(sum(declaration.seeds_of.values()))
    root = folder / "tensorboard"
    names = run_names(manifest)
    scale = tensorboard_scale(declaration.every)
    points = _points(summary_frame(configurations, manifest, epochs=None), scale)
    shown = {str(config_id): rows for config_id, rows in points.groupby("config_id", sort=False)}
    with wrap_os_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        _drop_undeclared(root, set(names.values()))
        for config_id, configuration in configurations.items():
            name, rows = names[config_id], shown.get(config_id, points[:0])
            session = list(plugins.session(configuration, declaration.factors, name))
            first = [plugins.layout(_banded(rows), declaration.metrics), *session]
            _write_run(root / name, _events(first, _aggregated(rows), plugins.histograms(configuration, scale)))
            _write_seeds(root / name, configuration if per_seed else None, session, scale)


def check_per_seed(runs: int) -> None:
    """Raise UserError for a study with more single-seed runs than TensorBoard shows well."""
    if runs > MOST_SINGLE_SEEDS:
        raise UserError(
            f"--per-seed would add {runs:,} single-seed runs, and the limit is {MOST_SINGLE_SEEDS}: above it TensorBoard selects "
            "no run by itself, and it takes most of a minute to load a thousand. Leave --per-seed out (the configurations' runs "
            "have the mean and the interval over the seeds), or use fewer seeds or configurations."
        )


# ----------------------------------------------------------------------------------------- names


def run_names(manifest: StudyManifest) -> dict[str, str]:
    """Return config_id -> the name of its TensorBoard run: `arm@target`, unique and valid as a folder name.

    Arms with the same configuration share a run, joined by `~`. Without declared targets the name is the arm. Names that would
    coincide (also on a file system that ignores case), or are too long, end in their config_id.
    """
    arms: dict[str, dict[str, None]] = {}
    targets: dict[str, str] = {}
    for entry in manifest.declaration.configurations:
        arms.setdefault(entry.config_id, {})[entry.arm] = None
        targets[entry.config_id] = f"@{entry.target}" if manifest.declaration.targets else ""
    plain = {config_id: _safe("~".join(labels) + targets[config_id]) for config_id, labels in arms.items()}
    short = {config_id: name.encode()[:LONGEST_NAME].decode(errors="ignore") for config_id, name in plain.items()}
    uses = Counter(name.casefold() for name in short.values())
    return {
        config_id: name if name == plain[config_id] and uses[name.casefold()] == 1 else f"{name}@{config_id}"
        for config_id, name in short.items()
    }


def _safe(name: str) -> str:
    name = re.sub(r"\s*,\s*", ",", unicodedata.normalize("NFC", name))
    # A leading dot would hide the folder, and some systems drop a trailing one.
    return re.sub(r"[^\w.+=,@~()-]+", "_", name).strip("._") or "run"


# ----------------------------------------------------------------------------------------- files


def _drop_undeclared(root: Path, names: set[str]) -> None:
    # Otherwise a configuration whose arm has a new label would appear twice.
    for old in root.iterdir():
        if old.name not in names and _is_ours(old):
            shutil.rmtree(old)


def _is_ours(run: Path) -> bool:
    """Whether a folder is a run of this writer with no other files."""
    if run.is_symlink() or not run.is_dir():
        return False
    left = [path for path in run.iterdir() if not path.name.startswith(f".{_HALF_WRITTEN}")]
    seeds = [path for path in left if _SEED.fullmatch(path.name) and _is_ours(path)]
    return {path.name for path in left if path not in seeds} == {EVENT_FILE}


def _write_seeds(run: Path, configuration: Configuration | None, session: list[Summary.Value], scale: int) -> None:
    """Write the single-seed runs of a configuration and remove other ones. None removes all."""
    wanted: dict[str, Iterable[bytes]] = {}
    if configuration is not None:
        digits = max(3, len(str(configuration.num_requested - 1)))
        for row, seed in enumerate(configuration.seeds):
            # In its configuration's group a single seed adds no row to the HParams tab.
            wanted[f"seed-{seed:0{digits}}"] = _events(session, _of_one_seed(configuration, row, scale), {})
    for old in run.iterdir():
        if _SEED.fullmatch(old.name) and old.name not in wanted and (old / EVENT_FILE).is_file():
            (old / EVENT_FILE).unlink()
            with contextlib.suppress(OSError):  # it contains other files
                old.rmdir()
    for name, events in wanted.items():
        _write_run(run / name, events)


def _write_run(run: Path, events: Iterable[bytes]) -> None:
    path = run / EVENT_FILE
    with temporary_file(run / _HALF_WRITTEN) as unfinished:
        with contextlib.closing(RecordWriter(str(unfinished))) as writer:
            for event in events:
                writer.write(event)
        if not path.is_file() or not filecmp.cmp(unfinished, path, shallow=False):
            os.replace(unfinished, path)  # unchanged files stay, since TensorBoard has read them


# ---------------------------------------------------------------------------------------- events

Scalars = dict[int, dict[str, float]]  # step -> tag -> value


def _events(first: list[Summary.Value], scalars: Scalars, histograms: Mapping[int, list[Summary.Value]]) -> Iterator[bytes]:
    """Return the events of one run: the format's version, the constant summaries, then one event per step."""
    yield Event(file_version="brain.Event:2").SerializeToString()
    yield Event(summary=Summary(value=first)).SerializeToString()
    for step in sorted(scalars.keys() | histograms.keys()):
        event = Event(wall_time=step, step=step)
        for tag, value in scalars.get(step, {}).items():
            event.summary.value.add(tag=tag, simple_value=value)
        event.summary.value.extend(histograms.get(step, ()))
        yield event.SerializeToString()


def _of_one_seed(configuration: Configuration, row: int, scale: int) -> Scalars:
    """Return the measurements of one run. Of points on one step the last with a value counts."""
    scalars: Scalars = {}
    steps = plugins.axis_steps(configuration.epochs, scale).tolist()
    for name, values in configuration.values.items():
        for step, value in zip(steps, values[row].tolist(), strict=True):
            if math.isfinite(value):
                scalars.setdefault(step, {})[f"{name}/run"] = value
    return scalars


def _aggregated(points: pd.DataFrame) -> Scalars:
    """Return the points of one configuration, without tags that have no value."""
    scalars: Scalars = {step: {} for step in dict.fromkeys(points["step"].tolist())}
    for tag, column in TAGS.items():
        shown = points[points[column].notna().groupby(points["name"]).transform("any")]
        for name, step, value in zip(shown["name"].tolist(), shown["step"].tolist(), shown[column].tolist(), strict=True):
            scalars[step][f"{name}/{tag}"] = value
    return scalars


def _banded(points: pd.DataFrame) -> list[str]:
    """Return the metric/site names with all three tags, in the order of the metrics."""
    return points["name"][points[list(TAGS.values())].notna().all(axis=1)].unique().tolist()


def _points(summary: pd.DataFrame, scale: int = 1) -> pd.DataFrame:
    """Return config_id, name (metric/site), step and the value of each tag. Of points on one step the last counts."""
    names = [f"{metric}/{site}" for metric, site in zip(summary["metric"].tolist(), summary["site"].tolist(), strict=True)]
    points = pd.DataFrame({"config_id": summary["config_id"], "name": np.array(names, dtype=object)})
    points["step"] = plugins.axis_steps(summary["epoch"].to_numpy(float), scale)
    with np.errstate(over="ignore"):  # the files have single precision; larger values overflow to infinity
        values = summary[list(TAGS.values())].astype(np.float32).replace([np.inf, -np.inf], np.nan)
    alive = summary.groupby(["config_id", "epoch"], sort=False)["n_finite"].transform("max")
    defined = (
        (summary["n_finite"] > 0) | (alive == 0) | summary["metric"].isin(LOSSES)
    )  # no finite run has a value: the metric is undefined here
    shown = defined & values["mean"].notna().groupby([points["config_id"], points["name"]]).transform("any")
    return pd.concat([points, values], axis=1)[shown].drop_duplicates(["config_id", "step", "name"], keep="last")
