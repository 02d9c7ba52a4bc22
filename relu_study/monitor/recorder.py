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

Bins = Mapping[str, tuple[float, float]]  # ranges of linear histograms


class _Waiting(NamedTuple):
    """A measurement that is not written yet."""

    step: int
    values: Float[ndarray, "M V"]
    histograms: Mapping[str, Integer[ndarray, " 65"]]


class _Files:
    """The open files of one folder."""

    def __init__(self, folder: Path, info: MonitorInfo, bins: Bins, report: Callable[[str], None]):
        """Open a folder. Raises UserError, and WriteError if it cannot be written."""
        self.log = MonitorLog(folder, info, report)
        self.tensorboard = MonitorEvents(folder, info, bins)
        if self.log.steps:
            self.tensorboard.restart(self.log.last + 1)

    def write(self, waiting: list[_Waiting], unseen: list[_Waiting], events: list[Event]) -> None:
        """Write and remove waiting measurements, with their events, and those that TensorBoard lacks. Raises WriteError."""
        while waiting:
            step = waiting[0].step
            # All earlier events too: a new folder has the whole history of its units.
            self.log.append(step, waiting[0].values, [event for event in events[len(self.log.events) :] if event.step <= step])
            del waiting[0]
        while unseen:
            self.tensorboard.write(*unseen[0])
            del unseen[0]

    def close(self, events: list[Event]) -> None:
        """Write units.csv and release the folder. Raises WriteError."""
        try:
            text = units_frame(self.log.info, events).to_csv(index=False, lineterminator="\n")
            write_atomically(self.log.folder / "units.csv", text.encode())
        finally:
            self.log.close()


class Recorder:
    """The files of one monitor.

    A folder in use, or with other contents, stays as it is: a folder next to it is used. A measurement that cannot be written
    waits for the next one. At the end, waiting ones go to a temporary folder. `events`, `first` and `last` cover the stored and
    the waiting measurements.
    """

    def __init__(self, folder: Path, info: MonitorInfo, bins: Bins, report: Callable[[str], None], writes: bool):
        """Open the folder. `report` receives a line for each problem. Without `writes`, nothing is written."""
        self.folder, self.info = folder, info
        self._bins, self._report, self._writes = bins, report, writes
        self._files: _Files | None = None
        self._waiting: list[_Waiting] = []  # for the CSV files
        self._unseen: list[_Waiting] = []  # for TensorBoard
        self._problem = ""
        if writes:
            try:
                self._files = self._open()
            except WriteError as error:
                self._wait(error)
        log = self._files.log if self._files else None
        self.events: list[Event] = list(log.events) if log else []
        self.steps: list[int] = list(log.steps) if log else []

    @property
    def first(self) -> int | None:
        """The step of the first measurement; None without one."""
        return self.steps[0] if self.steps else None

    @property
    def last(self) -> int:
        """The step of the last measurement; -1 without one."""
        return self.steps[-1] if self.steps else -1

    def _open(self, late: bool = False) -> _Files:
        """Open the folder, or one next to it. Raises WriteError. A folder that opens `late` is continued only if it is empty."""
        try:
            files = _Files(self.folder, self.info, self._bins, self._report)
            if late and files.log.steps:  # this monitor has not read them: their units have other histories
                files.log.close()
                raise UserError(f"{self.folder} has measurements of another monitor. Make a new monitor to continue it.")
            return files
        except WriteError:
            raise
        except UserError as error:
            names = (self.folder.with_name(f"{self.folder.name}-{i}") for i in itertools.count(2))
            free = next(path for path in names if not path.exists())
            self._report(f"{error} Until then this monitor writes {free}.")
            self.folder = free
            return _Files(free, self.info, self._bins, self._report)

    def write(
        self,
        step: int,
        values: Float[ndarray, "M V"],
        events: list[Event],
        histograms: Mapping[str, Integer[ndarray, " 65"]],
    ) -> None:
        """Write a measurement of a later step than the last, after the waiting ones."""
        self.events += events
        self.steps.append(step)
        if not self._writes:
            return
        measurement = _Waiting(step, values, histograms)
        self._waiting.append(measurement)
        self._unseen.append(measurement)
        try:
            self._files = self._files or self._open(late=True)
            self._files.write(self._waiting, self._unseen, self.events)
            self._problem = ""
        except WriteError as error:
            if self._files is not None and not (self.folder / "manifest.json").exists():  # the folder was removed
                self._files.log.close()
                self._files = None
            self._wait(error)

    def _wait(self, error: WriteError) -> None:
        if self._problem != str(error):
            self._problem = str(error)
            self._report(f"cannot write {error.path}: {error.reason}. {error.hint}; measurements wait in memory until then.")

    def rewind(self, step: int) -> Path | None:
        """Move the measurements from a step on to `earlier-N`, and return this folder."""
        archive = self._files.log.rewind(step) if self._files else None  # first: it may fail
        self._waiting = [waiting for waiting in self._waiting if waiting.step < step]
        self._unseen = [waiting for waiting in self._unseen if waiting.step < step]
        if self._files is not None:
            self._files.tensorboard.restart(step)
        self.events = [event for event in self.events if event.step < step]
        self.steps = [stored for stored in self.steps if stored < step]
        return archive

    def close(self) -> None:
        """Write units.csv and release the folder. Measurements that still wait go to a temporary folder."""
        if not self._writes or not (self._files or self._waiting):
            return
        try:
            self._files = self._files or self._open(late=True)
            self._files.write(self._waiting, self._unseen, self.events)
        except WriteError as error:
            self._save_elsewhere(error)
        try:
            if self._files is not None:
                self._files.close(self.events)
        except WriteError as error:
            self._report(f"cannot write {error.path}: {error.reason}. `relu_study.load` derives the histories of units.")

    def _save_elsewhere(self, error: WriteError) -> None:
        count = f"{len(self._waiting)} measurement{'s' * (len(self._waiting) != 1)}"
        cause = f"cannot write {error.path}: {error.reason}."
        try:
            where = Path(tempfile.mkdtemp(prefix="relu_study-"))
            files = _Files(where, self.info, self._bins, self._report)
            files.write(self._waiting, self._unseen, self.events)
            files.close(self.events)
            self._report(f"{cause} {count} that waited, and the histories of units, are in {where}.")
        except (OSError, UserError) as other:
            self._report(f"{cause} {count} that waited: lost. A temporary folder cannot be written either ({other}).")
