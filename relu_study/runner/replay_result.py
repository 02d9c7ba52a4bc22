"""The result of a replay: its events and steps as DataFrames, its arrays, and its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from relu_study.engine.replay_window import Event, StepRecord, is_finite
from relu_study.errors import UserError
from relu_study.report.figures import canvas
from relu_study.report.figures.step_traces import step_traces
from relu_study.runner.replay_request import ReplayRequest
from relu_study.stats.numpy_defaults import numpy_defaults
from relu_study.storage.atomic_write import make_dirs, write_atomically
from relu_study.storage.tile_files import write_arrays

SETS = ("probe_before", "probe_after", "probe_own", "batch_before", "batch_after")  # pre-activations of an event
OWN = ("weights", "gradient", "step")  # the arrays of a unit's incoming weights
STATS = {"low": "pre_min", "mean": "pre_mean", "high": "pre_max", "active": "active", "dead": "dead"}
FILES = ("events.csv", "steps.csv", "arrays.npz", "replay.json", "replay.png", "replay.svg")


def check_replay_folder(folder: Path, run_id: str) -> None:
    """Raise UserError if a folder has files with the names of a replay that are not of this run."""
    taken = [name for name in ("manifest.json", *FILES) if (folder / name).exists()]
    if not taken:
        return
    try:
        ours = taken[0] != "manifest.json" and json.loads((folder / "replay.json").read_text())["run_id"] == run_id
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise UserError(f"{folder} has {taken[0]}, which is not of a replay of run {run_id}. Name another folder with --out.")


@dataclass(repr=False)
class Replay:
    """A run trained again, with every step of a window measured. Its numbers equal the stored ones bit for bit.

    Args:
      about: run_id, spec, moment, window and equality with the stored run, as plain data.
      events: one row for each unit that died or revived at a step, and for the step at which the run went nonfinite.
      steps: one row for each step and site. The first step is the start of the window.
      arrays: of T steps: `total_step`, `rows` (T x B, padded with -1), and by site `dead:site_1`, `pre_min:site_1`,
        `pre_mean:site_1`, `pre_max:site_1` and `active:site_1`, T x U. Of event i: `event_i:probe_before`, `probe_after`,
        `probe_own`, `batch_before` and `batch_after` (pre-activations), `weights`, `gradient` and `step` (K incoming weights, a
        bias last).
    """

    about: dict[str, Any]
    events: pd.DataFrame
    steps: pd.DataFrame
    arrays: dict[str, np.ndarray]

    def __repr__(self) -> str:
        about = self.about
        counts = self.events["event"].value_counts().to_dict()
        named = ", ".join(f"{count} {event}" for event, count in counts.items()) or "no event"
        window = f"steps {about['first_step']} to {about['last_step']}"
        return f"Replay of run {about['run_id']} of {about['study']}: {window}, {named}"

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return str(self.about["run_id"])

    def figure(self, *formats: str) -> dict[str, bytes]:
        """Return the figure in some formats ("png", "svg", "pdf"; default: png)."""
        return canvas.render(lambda: step_traces(self.about, self.steps, self.events, self.arrays), formats or ("png",))

    @numpy_defaults()
    def write(self, folder: str | Path) -> list[Path]:
        """Write events.csv, steps.csv, arrays.npz, replay.json, replay.png and replay.svg. Returns their paths.

        Raises:
          WriteError: the folder cannot be written.
          UserError: it has files of something else.
        """
        folder = Path(folder).expanduser()
        check_replay_folder(folder, self.run_id)
        make_dirs(folder)
        digits = "%.17g" if self.arrays[next(n for n in self.arrays if n.startswith("pre_max:"))].dtype == np.float64 else "%.9g"
        texts = {
            f"{name}.csv": frame.to_csv(index=False, float_format=digits, lineterminator="\n")
            for name, frame in self._frames().items()
        }
        texts["replay.json"] = json.dumps(self.about, indent=1) + "\n"
        write_arrays(folder / "arrays.npz", self.arrays)
        for name, text in texts.items():
            write_atomically(folder / name, text.encode())
        for suffix, picture in self.figure("png", "svg").items():
            write_atomically(folder / f"replay.{suffix}", picture)
        return [folder / name for name in FILES]

    def _frames(self) -> dict[str, pd.DataFrame]:
        events = self.events.assign(
            **{name: [" ".join(map(str, cell)) for cell in self.events[name]] for name in ("batch_rows", "table_rows")}
        )
        return {"events": events, "steps": self.steps}


def replay_result(
    request: ReplayRequest, records: Sequence[StepRecord], events: Sequence[Event], about: dict[str, Any]
) -> Replay:
    """Return the result of a replay from its records and events."""
    counts = {
        "died": sum(event.kind == "died" for event in events),
        "revived": sum(event.kind == "revived" for event in events),
        "events_without_arrays": sum(
            event.kind != "nonfinite" and event.by == "step" and event.unit_step is None for event in events
        ),
    }
    run = request.run
    about = {
        **{"run_id": run.run_id, "config_id": run.config_id, "spec": run.spec.as_dict(), "study": run.manifest.study},
        **{"around": request.around, "window": request.window},
        **about,
        **counts,
    }
    return Replay(about, _events_frame(events), _steps_frame(records), _arrays(records, events))


def _events_frame(events: Sequence[Event]) -> pd.DataFrame:
    return pd.DataFrame([_event_row(event) for event in events], columns=list(EVENT_COLUMNS)).astype({"unit": "Int64"})


EVENT_COLUMNS = (
    *("event", "by", "total_step", "epoch", "step", "site", "unit"),
    *(f"{name}_{stat}" for name in SETS for stat in ("min", "mean", "max")),
    *("active_before", "active_after", "weight_norm", "grad_norm", "step_norm"),
    *("batch_loss", "batch_size", "batch_rows", "table_rows", "parameters", "gradients"),
)


def _event_row(event: Event) -> dict[str, Any]:
    after, unit = event.after, event.unit
    table = () if after.table_rows is None else after.table_rows.tolist()
    row = {"event": event.kind, "by": event.by, "total_step": after.number, "epoch": after.epoch, "step": after.step}
    row |= {"site": event.site, "unit": unit, "batch_loss": float(after.seen.loss), "batch_size": len(after.rows)}
    row |= {"batch_rows": after.rows.tolist(), "table_rows": list(table)}
    row |= {"parameters": " ".join(event.parameters), "gradients": " ".join(event.gradients)}
    for when, record in (("before", event.before), ("after", after)) if unit is not None else ():
        stats = record.seen.sites[event.site]
        values = {"min": stats.low, "mean": stats.mean, "max": stats.high}
        row |= {f"probe_{when}_{name}": float(value[unit]) for name, value in values.items()}
        row[f"active_{when}"] = float(stats.active[unit])
    if event.unit_step is not None:
        for name in ("probe_own", "batch_before", "batch_after"):
            pre = getattr(event.unit_step, name)
            row |= {f"{name}_min": float(pre.min()), f"{name}_mean": float(pre.mean()), f"{name}_max": float(pre.max())}
        for name, column in zip(OWN, ("weight_norm", "grad_norm", "step_norm"), strict=True):
            if (values := getattr(event.unit_step, name)) is not None:
                row[column] = float(np.linalg.norm(values.astype(float)))
    return row


def _steps_frame(records: Sequence[StepRecord]) -> pd.DataFrame:
    rows = []
    for record in records:
        seen = record.seen
        shared = {"total_step": record.number, "epoch": record.epoch, "step": record.step, "train_loss": float(seen.train_loss)}
        shared |= {"batch_loss": float(seen.loss), "grad_norm": float(seen.grad_norm), "step_norm": float(seen.step_norm)}
        for site, stats in seen.sites.items():
            row = {**shared, "site": site, "units": len(stats.dead), "dead": int(stats.dead.sum()) if is_finite(record) else None}
            row |= {"pre_min": float(stats.low.min()), "pre_max": float(stats.high.max())}
            row["active"] = float(stats.active.mean()) if is_finite(record) else np.nan
            rows.append(row)
    return pd.DataFrame(rows).astype({"dead": "Int64"})  # a nonfinite run has no dead units


def _arrays(records: Sequence[StepRecord], events: Sequence[Event]) -> dict[str, np.ndarray]:
    arrays = {"total_step": np.array([record.number for record in records]), "rows": _padded([r.rows for r in records])}
    for site in records[0].seen.sites:
        for field, name in STATS.items():
            arrays[f"{name}:{site}"] = np.stack([getattr(record.seen.sites[site], field) for record in records])
    for i, event in enumerate(events):
        for name in (*SETS, *OWN) if event.unit_step is not None else ():
            if (values := getattr(event.unit_step, name)) is not None:
                arrays[f"event_{i}:{name}"] = values
    return arrays


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    padded = np.full((len(rows), max(map(len, rows))), -1)
    for line, batch in zip(padded, rows, strict=True):
        line[: len(batch)] = batch
    return padded
