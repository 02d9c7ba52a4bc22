"""The report of a large study: `python benchmarks/speed/large.py`.

Net A at 50 learning rates with 2,000 seeds each, 25 epochs, every metric and histogram. One tile is trained. The other tiles have
its numbers in another order, with the ids and specs of their runs. Then `relu-study report` derives CSV files, a table, a figure,
verdicts and TensorBoard in a separate process. Writes results/speed/large.csv and .md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import timing

from relu_study import Claim, Experiment, Figure, RunSpec, Study, Table, grid
from relu_study.engine import train_tile
from relu_study.engine.plan import Plan, Tile
from relu_study.runner import run
from relu_study.runner.prepare import Job, begin, prepare
from relu_study.runner.provenance import with_digest

RATES, EPOCHS, POLL = 50, 25, 0.05
GOALS = {"seconds": 180, "gib": 3.0}


def study_of(runs: int) -> Study:
    """Return a study of net A with this many runs."""
    rates = [round(float(rate), 6) for rate in np.geomspace(1e-4, 1e-1, RATES)]
    arms = grid(RunSpec(rows=2000, epochs=EPOCHS, initializer="he_normal"), learning_rate=rates)
    first, *_, last = arms
    return Study(
        "large",
        "A large study",
        "How long does the report take?",
        [Experiment("rates", arms)],
        seeds=runs // RATES,
        claims=[Claim("L1", "The largest rate kills more units.", "dead_fraction", last, first, "greater", 0.05)],
        tables=[Table("rates", "Every rate.", ("rates",), ("val_loss", "dead_fraction"))],
        figures=[Figure("curves", "Every epoch.", "curves", ("rates",), metrics=("val_loss", "dead_fraction"))],
    )


def stored(job: Job[Study, Plan], folder: Path) -> float:
    """Write the tiles of a study. Return the MiB of its raw files."""
    tiles: list[Tile] = list(job.plan.tiles)
    numbers = train_tile.train_tile(list(tiles[0].runs), tiles[0].width, measure_config=job.measure_config)
    of_runs = {name for name, array in numbers.items() if np.ndim(array) and len(array) == len(tiles[0].runs)} - {"epoch"}
    draws = np.random.default_rng(0)
    for tile in tiles:
        rows = draws.integers(len(tiles[0].runs), size=len(tile.runs))
        mixed = {name: array[rows] if name in of_runs else array for name, array in numbers.items()}
        job.kind.save(folder, tile, mixed, job.tile_provenance(tile))
    return sum(path.stat().st_size for path in (folder / "raw").iterdir()) / 2**20


def measured(command: list[str]) -> tuple[float, float]:
    """Return the seconds of a command, and the peak GiB of its process."""
    began, peak = time.perf_counter(), 0
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(POLL)
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - began, peak / 2**30


def line_of(runs: int) -> dict[str, Any]:
    """Return the line of the table for one size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "large"
        job = prepare(study_of(runs), None)
        job = Job(**{**vars(job), "provenance": with_digest(job.provenance)})
        begin(job, folder, print, {"command": "benchmarks/speed/large.py", "preset": "default"})
        mib = stored(job, folder)
        seconds, gib = measured([sys.executable, "-m", "relu_study", "report", str(folder)])
        table_s, _ = measured([sys.executable, "-m", "relu_study", "table", str(folder), "--rows", "learning_rate"])
    figures = {"report_s": seconds, "report_gib": gib, "table_s": table_s, "raw_mib": mib}
    return {"runs": runs, "epochs": EPOCHS, **{name: round(value, 2) for name, value in figures.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=[10_000, 100_000])
    run.use_devices()
    lines = []
    for runs in parser.parse_args().runs:
        goals = {f"goal_{name}": goal if runs == 100_000 else "" for name, goal in GOALS.items()}
        lines.append({**line_of(runs), **goals, **timing.about()})
        print(lines[-1], flush=True)
    timing.write("large", lines)


if __name__ == "__main__":
    main()
