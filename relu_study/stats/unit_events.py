"""Events in the lives of units, measurement by measurement: born dead, died, revived."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

BORN_DEAD, DIED, REVIVED = "born dead", "died", "revived"
NONFINITE, FINITE = "nonfinite", "finite"  # events of a whole member
EVENTS = (BORN_DEAD, DIED, REVIVED, NONFINITE, FINITE)


class Event(NamedTuple):
    """One change of a unit, or of a member (unit -1)."""

    step: int
    member: int
    site: str  # of a nonfinite member: the first nonfinite place
    unit: int
    event: str


class UnitStates:
    """The current state of every unit of M members: dead or alive, and whether a member was measured yet."""

    def __init__(self, sites: dict[str, int], members: int):
        """Start without a measurement. `sites` maps each site to its number of units."""
        self.dead = {site: np.zeros((members, units), bool) for site, units in sites.items()}
        self.measured = np.zeros(members, bool)
        self.nonfinite = np.zeros(members, bool)

    def copy(self) -> UnitStates:
        """Return a copy, which later updates of this state do not change."""
        other = UnitStates({}, 0)
        other.dead = {site: dead.copy() for site, dead in self.dead.items()}
        other.measured, other.nonfinite = self.measured.copy(), self.nonfinite.copy()
        return other

    def update(self, step: int, dead: dict[str, Bool[np.ndarray, "M U"]], places: list[str | None]) -> list[Event]:
        """Return the changes at a measurement.

        `places` has the first nonfinite place of each member, or None. Units of a nonfinite member keep their state. A unit is
        born dead if it is dead at the first measurement of its member.
        """
        bad = np.array([place is not None for place in places], bool)
        events = [Event(step, int(m), str(places[m]), -1, NONFINITE) for m in np.flatnonzero(bad & ~self.nonfinite)]
        events += [Event(step, int(m), "", -1, FINITE) for m in np.flatnonzero(~bad & self.nonfinite)]
        self.nonfinite = bad
        for site, now in dead.items():
            changed = (now != self.dead[site]) & ~bad[:, None]
            for member, unit in zip(*np.nonzero(changed), strict=True):
                name = REVIVED if not now[member, unit] else DIED if self.measured[member] else BORN_DEAD
                events.append(Event(step, int(member), site, int(unit), name))
            self.dead[site] = np.where(bad[:, None], self.dead[site], now)
        self.measured |= ~bad
        return events

    def differ(self, dead: dict[str, Bool[np.ndarray, "M U"]], places: list[str | None]) -> bool:
        """Return whether a measurement has another unit dead, or another member nonfinite, than this state."""
        bad = np.array([place is not None for place in places], bool)
        return bool((bad != self.nonfinite).any()) or any((now != self.dead[site])[~bad].any() for site, now in dead.items())

    def restore(self, events: Iterable[Event], first: int | None) -> None:
        """Apply stored events. `first` is the step of the first stored measurement; None without one."""
        self.measured[:] = first is not None
        for event in events:
            if event.event == NONFINITE and event.step == first:
                self.measured[event.member] = False
            if event.event == FINITE:
                self.measured[event.member] = True
            if event.unit < 0:
                self.nonfinite[event.member] = event.event == NONFINITE
            else:
                self.dead[event.site][event.member, event.unit] = event.event != REVIVED


class History(NamedTuple):
    """The life of one unit, as in `relu_study.stats.survival`. Died: born alive and dead later. Steps are None if it did not."""

    member: int
    site: str
    unit: int
    born_dead: bool
    died: int | None  # step of the first death
    revived: int | None  # step of the first revival
    deaths: int  # later ones included
    dead: bool  # at the last measurement


def histories(events: Iterable[Event], sites: dict[str, int], members: int) -> Iterator[History]:
    """Yield the life of every unit, by member, site and unit."""
    lives: dict[tuple[int, str, int], list[Event]] = {}
    for event in events:
        if event.unit >= 0:
            lives.setdefault((event.member, event.site, event.unit), []).append(event)
    for member in range(members):
        for site, units in sites.items():
            for unit in range(units):
                yield _history(member, site, unit, lives.get((member, site, unit), []))


def _history(member: int, site: str, unit: int, life: list[Event]) -> History:
    born_dead = bool(life) and life[0].event == BORN_DEAD
    deaths = [event.step for event in life if event.event == DIED]
    revivals = [event.step for event in life if event.event == REVIVED]
    died = None if born_dead or not deaths else deaths[0]
    dead = bool(life) and life[-1].event != REVIVED
    return History(member, site, unit, born_dead, died, revivals[0] if revivals else None, len(deaths), dead)
