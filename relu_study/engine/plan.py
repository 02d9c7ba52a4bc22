"""Plan of a study: cohorts that share a program, divided into tiles of one width. Plain data, no JAX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

from relu_study.study.run_spec import RunSpec
from relu_study.study.shard import Shard

T = TypeVar("T")


class RunCost(NamedTuple):
    """Cost of one run of a spec: steps, arithmetic, memory, measurements."""

    cohort: str  # id of the shared program
    title: str  # readable name of the cohort
    steps: int  # of the whole run
    flops: int  # of one step
    batch: int
    scratch: int  # bytes that a run adds to the temporary memory of a program
    data: int  # bytes of the data that a run reads
    state: int = 0  # bytes of parameters, batch statistics and optimiser state
    layers: int = 1  # compile time is proportional to it
    num_measurements: int = 0  # measurements of a run
    measured_rows: int = 0  # examples read by each measurement
    sites: int = 1  # measured sites


class WidthLimits(NamedTuple):
    """Tile widths of a device kind: powers of two in [least, most] whose scratch memory stays within a budget."""

    least: int
    most: int
    scratch: int  # bytes


# On a CPU the steps of a tile should stay in a core's cache (measured: results/speed). An accelerator wants
# thousands of runs; its limits are not measured yet.
WIDTH_LIMITS = {"cpu": WidthLimits(2, 32, 4 << 20), "gpu": WidthLimits(2, 4096, 2 << 30), "tpu": WidthLimits(2, 4096, 2 << 30)}
MEASURED_PLATFORMS = frozenset({"gpu", "tpu"})  # here a cohort of several tiles gets its width by a measurement

COMPILING = 4.0  # approximate seconds to compile the programs of a cohort, charged to every shard that trains a part of it


@dataclass(frozen=True)
class Tile:
    """Up to `width` runs of one cohort and length, trained together on one device."""

    cohort: str
    width: int
    runs: tuple[RunSpec, ...]
    steps: int
    num_datasets: int  # in its program: runs with the same data and seed share one

    @property
    def size(self) -> int:
        """Number of runs."""
        return len(self.runs)

    @property
    def ids(self) -> list[str]:
        """The run_ids."""
        return [run.run_id for run in self.runs]


@dataclass(frozen=True)
class Cohort:
    """The runs that share one training program."""

    name: str
    work: RunCost
    width: int
    runs: int
    starts: Counter[Hashable]  # initial programs of its tiles -> number of tiles
    tiles: list[Tile] = field(default_factory=list)
    stored_cost: float = 0.0  # cost of its stored runs
    provisional: bool = False  # whether its width is an upper bound until it is measured

    def bytes(self) -> int:
        """Memory of its largest tile."""
        sets = max((tile.num_datasets for tile in self.tiles), default=self.width)
        return sets * self.work.data + self.width * (self.work.state + self.work.scratch)

    def with_width(self, wide: int) -> Cohort:
        """The cohort with its tiles at a measured width."""
        return replace(self, width=wide, tiles=retiled(self.tiles, wide), provisional=False)


@dataclass(frozen=True)
class Plan:
    """All tiles to train, by cohort."""

    cohorts: list[Cohort]
    devices: int
    platform: str
    noun: str = "runs"

    @property
    def tiles(self) -> list[Tile]:
        """All tiles, costliest first, so that devices finish together."""
        costs = [(seconds(t, c.work), t) for c in self.cohorts for t in c.tiles]
        return [tile for _, tile in sorted(costs, key=lambda cost: -cost[0])]

    def compilations(self) -> int:
        """Maximum number of compilations of the engine's programs, over all devices.

        Each cohort compiles `init_optimizer`, and `advance` and `measure` once per number of datasets.
        Several cohorts may share `init` and `sample`.
        """
        shared = sum((c.starts for c in self.cohorts), Counter())
        alike = Counter((c.name, tile.num_datasets) for c in self.cohorts for tile in c.tiles)
        compilers = 1 if self.platform == "cpu" else self.devices  # places of a CPU share their programs
        own = sum(2 * min(compilers, tiles) for tiles in alike.values())
        own += sum(min(compilers, len(c.tiles)) for c in self.cohorts)
        return own + sum(min(compilers, tiles) for tiles in shared.values())

    def cost(self, tile: Tile) -> float:
        """Relative cost of a tile: seconds on the reference CPU."""
        return seconds(tile, self.work[tile.cohort])

    @cached_property
    def work(self) -> dict[str, RunCost]:
        """The RunCost of each cohort."""
        return {cohort.name: cohort.work for cohort in self.cohorts}

    def compiling(self, tile: Tile) -> float:
        """Relative compile cost of the programs of a tile's cohort."""
        return float(self.work[tile.cohort].layers)

    def bytes(self) -> int:
        """Peak memory of the tiles in flight: twice the largest tile per device, since consecutive tiles overlap."""
        return 2 * self.devices * max((c.bytes() for c in self.cohorts), default=0)

    def seconds(self) -> float | None:
        """Expected training time in seconds without compilation; None on a platform that is not measured."""
        if self.platform != "cpu":
            return None
        return sum(seconds(t, c.work) for c in self.cohorts for t in c.tiles) / self.devices

    def seconds_at(self, timing: Mapping[str, float]) -> float | None:
        """Seconds to train the missing runs of a folder at the speed of its stored runs; None without such a speed.

        `timing` is the entry of the manifest: `wall_s`, and `compile_s` summed over devices.
        """
        stored_cost = sum(cohort.stored_cost for cohort in self.cohorts)
        training = self.devices * timing.get("wall_s", 0.0) - timing.get("compile_s", 0.0)
        if not stored_cost or training <= 0:
            return None
        started = [cohort for cohort in self.cohorts if cohort.stored_cost]
        unstarted = [cohort for cohort in self.cohorts if not cohort.stored_cost and cohort.tiles]
        layers = sum(cohort.work.layers for cohort in started)
        compiling = timing["compile_s"] * sum(cohort.work.layers for cohort in unstarted) / layers
        return (training / stored_cost * sum(self.cost(tile) for tile in self.tiles) + compiling) / self.devices

    def table(self) -> list[tuple[str, ...]]:
        """Rows of text, one per cohort, below a header."""
        rows: list[tuple[str, ...]] = [("cohort", "program", "runs", "width", "tiles", "steps per run", "MiB per tile")]
        for cohort in self.cohorts:
            steps = sorted({tile.steps for tile in cohort.tiles}) or [cohort.work.steps]
            span = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,}-{steps[-1]:,}"
            wide = f"up to {cohort.width}" if cohort.provisional else str(cohort.width)
            counts = f"{cohort.runs:,}", wide, f"{len(cohort.tiles):,}"
            rows.append((cohort.name, cohort.work.title, *counts, span, f"{cohort.bytes() / 2**20:.0f}"))
        return rows

    def totals(self, stored: int, timing: Mapping[str, float], memory: str = "") -> str:
        """The totals in words, with `memory` inserted. `timing` is the entry of the folder's manifest."""
        at_this_speed, estimate = self.seconds_at(timing), self.seconds()
        if at_this_speed is not None:
            duration = f"about {at_this_speed:,.0f} s at the speed of the stored runs"
        elif estimate is not None:
            duration = f"about {estimate:,.0f} s of training"
        else:
            duration = "time: unknown on this device until its first tiles are done"
        return (
            f"{_counted(sum(c.runs for c in self.cohorts), 'run')} to train ({stored:,} stored) in "
            f"{_counted(len(self.cohorts), 'cohort')} and {_counted(len(self.tiles), 'tile')} on "
            f"{_counted(self.devices, f'{self.platform} device')}; about {_counted(self.compilations(), 'compilation')}; "
            f"about {self.bytes() / 2**20:,.0f} MiB of tiles in flight; {memory}{duration}"
        )

    def halve(self, tiles: Sequence[Tile]) -> list[Tile] | None:
        """The same runs in tiles of half the width; None if the width is the minimum of the platform."""
        wide = tiles[0].width // 2
        return None if wide < WIDTH_LIMITS.get(self.platform, WIDTH_LIMITS["cpu"]).least else retiled(tiles, wide)

    def with_width(self, name: str, wide: int) -> Plan:
        """The plan with the tiles of one cohort at a measured width."""
        return replace(self, cohorts=[c.with_width(wide) if c.name == name else c for c in self.cohorts])

    def describe(self, tile: Tile) -> str:
        """The cohort of a tile, in words."""
        return f"cohort {tile.cohort} ({self.work[tile.cohort].title})"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def seconds(tile: Tile, work: RunCost) -> float:
    """Expected seconds of a tile on one Zen 4 core: fixed + per example + arithmetic + per example fetched.

    A measured example takes as long as a training example. Each site adds 0.5 ms, and each measurement 3 ms.
    """
    fetched = tile.num_datasets * work.batch
    training = tile.steps * (tile.width * (5e-7 + 11e-9 * work.batch + work.flops / 62e9) + 27e-9 * fetched)
    measuring = tile.width * (work.measured_rows * (11e-9 + work.flops / work.batch / 62e9) + 5e-4 * work.sites)
    return training + work.num_measurements * (measuring + 3e-3)


def width(work: RunCost, runs: int, platform: str) -> int:
    """The tile width of a cohort with at most `runs` runs of one length."""
    limits = WIDTH_LIMITS.get(platform, WIDTH_LIMITS["cpu"])
    wide = limits.least
    while wide * 2 <= limits.most and wide * 2 * work.scratch <= limits.scratch and wide < runs:
        wide *= 2
    return wide


def shard_tiles(work: Iterable[tuple[T, str, float]], shard: Shard) -> list[T]:
    """The tiles of one shard: a contiguous part of `work`, the (tile, cohort, seconds) of all tiles, cohort by cohort.

    All shards take the same time to within a tile, compilation included.
    With contiguous parts, N shards compile at most N - 1 cohorts more than one process. A cyclic assignment would make
    every shard compile every cohort.
    """
    work, compiled = list(work), set[str]()
    costs = []
    for _, cohort, cost in work:
        costs.append(cost + (0 if cohort in compiled else COMPILING))
        compiled.add(cohort)
    total, before, part = sum(costs), 0.0, []
    for (tile, _, _), cost in zip(work, costs, strict=True):
        if min(int((before + cost / 2) / total * shard.of), shard.of - 1) == shard.number - 1:
            part.append(tile)
        before += cost
    return part


def plan(
    runs: Sequence[RunSpec],
    work: Callable[[RunSpec], RunCost],
    widths: Mapping[str, int],
    devices: int,
    platform: str,
    missing: Callable[[RunSpec], bool] = lambda run: True,
    stored: Callable[[RunSpec], bool] | None = None,
    starts: Callable[[RunSpec], Iterable[Hashable]] = lambda run: (run.marked("init"), run.marked("data")),
) -> Plan:
    """Divide the `missing` runs into tiles. Cohorts in `widths` keep their width.

    On an accelerator, the width of a new cohort of more runs than one tile is provisional: `width_search.py` measures it.

    `stored` selects the runs whose cost is already paid (default: all that are not missing). For a shard, a run may be
    neither missing nor stored.
    `starts` names the initial programs of a run. Tiles of different width or number of datasets never share one.
    Runs of a cohort are ordered by length, data, seed and start. A tile then reads few datasets, and an interrupted sweep
    has similar numbers of seeds of all configurations on the same data.
    """
    groups: dict[str, list[RunSpec]] = {}
    for run in runs:
        groups.setdefault(work(run).cohort, []).append(run)
    cohorts = []
    for name, members in groups.items():
        cost, most = work(members[0]), max(Counter(run.epochs for run in members).values())
        wide = widths.get(name) or width(cost, most, platform)
        provisional = name not in widths and platform in MEASURED_PLATFORMS and most > wide and cost.steps > 0
        todo = [run for run in members if missing(run)]
        rank: dict[object, int] = {}

        def order(run: RunSpec, rank: dict[object, int] = rank) -> tuple[int, ...]:
            length, data, start, config = (
                rank.setdefault(key, len(rank)) for key in (run.epochs, run.marked("data"), run.marked("init"), run.config_id)
            )
            return length, data, run.seed, start, config

        tiles, stored_tiles = (
            make_tiles(name, sorted(some, key=order), wide, lambda run: work(run).steps)
            for some in (todo, [run for run in members if (stored(run) if stored else not missing(run))])
        )
        initial: Counter[Hashable] = Counter(
            (wide, tile.num_datasets, key) for tile in tiles for key in {key for run in tile.runs for key in starts(run)}
        )
        stored_cost = sum(seconds(tile, cost) * tile.size / wide for tile in stored_tiles)
        cohorts.append(Cohort(name, cost, wide, len(todo), initial, tiles, stored_cost, provisional))
    return Plan(cohorts, devices, platform)


def make_tiles(cohort: str, runs: Iterable[RunSpec], wide: int, steps: Callable[[RunSpec], int]) -> list[Tile]:
    """Tiles of `wide` runs of one cohort and length, in the given order."""
    tiles = []
    by_length: dict[float, list[RunSpec]] = {}
    for run in runs:
        by_length.setdefault(run.epochs, []).append(run)
    for same in by_length.values():
        parts = [tuple(same[i : i + wide]) for i in range(0, len(same), wide)]
        tiles += [
            Tile(cohort, wide, part, steps(part[0]), num_datasets)
            for part, num_datasets in zip(parts, dataset_counts(parts, wide), strict=True)
        ]
    return tiles


def retiled(tiles: Sequence[Tile], wide: int) -> list[Tile]:
    """The runs of these tiles of one cohort, in tiles of another width."""
    steps = {tile.runs[0].epochs: tile.steps for tile in tiles}
    return make_tiles(tiles[0].cohort, [run for tile in tiles for run in tile.runs], wide, lambda run: steps[run.epochs])


def dataset_counts(parts: Sequence[Sequence[RunSpec]], wide: int) -> list[int]:
    """The number of datasets of each tile: a power of two if the tile reads no more, else one per run.

    The power minimises the total number of datasets. The tiles of a cohort and length then share at most two programs.
    """
    read = [len({(run.marked("data"), run.options, run.seed) for run in part}) for part in parts]

    def counts(few: int) -> list[int]:
        return [few if count <= few else wide for count in read]

    return min((counts(min(1 << i, wide)) for i in range(wide.bit_length() + 1)), key=sum)
