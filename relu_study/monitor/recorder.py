"""The files of a monitor: measurements, events, TensorBoard, and a queue for measurements that cannot be written yet."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float, Integer
from numpy import ndarray

from relu_study.errors import UserError
from relu_study.report.tensorboard.monitor_events import MonitorEvents
from relu_study.stats.unit_events import Event
from relu_study.storage.atomic_write import WriteError, write_atomically
from relu_study.storage.monitor_log import MonitorInfo, MonitorLog
from relu_study.storage.monitor_results import units_frame


class _Waiting(NamedTuple):
    """A measurement that is not written yet."""

    step: int
    values: Float[ndarray, "M V"]
    events: list[Event]


class Recorder:
    """The files of one monitor.

    A folder in use, or with other contents, stays as it is: a folder next to it is used. A measurement that cannot be written
    waits for the next one. At the end, waiting ones go to a temporary folder. `events`, `first` and `last` cover the stored and
    the waiting measurements.
    """

    def __init__(
        self,
        folder: Path,
        info: MonitorInfo,
        bins: Mapping[str, tuple[float, float]],
        report: Callable[[str], None],
        writes: bool,
    ):
        """Open the folder. `report` receives a line for each trouble. Without `writes`, nothing is written."""
        self.folder, self.info = folder, info
        self._bins, self._report, self._writes = bins, report, writes
        self._log: MonitorLog | None = None
        self._tensorboard: MonitorEvents | None = None
        self._waiting: list[_Waiting] = []
        self._trouble = ""
        if writes:
            try:
                self._open()
            except WriteError as error:
                self._waits(error)
        self.events: list[Event] = list(self._log.events) if self._log else []
        self.first: int | None = self._log.steps[0] if self._log and self._log.steps else None
        self.last = self._log.last if self._log else -1

    def _open(self) -> None:
        """Open the folder, or one next to it. Raises WriteError."""
        try:
            self._log = MonitorLog(self.folder, self.info, self._report)
        except WriteError:
            raise
        except UserError as error:
            names = (self.folder.with_name(f"{self.folder.name}-{i}") for i in itertools.count(2))
            free = next(path for path in names if not path.exists())
            self._report(f"{error} Until then this monitor writes {free}.")
            self.folder = free
            self._log = MonitorLog(free, self.info, self._report)
        self._tensorboard = MonitorEvents(self.folder, self.info, self._bins)
        if self._log.steps:
            self._tensorboard.restart(self._log.last + 1)

    def write(
        self,
        step: int,
        values: Float[ndarray, "M V"],
        events: list[Event],
        histograms: Mapping[str, Integer[ndarray, " 65"]],
    ) -> None:
        """Write a measurement of a later step than the last, after the waiting ones."""
        self.events += events
        self.first = step if self.first is None else self.first
        self.last = step
        if not self._writes:
            return
        self._waiting.append(_Waiting(step, values, events))
        try:
            self._write_waiting()
            assert self._tensorboard is not None
            self._tensorboard.write(step, values, histograms)
        except WriteError as error:
            self._waits(error)

    def _write_waiting(self) -> None:
        if self._log is None:
            self._open()
        assert self._log is not None
        while self._waiting:
            self._log.append(*self._waiting[0])
            del self._waiting[0]
        self._trouble = ""

    def _waits(self, error: WriteError) -> None:
        if self._trouble != str(error):
            self._trouble = str(error)
            self._report(f"{error} Measurements wait in memory until then.")

    def rewind(self, step: int) -> Path | None:
        """Move the measurements from a step on to `earlier-N`, and return this folder."""
        self._waiting = [waiting for waiting in self._waiting if waiting.step < step]
        archive = self._log.rewind(step) if self._log else None
        if self._tensorboard is not None:
            self._tensorboard.restart(step)
        self.events = [event for event in self.events if event.step < step]
        steps = [*(self._log.steps if self._log else ()), *(waiting.step for waiting in self._waiting)]
        self.first, self.last = (steps[0], steps[-1]) if steps else (None, -1)
        return archive

    def close(self) -> None:
        """Write units.csv and release the folder. Measurements that still wait go to a temporary folder."""
        if not self._writes:
            return
        try:
            if self._waiting:
                self._write_waiting()
            if self._log is not None:
                write_units(self.folder, self.info, self.events)
        except WriteError as error:
            self._save_elsewhere(error)
        finally:
            if self._log is not None:
                self._log.close()

    def _save_elsewhere(self, error: WriteError) -> None:
        where = Path(tempfile.mkdtemp(prefix="relu_study-"))
        log = MonitorLog(where, self.info, self._report)
        for waiting in self._waiting:
            log.append(*waiting)
        write_units(where, self.info, self.events)
        log.close()
        count = len(self._waiting)
        self._report(f"{error} {count} measurement{'s' * (count != 1)} and units.csv are in {where}.")


def write_units(folder: Path, info: MonitorInfo, events: list[Event]) -> None:
    """Write units.csv, the history of every unit. Raises WriteError."""
    write_atomically(folder / "units.csv", units_frame(info, events).to_csv(index=False, lineterminator="\n").encode())
