"""Detectors by name: decorated functions of a history, with their problem, threshold and source.

    @detector("dying", problem="dying", threshold=0.5, requires=("dead_fraction",), source="...", quantity="share of dead units")
    def dying(history: History) -> Float[np.ndarray, "*runs L"]:
        '''Share of dead units of each site.'''
        return history.latest(history.by_site("dead_fraction"))

A function returns scores by site, "*runs L", or of the whole network, "*runs". It reduces over the last axes only, so that
one call scores any number of runs. There is at least one axis of runs and one measurement. Higher scores are more suspicious.
A NaN score abstains.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from relu_study.diagnosis.history import History
from relu_study.errors import UserError, nearest

PROBLEMS = ("exploding", "dying", "vanishing", "not_learning")
MODULES = ("ours", "rivals_by_activation", "rivals_by_gradient")  # modules that register detectors

Rule = Callable[[History], Float[np.ndarray, "..."]]


@dataclass(frozen=True)
class Detector:
    """One registered rule and its declared properties. It fires where its score is at least its threshold."""

    name: str
    problem: str
    threshold: float
    requires: tuple[str, ...]  # metrics; without one of them the detector abstains
    reads: tuple[str, ...]  # metrics that it also reads where they are recorded
    source: str
    adaptation: str  # differences between the source's rule and this one
    rival: bool  # another tool's rule
    quantity: str  # noun phrase of the score
    units_of: str  # the affected share of a site's units: a metric, or "score"; "": the rule is not about units
    text: str
    function: Rule

    def scores(self, history: History) -> Float[np.ndarray, "*runs"]:
        """Return the score of each run, the largest over sites; NaN: the detector abstains."""
        return self.read(history)[0]

    def site_scores(self, history: History) -> Float[np.ndarray, "*runs L"]:
        """Return the score of each site; NaN at every site for a rule of the whole network."""
        return self.read(history)[1]

    def read(self, history: History) -> tuple[Float[np.ndarray, "*runs"], Float[np.ndarray, "*runs L"]]:
        """Return `scores` and `site_scores` of one evaluation."""
        scores = self._read(history)
        if scores.ndim > len(history.runs):
            return _largest(scores), scores
        return scores, np.full((*history.runs, len(history.sites)), np.nan)

    def shares(self, history: History) -> Float[np.ndarray, "*runs L"] | None:
        """Return the affected share of each site's units at the last finite measurement; None for a rule not about units."""
        if self.units_of == "score":
            return self.site_scores(history)
        return history.latest(history.by_site(self.units_of)) if self.units_of else None

    def fires(self, history: History) -> Bool[np.ndarray, "*runs"]:
        """Return whether the score of each run is at least the threshold."""
        return np.asarray(self.scores(history) >= self.threshold)

    def over_time(self, history: History) -> Float[np.ndarray, "*runs E"]:
        """Return the score at each measurement, from the measurements up to it."""
        columns = [self.scores(history.until(count + 1)) for count in range(len(history))]
        return np.stack(columns, axis=-1) if columns else np.empty((*history.runs, 0))

    def first_flag(self, history: History) -> Int[np.ndarray, "*runs"]:
        """Return the index of the first measurement at which the detector fires; -1: none."""
        if not len(history):
            return np.full(history.runs, -1)
        fires = self.over_time(history) >= self.threshold
        return np.where(fires.any(axis=-1), fires.argmax(axis=-1), -1)

    def _read(self, history: History) -> Float[np.ndarray, "..."]:
        if not len(history) or not all(history.has(name) for name in self.requires):
            return np.full(history.runs, np.nan)
        batch = history if history.runs else history.flat()  # rules always see an axis of runs
        with np.errstate(all="ignore"):  # NaN and infinity are valid inputs and scores
            scores = np.asarray(self.function(batch), np.float64)
        return scores if history.runs else np.asarray(scores[0])


def _largest(scores: Float[np.ndarray, "*runs L"]) -> Float[np.ndarray, "*runs"]:
    """Return the largest score over sites; NaN where all are NaN."""
    known = ~np.isnan(scores)
    largest = np.where(known, scores, -np.inf).max(axis=-1, initial=-np.inf)
    return np.where(known.any(axis=-1), largest, np.nan)


class Registry(Mapping[str, Detector]):
    """Detectors by name. The first use imports the modules that register them."""

    def __init__(self) -> None:
        self._entries: dict[str, Detector] = {}

    def add(self, entry: Detector) -> None:
        """Register a detector. The same function may register its name again.

        Raises:
          UserError: if the name belongs to another function, or the problem is unknown.
        """
        if entry.problem not in PROBLEMS:
            raise nearest(entry.problem, PROBLEMS, "problem")
        old = self._entries.get(entry.name)
        if old is not None and _origin(old) != _origin(entry):
            raise UserError(f"detector {entry.name!r} is registered already, by {_origin(old)}. Choose another name")
        self._entries[entry.name] = entry

    def load(self) -> None:
        """Import the package's detectors."""
        for module in MODULES:
            importlib.import_module(f"relu_study.diagnosis.{module}")

    def __getitem__(self, name: str) -> Detector:
        self.load()
        if name not in self._entries:
            raise nearest(name, self._entries, "detector")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        self.load()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self.load()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        self.load()
        return len(self._entries)


detectors = Registry()


def detector(
    name: str,
    *,
    problem: str,
    threshold: float,
    requires: tuple[str, ...],
    reads: tuple[str, ...] = (),
    source: str,
    quantity: str = "score",
    adaptation: str = "",
    rival: bool = False,
    units_of: str = "",
) -> Callable[[Rule], Detector]:
    """Return a decorator that registers a function as the detector `name` and returns the detector.

    The first paragraph of the function's docstring is the detector's text. A rule "more than 0.5" has the threshold
    `above(0.5)`, a rule "less than 0.5" scores minus the value.

    Raises:
      UserError: for an unknown problem, or the name of another detector.
    """

    def decorate(function: Rule) -> Detector:
        text = " ".join((function.__doc__ or "").split("\n\n")[0].split())
        entry = Detector(
            name=name,
            problem=problem,
            threshold=threshold,
            requires=requires,
            reads=reads,
            source=source,
            adaptation=adaptation,
            rival=rival,
            quantity=quantity,
            units_of=units_of,
            text=text,
            function=function,
        )
        detectors.add(entry)
        return entry

    return decorate


def above(bound: float) -> float:
    """Return the smallest float above `bound`: the threshold of a rule "more than `bound`"."""
    return float(np.nextafter(bound, np.inf))


def _origin(entry: Detector) -> str:
    return f"{entry.function.__module__}.{entry.function.__qualname__}"
