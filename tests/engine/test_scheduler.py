"""Which device does what, and what is told of it."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from relu_study.engine import compilation, scheduler
from relu_study.engine.places import places
from relu_study.engine.plan import Tile
from relu_study.engine.work import Finished, Work, assign_devices

pytestmark = pytest.mark.skipif(len(jax.devices()) != 2, reason="two devices meet")


@pytest.fixture
def a_place_per_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places as on accelerators."""
    monkeypatch.setattr(scheduler, "places", jax.devices)


def tile(cohort: str, steps: int) -> Tile:
    return Tile(cohort, 2, (), steps, 1)


def cost(tile: Tile) -> float:
    return float(tile.steps)


def carried_out(tiles: list[Tile], start: Callable[..., Any], fallback: Any = None) -> list[Finished[Any, Any]]:
    work = Work(tiles, cost, start, lambda made: made, lambda tile: set(), lambda key: None)
    return list(scheduler.finished(work, fallback))


@given(some.lists(some.tuples(some.sampled_from("abcdefgh"), some.integers(1, 100)), min_size=1), some.integers(1, 5))
def test_device_loads_are_equal_to_within_a_cohort(tiles: list[tuple[str, int]], devices: int) -> None:
    planned = [tile(*one) for one in tiles]
    homes = assign_devices(planned, cost, devices)
    assert homes == assign_devices(planned, cost, devices) and set(homes) == {one.cohort for one in planned}
    costs, load = Counter[str](), Counter[int](dict.fromkeys(range(devices), 0))
    for one in planned:
        costs[one.cohort] += one.steps
        load[homes[one.cohort]] += one.steps
    assert max(load.values()) - min(load.values()) <= max(costs.values())


@pytest.mark.usefixtures("a_place_per_device")
def test_cohort_starts_on_its_assigned_device() -> None:
    """Else a study that is carried out again compiles what JAX's cache has for the other device."""
    first, together = jax.devices()[0], threading.Barrier(2, timeout=60)

    def start(tile: Tile, device: Any, wanted: Any) -> int:
        together.wait()
        time.sleep(0.02 if device == first else 0)
        return int(device.id)

    tiles = [tile(cohort, 10) for cohort in "abcdefghij"]
    done = carried_out(tiles, start)
    assert {one.tile.cohort: one.place for one in done} == assign_devices(tiles, cost, 2)
    assert all(one.place == one.numbers for one in done)


def test_idle_device_helps_a_started_cohort() -> None:
    together = threading.Barrier(2, timeout=60)

    def start(tile: Tile, device: Any, wanted: Any) -> int:
        if tile.cohort == "a":
            together.wait()
        return int(device.id)

    done = carried_out([tile("a", 10), tile("a", 10), tile("b", 1)], start)
    assert {one.place for one in done if one.tile.cohort == "a"} == {0, 1}


@pytest.mark.usefixtures("a_place_per_device")
def test_idle_device_prefers_an_unstarted_cohort() -> None:
    """The second device is held up by the first tile of `b`: the other takes `c` from it before more of `b`."""
    begun, taken, mine = threading.Event(), threading.Event(), list[str]()
    tiles = [tile("a", 10), tile("a", 10), tile("b", 6), tile("b", 6), tile("c", 5)]
    assert assign_devices(tiles, cost, 2) == {"a": 0, "b": 1, "c": 1}

    def start(tile: Tile, device: Any, wanted: Any) -> int:
        if tile.cohort == "c":
            taken.set()
        if device.id == 0:
            mine.append(tile.cohort)
            assert begun.wait(60)
        else:
            begun.set()
            assert taken.wait(60)
        return int(device.id)

    carried_out(tiles, start)
    assert mine[:3] == ["a", "a", "c"]


def test_places_of_a_cpu_share_a_program() -> None:
    """Two threads call one program at the same time: it is traced and compiled once."""
    heard, together = Counter[str](), threading.Barrier(2, timeout=60)

    def on_duration(event: str, duration: float, fun_name: str = "", **_: object) -> None:
        heard[event.rpartition("/")[2]] += fun_name.removeprefix("jit(").removesuffix(")") == "shared"

    def shared(x: Any) -> Any:
        return x + 1.0

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    program = compilation.TracedOnce(shared)

    def start(tile: Tile, device: Any, wanted: Any) -> Any:
        together.wait()
        return program(jax.device_put(np.float32(tile.steps), device))

    done = carried_out([tile("a", 1), tile("a", 2)], start)
    assert {one.place for one in done} == {0, 1} and {float(one.numbers) for one in done} == {2.0, 3.0}
    assert heard["jaxpr_trace_duration"] == heard["backend_compile_duration"] == 1, heard


def test_tiles_on_one_cpu_device_run_at_the_same_time() -> None:
    meet = threading.Barrier(2, timeout=60)  # broken unless two executions are inside

    def inside(x: Any) -> Any:
        if x:
            meet.wait()
        return x

    program = compilation.TracedOnce(lambda x: jax.pure_callback(inside, jax.ShapeDtypeStruct((), jnp.float32), x))
    first, second = places()
    program(jax.device_put(np.float32(0), first))  # compiled
    with ThreadPoolExecutor() as pool:
        calls = [pool.submit(program, jax.device_put(np.float32(x), place)) for x, place in ((1, first), (2, second))]
        assert [float(call.result()) for call in calls] == [1, 2] and first is second


def test_waiting_for_a_trace_counts_as_compile_time() -> None:
    """Two devices ask for one program at once: one traces, and neither could work meanwhile."""

    def slow(x: Any) -> Any:
        time.sleep(0.75)  # so that whoever comes late still waits half a second
        return x + 1.0

    program, together = compilation.TracedOnce(slow), threading.Barrier(2, timeout=60)

    def start(tile: Tile, device: Any, wanted: Any) -> Any:
        together.wait()
        return program(jax.device_put(1.0, device))

    assert all(one.compiling > 0.5 for one in carried_out([tile("a", 1), tile("a", 1)], start))


def test_serially_retried_tile_reports_its_compile_time() -> None:
    """It did not fit beside others: the first device makes it at the end."""
    tries = itertools.count()

    def start(tile: Tile, device: Any, wanted: Any) -> int:
        if next(tries) < 1:
            raise MemoryError
        return int(jax.jit(lambda x: x + tile.steps)(jax.device_put(device.id, device)))

    class Settled:
        def retile(self, tiles: Any, why: str) -> None:
            return None

        def give_up(self, tiles: Any, why: str) -> None:
            raise AssertionError(why)

        def crash(self, tiles: Any, why: str) -> None:
            raise AssertionError(why)

    (one,) = carried_out([tile("a", 7)], start, Settled())
    assert (one.place, one.numbers) == (0, 7) and one.compiling > 0


def test_compile_time_is_reported_with_its_tile() -> None:
    began = time.perf_counter()

    def start(tile: Tile, device: Any, wanted: Any) -> Any:
        program = jax.jit(lambda x: jnp.sin(x) * tile.steps) if tile.cohort == "new" else int
        return program(jax.device_put(1.0, device))

    told = {one.tile.cohort: one.compiling for one in carried_out([tile("new", 2), tile("old", 1)], start)}
    assert 0 < told["new"] < time.perf_counter() - began and told["old"] == pytest.approx(0, abs=1e-3)
