"""How runs become work: cohorts that share a program, cut into tiles of one width. Plain data, no JAX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeVar

from relu_study.study.run_spec import RunSpec
from relu_study.study.shard import Shard

T = TypeVar("T")


class RunCost(NamedTuple):
    """What one run of a spec asks of a machine."""

    cohort: str  # id of the program it shares
    title: str  # the cohort in words
    steps: int  # in the whole run
    flops: int  # of one step
    batch: int
    scratch: int  # bytes a run adds to a program's temporary memory
    data: int  # bytes of the rows that a run reads
    state: int = 0  # bytes of its parameters and all that is kept beside them
    layers: int = 1  # what compiling takes grows with them
    num_measurements: int = 0  # times that it is looked at
    measured_rows: int = 0  # rows that are read each time
    sites: int = 1  # whose units are looked at


class WidthLimits(NamedTuple):
    """Tile widths of a device kind: powers of two in [least, most] whose scratch stays within a budget."""

    least: int
    most: int
    scratch: int  # bytes


# On a CPU the steps of a tile should stay in a core's cache (measured: results/speed). An accelerator wants
# thousands of runs; its rule has not been measured yet.
WIDTH_LIMITS = {"cpu": WidthLimits(2, 32, 4 << 20), "gpu": WidthLimits(2, 4096, 2 << 30), "tpu": WidthLimits(2, 4096, 2 << 30)}


COMPILING = 4.0  # seconds that a cohort's programs take to compile, roughly: what it adds to a shard that has part of it


@dataclass(frozen=True)
class Tile:
    """Up to `width` runs of one cohort and length, trained together on one device."""

    cohort: str
    width: int
    runs: tuple[RunSpec, ...]
    steps: int
    num_datasets: int  # of rows in its program: runs with the same data and seed read the same

    @property
    def size(self) -> int:
        """Its runs."""
        return len(self.runs)


@dataclass(frozen=True)
class Cohort:
    """The runs that share one training program."""

    name: str
    work: RunCost
    width: int
    runs: int
    starts: Counter[Hashable]  # the programs that its tiles begin with, and how many tiles each
    tiles: list[Tile] = field(default_factory=list)
    stored_cost: float = 0.0  # the price of its runs that are stored already

    def bytes(self) -> int:
        """Memory of the largest of its tiles."""
        sets = max((tile.num_datasets for tile in self.tiles), default=self.width)
        return sets * self.work.data + self.width * (self.work.state + self.work.scratch)


@dataclass(frozen=True)
class Plan:
    """Everything that will be trained, before anything is."""

    cohorts: list[Cohort]
    devices: int
    platform: str
    noun: str = "runs"

    @property
    def tiles(self) -> list[Tile]:
        """All tiles, the costliest first, so that devices finish together."""
        costs = [(seconds(t, c.work), t) for c in self.cohorts for t in c.tiles]
        return [tile for _, tile in sorted(costs, key=lambda cost: -cost[0])]

    def compilations(self) -> int:
        """Compilations of the engine's programs to expect, at most, per device: a cohort's own, and once what cohorts share.

        `advance` and `measure`, one for each number of sets, and the optimiser's first state are a cohort's own; `init` and
        `sample` may serve several.
        """
        shared = sum((c.starts for c in self.cohorts), Counter())
        alike = Counter((c.name, tile.num_datasets) for c in self.cohorts for tile in c.tiles)
        own = sum(2 * min(self.devices, tiles) for tiles in alike.values())
        own += sum(min(self.devices, len(c.tiles)) for c in self.cohorts)
        return own + sum(min(self.devices, tiles) for tiles in shared.values())

    def cost(self, tile: Tile) -> float:
        """The cost of a tile beside that of others: seconds on the CPU that it was measured on."""
        return seconds(tile, self.work[tile.cohort])

    @cached_property
    def work(self) -> dict[str, RunCost]:
        """What a run of each cohort asks."""
        return {cohort.name: cohort.work for cohort in self.cohorts}

    def compiling(self, tile: Tile) -> float:
        """What compiling the programs of a tile's cohort costs beside those of others."""
        return float(self.work[tile.cohort].layers)

    def bytes(self) -> int:
        """Peak memory of the tiles in flight: on every device the largest, twice, as one begins while one ends."""
        return 2 * self.devices * max((c.bytes() for c in self.cohorts), default=0)

    def seconds(self) -> float | None:
        """Expected time of training, compiling apart; None on a platform not yet measured."""
        if self.platform != "cpu":
            return None
        return sum(seconds(t, c.work) for c in self.cohorts for t in c.tiles) / self.devices


def seconds(tile: Tile, work: RunCost) -> float:
    """Expected time of a tile on one CPU device, from one Zen 4 core: fixed + per example + arithmetic + per row fetched.

    A row that is looked at takes as long as one that is trained on, a site half a millisecond beside its rows, and a measurement
    some milliseconds to queue.
    """
    fetched = tile.num_datasets * work.batch
    training = tile.steps * (tile.width * (5e-7 + 11e-9 * work.batch + work.flops / 62e9) + 27e-9 * fetched)
    watching = tile.width * (work.measured_rows * (11e-9 + work.flops / work.batch / 62e9) + 5e-4 * work.sites)
    return training + work.num_measurements * (watching + 3e-3)


def width(work: RunCost, runs: int, platform: str) -> int:
    """The tile width of a cohort with at most `runs` of one length, in the one place that decides it."""
    rule = WIDTH_LIMITS.get(platform, WIDTH_LIMITS["cpu"])
    wide = rule.least
    while wide * 2 <= rule.most and wide * 2 * work.scratch <= rule.scratch and wide < runs:
        wide *= 2
    return wide


def shard_tiles(work: Iterable[tuple[T, str, float]], shard: Shard) -> list[T]:
    """The tiles of one shard, of all with their cohorts and seconds: neighbours in the order given, which is cohort by cohort.

    All shards take about as long, compiling counted, to within a tile. Dealt out in turn they would be as even, but every shard
    would compile every cohort: of neighbours, N shards compile N - 1 cohorts more than one process does, at most.
    """
    work, compiled = list(work), set[str]()
    costs = []
    for _, cohort, cost in work:
        costs.append(cost + (0 if cohort in compiled else COMPILING))
        compiled.add(cohort)
    total, before, mine = sum(costs), 0.0, []
    for (tile, _, _), cost in zip(work, costs, strict=True):
        if min(int((before + cost / 2) / total * shard.of), shard.of - 1) == shard.number - 1:
            mine.append(tile)
        before += cost
    return mine


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
    """Cut `runs` into tiles. Widths chosen before are kept; only the `missing` runs become work.

    The `stored` ones, by default all others, are what is paid: a shard's others may be neither.
    `starts` names the programs that a run begins with; tiles of different width or number of sets never share one.
    Within a cohort, runs are ordered by length, data, seed and start: a tile reads as few sets of rows as it can, and a sweep
    that is stopped has about as many seeds of one configuration as of another on the same data.
    """
    groups: dict[str, list[RunSpec]] = {}
    for run in runs:
        groups.setdefault(work(run).cohort, []).append(run)
    cohorts = []
    for name, members in groups.items():
        asked = work(members[0])
        wide = widths.get(name) or width(asked, max(Counter(run.epochs for run in members).values()), platform)
        todo = [run for run in members if missing(run)]
        rank: dict[object, int] = {}

        def place(run: RunSpec, rank: dict[object, int] = rank) -> tuple[int, ...]:
            length, data, start, config = (
                rank.setdefault(key, len(rank)) for key in (run.epochs, run.marked("data"), run.marked("init"), run.config_id)
            )
            return length, data, run.seed, start, config

        tiles, had = (
            make_tiles(name, sorted(some, key=place), wide, lambda run: work(run).steps)
            for some in (todo, [run for run in members if (stored(run) if stored else not missing(run))])
        )
        begun: Counter[Hashable] = Counter(
            (wide, tile.num_datasets, key) for tile in tiles for key in {key for run in tile.runs for key in starts(run)}
        )
        paid = sum(seconds(tile, asked) * tile.size / wide for tile in had)
        cohorts.append(Cohort(name, asked, wide, len(todo), begun, tiles, paid))
    return Plan(cohorts, devices, platform)


def make_tiles(cohort: str, runs: Iterable[RunSpec], wide: int, steps: Callable[[RunSpec], int]) -> list[Tile]:
    """Tiles of runs of one cohort, `wide` of one length in each, in the order given."""
    tiles = []
    by_length: dict[float, list[RunSpec]] = {}
    for run in runs:
        by_length.setdefault(run.epochs, []).append(run)
    for same in by_length.values():
        parts = [tuple(same[i : i + wide]) for i in range(0, len(same), wide)]
        tiles += [
            Tile(cohort, wide, shard_tiles, steps(shard_tiles[0]), sets)
            for shard_tiles, sets in zip(parts, dataset_counts(parts, wide), strict=True)
        ]
    return tiles


def halve_width(tiles: Sequence[Tile], platform: str) -> list[Tile] | None:
    """The runs of a cohort's tiles in tiles of half their width; None where these are the narrowest of a platform."""
    wide = tiles[0].width // 2
    if wide < WIDTH_LIMITS.get(platform, WIDTH_LIMITS["cpu"]).least:
        return None
    steps = {tile.runs[0].epochs: tile.steps for tile in tiles}
    return make_tiles(tiles[0].cohort, [run for tile in tiles for run in tile.runs], wide, lambda run: steps[run.epochs])


def dataset_counts(parts: Sequence[Sequence[RunSpec]], wide: int) -> list[int]:
    """How many sets of rows each tile holds: a power of two for those that read no more, one set a run for all others.

    The power is the one with the fewest sets in all; so the tiles of a cohort and length share two programs at most.
    """
    read = [len({(run.marked("data"), run.seed) for run in shard_tiles}) for shard_tiles in parts]

    def held(few: int) -> list[int]:
        return [few if count <= few else wide for count in read]

    return min((held(min(1 << i, wide)) for i in range(wide.bit_length() + 1)), key=sum)
