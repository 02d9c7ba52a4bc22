"""The tile width of a cohort from measured rates."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import pytest

from relu_study.engine import compilation, plan, width_search
from relu_study.engine.plan import Cohort, RunCost, Tile
from relu_study.engine.state import MeasureConfig
from relu_study.study.run_spec import RunSpec

MIB = 1 << 20
SPEC = RunSpec(rows=600, batch_size=32, width=8, optimizer="sgd")


def cohort(runs: int, wide: int, **sizes: int) -> Cohort:
    """A cohort whose runs have a memory of 1 MiB each."""
    cost = RunCost("one", "one", 10, 1, 32, 0, 0, **{"state": MIB, **sizes})
    platform_plan = plan.plan([SPEC.replace(seed=seed) for seed in range(runs)], lambda run: cost, {"one": wide}, 1, "gpu")
    return platform_plan.cohorts[0]


def chosen(rates: dict[int, float | None], memory: int | None = None, wide: int = 64) -> tuple[int, list[int]]:
    """The chosen width, and the tried widths in their order. A rate of None runs out of memory."""
    tried: list[int] = []

    def rate(tile: Tile) -> float:
        tried.append(tile.width)
        assert tile.size == tile.width, "a full tile"
        if rates[tile.width] is None:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1600000000 bytes.")
        return rates[tile.width] or 0.0

    width, measured = width_search.fastest_width(cohort(100, wide), "gpu", memory, rate)
    assert measured == {width: rates[width] for width in tried if rates[width] is not None}
    return width, tried


@pytest.mark.parametrize(
    ("rates", "wide", "tried"),
    [
        ({64: 100.0, 32: 50.0}, 64, [64, 32]),
        ({64: 100.0, 32: 98.0, 16: 97.0, 8: 96.0}, 16, [64, 32, 16, 8]),
        ({64: 100.0, 32: 110.0, 16: 107.0, 8: 90.0}, 16, [64, 32, 16, 8]),
        ({64: 100.0, 32: 120.0, 16: 130.0, 8: 140.0}, 8, [64, 32, 16, 8]),
        ({64: None, 32: 100.0, 16: 50.0}, 32, [64, 32, 16]),
        (dict.fromkeys((64, 32, 16, 8, 4, 2)), 2, [64, 32, 16, 8, 4, 2]),
    ],
)
def test_the_narrowest_width_within_the_tolerance(rates: dict[int, Any], wide: int, tried: list[int]) -> None:
    assert chosen(rates) == (wide, tried)


def test_two_tiles_fit_into_the_memory() -> None:
    assert chosen({32: 100.0, 16: 50.0}, memory=64 * MIB) == (32, [32, 16])
    assert chosen({2: 100.0}, memory=1) == (2, [2])


def test_another_error_is_not_a_lack_of_memory() -> None:
    def rate(tile: Tile) -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        width_search.fastest_width(cohort(100, 64), "gpu", None, rate)


def test_only_new_cohorts_of_several_tiles_on_an_accelerator_are_provisional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "WIDTH_LIMITS", dict.fromkeys(("cpu", "gpu", "tpu"), plan.WidthLimits(2, 8, 1 << 30)))

    def provisional(runs: int, platform: str, steps: int = 10, **widths: int) -> bool:
        cost = RunCost("one", "one", steps, 1, 32, 0, 0)
        planned = plan.plan([SPEC.replace(seed=seed) for seed in range(runs)], lambda run: cost, widths, 1, platform)
        (only,) = planned.cohorts
        assert planned.table()[1][3] == ("up to 8" if only.provisional else "8")
        return only.provisional

    assert provisional(9, "gpu") and provisional(9, "tpu")
    assert not provisional(9, "cpu") and not provisional(9, "an unknown device")
    assert not provisional(8, "gpu") and not provisional(9, "gpu", one=8) and not provisional(9, "gpu", steps=0)


def test_a_measured_width_keeps_the_runs_and_their_order() -> None:
    before = plan.Plan([cohort(100, 64)], 1, "gpu")
    after = before.with_width("one", 16)
    assert [tile.width for tile in after.cohorts[0].tiles] == [16] * 7 and after.cohorts[0].width == 16
    assert [run for tile in after.cohorts[0].tiles for run in tile.runs] == [SPEC.replace(seed=seed) for seed in range(100)]


def test_steps_per_second_of_a_short_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = itertools.accumulate([0, 9, 0, 4, 0, 2, 0, 5])  # begin and end of the compilation and of three pieces
    stops: list[int] = []

    def advance(state: Any, train: Any, seeds: Any, hparams: Any, epoch: Any, start: Any, stop: Any, *rest: Any) -> Any:
        stops.append(int(stop))
        return state

    real = compilation.tile_programs

    def spied(*arguments: Any) -> compilation.Programs:
        return compilation.Programs(advance, *[getattr(real(*arguments), name) for name in ("measure", "init_optimizer")])

    monkeypatch.setattr(compilation, "tile_programs", spied)
    tile = Tile("one", 4, tuple(SPEC.replace(seed=seed) for seed in range(3)), 14, 4)
    rate = width_search.steps_per_second(tile, measure_config=MeasureConfig(200, 100), clock=lambda: float(next(moments)))
    assert stops == [14] * 4 and rate == 4 * 14 / 2


@pytest.mark.slow
def test_measured_rates_are_positive() -> None:
    tile = Tile("one", 4, tuple(SPEC.replace(seed=seed) for seed in range(4)), 14, 4)
    assert width_search.steps_per_second(tile, measure_config=MeasureConfig(200, 100)) > 0
