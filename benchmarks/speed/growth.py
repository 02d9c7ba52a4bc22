"""What a study costs as it grows: `python benchmarks/speed/growth.py`.

Whole studies from their preparation to their last file, everything watched, each in a process of its own that has compiled its
programs beforehand on a study of one tile a device. Rows are training and validation together, 70 % and 30 %:

- runs: net A at eight learning rates and so many seeds that there are 64 to 8,192 runs; 20,000 rows, 5 epochs;
- devices: 1,024 of these runs on one device and on all;
- rows: 64 runs of one epoch on 2,000 to 2,000,000 rows;
- throughput: 64 runs of nets A and B on 200,000 rows for 5 epochs, beside the same training with nothing watched or written.

Repeats go round by round, so that a slow minute is everybody's; all but the first series has half as many. Writes
results/speed/growth.csv and .md, and a picture.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
import timing

from relu_study import Experiment, RunSpec, Study, grid
from relu_study.engine import compilation, train_tile
from relu_study.engine.state import MeasureConfig
from relu_study.report.report import report
from relu_study.runner import execute
from relu_study.runner.callback import Callback
from relu_study.runner.prepare import prepare
from relu_study.storage import manifest

ABOUT = {"command": "python benchmarks/speed/growth.py", "preset": "default"}
RATES = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2]
NET_A = "A 4-32-1"
COLUMNS = ("train_s", "report_s", "bare_s", "peak_mib", "files", "mib")


class Case(NamedTuple):
    """One study: what grows in it, its net and size, and on how many devices; `bare` trains it unwatched too."""

    what: str
    net: str
    runs: int
    rows: int
    epochs: int
    devices: int
    bare: bool = False

    def study(self, seeds: int) -> Study:
        base = timing.NETS[self.net].replace(rows=self.rows, epochs=self.epochs)
        return Study("growth", "Growth", "What does it cost?", [Experiment("main", grid(base, learning_rate=RATES))], seeds=seeds)


def cases(most: int) -> list[Case]:
    """All studies, none of more than `most` runs."""
    devices = timing.cores()
    sizes = [runs for runs in (64, 256, 1024, 4096, 8192) if runs <= most]
    found = [Case("runs", NET_A, runs, 20_000, 5, devices) for runs in sizes]
    found += [Case("devices", NET_A, min(1024, most), 20_000, 5, count) for count in sorted({1, devices})]
    found += [Case("rows", NET_A, 64, rows, 1, devices) for rows in (2_000, 20_000, 200_000, 2_000_000)]
    return found + [Case("throughput", net, 64, 200_000, 5, devices, bare=True) for net in list(timing.NETS)[:2]]


def carried_out(case: Case) -> dict[str, Any]:
    """Carry out a study in this process and say what it took."""
    jax.config.update("jax_num_cpu_devices", case.devices)
    jax.config.update("jax_enable_compilation_cache", False)
    compilation.evict = lambda key: (
        None
    )  # a study's end lets go of its programs; the one that is timed is to find those before it
    measure_config, callback, seeds = MeasureConfig(), Callback(), case.runs // len(RATES)
    took = dict.fromkeys(COLUMNS, 0.0)
    with tempfile.TemporaryDirectory() as scratch:
        # Short trainings of the same programs: a tile a device, with as many sets of rows as later.
        few = case._replace(epochs=1).study(min(seeds, 32 * case.devices // len(RATES)))
        execute.execute(few, Path(scratch) / "few", measure_config, callback, ABOUT)
        folder = Path(scratch) / "all"
        began = time.perf_counter()
        job = prepare(case.study(seeds), folder, measure_config)
        execute.run_tiles(job, folder, callback, command_info=ABOUT)
        trained = time.perf_counter()
        report(folder)
        if (compiling := manifest.read_manifest(folder)["timing"]["compile_s"]) > 0.1 * (trained - began):
            raise SystemExit(f"growth.py: {compiling:.1f} s of what is timed went into compiling")
        took |= {"train_s": trained - began, "report_s": time.perf_counter() - trained}
        written = [path for path in folder.rglob("*") if path.is_file()]
        took |= {"files": len(written), "mib": sum(path.stat().st_size for path in written) / 2**20}
        took["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if case.bare:
            took["bare_s"] = bare(job.plan)
    return {name: round(value, 3) for name, value in took.items()}


def bare(plan: Any) -> float:
    """Seconds that the tiles of a plan take where no epoch is measured and nothing is written."""

    def work(place: int, device: jax.Device) -> Any:
        trained = []
        for tile in plan.tiles[place :: len(jax.devices())]:
            begun = train_tile.init_tile(list(tile.runs), device, MeasureConfig(), tile.num_datasets)
            state, programs = begun.state, compilation.tile_programs(tile.runs[0])
            per_epoch = tile.steps // int(tile.runs[0].epochs)
            for epoch in range(1, int(tile.runs[0].epochs) + 1):
                at = [np.int32(i) for i in (epoch, 0, per_epoch)]  # as the engine does: on a device they are other programs
                state = programs.advance(state, begun.data.train, begun.seeds, begun.hparams, *at, begun.source)
            trained.append(state.params)
        return trained

    return timing.in_threads(work)


def in_a_process(case: Case) -> dict[str, Any]:
    """The same in a process of its own."""
    words = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def line(case: Case, took: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table: medians over the repeats."""
    middle = {name: statistics.median(t[name] for t in took) for name in COLUMNS}
    whole = [t["train_s"] + t["report_s"] for t in took]
    steps = case.epochs * -(-(case.rows * 7 // 10) // RunSpec().batch_size)
    share = [t["bare_s"] / (t["train_s"] + t["report_s"]) for t in took]
    return {
        **dict(list(case._asdict().items())[:-1]),
        "ms_a_run": round(1e3 * statistics.median(whole) / case.runs, 3),
        "least": round(1e3 * min(whole) / case.runs, 3),
        "most": round(1e3 * max(whole) / case.runs, 3),
        "trained_ms_a_run": round(1e3 * middle["train_s"] / case.runs, 3),
        "us_a_step": round(1e6 * middle["train_s"] * case.devices / case.runs / steps, 2),
        "report_s": round(middle["report_s"], 2),
        "peak_mib": round(middle["peak_mib"]),
        "files": round(middle["files"]),
        "mib": round(middle["mib"], 2),
        "share_of_bare_training": round(statistics.median(share), 3) if case.bare else "",
        "repeats": len(took),
        **timing.about(),
    }


def picture(rows: list[dict[str, Any]]) -> plt.Figure:
    """Time a run and memory against the number of runs, and time a step against rows."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
    grown = [row for row in rows if row["what"] == "runs"]
    counts = [row["runs"] for row in grown]
    left.plot(counts, [row["ms_a_run"] for row in grown], "o-", color="#0072B2", label="whole study")
    left.plot(counts, [row["trained_ms_a_run"] for row in grown], "s--", color="#D55E00", label="trained, watched and stored")
    left.fill_between(counts, [row["least"] for row in grown], [row["most"] for row in grown], alpha=0.2, color="#0072B2")
    left.set(xlabel="runs", ylabel="ms a run", ylim=(0, None))
    left.legend(frameon=False, fontsize="small")
    middle.plot(counts, [row["peak_mib"] for row in grown], "o-", color="#0072B2")
    middle.set(xlabel="runs", ylabel="peak memory, MiB", ylim=(0, 1.2 * max(row["peak_mib"] for row in grown)))
    longer = [row for row in rows if row["what"] == "rows"]
    right.plot([row["rows"] for row in longer], [row["us_a_step"] for row in longer], "o-", color="#009E73")
    right.set(xlabel="rows", ylabel="us a run and step, a device", yscale="log")
    for panel in (left, middle, right):
        panel.set_xscale("log")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--most", type=int, default=8192, help="runs in the largest study")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(carried_out(Case(*json.loads(asked.case)))))
        return
    taken: dict[Case, list[dict[str, Any]]] = {}
    for grown in (True, False):  # what the goal is about is repeated as often as asked, the rest half as often
        works = {case: lambda case=case: in_a_process(case) for case in cases(asked.most) if (case.what == "runs") == grown}
        taken |= timing.interleaved(works, asked.repeats if grown else -(-asked.repeats // 2), warm=False)
    rows = [line(case, took) for case, took in taken.items()]
    for row in rows:
        print(*list(row.values())[:16], sep="  ", flush=True)
    timing.write("growth", rows)
    timing.save("growth", picture(rows))


if __name__ == "__main__":
    main()
