"""The queue of waiting tiles against a plain list."""

from __future__ import annotations

from typing import Any

from fake_places import tile
from hypothesis import given
from hypothesis import strategies as some

from relu_study.engine.plan import Tile
from relu_study.engine.waiting_tiles import WaitingTiles

COHORTS = "abc"
STEPS = some.lists(some.tuples(some.sampled_from(["take", "put", "remove", "cohort"]), some.randoms(use_true_random=False)))


def taken(tiles: list[Tile], ranks: dict[str, Any], allowed: list[Tile]) -> Tile | None:
    """The first allowed tile of the smallest rank of a list."""
    found = [one for one in tiles if one in allowed and ranks[one.cohort] is not None]
    first = min(found, key=lambda one: ranks[one.cohort], default=None)
    tiles[:] = [one for one in tiles if one is not first]
    return first


@given(some.text(COHORTS, max_size=12), STEPS)
def test_queues_act_like_a_list(plan: str, steps: list[tuple[str, Any]]) -> None:
    tiles = [tile(cohort, i) for i, cohort in enumerate(plan)]
    waiting, plain, away = WaitingTiles(tiles), list(tiles), list[Tile]()
    for step, chance in steps:
        if step == "take":
            allowed = chance.sample(tiles, chance.randint(0, len(tiles)))
            ranks = {cohort: chance.choice([0, 1, None]) for cohort in COHORTS}
            found = waiting.take(ranks.__getitem__, allowed.__contains__)
            assert found is taken(plain, ranks, allowed)
            away += [found] if found is not None else []
        elif step == "put":
            waiting.put_first(away)
            plain, away = [*away, *plain], []
        elif step == "remove" and plain:
            gone = chance.choice(plain)
            waiting.remove(gone)
            waiting.remove(gone)
            plain.remove(gone)
        elif step == "cohort":
            gone = chance.choice(COHORTS)
            waiting.remove_cohort(gone)
            plain = [one for one in plain if one.cohort != gone]
        assert len(waiting) == len(plain)
