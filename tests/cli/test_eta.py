"""Estimated time left on simulated sequences of tiles: within 20 % of the true end after the first tiles."""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from tiers import tiered

from relu_study.cli import progress
from relu_study.cli.eta import EtaEstimator
from relu_study.cli.progress import Progress
from relu_study.engine import plan as planning
from relu_study.engine.plan import Plan, RunCost, Tile
from relu_study.runner.worker import Answer
from relu_study.runner.worker_account import Accounts
from relu_study.study.run_spec import RunSpec


class Machine(NamedTuple):
    """A simulated machine: seconds per unit of cost (`rate`), and compile seconds per layer of a cohort (`compiling`)."""

    devices: int
    rate: float
    compiling: float
    slower: Mapping[str, float] = MappingProxyType({})  # cohort -> factor on its cost

    def history(self, plan: Plan) -> Iterator[tuple[Any, float, int, float]]:
        """Every tile in the order of storing, with the time, the device and the compile seconds.

        Devices take tiles as in `scheduler`: of a compiled cohort, else of an unstarted one, else of any.
        No cohort is assigned to a device.
        """
        todo, started = list(plan.tiles), set[str]()
        compiled: list[set[str]] = [set() for _ in range(self.devices)]
        free = [(0.0, device) for device in range(self.devices)]
        stored: list[tuple[float, int, Any, int, float]] = []
        while todo:
            now, device = heapq.heappop(free)
            candidates = [t for t in todo if t.cohort in compiled[device]] or [t for t in todo if t.cohort not in started] or todo
            todo.remove(tile := candidates[0])
            started.add(tile.cohort)
            compile_seconds = 0.0
            if tile.cohort not in compiled[device]:
                compiled[device].add(tile.cohort)
                compile_seconds = self.compiling * plan.work[tile.cohort].layers
            now += compile_seconds + self.rate * self.slower.get(tile.cohort, 1.0) * plan.cost(tile)
            stored.append((now, len(stored), tile, device, compile_seconds))
            heapq.heappush(free, (now, device))
        for now, _, tile, device, compile_seconds in sorted(stored):
            yield tile, now, device, compile_seconds


def planned(cohorts: int, runs: int, devices: int, same: bool = True) -> Plan:
    """Cohorts of `runs` runs each in tiles of four: all of the `same` cost, or of growing size and depth."""
    specs = [RunSpec(depth=i + 1, epochs=2, seed=seed) for i in range(cohorts) for seed in range(runs)]

    def work(spec: RunSpec) -> RunCost:
        size = 1 if same else spec.depth
        return RunCost(str(spec.depth), "", 1000, 10**6 * size, batch=32, scratch=1, data=1, layers=4 + size)

    return planning.plan(specs, work, {str(i + 1): 4 for i in range(cohorts)}, devices, "cpu")


FAST = [
    (1, 400, 1, True),
    (1, 400, 2, True),
    (3, 80, 2, False),
    (24, 40, 2, False),
    (300, 4, 2, True),  # 300 programs with one tile each: mostly compilation
    (2, 20, 4, True),
]


@pytest.mark.parametrize(("cohorts", "runs", "devices", "same"), tiered([*FAST, (300, 4, 8, True), (40, 40, 16, False)], *FAST))
@pytest.mark.parametrize("compiling", tiered([0.0, 0.02, 0.6], 0.6), ids=["warm", "some", "mostly"])
def test_end_is_estimated_within_20_percent(cohorts: int, runs: int, devices: int, same: bool, compiling: float) -> None:
    plan, machine = planned(cohorts, runs, devices, same), Machine(devices, 37.0, compiling)
    forecast = EtaEstimator(plan)
    assert math.isnan(forecast.seconds(5.0)), "no estimate before the first tile"
    history = list(machine.history(plan))
    end = history[-1][1]
    first = max(2 * devices, len(history) // 10)
    for i, (tile, now, *how) in enumerate(history, 1):
        forecast.stored(tile, now, *how)
        if i >= first:
            assert now + forecast.seconds(now) == pytest.approx(end, rel=0.2), f"after {i} of {len(history)} tiles"
    assert forecast.seconds(end) == 0


@pytest.mark.parametrize("slower", [{"1": 3.0}, {"3": 0.3}, {"1": 2.0, "2": 0.5}])
def test_cohort_has_its_own_rate(slower: dict[str, float]) -> None:
    """The rate of a cohort comes from its own tiles: an activation may be three times as slow as another."""
    plan, machine = planned(4, 80, 2), Machine(2, 37.0, 0.6, slower)
    forecast, seen = EtaEstimator(plan), set[str]()
    history = list(machine.history(plan))
    end, checked = history[-1][1], 0
    for tile, now, *how in history:
        forecast.stored(tile, now, *how)
        seen.add(tile.cohort)
        if len(seen) == 4:
            assert now + forecast.seconds(now) == pytest.approx(end, rel=0.1)
            checked += 1
    assert checked > 20


def test_device_without_work_compiles_another_cohort() -> None:
    """The estimate includes compiling the large cohort on the device that has finished the small one."""
    plan, machine = planned(2, 80, 2, same=False), Machine(2, 37.0, 60.0)
    forecast, history = EtaEstimator(plan), list(machine.history(plan))
    end = history[-1][1]
    (tile, now, *how), *_ = history
    forecast.stored(tile, now, *how)
    assert tile.cohort == "1" and now + forecast.seconds(now) == pytest.approx(end, rel=0.1)


def test_last_tile_counts_as_a_full_round() -> None:
    """Five tiles on four devices take two rounds, not one and a quarter."""
    plan = planned(1, 20, 4)
    forecast = EtaEstimator(plan)
    for device, tile in enumerate(plan.tiles[:4]):
        forecast.stored(tile, 10.0, device, 0.0)
    assert forecast.seconds(10.0) == pytest.approx(10.0)
    assert forecast.seconds(14.0) == pytest.approx(6.0), "time passes on a tile in flight"
    assert forecast.seconds(30.0) == 0, "overdue"


def test_narrower_tiles_replace_planned_tiles() -> None:
    plan = planned(1, 40, 1)
    forecast = EtaEstimator(plan)
    *first, last = plan.tiles
    for i, tile in enumerate(first, 1):
        forecast.stored(tile, 10.0 * i, 0, 0.0)
    whole = forecast.seconds(90.0)
    cut = plan.halve([last])
    assert cut is not None and [tile.width for tile in cut] == [2, 2]
    forecast.retile([last], cut)
    assert forecast.seconds(90.0) == pytest.approx(whole, rel=0.1)
    for i, tile in enumerate(cut, 1):
        forecast.stored(tile, 90 + 5.0 * i, 0, 0.0)
    assert forecast.seconds(100.0) == 0


def test_progress_prints_the_estimate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plan, machine, now = planned(24, 8, 2), Machine(2, 37.0, 2.0), [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    history = list(machine.history(plan))
    with Progress() as bar:
        bar.on_start(plan, 0)
        for tile, when, *how in history:
            now[0] = 100 + when
            bar.on_tile_end(tile, *how, 0.5)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 5 and lines[-1] == "192/192 runs, 50.0% dead, 0 s left"
    end, left = history[-1][1], [float(line.split(", ")[-1].split()[0]) for line in lines]
    assert left == sorted(left, reverse=True) and left[0] > 0.8 * (end - history[0][1])


def test_the_note_has_the_workers_of_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    """Few workers are named; of many, the sum and the slowest. Deaths and recompilations follow."""
    plan, accounts = planned(4, 8, 2), Accounts()
    first, second, third, *_ = plan.tiles

    def tell(tile: Tile) -> None:
        bar._last_note = float("-inf")
        bar.on_tile_end(tile, 0, 0.0, 0.5)

    with Progress() as bar:
        bar.on_start(plan, 0)
        bar.on_workers(accounts)
        for name, seconds in (("a-1", first.size / 2), ("b-1", first.size)):
            accounts.open(name, 1)
            accounts.add(name, first, Answer("numbers", None, 0.0, seconds))
        tell(first)
        accounts.end("a-1")
        for i in range(4):
            accounts.open(f"n{i}-1", 1)
            accounts.add(f"n{i}-1", second, Answer("numbers", None, 1.0, second.size / (2 + i), 3))
        tell(second)
        accounts.add("b-1", second, Answer("numbers", None, 0.0, 0.0))
        tell(third)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(" s left, a-1 2.0/s, b-1 1.0/s")
    assert lines[1].endswith(" s left, 5 workers 15.0/s, the slowest b-1 1.0/s, ended early: 1, recompiled programs: 9")
    assert lines[2].endswith("recompiled programs: 9"), "no program, no recompilation"
    summary = accounts.summary("runs")
    assert summary[0].endswith("0 programs compiled or read from the cache in 0.0 s, ended early")
    assert summary[3].endswith("3 programs compiled or read from the cache in 1.0 s, 3 recompiled")
    assert ": 1 tile, " in summary[3] and not any(re.search(r"\b1 (tiles|runs|draws|programs)\b", line) for line in summary)
    assert summary[-1] == "6 workers in all, repeated tiles included, ended early: 1, recompiled programs: 9"


def test_manifest_time_gives_the_time_of_missing_runs() -> None:
    runs = [RunSpec(depth=depth, epochs=2, seed=seed) for depth in (1, 2) for seed in range(40)]

    def work(spec: RunSpec) -> RunCost:
        return RunCost(str(spec.depth), "", 1000, 10**6, batch=32, scratch=1, data=1, layers=5)

    def plan_of(missing: Any) -> Plan:
        return planning.plan(runs, work, {"1": 4, "2": 4}, 2, "gpu", missing=missing)

    third = plan_of(lambda run: run.depth == 2 or run.seed >= 20)
    assert third.seconds_at({"wall_s": 55.0, "compile_s": 10.0}) == pytest.approx((3 * 100 + 10) / 2, rel=0.02)
    assert plan_of(lambda run: False).seconds_at({"wall_s": 55.0, "compile_s": 10.0}) == 0
    assert plan_of(lambda run: True).seconds_at({}) is None
