"""TensorBoard events of a monitored training, written measurement by measurement."""

from __future__ import annotations

import itertools
import math
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from relu_study.report.tensorboard import plugins
from relu_study.stats import intervals
from relu_study.storage.append_file import AppendFile
from relu_study.storage.atomic_write import make_dirs
from relu_study.storage.monitor_log import MonitorInfo

FILE = "events.out.tfevents.{:010d}.relu_study"


class MonitorEvents:
    """The event file of one monitor. Files of earlier monitors stay, and TensorBoard reads them first.

    Tags are `metric/site`; of an ensemble, `metric/site/mean`, `/lo` and `/hi` with the 95 % t interval over members.
    """

    def __init__(self, folder: Path, info: MonitorInfo, bins: Mapping[str, tuple[float, float]]):
        """Use the next free file in `folder`/tensorboard. The first write creates it. `bins` are ranges of linear histograms."""
        self.info, self.bins = info, bins
        root = folder / "tensorboard"
        self._root = root
        self._file = AppendFile(next(path for i in itertools.count(1) if not (path := root / FILE.format(i)).exists()))
        self._restart: int | None = None

    def restart(self, step: int) -> None:
        """Hide the earlier points from a step on."""
        self._restart = step

    def write(self, step: int, values: Float[np.ndarray, "M V"], histograms: Mapping[str, Integer[np.ndarray, " 65"]]) -> None:
        """Append a measurement. Raises WriteError."""
        now = time.time()
        event = Event(wall_time=now, step=step)
        for tag, value in self._scalars(values).items():
            event.summary.value.add(tag=tag, simple_value=value)
        event.summary.value.extend(plugins.histogram(tag, counts, self.bins.get(tag)) for tag, counts in histograms.items())
        records = []
        if not self._file.size:
            make_dirs(self._root)
            records.append(Event(wall_time=now, file_version="brain.Event:2"))
            records.append(Event(wall_time=now, summary=Summary(value=[self._layout()])))
        if self._restart is not None:
            records.append(Event(wall_time=now, step=self._restart, session_log=SessionLog(status=SessionLog.START)))
        self._file.append(b"".join(map(_record, [*records, event])))
        self._restart = None

    def _layout(self) -> Summary.Value:
        if self.info.members > 1:
            return plugins.layout(self.info.series, self.info.metrics)
        return plugins.line_charts(self.info.series, self.info.metrics)

    def _scalars(self, values: Float[np.ndarray, "M V"]) -> dict[str, float]:
        named: Iterable[tuple[str, float]] = zip(self.info.series, values[0].tolist(), strict=True)
        if self.info.members > 1:
            cells = intervals.summarise(values)
            tags = (("mean", "mean"), ("lo", "ci_lo"), ("hi", "ci_hi"))
            named = ((f"{name}/{tag}", float(cells[cell][i])) for i, name in enumerate(self.info.series) for tag, cell in tags)
        return {tag: value for tag, value in named if not math.isnan(value)}


def _record(event: Event) -> bytes:
    """Return an event as a TFRecord: its length, its bytes, and a checksum of each."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
