"""Unit histories from events equal those from all masks at once (`stats.survival`)."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from relu_study.stats.survival import unit_histories
from relu_study.stats.unit_events import Event, UnitStates, histories

SITES = {"one": 3, "two": 1}


@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.integers(0, 6))
def test_equal_to_the_masks_of_all_steps(steps: int, seed: int, restart: int) -> None:
    rng, members = np.random.default_rng(seed), 2
    masks = {site: rng.random((members, steps, units)) < 0.5 for site, units in SITES.items()}
    states, events = UnitStates(SITES, members), list[Event]()
    for step in range(steps):
        if step == restart and step:  # as a monitor that continues a folder
            states = UnitStates(SITES, members)
            states.restore(events, 0)
        now = {site: mask[:, step] for site, mask in masks.items()}
        changes = states.update(10 * step, now, [None] * members)
        assert not states.differ(now, [None] * members)
        events += changes
    lives = list(histories(events, SITES, members))
    assert [(life.member, life.site, life.unit) for life in lives] == [
        (member, site, unit) for member in range(members) for site, units in SITES.items() for unit in range(units)
    ]
    for site, mask in masks.items():
        expected = unit_histories(mask, np.arange(steps), np.full(members, np.nan))
        for member in range(members):
            mine = [life for life in lives if life.member == member and life.site == site]
            assert sum(life.born_dead for life in mine) == expected.born_dead[member]
            assert sum(life.died is not None for life in mine) == expected.died[member]
            assert sum(life.revived is not None for life in mine) == expected.revived[member]
            assert sum(life.dead for life in mine) == expected.dead_at_end[member]
            first = [-1 if life.died is None else life.died // 10 for life in mine]
            assert first == expected.first_death[member].tolist()
            changes = np.diff(mask[member], axis=0, prepend=False)
            assert [life.deaths + life.born_dead for life in mine] == ((changes != 0) & mask[member]).sum(axis=0).tolist()


def test_a_nonfinite_member_keeps_its_units() -> None:
    states = UnitStates({"one": 2}, 2)
    dead, alive = np.array([[True, False]] * 2), np.zeros((2, 2), bool)
    assert [event.event for event in states.update(0, {"one": dead}, [None, "loss"])] == ["nonfinite", "born dead"]
    assert states.update(1, {"one": alive}, ["one", "loss"]) == [Event(1, 0, "one", -1, "nonfinite")]
    after = states.update(2, {"one": dead}, [None, None])
    assert after == [Event(2, 0, "", -1, "finite"), Event(2, 1, "", -1, "finite"), Event(2, 1, "one", 0, "born dead")]
