"""Throughput of a Ray cluster on this machine, and of a simulated large one: `python benchmarks/speed/cluster.py`.

1. Efficiency: the same study in this process and at 1, 2 and 4 workers on the same cores, in turn. Only the steady state
   counts: programs are compiled, and the first and last tiles are left out. Goal: 95 % of the local runs per second.
   Raw files, CSV files and tables must have the same bytes in all of them; otherwise the script fails.
2. Driver: its CPU seconds per tile, by megabytes of a tile, with a worker that answers at once. It does all of a real run:
   scheduling, files, findings. Only TensorBoard is left out, which takes at most 3 % of a run. Next to it an empty call,
   the size of tiles of real studies, and the scheduler at many places that wait instead of training.
3. Simulation: a queue model of up to 4,000 places with these constants. `cluster_queue.py` lists its assumptions.

`--quick` is small and needs `--out`. The column `load` is the load average of the minute before the start. Writes
results/speed/cluster.csv and .md, and a picture.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cluster_driver
import jax
import matplotlib.pyplot as plt
import numpy as np
import timing
from cluster_driver import RATES, Cost, median_ms
from cluster_queue import Constants, Outcome, line_through, simulate

from relu_study import Experiment, Study, grid
from relu_study.engine import compilation
from relu_study.engine.jax_settings import pinned
from relu_study.engine.state import MeasureConfig
from relu_study.report.report import derive
from relu_study.runner import cluster, execute, run
from relu_study.runner.callback import Callback
from relu_study.runner.cluster_address import check_cluster
from relu_study.runner.prepare import Job, prepare
from relu_study.runner.provenance import with_digest
from relu_study.runner.remote_places import RemotePlaces

GOAL = 0.95  # of the local throughput
WORKERS = (1, 2, 4)
STUDIES = ("article",)
BENCHMARKS = Path(__file__).resolve().parents[1]
MANY = 1000  # places of the simulation of wide tiles


class Size(NamedTuple):
    """The size of all measurements."""

    repeats: int
    epochs: int  # of a run of the efficiency
    tiles: int  # of a study of the efficiency
    lengths: tuple[int, ...]  # epochs of the tiles whose cost is measured
    costed: int  # tiles of each cost
    scheduled: tuple[int, ...]  # places of the scheduler
    window: float  # seconds of the scheduler
    simulated: tuple[int, ...]  # places of the simulation
    studies: tuple[str, ...]


FULL = Size(5, 5, 32, (2, 8, 32, 128), 24, (2, 10, 100, 1000), 3.0, (1, 3, 10, 30, 100, 300, 1000, 2000, 4000), STUDIES)
QUICK = Size(1, 1, 16, (1, 4), 10, (2, 50), 0.5, (1, 10, 100), STUDIES[:1])


# --------------------------------------------------------------------------------------- efficiency


class Ends(Callback):
    """The times at which tiles are stored."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_tile_end(self, *_: Any) -> None:
        self.times.append(time.perf_counter())


def study_of(epochs: int, tiles: int) -> Study:
    """A study of one cohort, in full tiles."""
    base = timing.NETS["A 4-32-1"].replace(rows=20_000, epochs=epochs)
    arms = grid(base, learning_rate=RATES)
    return Study("cluster", "Cluster", "What does a cluster cost?", [Experiment("main", arms)], seeds=tiles * 32 // len(RATES))


def trained(folder: Path, study: Study, places: RemotePlaces | None) -> float:
    """Seconds per tile in the steady state of a study, by least squares. Its results stay in the folder."""
    ends = Ends()
    with pinned():
        job: Job[Any, Any] = prepare(study, folder, MeasureConfig(), machine=None if places is None else places.machine)
        job = replace(job, provenance=with_digest(job.provenance, job.machine.digest))
        written = execute.run_tiles(job, folder, ends, cluster_driver.ABOUT, places=places)
        derive(folder, False, False, written)
    skipped = min(3 * timing.cores(), len(ends.times) // 4)
    steady = ends.times[skipped : len(ends.times) - skipped]
    return float(np.polyfit(range(len(steady)), steady, 1)[0])


def contents(folder: Path) -> dict[str, bytes]:
    """Raw files, CSV files and tables of a results folder."""
    paths = [path for pattern in ("raw/*", "*.csv", "tables/*") for path in folder.glob(pattern)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def compared(folder: Path, first: Path) -> None:
    """End the script if two results folders differ in a byte."""
    one, other = contents(folder), contents(first)
    if not any(name.startswith("raw/") for name in other) or one != other:
        names = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
        raise SystemExit(f"cluster.py: {folder.name} and {first.name} differ in {', '.join(names[:5]) or 'all: no raw files'}")


def efficiency(size: Size, scratch: Path) -> list[dict[str, Any]]:
    """Rows of each number of workers next to runs in this process, in turn."""
    study, rows, first = study_of(size.epochs, size.tiles), [], scratch / "local first"
    short = study_of(size.epochs, max(4 * timing.cores(), 8))
    trained(scratch / "short", short, None)
    trained(first, study, None)
    for workers in WORKERS:
        if workers > timing.cores():
            about = f"not measured: {workers} workers need {workers} cores, and this machine has {timing.cores()}"
            rows += show([row("efficiency", counted(workers, "worker"), "throughput over local", None, "ratio", note=about)])
            continue
        series: dict[str, list[float]] = {"local": [], "cluster": []}
        with cluster.connected("ray:local", study, workers, print) as connected, cluster_driver.reusable(connected) as places:
            trained(scratch / f"short {workers}", short, places)
            for repeat in range(size.repeats):
                for name, at in (("local", None), ("cluster", places)):
                    folder = scratch / f"{name} {workers} {repeat}"
                    series[name].append(trained(folder, study, at))
                    compared(folder, first)
        case = f"{counted(workers, 'worker')}, {counted(timing.cores() // workers, 'place')} each"
        about = f"{size.tiles} tiles of 32 runs; equal bytes in {len(contents(first))} files of each run"
        ratio = timing.ratio(series["local"], series["cluster"])
        rows += show([row("efficiency", case, "throughput over local", ratio, "ratio", size.repeats, GOAL, about)])
        for name, seconds in series.items():
            rows += show([row("efficiency", case, f"{name}: tiles", spread([1 / s for s in seconds]), "1/s", size.repeats)])
    return rows


# ------------------------------------------------------------------------------------------- driver


def driver_rows(taken: Sequence[Cost], empty: Sequence[float], size: Size) -> list[dict[str, Any]]:
    """Rows of the cost of a tile by size, of its parts, and of an empty call."""
    rows = [row("driver", "an empty call", "round trip", spread([1e3 * s for s in empty], 0.05), "ms", len(empty))]
    names = {"total": "all", "transport": "call of the worker", "save": "storage", "wall": "elapsed, workers that answer at once"}
    for mb in sorted({cost.mb for cost in taken}):
        alike = [cost for cost in taken if cost.mb == mb]
        for name, what in names.items():
            values = [1e3 * getattr(cost, name) for cost in alike]
            rows.append(row("driver", f"a tile of {mb:.2f} MB", what, spread(values), "ms", size.repeats))
    for name in ("total", "transport", "save"):
        fixed, slope = line_through([cost.mb for cost in taken], [getattr(cost, name) for cost in taken])
        rows.append(row("driver", "fit over sizes", f"{names[name]}: a tile", [1e3 * fixed] * 3, "ms", len(taken)))
        rows.append(row("driver", "fit over sizes", f"{names[name]}: a MB", [1e3 * slope] * 3, "ms", len(taken)))
    return rows


def constants(taken: Sequence[Cost], empty: Sequence[float], scheduler: dict[int, float]) -> Constants:
    """The constants of the simulation."""
    mbs, parts = [cost.mb for cost in taken], [(cost.transport, max(cost.total - cost.transport, 1e-9)) for cost in taken]
    call, rest = (line_through(mbs, [part[i] for part in parts]) for i in (0, 1))
    return Constants(call, rest, scheduler, median_ms(empty) / 2e3)


# --------------------------------------------------------------------------------------- simulation


def simulated(constants: Constants, size: Size, mb: float) -> tuple[list[dict[str, Any]], dict[float, list[Outcome]]]:
    """Efficiency against places and seconds of a tile, and the rate at which the driver saturates."""
    rows, outcomes = [], {}
    for seconds in (1.0, 10.0, 100.0):
        found = [(places, simulate(places, seconds, constants.driver(mb, places))) for places in size.simulated]
        outcomes[seconds] = [outcome for _, outcome in found]
        case = f"tiles of {seconds:g} s and {mb:.2f} MB"
        for places, outcome in found:
            about = f"{outcome.rate:.4g} tiles per second"
            rows.append(
                row("simulation", f"{case}, {counted(places, 'place')}", "efficiency", [outcome.efficiency] * 3, "", note=about)
            )
        enough = [places for places, outcome in found if outcome.efficiency >= GOAL]
        rows.append(row("simulation", case, f"most simulated places at {GOAL:.0%}", [max(enough, default=0)] * 3, "places"))
    for places in size.simulated:
        rate = constants.driver(mb, places).capacity
        rows.append(
            row("simulation", f"{counted(places, 'place')}, {mb:.2f} MB", "tiles of a saturated driver", [rate] * 3, "1/s")
        )
    return rows, outcomes


def wide(constants: Constants, size: Size, run_mb: float) -> tuple[list[dict[str, Any]], dict[float, list[tuple[int, float]]]]:
    """Efficiency of many places against the width of tiles, by seconds of a run at a place."""
    rows, curves = [], {}
    places = min(MANY, max(size.simulated))
    for seconds in (0.01, 0.1, 1.0):
        curves[seconds] = []
        for width in (2, 8, 32, 128, 512, 2048, 4096):
            driver = constants.driver(width * run_mb, places)
            outcome = simulate(places, width * seconds, driver)
            curves[seconds].append((width, outcome.efficiency))
            case = f"{counted(places, 'place')}, {width} runs of {seconds:g} s and {1e3 * run_mb:.3g} kB a tile"
            about = f"{width * outcome.rate:.4g} runs per second, at most {width * driver.capacity:.4g}"
            rows.append(row("simulation", case, "efficiency", [outcome.efficiency] * 3, "", note=about))
    return rows, curves


# -------------------------------------------------------------------------------------------- table


def counted(number: int, noun: str) -> str:
    """A number and a noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def spread(values: Sequence[float], tail: float = 0.0) -> tuple[float, float, float]:
    """Median, and least and most without a share of the values at both ends."""
    least, most = np.quantile(values, [tail, 1 - tail])
    return statistics.median(values), float(least), float(most)


def row(
    part: str,
    case: str,
    quantity: str,
    values: Sequence[float] | None,
    unit: str,
    repeats: int = 1,
    goal: float | None = None,
    note: str = "",
) -> dict[str, Any]:
    """A row of the table: median, least and most."""
    value, least, most = ("", "", "") if values is None else (f"{number:.4g}" for number in values)
    return {
        **{"part": part, "case": case, "quantity": quantity, "value": value, "least": least, "most": most, "unit": unit},
        **{"repeats": 0 if values is None else repeats, "goal": "" if goal is None else goal, "note": note},
    }


def picture(taken: Sequence[Cost], size: Size, outcomes: dict[float, list[Outcome]], curves: dict[float, Any]) -> plt.Figure:
    """The driver's cost by megabytes, and the simulated efficiency against places and against the width of tiles."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
    colours = ("#0072B2", "#D55E00", "#009E73")
    for name, label, colour in zip(
        ("total", "save", "transport"), ("all", "storage", "call of the worker"), colours, strict=True
    ):
        left.plot([cost.mb for cost in taken], [1e3 * getattr(cost, name) for cost in taken], "o", color=colour, label=label)
    left.set(xlabel="MB of a tile", ylabel="CPU ms of the driver", xscale="log", yscale="log")
    left.legend(frameon=False, fontsize="small")
    for (seconds, found), colour in zip(outcomes.items(), colours, strict=True):
        middle.plot(size.simulated, [one.efficiency for one in found], "o-", color=colour, label=f"tiles of {seconds:g} s")
    middle.set(xlabel="places", ylabel="simulated efficiency", xscale="log", ylim=(0, 1.05))
    for (seconds, found), colour in zip(curves.items(), colours, strict=True):
        right.plot(*zip(*found, strict=True), "o-", color=colour, label=f"runs of {seconds:g} s")
    right.set(xlabel="runs of a tile", xscale="log", ylim=(0, 1.05), title=counted(min(MANY, max(size.simulated)), "place"))
    for panel in (middle, right):
        panel.axhline(GOAL, color="0.8", zorder=0)
        panel.legend(frameon=False, fontsize="small")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes; give --out")
    parser.add_argument("--out", type=Path, default=timing.RESULTS)
    parser.add_argument("--repeats", type=int, help="of each measurement")
    asked = parser.parse_args()
    if asked.quick and asked.out == timing.RESULTS:
        parser.error("--quick does not replace the committed table. Give --out")
    size, (load, *_) = QUICK if asked.quick else FULL, os.getloadavg()
    size = size._replace(repeats=asked.repeats or size.repeats)
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    run.use_devices()
    compilation.evict = lambda key: None  # runs in this process keep their programs, as those of the workers do
    with tempfile.TemporaryDirectory() as scratch, cluster._ray(check_cluster("ray:local")):  # one cluster for all workers
        rows = efficiency(size, Path(scratch))
        taken, empty = cluster_driver.costs(size.lengths, size.costed, size.repeats, print)
    rows += show(driver_rows(taken, empty, size))
    tiles = {name: cluster_driver.study_tile(BENCHMARKS / f"{name}.py") for name in size.studies}
    for name, (runs, epochs, mb) in tiles.items():
        about = f"{runs} runs, {epochs} measurements"
        rows += show([row("driver", f"study {name}", "the largest tile", [mb] * 3, "MB", note=about)])
    scheduler = {count: cluster_driver.scheduling(count, size.window) for count in size.scheduled}
    for count, seconds in scheduler.items():
        rows += show([row("driver", counted(count, "place"), "scheduler: a tile", [1e3 * seconds] * 3, "ms")])
    runs, _, mb = tiles["article"]
    measured = constants(taken, empty, scheduler)
    more, outcomes = simulated(measured, size, mb)
    wider, curves = wide(measured, size, mb / runs)
    rows += show(more + wider)
    about = {"load": f"{load:.1f}", **timing.about()}
    timing.write("cluster", [{**line, **about} for line in rows], asked.out)
    timing.save("cluster", picture(taken, size, outcomes, curves), asked.out)


def show(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print rows as they are measured, and return them."""
    for line in rows:
        print(*[value for value in line.values() if value != ""], sep="  ", flush=True)
    return rows


if __name__ == "__main__":
    main()
