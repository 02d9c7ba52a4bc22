"""Measurements of a monitored training as files that only grow: measurements.csv and events.csv.

A measurement is complete when all its rows are in measurements.csv. Rows after the last complete measurement, as after a crash,
are dropped when the folder is opened again. Superseded measurements move to `earlier-N`. No JAX.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
from jaxtyping import Float

from relu_study.errors import UserError
from relu_study.stats.unit_events import Event, UnitStates
from relu_study.storage import locks
from relu_study.storage.append_file import AppendFile
from relu_study.storage.atomic_write import make_dirs, write_atomically
from relu_study.storage.checksums import CorruptFileError, strict_json, with_checksum, without_checksum
from relu_study.storage.manifest import FORMAT, MONITOR, kind_of
from relu_study.storage.quantities import MetricInfo

MEASUREMENTS, EVENTS = "measurements.csv", "events.csv"
COLUMNS = {MEASUREMENTS: ("step", "member", "metric", "site", "value"), EVENTS: ("step", "member", "site", "unit", "event")}


@dataclass(frozen=True)
class SiteInfo:
    """One site of a monitored model."""

    name: str
    activation: str
    units: int


@dataclass(frozen=True)
class MonitorInfo:
    """The numbers of a monitored model: a folder is continued only with equal ones."""

    sites: tuple[SiteInfo, ...]
    series: tuple[str, ...]  # "metric/site", in the order of the rows
    metrics: Mapping[str, MetricInfo]
    members: int
    probe_examples: int

    @property
    def units(self) -> dict[str, int]:
        """The number of units by site."""
        return {site.name: site.units for site in self.sites}

    @property
    def rows(self) -> int:
        """Number of rows of one measurement."""
        return self.members * len(self.series)

    def difference(self, other: MonitorInfo) -> str:
        """Return the first difference from another model, in words; empty if there is none."""
        for name in ("members", "probe_examples"):
            if (ours := getattr(self, name)) != (theirs := getattr(other, name)):
                return f"{ours} {name.replace('_', ' ')}, not {theirs}"
        if self.sites != other.sites:
            ours, theirs = ([f"{s.name} ({s.activation}, {s.units} units)" for s in info.sites] for info in (self, other))
            lost = [name for name in ours if name not in theirs]
            return f"the site {lost[0]}, which is not here" if lost else f"{len(ours)} sites, not {len(theirs)}"
        return "" if self.series == other.series else f"{len(self.series)} series of metrics, not {len(other.series)}"


def write_info(folder: Path, info: MonitorInfo) -> None:
    """Write manifest.json of a monitor's folder. Raises WriteError."""
    make_dirs(folder)
    plain = with_checksum({"format": FORMAT, "kind": MONITOR, "monitor": json.loads(msgspec.json.encode(asdict(info)))})
    write_atomically(folder / "manifest.json", (json.dumps(plain, indent=1) + "\n").encode())


def read_info(folder: Path) -> MonitorInfo:
    """Read manifest.json of a monitor's folder. Raises CorruptFileError."""
    path = folder / "manifest.json"
    try:
        plain = without_checksum(strict_json(path.read_bytes()), needed=True)
        return msgspec.convert(plain["monitor"], MonitorInfo)
    except (OSError, ValueError, KeyError, TypeError, msgspec.ValidationError) as error:
        raise CorruptFileError(path, "is corrupt", error, "restore it, or name a new folder for the monitor") from None


# ----------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Stored:
    """The complete measurements of a folder. `steps` are theirs, in order."""

    info: MonitorInfo
    steps: list[int]
    values: Float[np.ndarray, "K M V"]
    events: list[Event]


def read_stored(folder: Path) -> Stored:
    """Read the complete measurements of a monitor's folder, and their events.

    Raises:
      CorruptFileError: a file is corrupt before its end.
    """
    info = read_info(folder)
    _, blocks = _blocks(folder, info)
    steps = [_step(folder, block) for block in blocks]
    path = folder / MEASUREMENTS
    if steps != sorted(set(steps)):
        raise CorruptFileError(path, "is corrupt", "its steps do not rise", "restore it")
    try:
        numbers = [[float(line.rpartition(b",")[2] or "nan") for line in block] for block in blocks]
    except ValueError as error:
        raise CorruptFileError(path, "is corrupt", error, "restore it") from None
    values = np.array(numbers, float).reshape(len(steps), info.members, len(info.series))
    stored = Stored(info, steps, values, _events(folder, steps[-1] if steps else -1))
    _check_events(folder, stored)
    return stored


def _check_events(folder: Path, stored: Stored) -> None:
    """Raise CorruptFileError if the events do not give the dead units of the last measurement."""
    if not stored.steps:
        return
    states = UnitStates(stored.info.units, stored.info.members)
    states.restore(stored.events, stored.steps[0])
    for site, dead in states.dead.items():
        fractions = stored.values[-1, :, stored.info.series.index(f"dead_fraction/{site}")]
        if (np.rint(fractions * dead.shape[1]) != dead.sum(axis=1))[np.isfinite(fractions)].any():
            reason = f"it does not give the dead units of {site} at step {stored.steps[-1]}"
            raise CorruptFileError(folder / EVENTS, "is corrupt", reason, "restore it")


def _blocks(folder: Path, info: MonitorInfo) -> tuple[list[int], list[list[bytes]]]:
    """Return the first byte of each complete measurement, and its lines. The last entry of the bytes is the end."""
    path = folder / MEASUREMENTS
    content = path.read_bytes() if path.exists() else b""
    header, *lines = content.split(b"\n")[:-1] or [b""]  # the last piece is no complete line
    if header and header.decode(errors="replace") != ",".join(COLUMNS[MEASUREMENTS]):
        raise CorruptFileError(path, "is corrupt", "its header differs", "restore it")
    blocks = [lines[i : i + info.rows] for i in range(0, len(lines) - info.rows + 1, info.rows)]
    starts = [len(header) + 1 if header else 0]
    for block in blocks:
        if block[0].partition(b",")[0] != block[-1].partition(b",")[0]:
            reason = f"the measurement of step {_step(folder, block)} has missing rows"
            raise CorruptFileError(path, "is corrupt", reason, "restore it")
        starts.append(starts[-1] + sum(map(len, block)) + len(block))
    return starts, blocks


def _step(folder: Path, block: Sequence[bytes]) -> int:
    try:
        return int(block[0].partition(b",")[0])
    except ValueError:
        reason = f"the row {block[0][:80]!r} has no step"
        raise CorruptFileError(folder / MEASUREMENTS, "is corrupt", reason, "restore it") from None


def _events(folder: Path, last: int) -> list[Event]:
    """Return the events up to a step. Later ones belong to an incomplete measurement."""
    path = folder / EVENTS
    try:
        rows = path.read_text(encoding="utf-8").split("\n")[1:-1] if path.exists() else []
        parsed = [(int(step), int(member), site, int(unit or -1), name) for step, member, site, unit, name in map(_fields, rows)]
    except ValueError as error:
        raise CorruptFileError(path, "is corrupt", error, "restore it") from None
    return [Event(*row) for row in parsed if row[0] <= last]


def _fields(row: str) -> list[str]:
    step, member, rest = row.split(",", 2)
    site, unit, event = rest.rsplit(",", 2)
    return [step, member, _unquoted(site), unit, event]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if any(c in name for c in ',"\n') else name


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


# ----------------------------------------------------------------------------------------- writing


class MonitorLog:
    """The measurements of one monitor in a locked folder. `steps` are the complete ones."""

    def __init__(self, folder: Path, info: MonitorInfo, report: Callable[[str], None]):
        """Open a folder, new or of an earlier monitor of the same model.

        `report` receives a line for an incomplete measurement, which is dropped.

        Raises:
          UserError: another process writes it, it contains something else or another model, or it cannot be written.
        """
        self.folder, self.info = folder, info
        self._lock = contextlib.ExitStack()
        self._prefixes = [f",{m},{_prefix(name)}," for m in range(info.members) for name in info.series]
        check_free(folder, info)
        self._lock.enter_context(locks.writer_lock(folder, hint="close the other monitor, or name another folder with out="))
        try:
            check_free(folder, info)
            self._open(report)
        except BaseException:
            self._lock.close()
            raise

    def _open(self, report: Callable[[str], None]) -> None:
        if not (self.folder / "manifest.json").exists():
            write_info(self.folder, self.info)
        self._files = {name: AppendFile(self.folder / name) for name in COLUMNS}
        stored = read_stored(self.folder)
        self.steps, self.events = stored.steps, stored.events
        starts, _ = _blocks(self.folder, self.info)
        measurements = self._files[MEASUREMENTS]
        if measurements.size > starts[-1]:
            after = f" after step {self.steps[-1]}" if self.steps else ""
            report(f"{measurements.path} ends in an incomplete measurement{after}. Its rows are dropped.")
            measurements.cut(starts[-1])
        if self._files[EVENTS].size > (size := _size_of(self.events)):
            self._files[EVENTS].cut(size)
        for name, file in self._files.items():
            header = f"{','.join(COLUMNS[name])}\n".encode()
            if file.size < len(header):
                file.cut(0)
                file.append(header)

    @property
    def last(self) -> int:
        """The step of the last complete measurement; -1 without one."""
        return self.steps[-1] if self.steps else -1

    def append(self, step: int, values: Float[np.ndarray, "M V"], events: list[Event]) -> None:
        """Store a measurement. Raises WriteError, and the folder then ends before it."""
        size = self._files[EVENTS].size
        if events:
            self._files[EVENTS].append("".join(map(_event_row, events)).encode())
        digits = 9 if values.dtype == np.float32 else 17  # exact
        numbers = ["" if math.isnan(value) else f"{value:.{digits}g}" for value in values.ravel().tolist()]
        rows = (f"{step}{prefix}{number}\n" for prefix, number in zip(self._prefixes, numbers, strict=True))
        try:
            self._files[MEASUREMENTS].append("".join(rows).encode())
        except UserError:
            with contextlib.suppress(UserError):
                self._files[EVENTS].cut(size)
            raise
        self.steps.append(step)
        self.events += events

    def rewind(self, step: int) -> Path | None:
        """Move the measurements from a step on to `earlier-N`, and return this folder; None if there are none."""
        kept = sum(stored < step for stored in self.steps)
        if kept == len(self.steps):
            return None
        archive = next(path for i in range(1, 10**6) if not (path := self.folder / f"earlier-{i}").exists())
        write_info(archive, self.info)
        starts, _ = _blocks(self.folder, self.info)
        events = [event for event in self.events if event.step < step]
        tails = {MEASUREMENTS: starts[kept], EVENTS: _size_of(events)}
        for name, size in tails.items():
            content = (self.folder / name).read_bytes()
            write_atomically(archive / name, f"{','.join(COLUMNS[name])}\n".encode() + content[size:])
        for name, size in tails.items():  # the measurements first: an event without a measurement is ignored
            self._files[name].cut(size)
        self.steps, self.events = self.steps[:kept], events
        return archive

    def close(self) -> None:
        """Release the folder."""
        self._lock.close()


def check_free(folder: Path, info: MonitorInfo) -> None:
    """Raise UserError if a folder contains the results of a study, or the measurements of another model."""
    if folder.is_file():
        raise UserError(f"{folder} is a file. Name a folder with out=.")
    if not (folder / "manifest.json").exists():
        if others := [name for name in (*COLUMNS, "units.csv", "tensorboard") if (folder / name).exists()]:
            raise UserError(f"{folder} contains {others[0]}, but no manifest.json. Name another folder with out=.")
        return
    if kind_of(folder) != MONITOR:
        raise UserError(f"{folder} contains the results of a study. Name another folder with out=.")
    if difference := read_info(folder).difference(info):
        raise UserError(f"{folder} has the measurements of another model ({difference}). Name another folder with out=.")


def _prefix(series: str) -> str:
    metric, _, site = series.partition("/")
    return f"{metric},{_quoted(site)}"


def _size_of(events: list[Event]) -> int:
    """Return the bytes of events.csv up to these events, its first ones."""
    return len(f"{','.join(COLUMNS[EVENTS])}\n{''.join(map(_event_row, events))}".encode())


def _event_row(event: Event) -> str:
    unit = "" if event.unit < 0 else event.unit
    return f"{event.step},{event.member},{_quoted(event.site)},{unit},{event.event}\n"
