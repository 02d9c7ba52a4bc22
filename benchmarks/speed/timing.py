"""What the speed scripts share: the nets, interleaved repeats, a whole machine kept busy, tables and pictures."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from relu_study import RunSpec, Signature, Task, task
from relu_study.engine import places, train_tile
from relu_study.engine.state import MeasureConfig

RESULTS = Path(__file__).resolve().parents[2] / "results" / "speed"
ROWS, VALIDATION = 140_000, 8192
K, T = TypeVar("K"), TypeVar("T")
INPUTS, OUTPUTS = 64, 10


@task("wide")
def wide(spec: RunSpec) -> Task:
    """Net C's data: ten smooth functions of sixty-four normal inputs, drawn anew for each seed."""

    def sample(key: jax.Array, phase: int) -> tuple[jax.Array, jax.Array]:
        first, second = jax.random.split(key)
        x = jax.random.normal(first, (spec.rows, INPUTS))
        return x, jnp.sin(x @ jax.random.normal(second, (INPUTS, OUTPUTS)) / INPUTS**0.5)

    return Task(Signature(spec.rows - VALIDATION, VALIDATION, d_in=INPUTS, d_out=OUTPUTS), sample)


NETS = {
    "A 4-32-1": RunSpec(initializer="he_normal"),
    "B 4-32-32-32-1": RunSpec(initializer="he_normal", depth=3),
    "C 64-128-128-10": RunSpec(initializer="he_normal", depth=2, width=128, task="wide", rows=ROWS + VALIDATION),
}


def busy(spec: RunSpec, width: int, measure_config: MeasureConfig = MeasureConfig(), probe: bool = True) -> float:
    """Seconds for one tile at every place at once, seeds counting through."""

    def train(place: int, device: jax.Device) -> None:
        runs = [spec.replace(seed=place * width + i) for i in range(width)]
        train_tile.train_tile(runs, width, device, measure_config, probe=probe)

    return in_threads(train)


def in_threads(work: Callable[[int, jax.Device], Any]) -> float:
    """Seconds for a piece of work that a thread does at each place of a study, until all results are computed."""
    devices = places.places()
    began = time.perf_counter()
    with ThreadPoolExecutor(len(devices)) as pool:
        jax.block_until_ready(list(pool.map(work, range(len(devices)), devices)))  # what a thread raises is raised here
    return time.perf_counter() - began


def interleaved(measurements: Mapping[K, Callable[[], T]], repeats: int, warm: bool = True) -> dict[K, list[T]]:
    """Each measurement `repeats` times, one after the other in turn, so that a slow minute is everybody's; and one to warm up."""
    for measure in measurements.values() if warm else ():
        measure()
    taken: dict[K, list[T]] = {name: [] for name in measurements}
    for _ in range(repeats):
        for name, measure in measurements.items():
            taken[name].append(measure())
    return taken


def ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and most of the ratios of two series that were measured in turn."""
    each = [a / b for a, b in zip(above, below, strict=True)]
    return statistics.median(each), min(each), max(each)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def about() -> dict[str, Any]:
    """When, where and with what something was measured, as columns."""
    script = Path(sys.argv[0])
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor(),
        "cores": cores(),
        "python": platform.python_version(),
        "jax": importlib.metadata.version("jax"),
        "command": " ".join([f"python benchmarks/speed/{script.name}", *sys.argv[1:]]),
    }


def write(name: str, rows: Sequence[Mapping[str, Any]], folder: Path = RESULTS) -> None:
    """Write results/speed/NAME.csv, and NAME.md without the columns that say the same in every row."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(rows[0])
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    shared = [column for column in about() if len({str(row[column]) for row in rows}) == 1]
    shown = [column for column in columns if column not in shared]
    lines = ["| " + " | ".join(shown) + " |", "|" + "---|" * len(shown)]
    lines += ["| " + " | ".join(str(row[column]) for column in shown) + " |" for row in rows]
    lines += ["", "; ".join(f"{column}: {rows[0][column]}" for column in shared) + "."]
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")


def save(name: str, figure: Figure, folder: Path = RESULTS) -> None:
    """Write results/speed/NAME.png and .svg."""
    figure.savefig(folder / f"{name}.png", dpi=160)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
