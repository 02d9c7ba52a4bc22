"""Does anything grow in a long sweep? `python benchmarks/speed/soak.py`.

About 20,000 runs of net A in one process: six lengths, an epoch apart and one after the other, 32 configurations of each, so
that these become complete and are shown in TensorBoard all along. Training is as long as it must be for the sweep to last
`--minutes` on this machine: the time of a tile is measured beforehand at two lengths. With less than 30 minutes there are fewer
runs in proportion, of the same length. Every few seconds: resident memory, open descriptors, threads, runs done. The longest runs
come first: by that alone the last fifth is a little faster, by 1 % where runs take some 400 epochs.

Goals, all after the first minute: memory ranges over at most 5 %; no more descriptors nor threads at the end than at the
beginning; as many runs a second in the last fifth as in the first, within 10 %. Ends with status 1 where one is missed.
Writes results/speed/soak.csv and .md, and a picture.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import timing
from samples import FIRST_MINUTE, Sample, Sampler, judged

from relu_study import Experiment, Study, grid
from relu_study.engine import train_tile
from relu_study.engine.plan import Tile
from relu_study.engine.state import MeasureConfig
from relu_study.runner import execute, run
from relu_study.runner.callback import Callback
from relu_study.runner.prepare import prepare

RUNS, MINUTES = 20_000, 30.0
MEASURED = 8  # epochs of a run that are measured after its beginning
BASE = timing.NETS["A 4-32-1"].replace(rows=20_000)
LENGTHS = 6
KNOBS = {"learning_rate": [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2], "gain": [0.5, 1.0, 1.5, 2.0]}
ABOUT = {"command": "python benchmarks/speed/soak.py", "preset": "default"}


class Done(Callback):
    """Counts the runs that are stored."""

    runs = 0

    def on_tile_end(self, tile: Tile, *_: Any) -> None:
        self.runs += tile.size


def sweep(minutes: float, every: int) -> Study:
    """The study that is to last so long, if its runs of 8 times `every` epochs take as long as they should."""
    arms = grid(BASE, epochs=[MEASURED * every - i for i in range(LENGTHS)], **KNOBS)
    seeds = math.ceil(RUNS * min(minutes, MINUTES) / MINUTES / len(arms))
    return Study("soak", "Soak", "Does anything grow?", [Experiment("main", arms)], seeds=seeds, every=every)


def length(minutes: float) -> int:
    """Epochs between two measurements with which RUNS runs take `MINUTES`, or `minutes` if they are more.

    A process of its own finds it, so that nothing is left of it in the memory of the sweep.
    """
    words = [sys.executable, __file__, "--minutes", str(minutes), "--length"]
    return int(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def measured_length(minutes: float) -> int:
    """The same, found in this process."""
    (width,) = prepare(sweep(MINUTES, 1), None, MeasureConfig()).widths.values()
    asked = 60 * max(minutes, MINUTES) * len(jax.devices()) * width / RUNS
    short, long = (tile_seconds(width, every) for every in (1, 11))
    return max(1, round(1 + 10 * (asked - short) / (long - short)))


def tile_seconds(width: int, every: int) -> float:
    """Seconds of a tile at every place at once, compiled before: its runs share their rows, as those of the sweep do."""
    spec, measure_config = BASE.replace(epochs=MEASURED * every), MeasureConfig(measure_every=every)

    def one(place: int, device: jax.Device) -> Any:
        return train_tile.train_tile([spec.replace(seed=place)] * width, width, device, measure_config, num_datasets=1)

    return min(timing.interleaved({every: lambda: timing.in_threads(one)}, 2)[every])


def soaked(study: Study, seconds: float) -> list[Sample]:
    """Carry a study out, looked at every so many seconds."""
    done = Done()
    with tempfile.TemporaryDirectory() as scratch, Sampler(lambda: done.runs, seconds) as sampler:
        job = prepare(study, Path(scratch) / "soak", MeasureConfig())
        execute.run_tiles(job, Path(scratch) / "soak", done, command_info=ABOUT)
    return sampler.samples


def picture(samples: Sequence[Sample]) -> plt.Figure:
    """Memory, descriptors and threads, and runs done against time."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
    minutes = [s.seconds / 60 for s in samples]
    left.plot(minutes, [s.mib for s in samples], color="#0072B2")
    left.set(ylabel="resident memory, MiB", ylim=(0, None))
    middle.plot(minutes, [s.descriptors for s in samples], color="#D55E00", label="descriptors")
    middle.plot(minutes, [s.threads for s in samples], "--", color="#009E73", label="threads")
    middle.set(ylim=(0, None))
    middle.legend(frameon=False, fontsize="small")
    right.plot(minutes, [s.runs for s in samples], color="#0072B2")
    right.set(ylabel="runs done")
    for panel in (left, middle, right):
        panel.set_xlabel("minutes")
        panel.axvline(FIRST_MINUTE / 60, color="0.8", zorder=0)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two samples")
    parser.add_argument("--out", type=Path, default=timing.RESULTS)
    parser.add_argument("--length", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    run.use_devices()
    if asked.length:
        print(measured_length(asked.minutes))
        return
    study = sweep(asked.minutes, length(asked.minutes))
    total = len(study.runs())
    print(f"{total:,} runs of up to {MEASURED * study.every} epochs", flush=True)
    samples = soaked(study, asked.every)
    rows = [{**row, "runs": total, "minutes": round(samples[-1].seconds / 60, 1)} for row in judged(samples, total)]
    for row in rows:
        print(*row.values(), sep="  ", flush=True)
    timing.write("soak", [{**row, **timing.about()} for row in rows], asked.out)
    timing.save("soak", picture(samples), asked.out)
    raise SystemExit(any(row["held"] == "no" for row in rows))


if __name__ == "__main__":
    main()
