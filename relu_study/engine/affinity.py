"""Preferences of places for cohorts: each cohort compiles once per worker, as far as possible."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from relu_study.engine.places import Place
from relu_study.engine.work import Work, assign_devices


class Affinity:
    """The cohorts that are assigned to a place, started, or compiled by a worker."""

    def __init__(self, work: Work[Any, Any], places: Sequence[Place]) -> None:
        """Assign each cohort to one of the first places, by cost.

        On accelerators the same plan then finds most programs in JAX's cache, whose keys include the device.
        """
        loads = assign_devices(work.tiles, work.cost, len(places)) if places else {}
        self.assigned = {cohort: places[i].number for cohort, i in loads.items()}
        self.started: set[str] = set()
        self.compiled: dict[Hashable, set[str]] = {}  # worker -> its cohorts

    def start(self, cohort: str, place: Place) -> None:
        """Mark a cohort as compiled by the worker of a place."""
        self.started.add(cohort)
        self.compiled.setdefault(place.worker, set()).add(cohort)

    def rank(self, cohort: str, place: Place, own: set[str]) -> int:
        """The preference of a thread of a place that has started its `own` cohorts; 0 is the first one.

        In order: an own cohort, an unstarted one assigned to the place, one that the worker has compiled, any unstarted one, any.
        """
        if cohort in own:
            return 0
        if cohort not in self.started:
            return 1 if self.assigned.get(cohort) == place.number else 3
        return 2 if cohort in self.compiled.get(place.worker, ()) else 4
