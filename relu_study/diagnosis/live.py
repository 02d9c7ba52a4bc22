"""Findings of models while they train, from one measurement after the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from relu_study.diagnosis.detector import Detector, detectors
from relu_study.diagnosis.diagnose import OURS, finding_of
from relu_study.diagnosis.finding import MemberFinding
from relu_study.diagnosis.history import History

KEPT = 128  # measurements in memory; more hardly change a verdict


class LiveDiagnosis:
    """The findings of M members after each measurement, in bounded time and memory.

    The record keeps at most `kept` measurements: the first, the last, and evenly spaced ones between them. When it is full, every
    other one is dropped. Only metrics that the detectors require are kept. A member that was nonfinite once stays nonfinite.
    The first flag and the onset are exact: they come from the scores at every measurement.
    """

    def __init__(
        self,
        sites: Sequence[str],
        units: Mapping[str, int],
        members: int = 1,
        total: float = math.inf,
        only: Iterable[str] = OURS,
        kept: int = KEPT,
    ):
        """Begin an empty record.

        Args:
          sites: nearest the input first.
          units: the number of units by site.
          members: the number of models.
          total: the planned length of training in steps. Infinite: unknown, and rules that judge by it abstain.
          only: names of detectors.
          kept: measurements in memory, at least 4.
        """
        self._sites, self._units, self._members, self._total = tuple(sites), dict(units), members, total
        self._detectors = [detectors[name] for name in only]
        self._required = {metric for detector in self._detectors for metric in (*detector.requires, *detector.reads)}
        self._kept, self._stride, self._length = kept, 1, 0
        self._numbers = np.zeros(kept, int)  # of the kept measurements, counted from 0
        self._steps = np.zeros(kept)
        self._bad_since = np.full(members, np.inf)  # step of the first nonfinite measurement
        self._metrics: dict[str, Float[np.ndarray, "M K"]] = {}
        self._tracks = {detector.name: _Track(members, len(self._sites)) for detector in self._detectors}

    def __len__(self) -> int:
        """Return the number of kept measurements."""
        return self._length

    def add(
        self, step: float, values: Mapping[str, Float[np.ndarray, "M"]], finite: Bool[np.ndarray, "M"]
    ) -> list[MemberFinding]:
        """Add the measurement of a later step, and return each finding whose problem, site and member are new.

        Args:
          step: the step.
          values: metrics by name, for example "dead_fraction/conv1" and "train_loss/all". NaN: unknown.
          finite: whether each member is finite.
        """
        place = self._next_place()
        self._steps[place] = step
        self._bad_since = np.where(finite, self._bad_since, np.minimum(self._bad_since, step))
        for name in {key for key in values if key.partition("/")[0] in self._required} | self._metrics.keys():
            if name not in self._metrics:
                self._metrics[name] = np.full((self._members, self._kept), np.nan)
            self._metrics[name][:, place] = np.where(self._bad_since <= step, np.nan, values.get(name, np.nan))
        history, new = self.history(), []
        for detector in self._detectors:
            track = self._tracks[detector.name]
            fresh = track.update(step, *detector.read(history), detector.threshold)
            new += [self._finding(detector, track, member, history) for member in np.flatnonzero(fresh).tolist()]
        return new

    def findings(self) -> list[MemberFinding]:
        """Return the problems that hold at the last measurement, by member, then in the order of the detectors."""
        history = self.history()
        found = [
            self._finding(detector, track, member, history)
            for detector in self._detectors
            for track in [self._tracks[detector.name]]
            for member in np.flatnonzero(~np.isnan(track.onset)).tolist()
        ]
        return sorted(found, key=lambda finding: finding.member)

    def sick(self, problem: str) -> Bool[np.ndarray, "M"]:
        """Return which members have a problem at the last measurement."""
        tracks = [self._tracks[detector.name] for detector in self._detectors if detector.problem == problem]
        return np.any([np.zeros(self._members, bool), *(~np.isnan(track.onset) for track in tracks)], axis=0)

    def rewind(self, step: float) -> None:
        """Drop the measurements from a step on. Findings of dropped measurements count as new again."""
        self._length = int(np.searchsorted(self._steps[: self._length], step))
        self._bad_since = np.where(self._bad_since < step, self._bad_since, np.inf)
        for track in self._tracks.values():
            track.rewind(step)

    def history(self) -> History:
        """Return the kept record. Its arrays are views."""
        n = self._length
        return History(
            epochs=self._steps[:n],
            sites=self._sites,
            metrics={name: values[:, :n] for name, values in self._metrics.items()},
            finite=self._steps[:n] < self._bad_since[:, None],
            constant_loss=np.full(self._members, np.nan),
            total_epochs=self._total,
            units=self._units,
            clock="step",
        )

    def _next_place(self) -> int:
        """Return the place of a new measurement. The last one keeps its place only if its number is a multiple of the stride."""
        number = int(self._numbers[self._length - 1]) + 1 if self._length else 0
        if self._length and self._numbers[self._length - 1] % self._stride:
            self._length -= 1
        elif self._length == self._kept:
            self._stride *= 2
            self._keep(np.flatnonzero(self._numbers % self._stride == 0))
        self._numbers[self._length] = number
        self._length += 1
        return self._length - 1

    def _keep(self, places: Int[np.ndarray, "K"]) -> None:
        self._length = len(places)
        for array in (self._numbers, self._steps, *self._metrics.values()):
            array[..., : self._length] = array[..., places]

    def _finding(self, detector: Detector, track: _Track, member: int, history: History) -> MemberFinding:
        times = float(track.first_flag[member]), float(track.onset[member])
        shares = None if (every := detector.shares(history)) is None else every[member]
        finding = finding_of(detector, history, float(track.scores[member]), track.by_site[member], shares, *times)
        return MemberFinding(**vars(finding), member=member)


class _Track:
    """Scores, first flag and onset of one detector, by member, and the sites it has fired at."""

    def __init__(self, members: int, sites: int):
        self.scores = np.full(members, np.nan)
        self.by_site = np.full((members, sites), np.nan)
        self.first_flag = np.full(members, np.nan)  # NaN: it never fired
        self.onset = np.full(members, np.nan)  # NaN: it does not fire now
        self._seen = np.zeros((members, sites + 1), bool)  # by the site with the largest score; the last one: no site

    def update(
        self, step: float, scores: Float[np.ndarray, "M"], by_site: Float[np.ndarray, "M L"], threshold: float
    ) -> Bool[np.ndarray, "M"]:
        """Take the scores at a step, and return which members fire at a site for the first time."""
        self.scores, self.by_site = scores, by_site
        fires = np.asarray(scores >= threshold)
        if not fires.any():  # the usual case
            self.onset[:] = np.nan
            return fires
        self.first_flag = np.where(fires & np.isnan(self.first_flag), step, self.first_flag)
        self.onset = np.where(fires, np.where(np.isnan(self.onset), step, self.onset), np.nan)
        known = np.concatenate([np.where(np.isnan(by_site), -np.inf, by_site), np.full((len(scores), 1), -np.inf)], axis=1)
        site = np.where(np.isnan(by_site).all(axis=1), by_site.shape[1], known.argmax(axis=1))
        fresh = np.asarray(fires & ~self._seen[np.arange(len(scores)), site])
        self._seen[fresh, site[fresh]] = True
        return fresh

    def rewind(self, step: float) -> None:
        self.first_flag = np.where(self.first_flag < step, self.first_flag, np.nan)
        self.onset = np.where(self.onset < step, self.onset, np.nan)
        self._seen[:] = False
