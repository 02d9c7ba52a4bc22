"""The folder of a monitored training as DataFrames. No JAX."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from relu_study.stats import intervals
from relu_study.stats.unit_events import FINITE, NONFINITE, Event, History, histories
from relu_study.storage.monitor_log import MonitorInfo, Stored, read_stored
from relu_study.storage.results import MonitorResults


def load_monitor(folder: Path) -> MonitorResults:
    """Read the complete measurements of a monitor's folder.

    Raises:
      CorruptFileError: a file is corrupt.
    """
    stored = read_stored(folder)
    events = pd.DataFrame(stored.events, columns=list(Event._fields)).astype({"unit": "Int64"})
    events["unit"] = events["unit"].mask(events["unit"] < 0)
    runs, summary, curves = _runs(stored), _summary(stored), _curves(stored)
    return MonitorResults(folder, runs, summary, curves, units=units_frame(stored.info, stored.events), events=events)


def units_frame(info: MonitorInfo, events: Iterable[Event]) -> pd.DataFrame:
    """Return one row a unit, as in units.csv."""
    rows = histories(events, info.units, info.members)
    frame = pd.DataFrame(list(rows), columns=list(History._fields))
    return frame.astype({"born_dead": bool, "died": "Int64", "revived": "Int64", "dead": bool})


def _names(info: MonitorInfo) -> tuple[np.ndarray, np.ndarray]:
    split = [name.partition("/") for name in info.series]
    return np.array([metric for metric, _, _ in split], object), np.array([site for _, _, site in split], object)


def _curves(stored: Stored) -> pd.DataFrame:
    k, m, v = stored.values.shape
    metric, site = _names(stored.info)
    columns: dict[str, Any] = {
        "step": np.repeat(np.array(stored.steps, np.int64), m * v),
        "member": np.tile(np.repeat(np.arange(m), v), k),
        "metric": pd.Categorical(np.tile(metric, k * m)),
        "site": pd.Categorical(np.tile(site, k * m)),
        "value": stored.values.ravel(),
    }
    return pd.DataFrame(columns)


def _summary(stored: Stored) -> pd.DataFrame:
    metric, site = _names(stored.info)
    steps, series = len(stored.steps), len(stored.info.series)
    cells = intervals.summarise(stored.values.transpose(1, 0, 2))
    head: dict[str, Any] = {
        "metric": np.tile(metric, steps),
        "site": np.tile(site, steps),
        "step": np.repeat(np.array(stored.steps, np.int64), series),
        "probe_examples": stored.info.probe_examples,
    }
    return pd.DataFrame(head | {name: cells[name].ravel() for name in ("n", "n_finite", *intervals.MOMENTS)})


def _runs(stored: Stored) -> pd.DataFrame:
    info, last = stored.info, stored.values[-1:].reshape(-1, len(stored.info.series))
    first: dict[int, Event] = {}
    state = dict.fromkeys(range(info.members), "ok" if stored.steps else "not measured")
    for event in stored.events:
        if event.event in (NONFINITE, FINITE):
            state[event.member] = "ok" if event.event == FINITE else "nonfinite"
        if event.event == NONFINITE:
            first.setdefault(event.member, event)
    rows = pd.DataFrame({"member": np.arange(info.members), "status": list(state.values())})
    rows["first_bad_step"] = pd.array([first[m].step if m in first else None for m in range(info.members)], "Int64")
    rows["first_bad_place"] = [first[m].site if m in first else "" for m in range(info.members)]
    rows["last_step"] = pd.array([stored.steps[-1] if stored.steps else None] * info.members, "Int64")
    rows["probe_examples"] = info.probe_examples
    values = pd.DataFrame(last if len(last) else np.full((info.members, len(info.series)), np.nan), columns=list(info.series))
    return pd.concat([rows, values], axis=1)
