"""Limits of seeds, draws and runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from relu_study import RunSpec, Study, UserError
from relu_study.study.draw_study import Draws
from relu_study.study.study import MAX_RUNS, Experiment

Here = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("seeds", [2**32 + 1, 5_000_000_000, 10**30])
def test_too_many_seeds_are_refused(seeds: int) -> None:
    with pytest.raises(UserError, match="seeds must be at most 2"):
        Study("many", "Many", "?", [Experiment("main", {"relu": RunSpec()})], seeds=seeds)
    with pytest.raises(UserError, match="draws must be at most 2"):
        Draws("many", "dead_unit", {"all": {}}, seeds)


def test_too_many_runs_are_refused_before_listing(here: Here) -> None:
    study = Study("many", "Many", "?", [Experiment("main", {"relu": RunSpec(), "tanh": RunSpec(activation="tanh")})])
    with pytest.raises(UserError, match=r"2 configurations make 800,000,000 runs.*at most 1,000,000 seeds"):
        study.with_preset(seeds=400_000_000)
    assert study.with_preset(seeds=MAX_RUNS // 2).seeds == MAX_RUNS // 2
    for verb in ("plan", "run"):
        for seeds in ("5000000000", "400000000"):
            status, _, said = here(verb, "article", "--seeds", seeds)
            assert status == 2 and said.count("\n") == 1 and "seeds" in said
