"""TensorBoard: one run per configuration, each metric with its mean and its 95 % interval over the seeds.

A run's folder holds one event file. Its name and its bytes depend on the stored values alone (the wall
time of an event is its step, in seconds), so writing the same results twice gives the same files.
"""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from relu_study.frames import summary_frame
from relu_study.store import Configuration

EVENT_FILE = "events.out.tfevents.0.relu_study"
LONGEST_NAME = 120  # bytes of a run's name: file systems allow 255, the list in TensorBoard shows far fewer
TAGS = {"mean": "mean", "lo": "ci_lo", "hi": "ci_hi"}  # tag -> its column in summary.csv
_HALF_WRITTEN = ".half-written"  # without "tfevents" in it TensorBoard does not open it


def write_events(manifest: dict[str, Any], configurations: dict[str, Configuration], folder: Path) -> None:
    """Write `folder`/tensorboard: a run per configuration with tags `metric/site/mean`, `/lo` and `/hi`.

    The values are those of `summary.csv`, at every epoch; the step is the epoch, rounded up where it is
    a fraction (a run of 12.5 epochs ends at step 13). A point without a value is left out of all three tags;
    a tag without any value is left out (with a single seed there is a mean, but no interval).

    Each file replaces its predecessor in one rename. A run that the manifest no longer declares is
    removed if all it holds is our event file; one that is declared but has no stored runs stays as it is.
    """
    root = folder / "tensorboard"
    names = run_names(manifest)
    root.mkdir(parents=True, exist_ok=True)
    _drop_undeclared(root, set(names.values()))
    points = _points(summary_frame(configurations, manifest, epochs=None))
    for config_id, rows in points.groupby("config_id", sort=False):
        _write_run(root / names[str(config_id)], _events(rows.drop(columns="config_id")))


def run_names(manifest: dict[str, Any]) -> dict[str, str]:
    """config_id -> the name of its TensorBoard run: `arm@target`, unique and safe as a folder's name.

    Arms that are one configuration share its run and are joined by `~`. Without declared targets the arm stands alone.
    Names that would coincide (also on a file system that ignores case), or are too long, end in their config_id.
    """
    arms: dict[str, dict[str, None]] = {}
    targets: dict[str, str] = {}
    for entry in manifest["declaration"]["configurations"]:
        arms.setdefault(entry["config_id"], {})[entry["arm"]] = None
        targets[entry["config_id"]] = f"@{entry['spec']['target']}" if manifest["declaration"]["targets"] else ""
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


def _drop_undeclared(root: Path, names: set[str]) -> None:
    # Left in place, a configuration whose arm has a new label would be shown twice.
    for old in root.iterdir():
        if old.is_dir() and old.name not in names:
            files = {file.name for file in old.iterdir() if not file.name.startswith(_HALF_WRITTEN)}
            if files == {EVENT_FILE}:
                shutil.rmtree(old)


def _write_run(run: Path, events: Iterable[Event]) -> None:
    run.mkdir(exist_ok=True)
    unfinished = run / f"{_HALF_WRITTEN}-{os.getpid()}"
    writer = RecordWriter(str(unfinished))
    try:
        try:
            for event in events:
                writer.write(event.SerializeToString())
        finally:
            writer.close()
        os.replace(unfinished, run / EVENT_FILE)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _events(points: pd.DataFrame) -> Iterator[Event]:
    """The events of one run: the format's version, then one per step, holding every tag that has a value there."""
    yield Event(file_version="brain.Event:2")
    held: dict[int, list[Summary.Value]] = {}
    for step, metric, site, *values in points.itertuples(index=False, name=None):
        for tag, value in zip(TAGS, values, strict=True):
            if value == value:  # NaN: the series has no such tag
                held.setdefault(step, []).append(Summary.Value(tag=f"{metric}/{site}/{tag}", simple_value=value))
    for step in sorted(held):
        yield Event(wall_time=step, step=step, summary=Summary(value=held[step]))


def _points(summary: pd.DataFrame) -> pd.DataFrame:
    """config_id, step, metric, site and the value of each tag, for every point that is shown; of points on one step the last."""
    series = [summary[name] for name in ("config_id", "metric", "site")]
    with np.errstate(over="ignore"):  # the files hold single precision; what does not fit is no value
        values = summary[list(TAGS.values())].astype(np.float32).replace([np.inf, -np.inf], np.nan)
    known = values.notna()
    shown = (known | ~known.groupby(series).transform("any")).all(axis=1)
    points = pd.concat([summary[["config_id", "metric", "site"]], values], axis=1)
    points.insert(1, "step", np.ceil(summary["epoch"]).astype(int))
    return points[shown].drop_duplicates(["config_id", "step", "metric", "site"], keep="last")
