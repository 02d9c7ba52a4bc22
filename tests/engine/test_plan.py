"""How runs become tiles, by hand: widths by their rule, tiles of one cohort and length, the missing runs only."""

from __future__ import annotations

from typing import Any

import pytest

from relu_study.engine import plan
from relu_study.study.run_spec import RunSpec

SHORT = RunSpec(epochs=2)
RULE = plan.WidthLimits(least=2, most=16, scratch=1000)  # not the measured one: tuning that moves no test


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "WIDTH_LIMITS", {"cpu": RULE, "gpu": plan.WidthLimits(2, 64, 10**6)})


def work(run: RunSpec) -> plan.RunCost:
    """A cohort an activation, ten steps an epoch; tanh costs a hundred times as much."""
    flops = 10**9 if run.activation == "tanh" else 10**7
    return plan.RunCost(run.activation, run.activation, int(10 * run.epochs), flops, batch=1, scratch=1, data=1)


def seeds(spec: RunSpec, count: int) -> list[RunSpec]:
    return [spec.replace(seed=seed) for seed in range(count)]


def planned(runs: list[RunSpec], widths: dict[str, int] | None = None, **options: Any) -> plan.Plan:
    return plan.plan(runs, work, widths or {}, devices=2, platform="cpu", **options)


@pytest.mark.parametrize(
    ("scratch", "runs", "wide"),
    [
        (1, 1, 2),  # never below the least
        (1, 2, 2),
        (1, 3, 4),  # the next power of two
        (1, 4, 4),
        (1, 9, 16),
        (1, 1000, 16),  # never above the most
        (125, 1000, 8),  # 8 x 125 is just within the budget
        (126, 1000, 4),
        (10**6, 1000, 2),  # the least, whatever it takes
    ],
)
def test_width_follows_its_limits(scratch: int, runs: int, wide: int) -> None:
    asked = work(SHORT)._replace(scratch=scratch)
    assert plan.width(asked, runs, "cpu") == plan.width(asked, runs, "an unknown device") == wide


def test_width_depends_on_the_device_kind() -> None:
    assert plan.width(work(SHORT), 1000, "gpu") == 64


def test_tiles_have_one_cohort_and_length() -> None:
    short, long = seeds(SHORT, 5), seeds(SHORT.replace(epochs=3), 3)
    tanh = seeds(SHORT.replace(activation="tanh"), 1)
    made = planned([*tanh, *short, *long], {"relu": 2, "tanh": 4})
    of = {cohort.name: cohort for cohort in made.cohorts}
    assert list(of) == ["tanh", "relu"], "in declared order"
    assert [t.runs for t in of["relu"].tiles] == [
        *(tuple(short[i : i + 2]) for i in (0, 2, 4)),
        *(tuple(long[i : i + 2]) for i in (0, 2)),
    ]
    assert [t.steps for t in of["relu"].tiles] == [20, 20, 20, 30, 30]
    assert [t.width for t in of["relu"].tiles] == [2] * 5, "the last one too is padded to the width"
    assert [(t.cohort, t.width, t.runs, t.steps) for t in of["tanh"].tiles] == [("tanh", 4, tuple(tanh), 20)]
    assert (of["relu"].runs, of["tanh"].runs) == (8, 1)


def test_tiles_minimise_datasets_and_inits() -> None:
    """Declared in any order, cut by target, then seed, initialiser and configuration: runs of the same data stay together."""
    he, lecun = SHORT.replace(initializer="he_normal"), SHORT.replace(initializer="lecun_normal")
    arms = [he, lecun.replace(target="sum"), lecun, he.replace(gain=2), he.replace(target="sum")]
    made = planned([arm.replace(seed=seed) for seed in (1, 0) for arm in arms], {"relu": 2})
    # he_normal was declared first, so it is first on `sum` as well.
    order = [he, he.replace(gain=2), lecun, he.replace(target="sum"), lecun.replace(target="sum")]
    runs = [arm.replace(seed=seed) for arms in (order[:3], order[3:]) for seed in (0, 1) for arm in arms]
    assert [run for t in made.cohorts[0].tiles for run in t.runs] == runs


@pytest.mark.parametrize(("gains", "width", "num_datasets"), [(1, 4, 4), (2, 4, 2), (4, 4, 1), (3, 4, 2), (3, 8, 4), (8, 4, 1)])
def test_runs_of_equal_data_and_seed_share_a_dataset(gains: int, width: int, num_datasets: int) -> None:
    """A power of two, the same for every tile of a cohort, so that they share one program."""
    runs = [run for gain in range(1, gains + 1) for run in seeds(SHORT.replace(gain=gain), 8)]
    (cohort,) = planned(runs, {"relu": width}).cohorts
    assert {t.num_datasets for t in cohort.tiles} == {num_datasets}
    assert cohort.bytes() == num_datasets * 1 + width * 1
    longer = seeds(SHORT.replace(epochs=3), 8)  # of one length, each reads its own; the others' tiles are as they were
    (mixed,) = planned([*runs, *longer], {"relu": width}).cohorts
    assert {(t.steps, t.num_datasets) for t in mixed.tiles} == {(20, num_datasets), (30, width)}


def test_tiles_with_many_datasets_share_none() -> None:
    runs = [run for gain in range(1, 5) for run in seeds(SHORT.replace(gain=gain), 4)]
    (cohort,) = planned([*runs, *seeds(SHORT.replace(inputs="centred"), 8)], {"relu": 4}).cohorts
    assert [(len({run.seed for run in t.runs}), t.num_datasets) for t in cohort.tiles] == [(1, 1)] * 4 + [(4, 4)] * 2
    assert cohort.bytes() == 4 * 1 + 4 * 1, "of the largest tile"


def test_total_number_of_datasets_is_minimal() -> None:
    runs = [run for gain in range(1, 21) for run in seeds(SHORT.replace(gain=gain), 16)]
    (cohort,) = planned(runs, {"relu": 32}).cohorts
    assert {len({run.seed for run in t.runs}) for t in cohort.tiles} == {2, 3}, "of twenty arms a tile reads two seeds or three"
    assert {t.num_datasets for t in cohort.tiles} == {4}


def test_width_depends_on_all_runs_and_stays_fixed() -> None:
    runs = [*seeds(SHORT, 5), *seeds(SHORT.replace(epochs=3), 4)]
    (cohort,) = planned(runs).cohorts
    assert cohort.width == 8, "five of one length, not nine in all"
    assert [len(t.runs) for t in cohort.tiles] == [5, 4]
    (few,) = planned(runs, missing=lambda run: run.seed == 4).cohorts
    assert few.width == 8, "what is stored already counts too"
    (kept,) = planned(seeds(SHORT, 100), {"relu": 4}).cohorts
    assert kept.width == 4 and [len(t.runs) for t in kept.tiles] == [4] * 25


def test_only_missing_runs_are_planned() -> None:
    runs = [*seeds(SHORT, 6), *seeds(SHORT.replace(activation="tanh"), 2)]
    made = planned(runs, {"relu": 2}, missing=lambda run: run.activation == "relu" and run.seed % 2 == 1)
    assert [t.runs for t in made.tiles] == [(runs[1], runs[3]), (runs[5],)]
    assert [(c.name, c.runs, len(c.tiles)) for c in made.cohorts] == [("relu", 3, 2), ("tanh", 0, 0)]
    nothing = planned(runs, missing=lambda run: False)
    assert nothing.tiles == [] and nothing.seconds() == 0


def test_costliest_tiles_come_first() -> None:
    runs = [run for epochs in (2, 5, 3) for run in seeds(SHORT.replace(epochs=epochs), 2)]
    runs += [run.replace(activation="tanh") for run in runs[:4]]
    made = planned(runs)
    assert [(t.cohort, t.steps) for t in made.tiles] == [("tanh", 50), ("tanh", 20), ("relu", 50), ("relu", 30), ("relu", 20)]
    total = sum(plan.seconds(t, work(t.runs[0])) for t in made.tiles)
    assert made.seconds() == pytest.approx(total / 2), "on two devices"
    assert plan.plan(runs, work, {}, 1, "gpu").seconds() is None, "not measured there"
